"""Train-window stage: one device, one round, one window.

Chain:  profile -> plan -> [train-window] -> aggregate -> eval
Reads:  plan and state artifacts, the base model, the device's labelled texts.
Writes: an update artifact: the window's adapters (and the head) after local training, and nothing else.

The frozen prefix streams through memory once, every text a layer at a time; what it leaves, h_s, feeds the epochs
over the window.  Prefix and window are never in memory together.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from schemas.base import canonical_json
from schemas.errors import BadInput, DoesNotFit, UsageProblem
from schemas.plan import PlanManifest
from schemas.refs import Window
from schemas.state import StateManifest
from schemas.update import TrainingLoss, UpdateManifest
from stages.data.load import Example, data_digest, label_indices, load_labelled
from stages.model.adapters import Adapter, adapter_names, adapters_from_tensors
from stages.model.cache import PrefixCache, prefix_cache
from stages.model.hidden import HiddenStates
from stages.model.loading import LoadedModel
from stages.model.objective import StepLoss, window_losses
from stages.model.optimizer import Optimizer
from stages.model.reader import Weights
from stages.model.stream import load_layers, run_prefix
from stages.model.texts import EncodedTexts, training_order
from stages.store.artifact import Artifact, check_same_plan, drafting, existing, open_artifact, read_tensors
from stages.store.measure import MeasuredFacts, Stopwatch

Progress = Callable[[str, int, int], None]


def run(
    *,
    model_dir: Path,
    plan: Path,
    state: Path,
    data: Path,
    device: str,
    out: Path,
    memory_budget_bytes: int | None = None,
    force: bool = False,
    progress: Progress = lambda phase, done, total: None,
    model: LoadedModel | None = None,
    cache_dir: Path | None = None,
) -> Artifact[UpdateManifest]:
    """Train the window that `state` names, on the texts of `device`.

    `model` spares a caller with many devices opening the base model again, `cache_dir` a device that comes again the
    layers that are never tuned.  Raises `BadInput` for artifacts or data that do not go together, `NotTrusted` for
    altered bytes, `DoesNotFit` where the budget is too small.
    """
    planned = open_artifact(plan, PlanManifest)
    current = open_artifact(state, StateManifest)
    settings = planned.manifest.settings
    check_turn(planned, current, device)
    predicted = predicted_peak_bytes(planned.manifest, current.manifest.window)
    check_budget(predicted, current.manifest.window, memory_budget_bytes)
    task = settings.task
    examples = load_labelled(data, task)
    inputs = inputs_digest(planned.digest, device, examples)

    def same(there: UpdateManifest) -> bool:
        found = (there.plan, there.state, there.device, there.inputs)
        return found == (planned.digest, current.digest, device, inputs)

    found = existing(out, UpdateManifest, same=same, force=force)
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
        targets = torch.tensor(label_indices(examples, task.labels))
        cache = prefix_cache(planned.manifest, cache_dir)
        trainer = Trainer(planned, current, model, texts, targets, device, scratch=out.parent, cache=cache)
        trained, loss, steps = trainer.train(progress)
    manifest = UpdateManifest(
        plan=planned.digest,
        state=current.digest,
        round=current.manifest.round,
        window=current.manifest.window,
        device=device,
        inputs=inputs,
        example_count=len(examples),
        steps=steps,
        loss=loss,
        tensors=(),
        files=(),
    )
    facts = MeasuredFacts(
        seconds=watch.seconds,
        predicted_peak_bytes=predicted,
        peak_bytes=watch.peak_bytes,
        bytes_streamed=model.backbone.reader.checkpoint.bytes_read - before,
        layer_seconds=(),
    )
    with drafting(out, force=force) as draft:
        tensors, files = draft.write_tensors(trained)
        manifest = manifest.model_copy(update={"tensors": tensors, "files": files})
        draft.finish(manifest, facts)
    return Artifact(out, manifest, manifest.digest)


@dataclass(frozen=True)
class Trainer:
    """One window on one device's texts.  `targets` (N,) are indices into the plan's labels."""

    plan: Artifact[PlanManifest]
    state: Artifact[StateManifest]
    model: LoadedModel
    texts: EncodedTexts
    targets: Tensor
    device: str
    scratch: Path
    cache: PrefixCache | None

    def train(self, progress: Progress) -> tuple[dict[str, np.ndarray], TrainingLoss, int]:
        """Tensors of the update, its losses, and the number of optimiser steps."""
        backbone = self.model.backbone
        window = self.state.manifest.window
        settings = self.plan.manifest.settings
        tensors = read_tensors(self.state)
        adapters = adapters_from_tensors(tensors, settings.adapter.activation)
        backbone.load_head(tensors)
        with HiddenStates(self.texts.lengths, backbone.hidden_size, backbone.dtype, scratch=self.scratch) as hidden:
            run_prefix(backbone, self.texts, hidden, adapters, stop=window.start, cache=self.cache, progress=progress)
            trained = adapters | {layer: trainable(adapters[layer]) for layer in window.layers}
            parameters = [value for layer in window.layers for value in trained[layer].parameters()]
            parameters += backbone.head_parameters.values()
            optimizer = Optimizer(parameters, settings.optimizer, round_number=self.state.manifest.round)
            tally = self._epochs(hidden, trained, optimizer, progress)
        names = [name for layer in window.layers for name in adapter_names(layer)]
        names += [f"head.{name}" for name in backbone.head_parameters]
        values = [parameter.detach().numpy() for parameter in parameters]
        return dict(zip(names, values, strict=True)), tally.summary(), len(tally.losses)

    def _epochs(
        self, hidden: HiddenStates, adapters: dict[int, Adapter], optimizer: Optimizer, progress: Progress
    ) -> "Tally":
        settings = self.plan.manifest.settings.optimizer
        weights = load_layers(self.model.backbone, self.state.manifest.window.layers)
        plan, round_number = self.plan.digest, self.state.manifest.round
        tally = Tally()
        for epoch in range(settings.epochs):
            count = len(self.texts.rows)
            order = training_order(count, plan=plan, round_number=round_number, device=self.device, epoch=epoch)
            for first in range(0, len(order), settings.batch_size):
                batch = order[first : first + settings.batch_size]
                progress("texts", epoch * len(order) + first, settings.epochs * len(order))
                tally.add(self._step(batch, hidden, adapters, weights), len(batch))
                optimizer.step()
        progress("texts", settings.epochs * len(order), settings.epochs * len(order))
        return tally

    def _step(
        self, batch: list[int], hidden: HiddenStates, adapters: dict[int, Adapter], weights: dict[int, Weights]
    ) -> StepLoss:
        """Accumulate the gradient of Eq. 2 over one batch."""
        settings = self.plan.manifest.settings
        micro = settings.numerics.micro_batch
        parts: list[StepLoss] = []
        for first in range(0, len(batch), micro):
            indices = batch[first : first + micro]
            losses = window_losses(
                self.model.backbone,
                self.state.manifest.window,
                weights,
                adapters,
                hidden.gather(indices, side=self.texts.side),
                self.texts.batch(indices),
                self.targets[indices],
                global_weight=settings.chain.global_weight,
                batch_size=len(batch),
            )
            losses.total.backward()
            parts.append(losses.values())
        return StepLoss.sum(parts)


@dataclass
class Tally:
    """Losses of all steps so far, and how many texts each stood for."""

    losses: list[StepLoss] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    def add(self, loss: StepLoss, count: int) -> None:
        """One step.  Raises `BadInput` where it diverged."""
        if not math.isfinite(loss.total):
            raise BadInput(
                "training diverged: the loss is no number",
                values={"step": len(self.losses) + 1, "last loss": self.losses[-1].total if self.losses else "none"},
                hint="lower optimizer.learning_rate",
            )
        self.losses.append(loss)
        self.counts.append(count)

    def summary(self) -> TrainingLoss:
        """What the update's manifest says."""
        downstream = [loss.downstream for loss in self.losses if loss.downstream is not None]
        return TrainingLoss(
            first=self.losses[0].total,
            last=self.losses[-1].total,
            mean=self._mean([loss.total for loss in self.losses]),
            mean_local=self._mean([loss.local for loss in self.losses]),
            mean_global=self._mean(downstream) if downstream else None,
        )

    def _mean(self, values: list[float]) -> float:
        return float(np.average(values, weights=self.counts))


def trainable(adapter: Adapter) -> Adapter:
    """A copy of an adapter whose tensors are leaves that gradients reach."""
    return Adapter.of((value.clone().requires_grad_() for value in adapter.parameters()), adapter.activation)


def inputs_digest(plan_digest: str, device: str, examples: list[Example]) -> str:
    """A digest of the texts, salted so that nobody can confirm a guess of them across plans or devices."""
    return data_digest(examples, salt=canonical_json(["update", plan_digest, device]).decode())


def check_turn(plan: Artifact[PlanManifest], state: Artifact[StateManifest], device: str) -> None:
    """The state is of the plan, and it is this device's turn."""
    check_same_plan(plan, state)
    if plan.manifest.settings.chain.method == "no-ft":
        raise UsageProblem('this plan trains nothing (chain.method = "no-ft")', hint="evaluate its state 0")
    if device not in state.manifest.participants:
        raise BadInput(
            f"device {device} does not take part in round {state.manifest.round}",
            values={"expected": ", ".join(state.manifest.participants), "found": device},
            hint="check --device, or wait for a round that names it",
        )


def check_budget(predicted_bytes: int, window: Window, budget_bytes: int | None) -> None:
    """Refuse, before any work, a budget that the prediction exceeds."""
    if budget_bytes is not None and predicted_bytes > budget_bytes:
        raise DoesNotFit(
            f"window {window} does not fit the memory budget",
            values={
                "budget": f"{budget_bytes / 2**20:.0f} MiB",
                "predicted peak": f"{predicted_bytes / 2**20:.0f} MiB",
            },
            hint="give a larger --memory-budget, or ask for a plan with a smaller window",
        )


def predicted_peak_bytes(plan: PlanManifest, window: Window) -> int:
    """What the plan predicts for a window."""
    return next(entry.predicted_peak_bytes for entry in plan.memory if entry.window == window)
