"""Eval stage: how good is a state?

Chain:  profile -> plan -> train-window -> aggregate -> [eval]
Reads:  plan and state artifacts, the base model, labelled texts.
Writes: an evaluation artifact: accuracy and macro-F1 with intervals, loss, confusion matrix; of a language model,
        a perplexity artifact.

The full chain, every layer with its adapter and then the head, streams from disk as the prefix of training does.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own convention
from torch import Tensor

from schemas.errors import BadInput
from schemas.evaluation import Estimate, EvaluationManifest
from schemas.perplexity import PerplexityManifest
from schemas.plan import PlanManifest
from schemas.state import StateManifest
from stages.data.encode import Encoder
from stages.data.load import data_digest, label_indices, load_labelled
from stages.inference.metrics import accuracy_with_interval, confusion_matrix, macro_f1_with_interval
from stages.intervals import ratio_with_interval
from stages.memory.predict import MemoryModel, fit
from stages.model.backbone import Backbone
from stages.model.language_head import IGNORED, LanguageHead
from stages.model.loading import LoadedModel
from stages.model.skeleton import Batch
from stages.process.measure import MeasuredFacts, Stopwatch, device_memory_bytes, resident_bytes
from stages.process.progress import Progress, silent
from stages.store.artifact import Artifact, existing, new_artifact, read_tensors
from stages.store.cache_directory import CacheDirectory
from stages.store.signing import Signer
from stages.store.trust import open_trusted
from stages.streaming.placement import FASTEST, Placement
from stages.streaming.prefix_cache import prefix_cache
from stages.streaming.stream import hidden_states, run_prefix
from stages.streaming.texts import EncodedTexts
from stages.tuning.adapters import LIVE_TENSORS, adapters_from_tensors
from stages.weights.reader import Verify

Evaluation = EvaluationManifest | PerplexityManifest


def run(
    *,
    model_dir: Path,
    plan: Path,
    state: Path,
    data: Path,
    out: Path,
    force: bool = False,
    progress: Progress = silent,
    memory_budget_bytes: int | None = None,
    model: LoadedModel | None = None,
    cache: CacheDirectory | None = None,
    verify: Verify = "once",
    signer: Signer | None = None,
) -> Artifact[Evaluation]:
    """Evaluate one state on texts: with labels, or by their perplexity where the task is causal-lm.

    Raises `BadInput`, `NotTrusted` and `DoesNotFit`.
    """
    planned, current = open_trusted(plan, state)
    settings, task = planned.manifest.settings, planned.manifest.settings.task
    examples = load_labelled(data, task, settings.prompt)
    digest = data_digest(examples)
    kind: type[Evaluation] = PerplexityManifest if task.kind == "causal-lm" else EvaluationManifest

    def same(there: Evaluation) -> bool:
        return (there.plan, there.state, there.data) == (planned.digest, current.digest, digest)

    found = existing(out, kind, same=same, force=force, signer=signer)
    if found is not None:
        return found
    out.parent.mkdir(parents=True, exist_ok=True)
    budget = memory_budget_bytes or device_memory_bytes()
    with Stopwatch(None if model else budget) as watch:
        torch.set_num_threads(settings.numerics.threads)
        encoder = model.encoder if model else Encoder.load(model_dir, settings.encoding, settings.prompt)
        texts = EncodedTexts.encode(examples, encoder, settings.numerics.rows)
        truth = np.array(label_indices(examples, task.labels)) if task.labels else None
        del encoder, examples
        backbone = (
            model.backbone
            if model
            else Backbone.open(
                model_dir,
                settings,
                pad_id=texts.pad_id,
                expected=planned.manifest.model,
                verify=verify,
                cache=cache,
            )
        )
        placement = FASTEST
        predicted: int | None = None
        if not model:
            longest, bottleneck = max(texts.lengths), planned.manifest.bottleneck
            memory = MemoryModel(backbone, settings, bottleneck, texts.token_count, resident_bytes(), longest)
            placement, predicted = fit(
                lambda choice: memory.forward(choice, start_layer=planned.manifest.start_layer),
                budget,
                what="the evaluation",
            )
        before = backbone.reader.files.bytes_read
        answers = answer(
            backbone,
            current,
            planned.manifest,
            texts,
            placement=placement,
            scratch=out.parent,
            cache=cache,
            progress=watch.over(progress),
        )
    subject = Subject(planned.digest, current, digest)
    manifest: Evaluation
    if truth is None:
        manifest = judge_tokens(subject, answers, texts)
    else:
        manifest = judge_labels(subject, answers, truth, task.labels)
    facts = MeasuredFacts(
        seconds=watch.seconds,
        predicted_peak_bytes=predicted,
        peak_bytes=watch.peak_bytes,
        bytes_streamed=backbone.reader.files.bytes_read - before,
        texts=texts.counts(),
    )
    with new_artifact(out, force=force, signer=signer) as draft:
        draft.finish(manifest, facts)
    return Artifact(out, manifest, manifest.digest)


@torch.no_grad()
def answer(
    backbone: Backbone,
    state: Artifact[StateManifest],
    plan: PlanManifest,
    texts: EncodedTexts,
    *,
    placement: Placement,
    scratch: Path,
    cache: CacheDirectory | None = None,
    progress: Progress = silent,
) -> np.ndarray:
    """Of the full chain under `state`, for each text: logits (N, labels), or its summed loss (N, 1) in nats."""
    tensors = read_tensors(state, *LIVE_TENSORS)
    stored = adapters_from_tensors(tensors, plan.settings.adapter.activation)
    adapters = {layer: adapter.frozen(backbone.dtype) for layer, adapter in stored.items()}
    backbone.load_head(tensors)
    del tensors, stored
    answers: list[np.ndarray] = [np.empty(0)] * len(texts.rows)
    with hidden_states(backbone, texts, placement, scratch=scratch) as hidden:
        run_prefix(
            backbone,
            texts,
            hidden,
            adapters,
            stop=backbone.num_layers,
            prefetch=placement.prefetch,
            cache=prefix_cache(cache, plan, adapters, texts),
            keep=(plan.start_layer, state.manifest.window.start),  # nothing below changes in the next round
            progress=progress,
        )
        tokens = plan.settings.task.kind == "causal-lm"
        head = LanguageHead.of(backbone, resident=placement.head_resident) if tokens else None
        for indices in texts.chunks():
            last, batch = hidden.gather(indices, texts.layout(indices)), texts.batch(indices)
            given = (text_losses(head, last, batch, texts, indices) if head else backbone.head(last, batch)).numpy()
            for index, row in zip(indices, given, strict=True):
                answers[index] = row
    return np.stack(answers)


def text_losses(head: LanguageHead, hidden: Tensor, batch: Batch, texts: EncodedTexts, indices: list[int]) -> Tensor:
    """Summed loss (N, 1) in nats of the learned tokens of some texts, from their last hidden states (B, S, D)."""
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


@dataclass(frozen=True)
class Subject:
    """What is evaluated on what."""

    plan: str
    state: Artifact[StateManifest]
    data: str

    def fields(self) -> dict[str, Any]:
        """Those that every evaluation has."""
        round_number = self.state.manifest.round
        return {"plan": self.plan, "state": self.state.digest, "round": round_number, "data": self.data}


def judge_labels(
    subject: Subject, logits: np.ndarray, truth: np.ndarray, labels: tuple[str, ...]
) -> EvaluationManifest:
    """Metrics of logits (N, labels) against class indices (N,)."""
    confusion = confusion_matrix(truth, logits.argmax(1), len(labels))
    return EvaluationManifest(
        **subject.fields(),
        example_count=len(truth),
        labels=labels,
        accuracy=accuracy_with_interval(confusion),
        macro_f1=macro_f1_with_interval(confusion),
        loss=F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(truth)).item(),
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
    )


def judge_tokens(subject: Subject, losses: np.ndarray, texts: EncodedTexts) -> PerplexityManifest:
    """Perplexity from the summed loss (N, 1) of each text."""
    counts = np.array(texts.target_counts)
    if counts.sum() == 0:
        raise BadInput(
            "no text has a token to foretell",
            values={"texts": len(counts), "cut at max_length": texts.cut},
            hint="raise encoding.max_length: the responses begin behind it, or texts have one token only",
        )
    loss = ratio_with_interval(losses[:, 0].astype(np.float64), counts)
    return PerplexityManifest(
        **subject.fields(),
        example_count=len(counts),
        token_count=int(counts.sum()),
        loss=loss,
        perplexity=Estimate(value=math.exp(loss.value), low=math.exp(loss.low), high=math.exp(loss.high)),
    )
