"""What a federation's model answers to texts: logits of each, or the loss of its tokens.

The full chain, every layer as it is tuned and then the head, streams from disk as the prefix of training does.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stages.model.backbone import Backbone
from stages.model.language_head import IGNORED, LanguageHead
from stages.model.skeleton import Batch
from stages.process.progress import Progress, silent
from stages.streaming.placement import Placement
from stages.streaming.prefix_cache import PrefixCache
from stages.streaming.stream import hidden_states, run_prefix
from stages.streaming.texts import EncodedTexts
from stages.tuning.tuning import Tuning


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
    """For each text: logits (N, labels), or with a `language` head its summed loss (N, 1) in nats.

    `keep` are depths whose hidden states go to the `cache`.
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
    return np.stack(answers)


def text_losses(head: LanguageHead, hidden: Tensor, batch: Batch, texts: EncodedTexts, indices: list[int]) -> Tensor:
    """Summed loss (N, 1) in nats of the tokens in the loss of some texts, from their last hidden states (B, S, D)."""
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
