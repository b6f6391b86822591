"""What a stage keeps in memory for speed: choices that change its memory and not one bit of its result."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Placement:
    """What a stage keeps in memory for speed.  The result is the same whatever is chosen."""

    hidden_in_memory: bool  # hidden states of all texts, else in an unnamed file
    prefetch: bool  # the next layer is read while one computes, else one layer at a time
    window_resident: bool  # all layers of the window stay, else they pass one at a time, forwards and backwards
    head_resident: bool  # of a language model: all rows stay, else they are read in chunks
    adapters_in_memory: bool = True  # and their moments, else those of one layer, the others in an unnamed file


# Fastest first.
PLACEMENTS = (
    Placement(hidden_in_memory=True, prefetch=True, window_resident=True, head_resident=True),
    Placement(hidden_in_memory=True, prefetch=True, window_resident=True, head_resident=False),
    Placement(hidden_in_memory=False, prefetch=True, window_resident=True, head_resident=False),
    Placement(hidden_in_memory=False, prefetch=False, window_resident=True, head_resident=False),
    Placement(hidden_in_memory=True, prefetch=True, window_resident=False, head_resident=False),
    Placement(
        hidden_in_memory=False, prefetch=True, window_resident=False, head_resident=False, adapters_in_memory=False
    ),
    Placement(
        hidden_in_memory=False, prefetch=False, window_resident=False, head_resident=False, adapters_in_memory=False
    ),
)
FASTEST, SMALLEST = PLACEMENTS[0], PLACEMENTS[-1]
