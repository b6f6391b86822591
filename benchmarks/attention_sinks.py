"""Attention sinks, measured: tokens whose hidden state dwarfs all others, and what they do to a mean.

A decoder's heads need somewhere to look when nothing is of interest; mostly that is the first token, whose hidden
state grows by orders of magnitude in one layer.  Shapes: T tokens of one text, D features.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import Tensor

from stages.similarity.cka import cka, gram
from stages.streaming.hidden_states import HiddenStates

LONG = 10.0  # times the median length of tokens that are not first: a sink
ALIGNED = 0.5  # cosine with the direction of first tokens


@dataclass(frozen=True)
class SinkRow:
    """One layer; -1 is the embeddings.  Lengths are Euclidean, medians over texts or tokens."""

    layer: int
    first_length: float  # of first tokens
    other_length: float  # of all others
    first_in_mean: float  # length of what the first token adds to the mean of its text, beside the length of that mean
    texts_with_another: int  # texts in which a token that is not first is a sink too
    last_position: int  # the latest position of such a token; 0 where there is none
    aligned_others: float  # share of other tokens that point where first tokens point
    cka_without: float | None  # with the embeddings: mean, no scale, every sink left out; None for the embeddings


@dataclass
class Sinks:
    """Looks at the hidden states of all texts after each layer."""

    rows: list[SinkRow] = field(default_factory=list)
    embeddings: list[Tensor] = field(default_factory=list)  # (T, D) for each text

    def after_layer(self, layer: int, hidden: HiddenStates) -> None:
        """Measure what left `layer`."""
        states = [hidden.text(text).float() for text in range(len(hidden.lengths))]
        if layer < 0:
            self.embeddings = states
        lengths = [text.norm(dim=1) for text in states]
        others = float(torch.cat([row[1:] for row in lengths]).median())
        long = [row > LONG * others for row in lengths]
        again = [position for row in long for position in (row[1:].nonzero().flatten() + 1).tolist()]
        self.rows.append(
            SinkRow(
                layer=layer,
                first_length=float(torch.stack([row[0] for row in lengths]).median()),
                other_length=others,
                first_in_mean=_share(states),
                texts_with_another=sum(bool(row[1:].any()) for row in long),
                last_position=max(again, default=0),
                aligned_others=_aligned(states),
                cka_without=self._without(states, long) if layer >= 0 else None,
            )
        )

    def results(self) -> list[dict[str, float | None]]:
        """For the results file."""
        return [
            {name: None if value is None else round(value, 4) for name, value in asdict(row).items()}
            for row in self.rows
        ]

    def _without(self, states: Sequence[Tensor], long: Sequence[Tensor]) -> float:
        """Unbiased CKA of the means of those tokens that are no sink, of the same tokens in both."""
        keep = [~row for row in long]
        reference, here = (_means(values, keep) for values in (self.embeddings, states))
        return cka(gram(reference, "linear"), gram(here, "linear"), "unbiased")


def _means(states: Sequence[Tensor], keep: Sequence[Tensor]) -> np.ndarray:
    return torch.stack([text[mask].mean(0) for text, mask in zip(states, keep, strict=True)]).double().numpy()


def _share(states: Sequence[Tensor]) -> float:
    return float(np.median([float(text[0].norm() / len(text) / text.mean(0).norm()) for text in states]))


def _aligned(states: Sequence[Tensor]) -> float:
    firsts = torch.nn.functional.normalize(torch.stack([text[0] for text in states]), dim=1).mean(0)
    direction = torch.nn.functional.normalize(firsts, dim=0)
    cosines = torch.cat([torch.nn.functional.normalize(text[1:], dim=1) @ direction for text in states])
    return float((cosines > ALIGNED).float().mean())
