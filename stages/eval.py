"""Eval stage: how good is a state?

Chain:  profile -> plan -> train-window -> aggregate -> [eval]
Reads:  plan and state artifacts, the base model, labelled texts.
Writes: an evaluation artifact: accuracy and macro-F1 with intervals, loss, confusion matrix; for a language model,
        a perplexity artifact.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own convention

from schemas.errors import BadInput
from schemas.evaluation import MOST_LABELS, Estimate, EvaluationManifest
from schemas.perplexity import PerplexityManifest
from schemas.plan import PlanManifest
from schemas.state import StateManifest
from stages.data.load import Example, data_digest, label_indices, load_labelled
from stages.inference.answers import answer
from stages.inference.metrics import accuracy_with_interval, confusion_matrix, macro_f1_with_interval
from stages.intervals import ratio_with_interval
from stages.memory.predict import MemoryModel
from stages.process.progress import Progress, Say, silent, unsaid
from stages.session import Machine, Session
from stages.store.artifact import Artifact, check_place, existing, new_artifact
from stages.store.recorded import expect_seconds
from stages.store.signing import Signer
from stages.store.trust import open_trusted
from stages.streaming.prefix_cache import prefix_cache
from stages.streaming.texts import EncodedTexts

Evaluation = EvaluationManifest | PerplexityManifest

MOST_NATS = 709.0  # e^709 is below 2^1023, the largest number in a manifest


def run(
    *,
    machine: Machine,
    plan: Path,
    state: Path,
    data: Path,
    out: Path,
    force: bool = False,
    progress: Progress = silent,
    signer: Signer | None = None,
    say: Say = unsaid,
) -> Artifact[Evaluation]:
    """Evaluate one state on texts: with labels, or by perplexity if the task is causal-lm.

    `say` is told what an emulated dtype costs here.  Raises `BadInput`, `NotTrusted` and `DoesNotFit`.
    """
    planned, current = open_trusted(plan, state)
    settings, task = planned.manifest.settings, planned.manifest.settings.task
    kind: type[Evaluation] = PerplexityManifest if task.kind == "causal-lm" else EvaluationManifest
    check_place(out, kind, machine.model_dir, plan, state, data, force=force, signer=signer)
    examples = load_labelled(data, task, settings.prompt)
    subject = Subject(planned.digest, current, data_digest(examples))
    found = existing(out, kind, same=subject.made, force=force, signer=signer)
    if found is not None:
        return found
    alike = (planned.digest, subject.data)
    expect_seconds(out, kind, lambda there: (there.plan, there.data) == alike)
    expected = planned.manifest.model
    opened = Session.open(machine, settings, expected=expected, beside=out.parent, progress=progress, say=say)
    with opened as session:
        texts, answers = ask(session, planned.manifest, current, examples)
    if task.kind == "causal-lm":
        manifest: Evaluation = judge_tokens(subject, answers, texts)
    else:
        manifest = judge_labels(subject, answers, np.array(label_indices(examples, task.labels)), task.labels)
    with new_artifact(out, force=force, signer=signer) as draft:
        draft.finish(manifest, session.measured(texts))
    return Artifact(out, manifest, manifest.digest)


def ask(
    session: Session, plan: PlanManifest, state: Artifact[StateManifest], examples: list[Example]
) -> tuple[EncodedTexts, np.ndarray]:
    """The encoded texts, and the model's answers under `state`: see `inference.answers`.  Raises `DoesNotFit`."""
    texts = session.encode(examples)
    first_layer = plan.decisions.first_layer
    placement = session.place(
        lambda memory, choice: memory.forward(choice, first_layer=first_layer),
        MemoryModel.forward_scratch,
        texts,
        bottleneck=plan.bottleneck,
        what="the evaluation",
    )
    tuning = session.tuning(plan, state)
    next_span = state.manifest.assignment.span if state.manifest.assignment else None
    answers = answer(
        session.backbone,
        tuning,
        texts,
        language=plan.settings.task.kind == "causal-lm",
        placement=placement,
        scratch=session.scratch,
        cache=prefix_cache(session.machine.cache, plan, tuning, texts),
        # The next round changes nothing below these depths.
        keep=(first_layer, next_span.start if next_span else first_layer),
        progress=session.progress,
    )
    return texts, answers


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a state of a plan, on texts with the digest `data`."""

    plan: str
    state: Artifact[StateManifest]
    data: str

    def made(self, there: Evaluation) -> bool:
        """Whether an existing evaluation has the same subject."""
        return (there.plan, there.state, there.data) == (self.plan, self.state.digest, self.data)

    def fields(self) -> dict[str, Any]:
        """The fields that all evaluations share."""
        round_number = self.state.manifest.round
        return {"plan": self.plan, "state": self.state.digest, "round": round_number, "data": self.data}


def judge_labels(
    subject: Subject, logits: np.ndarray, truth: np.ndarray, labels: tuple[str, ...]
) -> EvaluationManifest:
    """Metrics of logits (N, labels) float32 against class indices (N,)."""
    confusion = confusion_matrix(truth, logits.argmax(1), len(labels))
    kept = confusion if len(labels) <= MOST_LABELS else ()
    return EvaluationManifest(
        **subject.fields(),
        example_count=len(truth),
        labels=labels,
        accuracy=accuracy_with_interval(confusion),
        macro_f1=macro_f1_with_interval(confusion),
        loss=F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(truth)).item(),
        confusion=tuple(tuple(int(count) for count in row) for row in kept),
    )


def judge_tokens(subject: Subject, losses: np.ndarray, texts: EncodedTexts) -> PerplexityManifest:
    """Perplexity from each text's summed loss (N, 1) in nats.  Raises `BadInput` if no token is in the loss."""
    counts = np.array(texts.target_counts)
    if counts.sum() == 0:
        raise BadInput(
            "no text has a token in the loss",
            values={"texts": len(counts), "truncated at max_length": texts.truncated},
            hint="raise encoding.max_length: responses start after it, or texts have only one token",
        )
    loss = ratio_with_interval(losses[:, 0].astype(np.float64), counts)
    return PerplexityManifest(
        **subject.fields(),
        example_count=len(counts),
        token_count=int(counts.sum()),
        loss=loss,
        perplexity=Estimate(value=perplexity(loss.value), low=perplexity(loss.low), high=perplexity(loss.high)),
    )


def perplexity(loss: float) -> float:
    """Of a loss in nats; from `MOST_NATS` on they are not told apart, as float64 ends there."""
    return math.exp(min(loss, MOST_NATS))
