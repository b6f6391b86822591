"""The full model under a state: log-likelihoods of continuations, and generated text.

Both stream the layers.  Requests and prompts that do not fit the memory budget together run in groups; as in every
stage, the budget decides what stays in memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from schemas.errors import BadInput, DoesNotFit, UsageProblem
from schemas.plan import PlanManifest
from schemas.settings import Settings
from stages.data.prompts import PromptEncoder
from stages.inference.generate import Generator, Sampling
from stages.inference.likelihood import Likelihood, Request, Requests, Tokens, score, window_of
from stages.memory.placing import fit_with_files
from stages.memory.predict import MemoryModel, fit
from stages.model.backbone import Backbone
from stages.process import intent
from stages.process.measure import resident_bytes
from stages.process.progress import Progress, silent
from stages.streaming.placement import Placement
from stages.tuning.tuning import Tuning


@dataclass
class FullChain:
    """A base model with its tuning under a state, and the plan's settings.

    Counts while it runs: prompts that lost their beginning (`truncated_count`), and the largest predicted peak.
    """

    backbone: Backbone
    tuning: Tuning
    plan: PlanManifest
    encoder: PromptEncoder
    stop_ids: frozenset[int]
    scratch: Path
    budget_bytes: int
    progress: Progress = silent
    truncated_count: int = 0
    predicted_peak_bytes: int | None = None

    @property
    def window(self) -> int:
        """The model's context window, in tokens."""
        return window_of(self.backbone)

    def likelihoods(self, requests: Sequence[Request]) -> list[Likelihood]:
        """The log-likelihood of each request; see `likelihood.score`.  Raises `BadInput` and `DoesNotFit`."""
        if not requests:
            return []
        settings = self.plan.settings
        prepared = Requests.of(
            requests, pad_id=self.encoder.pad_id, micro_batch=settings.numerics.rows, window=self.window
        )
        self.truncated_count += prepared.truncated
        rows, bottleneck = prepared.rows, self.plan.bottleneck
        memory = MemoryModel(self.backbone, settings, bottleneck, rows.token_count, resident_bytes(), max(rows.lengths))
        placement, peak = fit_with_files(
            lambda choice: memory.forward(choice, first_layer=self.plan.decisions.first_layer),
            memory.forward_scratch,
            scratch=self.scratch,
            budget_bytes=self.budget_bytes,
            what="the benchmark",
        )
        self.predicted_peak_bytes = max(peak, self.predicted_peak_bytes or 0)
        return score(
            self.backbone, self.tuning, prepared, placement=placement, scratch=self.scratch, progress=self.progress
        )

    def write(self, prompts: Sequence[Tokens], *, most_tokens: int, stop: Sequence[str]) -> list[str]:
        """Continue each prompt greedily, up to `most_tokens`, an end-of-text token or one of the strings `stop`.

        Prompts that are too long lose their beginning.  Raises `BadInput` and `DoesNotFit`.
        """
        if not prompts:
            return []
        room = self.window - most_tokens
        if room < 1:
            raise BadInput(
                "the model's context window leaves no room for an answer",
                values={"window": self.window, "tokens per answer": most_tokens},
            )
        order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
        self.truncated_count += sum(len(prompt) > room for prompt in prompts)
        ids = [np.array(prompts[index][-room:], dtype=np.int64) for index in order]
        sampling, written = Sampling(most_tokens), list[list[int]]()
        for group in groups(self.backbone, self.plan, ids, sampling, chains=1, budget_bytes=self.budget_bytes):
            self.predicted_peak_bytes = max(group.peak_bytes, self.predicted_peak_bytes or 0)
            intent.expect(peak_bytes=group.peak_bytes, budget_bytes=self.budget_bytes)
            intent.begin()
            generator = Generator(
                self.backbone,
                [self.tuning],
                sampling,
                self.stop_ids,
                self.encoder.pad_id,
                group.placement,
                ended=partial(self._holds, stop),
            )
            written += generator.run(group.prompts, self.progress)[0]
        texts = {index: self.encoder.decode(tokens) for index, tokens in zip(order, written, strict=True)}
        return [texts[index] for index in range(len(prompts))]

    def _holds(self, stop: Sequence[str], tokens: Sequence[int]) -> bool:
        text = self.encoder.decode(tokens) if stop else ""
        return any(mark in text for mark in stop)


def require_causal_lm(plan: PlanManifest) -> Settings:
    """The settings of a causal-lm plan.  Raises `UsageProblem` for any other task."""
    kind = plan.settings.task.kind
    if kind != "causal-lm":
        raise UsageProblem(
            "this plan's model is a classifier: it has no language head",
            values={"task.kind": kind, "expected": "causal-lm"},
            hint="evaluate it with 'chainctl eval' on labelled texts",
        )
    return plan.settings


@dataclass(frozen=True)
class Group:
    """Prompts that fit the budget together, what stays in memory for them, and their predicted peak."""

    prompts: Sequence[np.ndarray]
    placement: Placement
    peak_bytes: int


def groups(
    backbone: Backbone,
    plan: PlanManifest,
    prompts: Sequence[np.ndarray],
    sampling: Sampling,
    *,
    chains: int,
    budget_bytes: int,
) -> list[Group]:
    """Split the prompts into groups that fit the budget; one group if all fit.  Raises `DoesNotFit`."""
    longest, size = max(map(len, prompts)), len(prompts)
    while True:
        numerics = plan.settings.numerics.model_copy(update={"micro_batch": size * chains})
        settings = plan.settings.model_copy(update={"numerics": numerics})
        memory = MemoryModel(backbone, settings, plan.bottleneck, 0, resident_bytes(), longest)
        tokens = longest + sampling.max_new_tokens
        predict = partial(memory.generate, tokens=tokens, logit_bytes=sampling.logit_bytes)
        try:
            placement, peak = fit(predict, budget_bytes, what="one prompt")
        except DoesNotFit:
            if size == 1:
                raise
            size = -(-size // 2)
        else:
            return [Group(prompts[first : first + size], placement, peak) for first in range(0, len(prompts), size)]
