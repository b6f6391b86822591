"""Streamed generation with a KV cache: one pass over the layers per token.

All prompts are one batch, so each layer is read once for all of them.  Several tunings (before and after) share the
pass too, as rows of the batch that use different adapters.  Every prompt has its own random generator, so a text does
not depend on the other prompts of the batch, except for rounding in the last bit.

Shapes: R rows (chains times prompts), S tokens, D hidden size, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from stages.data.layout import Layout
from stages.model.backbone import Backbone
from stages.model.language_head import LanguageHead
from stages.model.skeleton import Batch
from stages.process import seeds
from stages.process.progress import Progress, silent
from stages.streaming.placement import Placement
from stages.streaming.stream import stream_layers
from stages.tuning.tuning import Tuning


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.  `temperature = 0` is greedy; `top_k = 0` and `top_p = 1` exclude no token."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    @property
    def logit_bytes(self) -> int:
        """Bytes that the choice of a token takes for each logit, itself and its copy in a chunk included.

        A draw is in float64, from shares and their sum; `top_p` sorts, and keeps the places.
        """
        if self.temperature == 0.0:
            return 12
        return 20 if self.top_p == 1.0 else 30

    def warpers(self) -> LogitsProcessorList:
        """transformers' logits warpers, in the order it applies them."""
        found = [TemperatureLogitsWarper(self.temperature)]
        found += [TopKLogitsWarper(self.top_k)] if self.top_k else []
        found += [TopPLogitsWarper(self.top_p)] if self.top_p < 1.0 else []
        return LogitsProcessorList(found)


@dataclass
class Generator:
    """Continues prompts (token ids) under each of `chains`, side by side: one pass over the layers serves all.

    Several chains are allowed only if none of them changes the weights inside a layer.
    """

    backbone: Backbone
    chains: Sequence[Tuning]
    sampling: Sampling
    stop_ids: frozenset[int]
    pad_id: int
    placement: Placement
    ended: Callable[[Sequence[int]], bool] = lambda written: False  # whether the new tokens end a text

    @torch.no_grad()
    def run(self, prompts: Sequence[np.ndarray], progress: Progress = silent) -> list[list[list[int]]]:
        """New token ids of each chain and prompt, without the token that ends the text."""
        rows = [*prompts] * len(self.chains)
        layout = Layout.padded([len(row) for row in rows], "left")
        ids = torch.from_numpy(layout.lay(rows, self.pad_id))
        mask = torch.from_numpy(layout.lay([np.ones_like(row) for row in rows], 0))
        positions = torch.from_numpy(layout.lay([np.arange(len(row)) for row in rows], 0))
        choose = _Chooser(self.sampling, len(prompts), len(self.chains))
        cached = self.backbone.skeleton.keeps_keys_and_values
        memory = DynamicCache(config=self.backbone.skeleton.config) if cached else None
        head = LanguageHead.of(self.backbone, resident=self.placement.head_resident)
        written: list[list[int]] = [[] for _ in rows]
        done = torch.zeros(len(rows), dtype=torch.bool)
        for number in range(self.sampling.max_new_tokens):
            progress("tokens", number, self.sampling.max_new_tokens)
            arrived = self._pass(Batch(ids, mask, positions, keys_and_values=memory), len(prompts))
            chosen = choose(head.logits_of(arrived))
            for row, token in enumerate(chosen.tolist()):
                done[row] |= token in self.stop_ids
                if not done[row]:
                    written[row].append(token)
                    done[row] |= self.ended(written[row])
            if done.all():
                break
            following, place = chosen.unsqueeze(1), positions[:, -1:] + 1
            mask = torch.cat([mask, torch.ones_like(following)], dim=1)
            # Without a cache the whole text passes the layers again.
            ids = following if cached else torch.cat([ids, following], dim=1)
            positions = place if cached else torch.cat([positions, place], dim=1)
        size = len(prompts)
        return [written[first : first + size] for first in range(0, len(rows), size)]

    def _pass(self, batch: Batch, size: int) -> Tensor:
        """Run all layers, each read once: the head's input (R, D) for the last token of each row."""
        backbone = self.backbone
        layers = stream_layers(backbone, range(backbone.num_layers), prefetch=self.placement.prefetch)

        def visit(index: int, arriving: Tensor, apply: Callable[[Tensor, Mapping[str, Tensor]], Tensor]) -> Tensor:
            _, weights = next(layers)
            output = apply(arriving, self.chains[0].inside(index, weights))
            parts = output.split(size)
            return torch.cat([chain.after(index, part) for chain, part in zip(self.chains, parts, strict=True)])

        gathered = backbone.skeleton.gathered
        gathered.rows = backbone.reader.embedding_rows(batch.input_ids.unique())
        try:
            # A copy: a view would keep the states of all tokens while the head computes.
            return backbone.skeleton.run_to_vocabulary(batch, visit)[:, -1].clone()
        finally:
            gathered.rows = None
            layers.close()


class _Chooser:
    """The next token of each row, from logits (R, V)."""

    def __init__(self, sampling: Sampling, prompts: int, chains: int) -> None:
        self.greedy = sampling.temperature == 0.0
        self.warpers = LogitsProcessorList() if self.greedy else sampling.warpers()
        # The same draws for each chain, so that only the tuning makes a difference.
        self.generators = [_generator(sampling.seed, prompt) for _ in range(chains) for prompt in range(prompts)]

    def __call__(self, logits: Tensor) -> Tensor:
        """Token ids (R,) int64 from logits (R, V)."""
        if self.greedy:
            return logits.argmax(dim=1)
        shares = torch.softmax(self.warpers(None, logits).double(), dim=1).cumsum(dim=1)
        heights = torch.tensor([[generator.random()] for generator in self.generators], dtype=torch.float64)
        return torch.searchsorted(shares, heights * shares[:, -1:], right=True).squeeze(1)


def _generator(seed: int, prompt: int) -> np.random.Generator:
    """A numpy generator: torch's own would load its compiler (`footprint.py`)."""
    return seeds.generator("generate", seed, prompt)
