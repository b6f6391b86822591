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
from stages.data.load import data_digest, label_indices, load_labelled
from stages.model.adapters import adapters_from_tensors
from stages.model.cache import PrefixCache, prefix_cache
from stages.model.hidden import HiddenStates
from stages.model.loading import LoadedModel
from stages.model.metrics import accuracy_with_interval, confusion_matrix, macro_f1_with_interval
from stages.model.stream import run_prefix
from stages.model.texts import EncodedTexts
from stages.store.artifact import Artifact, check_same_plan, drafting, existing, open_artifact, read_tensors
from stages.store.measure import MeasuredFacts, Stopwatch

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
    model: LoadedModel | None = None,
    cache_dir: Path | None = None,
) -> Artifact[EvaluationManifest]:
    """Evaluate one state on labelled texts.  Raises `BadInput` and `NotTrusted`."""
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
    with Stopwatch() as watch:
        torch.set_num_threads(settings.numerics.threads)
        model = model or LoadedModel.open(model_dir, settings, expected=planned.manifest.model)
        before = model.backbone.reader.checkpoint.bytes_read
        texts = EncodedTexts.encode(
            [example.text for example in examples], model.encoder, settings.numerics.micro_batch
        )
        cache = prefix_cache(planned.manifest, cache_dir)
        logits = predict(model, current, planned.manifest, texts, scratch=out.parent, cache=cache, progress=progress)
        truth = np.array(label_indices(examples, task.labels))
    confusion = confusion_matrix(truth, logits.argmax(1), len(task.labels))
    manifest = EvaluationManifest(
        plan=planned.digest,
        state=current.digest,
        round=current.manifest.round,
        data=digest,
        example_count=len(examples),
        labels=task.labels,
        accuracy=accuracy_with_interval(confusion),
        macro_f1=macro_f1_with_interval(confusion),
        loss=F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(truth)).item(),
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
    )
    facts = MeasuredFacts(
        seconds=watch.seconds,
        peak_bytes=watch.peak_bytes,
        bytes_streamed=model.backbone.reader.checkpoint.bytes_read - before,
    )
    with drafting(out, force=force) as draft:
        draft.finish(manifest, facts)
    return Artifact(out, manifest, manifest.digest)


@torch.no_grad()
def predict(
    model: LoadedModel,
    state: Artifact[StateManifest],
    plan: PlanManifest,
    texts: EncodedTexts,
    *,
    scratch: Path,
    cache: PrefixCache | None = None,
    progress: Progress = lambda phase, done, total: None,
) -> np.ndarray:
    """Logits (N, labels) float32 of the full chain under `state`."""
    backbone = model.backbone
    tensors = read_tensors(state)
    adapters = adapters_from_tensors(tensors, plan.settings.adapter.activation)
    backbone.load_head(tensors)
    logits = np.zeros((len(texts.rows), len(plan.settings.task.labels)), np.float32)
    with HiddenStates(texts.lengths, backbone.hidden_size, backbone.dtype, scratch=scratch) as hidden:
        run_prefix(backbone, texts, hidden, adapters, stop=backbone.num_layers, cache=cache, progress=progress)
        for indices in texts.chunks():
            last = hidden.gather(indices, side=texts.side)
            logits[indices] = backbone.head(last, texts.batch(indices)).numpy()
    return logits
