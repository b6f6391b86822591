"""Eval stage: how good is a state?

Chain:  profile -> plan -> train-window -> aggregate -> [eval]
Reads:  plan and state artifacts, the base model, labelled texts.
Writes: an evaluation artifact: accuracy and macro-F1 with intervals, loss, confusion matrix.

The full chain, every layer with its adapter and then the head, streams from disk as the prefix of training does.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own convention

from schemas.evaluation import EvaluationManifest
from schemas.plan import PlanManifest
from schemas.state import StateManifest
from stages.data.encode import Encoder
from stages.data.load import data_digest, label_indices, load_labelled
from stages.model.adapters import adapters_from_tensors
from stages.model.backbone import Backbone
from stages.model.cache import prefix_cache
from stages.model.loading import LoadedModel
from stages.model.memory import MemoryModel, Placement, fit
from stages.model.metrics import accuracy_with_interval, confusion_matrix, macro_f1_with_interval
from stages.model.reader import Verify
from stages.model.stream import hidden_states, run_prefix
from stages.model.texts import EncodedTexts
from stages.store.artifact import Artifact, check_same_plan, drafting, existing, open_artifact, read_tensors
from stages.store.cache_directory import CacheDirectory
from stages.store.measure import MeasuredFacts, Stopwatch, resident_bytes

Progress = Callable[[str, int, int], None]


def run(
    *,
    model_dir: Path,
    plan: Path,
    state: Path,
    data: Path,
    out: Path,
    force: bool = False,
    progress: Progress = lambda phase, done, total: None,
    memory_budget_bytes: int | None = None,
    model: LoadedModel | None = None,
    cache: CacheDirectory | None = None,
    verify: Verify = "once",
) -> Artifact[EvaluationManifest]:
    """Evaluate one state on labelled texts.  Raises `BadInput`, `NotTrusted` and `DoesNotFit`."""
    planned = open_artifact(plan, PlanManifest)
    current = open_artifact(state, StateManifest)
    check_same_plan(planned, current)
    settings, task = planned.manifest.settings, planned.manifest.settings.task
    examples = load_labelled(data, task)
    digest = data_digest(examples)

    def same(there: EvaluationManifest) -> bool:
        return (there.plan, there.state, there.data) == (planned.digest, current.digest, digest)

    found = existing(out, EvaluationManifest, same=same, force=force)
    if found is not None:
        return found
    out.parent.mkdir(parents=True, exist_ok=True)
    with Stopwatch(memory_budget_bytes) as watch:
        torch.set_num_threads(settings.numerics.threads)
        encoder = model.encoder if model else Encoder.load(model_dir, settings.encoding)
        texts = EncodedTexts.encode([example.text for example in examples], encoder, settings.numerics.rows)
        truth = np.array(label_indices(examples, task.labels))
        count = len(examples)
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
        memory = MemoryModel(backbone, settings, planned.manifest.bottleneck, texts.token_count, resident_bytes())
        placement, predicted = fit(
            lambda choice: memory.forward(choice, start_layer=planned.manifest.start_layer),
            memory_budget_bytes,
            what="the evaluation",
        )
        before = backbone.reader.checkpoint.bytes_read
        logits = predict(
            backbone,
            current,
            planned.manifest,
            texts,
            placement=placement,
            scratch=out.parent,
            cache=cache,
            progress=watch.over(progress),
        )
    confusion = confusion_matrix(truth, logits.argmax(1), len(task.labels))
    manifest = EvaluationManifest(
        plan=planned.digest,
        state=current.digest,
        round=current.manifest.round,
        data=digest,
        example_count=count,
        labels=task.labels,
        accuracy=accuracy_with_interval(confusion),
        macro_f1=macro_f1_with_interval(confusion),
        loss=F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(truth)).item(),
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
    )
    facts = MeasuredFacts(
        seconds=watch.seconds,
        predicted_peak_bytes=predicted,
        peak_bytes=watch.peak_bytes,
        bytes_streamed=backbone.reader.checkpoint.bytes_read - before,
    )
    with drafting(out, force=force) as draft:
        draft.finish(manifest, facts)
    return Artifact(out, manifest, manifest.digest)


@torch.no_grad()
def predict(
    backbone: Backbone,
    state: Artifact[StateManifest],
    plan: PlanManifest,
    texts: EncodedTexts,
    *,
    placement: Placement,
    scratch: Path,
    cache: CacheDirectory | None = None,
    progress: Progress = lambda phase, done, total: None,
) -> np.ndarray:
    """Logits (N, labels) float32 of the full chain under `state`."""
    tensors = read_tensors(state)
    adapters = adapters_from_tensors(tensors, plan.settings.adapter.activation)
    backbone.load_head(tensors)
    logits = np.zeros((len(texts.rows), len(plan.settings.task.labels)), np.float32)
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
        for indices in texts.chunks():
            last = hidden.gather(indices, side=texts.side)
            logits[indices] = backbone.head(last, texts.batch(indices)).numpy()
    return logits
