"""Train-window stage: one device, one round, one window.

Chain:  profile -> plan -> [train-window] -> aggregate -> eval
Reads:  plan and state artifacts, the base model, the device's labelled texts.
Writes: an update artifact: the window's adapters (and the head) after local training, and nothing else.

The frozen prefix streams through memory once, every text a layer at a time; what it leaves, h_s, feeds the steps
over the window.  Prefix and window are never in memory together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from schemas.base import canonical_json
from schemas.errors import BadInput, UsageProblem
from schemas.plan import PlanManifest
from schemas.refs import Window
from schemas.settings import Settings, TaskSettings
from schemas.state import StateManifest
from schemas.update import TrainingLoss, UpdateManifest
from stages.data.encode import Encoder
from stages.data.load import Example, data_digest, label_indices, load_labelled
from stages.federated.intake import check_example_count
from stages.memory.predict import MemoryModel, fit
from stages.model.backbone import Backbone
from stages.model.language_head import LanguageHead
from stages.model.loading import LoadedModel
from stages.process.measure import MeasuredFacts, Stopwatch, device_memory_bytes, resident_bytes
from stages.process.progress import Progress, silent
from stages.store.artifact import Artifact, existing, new_artifact, read_tensors
from stages.store.cache_directory import CacheDirectory
from stages.store.signing import Signer
from stages.store.trust import Trust, check_signer, open_trusted
from stages.streaming.hidden_states import HiddenStates
from stages.streaming.placement import FASTEST, Placement
from stages.streaming.prefix_cache import prefix_cache
from stages.streaming.stream import hidden_states, load_layers, run_prefix, stream_layers
from stages.streaming.texts import EncodedTexts, training_batches
from stages.training.criterion import ClassCriterion, Criterion, TokenCriterion, backward_with_gradient
from stages.training.objective import Objective, StepLoss
from stages.training.optimizer import Optimizer
from stages.training.resume import TrainingCheckpoint
from stages.training.tally import Tally
from stages.tuning.adapters import LIVE_TENSORS, Adapter, adapter_names, adapters_from_tensors
from stages.weights.reader import Verify, Weights


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
    progress: Progress = silent,
    model: LoadedModel | None = None,
    cache: CacheDirectory | None = None,
    verify: Verify = "once",
    signer: Signer | None = None,
    window_size: int | None = None,
    checkpoint_every: int | None = None,
) -> Artifact[UpdateManifest]:
    """Train the window that `state` names, on the texts of `device`.

    `model` spares a caller with many devices opening the base model again, `cache` a device that comes again the
    layers before which nothing has changed; `window_size` trains only the last layers of the window.  Raises `BadInput`
    for artifacts or data that do not go together, `NotTrusted` for altered bytes or what is not believed here,
    `DoesNotFit` where the budget is too small.
    """
    planned, current = open_trusted(plan, state, newest=True)
    manifest = planned.manifest
    settings, window = manifest.settings, narrowed(current.manifest.window, window_size)
    check_turn(planned, current, device)
    enrolled = manifest.trust.device(device)
    check_signer(manifest.trust, enrolled.key if enrolled else None, signer, whose=f"device {device}")
    examples = load_labelled(data, settings.task, settings.prompt)
    check_example_count(device, len(examples), manifest.most_examples(device))
    inputs = inputs_digest(planned.digest, device, examples)

    def same(there: UpdateManifest) -> bool:
        found = (there.plan, there.state, there.window, there.device, there.inputs)
        return found == (planned.digest, current.digest, window, device, inputs)

    checkpoints = TrainingCheckpoint.beside(
        out,
        checkpoint_every,
        plan=planned.digest,
        state=current.digest,
        window=window,
        device=device,
        inputs=inputs,
    )
    found = existing(out, UpdateManifest, same=same, force=force, signer=signer)
    if found is not None:
        checkpoints.forget()
        return found
    Trust.of_this_machine().remember(planned, current)
    out.parent.mkdir(parents=True, exist_ok=True)
    budget = memory_budget_bytes or device_memory_bytes()
    with Stopwatch(None if model else budget) as watch:
        torch.set_num_threads(settings.numerics.threads)
        encoder = model.encoder if model else Encoder.load(model_dir, settings.encoding, settings.prompt)
        count = len(examples)
        order = training_batches(
            count, settings.optimizer, seed=settings.seed, round_number=current.manifest.round, device=device
        )
        batches, seen = only_seen(order)
        examples = [examples[index] for index in seen]
        texts = EncodedTexts.encode(examples, encoder, settings.numerics.rows)
        targets = label_targets(examples, settings.task)
        check_learnable(texts, settings.task)
        del encoder, examples  # a large vocabulary weighs as much as a layer
        backbone = (
            model.backbone
            if model
            else Backbone.open(
                model_dir, settings, pad_id=texts.pad_id, expected=manifest.model, verify=verify, cache=cache
            )
        )
        if model:  # a simulation: one process is many devices, and keeps none of their budgets
            placement, predicted = FASTEST, planned_peak_bytes(manifest, current.manifest.window)
        else:
            longest = max(texts.lengths)
            memory = MemoryModel(backbone, settings, manifest.bottleneck, texts.token_count, resident_bytes(), longest)
            placement, predicted = fit(
                lambda choice: memory.train_window(window, choice, start_layer=manifest.start_layer),
                budget,
                what=f"window {window}",
            )
        before = backbone.reader.files.bytes_read
        trainer = Trainer(
            planned, current, window, backbone, texts, targets, batches, placement, checkpoints, out.parent, cache
        )
        trained, loss = trainer.train(watch.over(progress))
    update = UpdateManifest(
        plan=planned.digest,
        state=current.digest,
        round=current.manifest.round,
        window=window,
        device=device,
        inputs=inputs,
        example_count=count,
        steps=len(batches),
        loss=loss,
        tensors=(),
        files=(),
    )
    facts = MeasuredFacts(
        seconds=watch.seconds,
        predicted_peak_bytes=predicted,
        peak_bytes=watch.peak_bytes,
        bytes_streamed=backbone.reader.files.bytes_read - before,
        texts=texts.counts(),
    )
    with new_artifact(out, force=force, signer=signer) as draft:
        tensors, files = draft.write_tensors(trained)
        update = update.model_copy(update={"tensors": tensors, "files": files})
        draft.finish(update, facts)
    checkpoints.forget()
    return Artifact(out, update, update.digest)


@dataclass(frozen=True)
class Trainer:
    """One window on one device's texts, a batch a step.

    `targets` (N,) are indices into the plan's labels; None: the next tokens.
    """

    plan: Artifact[PlanManifest]
    state: Artifact[StateManifest]
    window: Window
    backbone: Backbone
    texts: EncodedTexts
    targets: Tensor | None
    batches: list[list[int]]
    placement: Placement
    checkpoints: TrainingCheckpoint
    scratch: Path
    cache: CacheDirectory | None

    @property
    def settings(self) -> Settings:
        """Those of the plan."""
        return self.plan.manifest.settings

    def train(self, progress: Progress) -> tuple[dict[str, np.ndarray], TrainingLoss]:
        """Tensors of the update, and its losses."""
        backbone, window = self.backbone, self.window
        adapters, trained = self._load_adapters()
        with hidden_states(backbone, self.texts, self.placement, scratch=self.scratch) as hidden:
            run_prefix(
                backbone,
                self.texts,
                hidden,
                adapters,
                stop=window.start,
                prefetch=self.placement.prefetch,
                cache=prefix_cache(self.cache, self.plan.manifest, adapters, self.texts),
                keep=(self.plan.manifest.start_layer, window.start),
                progress=progress,
            )
            for layer in [layer for layer in adapters if layer < window.start]:
                del adapters[layer]
            parameters = [value for layer in window.layers for value in trained[layer].parameters()]
            parameters += backbone.head_parameters.values()
            optimizer = Optimizer(parameters, self.settings.optimizer, round_number=self.state.manifest.round)
            weight = self.settings.chain.global_weight
            objective = Objective(backbone, window, adapters | trained, weight, self._criterion())
            tally = self._steps(hidden, objective, optimizer, progress)
        names = [name for layer in window.layers for name in adapter_names(layer)]
        names += [f"head.{name}" for name in backbone.head_parameters]
        values = [parameter.detach().numpy() for parameter in parameters]
        return dict(zip(names, values, strict=True)), tally.summary()

    def _load_adapters(self) -> tuple[dict[int, Adapter], dict[int, Adapter]]:
        """Those of every layer as they compute, frozen, and copies of the window's that train; and the head."""
        tensors = read_tensors(self.state, *LIVE_TENSORS)
        stored = adapters_from_tensors(tensors, self.settings.adapter.activation)
        self.backbone.load_head(tensors)
        trained = {layer: trainable(stored[layer]) for layer in self.window.layers}
        return {layer: adapter.frozen(self.backbone.dtype) for layer, adapter in stored.items()}, trained

    def _steps(self, hidden: HiddenStates, objective: Objective, optimizer: Optimizer, progress: Progress) -> Tally:
        resident = self.placement.window_resident or len(self.window.layers) < 2
        weights = load_layers(self.backbone, self.window.layers) if resident else {}
        tally = Tally.of(self.checkpoints.restore(optimizer))
        for number, batch in enumerate(self.batches, 1):
            if number <= len(tally.losses):
                continue
            progress("steps", number - 1, len(self.batches))
            step = self._step(batch, hidden, objective, weights) if resident else None
            tally.add(step or self._streamed_step(batch, hidden, objective), self._count(batch))
            optimizer.step()
            if self.checkpoints.due(number):
                self.checkpoints.save(optimizer, tally.steps())
        progress("steps", len(self.batches), len(self.batches))
        return tally

    def _step(
        self, batch: list[int], hidden: HiddenStates, objective: Objective, weights: dict[int, Weights]
    ) -> StepLoss:
        """Accumulate the gradient of Eq. 2 over one batch, a micro-batch at a time."""
        parts = []
        for indices in self.texts.micro_batches(batch):
            arriving, texts = hidden.gather(indices, self.texts.layout(indices)), self.texts.batch(indices)
            targets, count = self._targets(indices), self._count(batch)
            parts.append(objective.accumulate(weights, arriving, texts, targets, count=count))
        return StepLoss.sum(parts)

    def _streamed_step(self, batch: list[int], hidden: HiddenStates, objective: Objective) -> StepLoss:
        """The same sums in the same order with one layer of the window in memory at a time.

        Forwards without a graph, keeping what arrives at each layer; then backwards, each layer run once more with
        one.  `arriving[l][m]` is the input of layer l for micro-batch m, and then the gradient with respect to it.
        """
        micro_batches = self.texts.micro_batches(batch)
        batches = [self.texts.batch(indices) for indices in micro_batches]
        first, *_, last = self.window.layers
        arriving: dict[int, list[Tensor]] = {layer: [] for layer in self.window.layers[1:]}

        def entering(layer: int, part: int) -> Tensor:
            if layer == first:
                return hidden.gather(micro_batches[part], self.texts.layout(micro_batches[part]))
            return arriving[layer][part]

        def through(layer: int, weights: Weights, arrived: Tensor, part: int) -> Tensor:
            adapter = {layer: objective.adapters[layer]}
            return self.backbone.run_layers({layer: weights}, arrived, batches[part], adapter)

        for layer, weights in stream_layers(self.backbone, self.window.layers[:-1], prefetch=False):
            with torch.no_grad():
                arriving[layer + 1] = [
                    through(layer, weights, entering(layer, part), part) for part in range(len(batches))
                ]
            del weights  # or it would hold this layer while the next is read
        parts: list[StepLoss] = []
        for layer, weights in stream_layers(self.backbone, self.window.layers[::-1], prefetch=False):
            for part, indices in enumerate(micro_batches):
                arrived = entering(layer, part).requires_grad_(layer != first)
                if layer == last:
                    targets, count = self._targets(indices), self._count(batch)
                    parts.append(objective.accumulate({layer: weights}, arrived, batches[part], targets, count=count))
                else:
                    backward_with_gradient(through(layer, weights, arrived, part), arriving[layer + 1][part])
                if layer != first:
                    assert arrived.grad is not None
                    arriving[layer][part] = arrived.grad
        return StepLoss.sum(parts)

    def _criterion(self) -> Criterion:
        if self.targets is None:
            return TokenCriterion(LanguageHead.of(self.backbone, resident=self.placement.head_resident))
        return ClassCriterion(self.backbone)

    def _targets(self, indices: list[int]) -> Tensor:
        """(B,) classes or (B, S) tokens of some texts."""
        return self.texts.targets(indices) if self.targets is None else self.targets[indices]

    def _count(self, indices: list[int]) -> int:
        """How many targets some texts have together."""
        if self.targets is not None:
            return len(indices)
        return max(1, sum(self.texts.target_counts[index] for index in indices))


def trainable(adapter: Adapter) -> Adapter:
    """A copy of an adapter whose tensors are leaves that gradients reach."""
    return Adapter.of((value.clone().requires_grad_() for value in adapter.parameters()), adapter.activation)


def only_seen(batches: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[int]]:
    """The batches with texts numbered anew, and which texts those are: what no step sees need not be encoded."""
    seen = sorted({index for batch in batches for index in batch})
    place = {index: position for position, index in enumerate(seen)}
    return [[place[index] for index in batch] for batch in batches], seen


def check_learnable(texts: EncodedTexts, task: TaskSettings) -> None:
    """There is something to learn.  Raises `BadInput`."""
    if task.kind == "causal-lm" and not any(texts.target_counts):
        raise BadInput(
            "no text has a token to learn",
            values={"texts": len(texts.rows), "cut at max_length": texts.cut},
            hint="raise encoding.max_length: the responses begin behind it, or texts have one token only",
        )


def narrowed(window: Window, size: int | None) -> Window:
    """The last `size` layers of a round's window, for a device that cannot hold all of it.

    The last, because the head stands on them.  Raises `UsageProblem`.
    """
    if size is None:
        return window
    if not 1 <= size <= len(window.layers):
        raise UsageProblem(
            "the round's window has another size",
            values={"this round trains": f"{len(window.layers)} layers, {window}", "--window-size": size},
            hint="a device may train fewer layers of the window, not more",
        )
    return Window(start=window.stop - size, stop=window.stop)


def label_targets(examples: list[Example], task: TaskSettings) -> Tensor | None:
    """(N,) indices into the plan's labels; None for a task without labels."""
    if task.kind == "causal-lm":
        return None
    return torch.tensor(label_indices(examples, task.labels))


def inputs_digest(plan_digest: str, device: str, examples: list[Example]) -> str:
    """A digest of the texts, salted so that nobody can confirm a guess of them across plans or devices."""
    return data_digest(examples, salt=canonical_json(["update", plan_digest, device]).decode())


def check_turn(plan: Artifact[PlanManifest], state: Artifact[StateManifest], device: str) -> None:
    """It is this device's turn."""
    if plan.manifest.settings.chain.method == "no-ft":
        raise UsageProblem('this plan trains nothing (chain.method = "no-ft")', hint="evaluate its state 0")
    if device not in state.manifest.participants:
        raise BadInput(
            f"device {device} does not take part in round {state.manifest.round}",
            values={"expected": ", ".join(state.manifest.participants), "found": device},
            hint="check --device, or wait for a round that names it",
        )


def planned_peak_bytes(plan: PlanManifest, window: Window) -> int:
    """What the plan predicts for a window."""
    return next(entry.predicted_peak_bytes for entry in plan.memory if entry.window == window)
