"""Run the full tuned model on texts: logits per text, or the summed loss of its tokens.

All layers with their tuning, then the head, stream from disk as the prefix does in training.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from schemas.errors import BadInput
from stages.model.backbone import Backbone
from stages.model.language_head import IGNORED, LanguageHead
from stages.model.skeleton import Batch
from stages.process.progress import Progress, silent
from stages.streaming.placement import Placement
from stages.streaming.prefix_cache import PrefixCache
from stages.streaming.stream import hidden_states, run_prefix
from stages.streaming.texts import EncodedTexts
from stages.tuning.tuning import Tuning
from stages.weights.finite import check_finite


@torch.no_grad()
def answer(
    backbone: Backbone,
    tuning: Tuning,
    texts: EncodedTexts,
    *,
    language: bool,
    placement: Placement,
    scratch: Path,
    cache: PrefixCache | None = None,
    keep: Sequence[int] = (),
    progress: Progress = silent,
) -> np.ndarray:
    """Logits (N, labels) float32 of N texts, or with a `language` head their summed losses (N, 1) in nats.

    Raises `BadInput` where they are not finite.  `keep` lists depths whose hidden states are written to the `cache`.
    """
    answers: list[np.ndarray] = [np.empty(0)] * len(texts.rows)
    with hidden_states(backbone, texts, placement, scratch=scratch) as hidden:
        run_prefix(
            backbone,
            texts,
            hidden,
            tuning,
            stop=backbone.num_layers,
            prefetch=placement.prefetch,
            cache=cache,
            keep=keep,
            progress=progress,
        )
        head = LanguageHead.of(backbone, resident=placement.head_resident) if language else None
        for indices in texts.chunks():
            last, batch = hidden.gather(indices, texts.layout(indices)), texts.batch(indices)
            if head is None:
                given = backbone.head(last, batch, tuning.head)
            else:
                given = text_losses(head, last, batch, texts, indices)
            for index, row in zip(indices, given.numpy(), strict=True):
                answers[index] = row
    given_NC = np.stack(answers)
    if not np.isfinite(given_NC).all():
        raise _not_finite(backbone, given_NC)
    return given_NC


def _not_finite(backbone: Backbone, given_NC: np.ndarray) -> BadInput:
    """The error for answers that are not finite.  Raises its own where a weight is the reason."""
    files = backbone.reader.files
    check_finite(files, files.tensors.values())
    wrong = int((~np.isfinite(given_NC)).any(1).sum())
    return BadInput(
        "the model's answers are not finite numbers, though all of its weights are",
        values={"texts": f"{wrong} of {len(given_NC)}"},
        hint="training diverged: go back to an earlier state",
    )


def text_losses(head: LanguageHead, hidden: Tensor, batch: Batch, texts: EncodedTexts, indices: list[int]) -> Tensor:
    """Summed loss (N, 1) in nats per text, over its tokens in the loss, from the last hidden states (B, S, D)."""
    targets, layout = texts.targets(indices), texts.layout(indices)
    predicts = targets != IGNORED
    of_each = torch.zeros(targets.shape)
    if predicts.any():
        arrived = head.arriving(hidden, batch)[predicts]
        of_each[predicts], _ = head.cross_entropy(arrived, targets[predicts], gradient=False)
    sums = [
        of_each[row, column : column + len(texts.rows[index])].sum()
        for (row, column), index in zip(layout.places, indices, strict=True)
    ]
    return torch.stack(sums).unsqueeze(1)
