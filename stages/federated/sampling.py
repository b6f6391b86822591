"""Which devices take part in a round: a function of seed, round and names, so that anyone can recompute it."""

from collections.abc import Sequence

from stages.process import seeds


def sample_devices(seed: int, round_number: int, devices: Sequence[str], count: int | str) -> tuple[str, ...]:
    """The devices of a round, sorted: all of them, or `count` drawn without replacement from SHA-256(seed, round)."""
    names = sorted(devices)
    if count == "all" or int(count) >= len(names):
        return tuple(names)
    random = seeds.generator("sample", seed, round_number)
    drawn = random.choice(len(names), size=int(count), replace=False)
    return tuple(names[index] for index in sorted(drawn.tolist()))
