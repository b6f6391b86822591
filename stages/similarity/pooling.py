"""From token states to one feature row a text, for CKA.

Decoders have attention sinks: the first token's activation dwarfs all others, so a plain mean says little about the
text.  `scale = "unit"` gives every token the same length before pooling, `tokens = "skip-first"` leaves the sink out.

Shapes: N rows (texts, or drawn tokens), D features.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from schemas.settings import SimilaritySettings
from stages.streaming.hidden_states import HiddenStates


def draw_rows(
    lengths: Sequence[int], settings: SimilaritySettings, generator: np.random.Generator
) -> list[tuple[int, int]]:
    """Which (text, token) pairs are rows of the features.  The token is -1 where a whole text is pooled."""
    if settings.pooling != "tokens":
        return [(text, -1) for text in range(len(lengths))]
    first = _first_token(settings)
    every = [(text, token) for text, length in enumerate(lengths) for token in range(min(first, length - 1), length)]
    drawn = generator.permutation(len(every))[: settings.max_examples]
    return [every[index] for index in sorted(drawn.tolist())]


def features(hidden: HiddenStates, rows: Sequence[tuple[int, int]], settings: SimilaritySettings) -> np.ndarray:
    """x_ND float64: one row for each of `rows`."""
    pooled = [_pool(hidden.text(text), token, settings) for text, token in rows]
    # float64: the differences between adjacent layers are small
    return torch.stack(pooled).double().numpy()


def _pool(states: Tensor, token: int, settings: SimilaritySettings) -> Tensor:
    """(tokens, D) to (D,)."""
    states = states.float()
    if settings.scale == "unit":
        states = torch.nn.functional.normalize(states, dim=-1)
    if token >= 0:
        return states[token]
    states = states[min(_first_token(settings), len(states) - 1) :]
    if settings.pooling == "mean":
        return states.mean(0)
    return states[0] if settings.pooling == "first" else states[-1]


def _first_token(settings: SimilaritySettings) -> int:
    return 1 if settings.tokens == "skip-first" else 0
