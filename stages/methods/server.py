"""The coordinator's half of a method: a plan's decisions, assignments, expected updates, and their combination.

numpy only.  The defaults suit a method that tunes adapters and a head, combines them by the plan's strategy and
trains the same layers in every round; a method overrides what it does differently.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from schemas.assignment import Assignment
from schemas.errors import DoesNotFit
from schemas.methods import MethodDecisions, MethodProgress, MethodSettings
from schemas.plan import PlanManifest
from schemas.profile import LayerSimilarity
from schemas.refs import ModelFingerprint
from schemas.settings import AdapterSettings, Settings
from schemas.state import StateManifest
from schemas.update import UpdateManifest
from stages.federated.aggregation import CHUNK_ELEMENTS, Aggregation
from stages.federated.assumptions import Support
from stages.federated.rules import Expected, Update
from stages.process.measure import mebibytes
from stages.store.artifact import Artifact
from stages.store.tensors import Shapes, TensorFile, elements
from stages.tuning.tensors import adapter_shapes, fresh_adapters

FLOAT32_BYTES = 4


class PredictPeak(Protocol):
    """Predicts the peak of `train-window` in bytes, with the smallest placement."""

    def __call__(
        self, assignment: Assignment, first_layer: int, micro_batch: int, *, bottleneck: int, streamed: bool = True
    ) -> int:
        """Peak of training an assignment; layers from `first_layer` on have adapters of width `bottleneck`.

        `streamed`: the layers that gradients pass may pass through memory one at a time.
        """
        ...


@dataclass(frozen=True)
class Smallest:
    """The device with the smallest memory budget."""

    device: str
    memory_budget_bytes: int


@dataclass(frozen=True)
class Facts:
    """Inputs of a plan's decisions: model, recipe, the profiles' mean curve, smallest device, memory prediction.

    `head_values`: how many parameters of the head train.
    """

    model: ModelFingerprint
    settings: Settings
    curve: Sequence[LayerSimilarity]
    smallest: Smallest
    predict_peak: PredictPeak
    head_values: int = 0

    def width(self, layers: int) -> AdapterSettings:
        """The widest adapters of which a round may send so many; of those that `auto` allows, the narrowest if none."""
        limit = self.settings.federation.round_bytes
        choices = self.settings.adapter.choices(self.settings.task.kind)
        fitting = [one for one in choices if limit == "none" or self.bytes_up(layers, one) <= limit]
        return fitting[0] if fitting else choices[-1]

    def bytes_up(self, layers: int, adapter: AdapterSettings) -> int:
        """Bytes of an update's tensors: adapters of so many layers, and the head."""
        size = self.model.hidden_size
        shapes = adapter_shapes(range(layers), hidden_size=size, bottleneck=adapter.bottleneck(size))
        return _bytes(shapes) + FLOAT32_BYTES * self.head_values

    @property
    def micro_batch(self) -> int:
        """The recipe's micro-batch in rows; where it is `auto`, the one that fills a processor."""
        return self.settings.numerics.decided(self.settings.encoding.most_tokens).rows

    @property
    def micro_batches(self) -> list[int]:
        """The micro-batches to try, in rows: where it is `auto`, also the half, the quarter, …"""
        shrinks = self.settings.numerics.micro_batch == "auto"
        return [self.micro_batch >> halvings for halvings in range(self.micro_batch.bit_length() if shrinks else 1)]


@dataclass(frozen=True)
class Decided:
    """The method's settings without `auto`, the decisions that follow, the adapters' width, the micro-batch in rows."""

    settings: MethodSettings
    decisions: MethodDecisions
    adapter: AdapterSettings
    micro_batch: int


@dataclass(frozen=True)
class Next:
    """What the next round does.  `assignment` is None if it differs by device."""

    assignment: Assignment | None
    progress: MethodProgress


@dataclass(frozen=True)
class Costs:
    """Costs of one assignment: layers passed per text and step, and bytes sent per round."""

    forward_passes: int
    backward_passes: int
    bytes_up: int
    bytes_down: int

    @property
    def passes(self) -> int:
        """In both directions."""
        return self.forward_passes + self.backward_passes


class Combination(Protocol):
    """How accepted updates become the tensors of the next state, a chunk at a time."""

    def support(self) -> Mapping[str, Support]:
        """What the holders of each tensor that updates hold allow; empty where nothing is promised."""
        ...

    def shapes(self) -> Shapes:
        """Shapes of all tensors of the next state."""
        ...

    def settle(self, files: Sequence[TensorFile]) -> None:
        """Do what needs a first pass over all updates.  `files`: the parent's, then the updates' in order."""
        ...

    def chunks(self, name: str, files: Sequence[TensorFile]) -> Iterator[np.ndarray]:
        """The values of one tensor, in order, as chunks (E,) float32."""
        ...


@dataclass(frozen=True)
class Unmoved:
    """The parent's tensors, unchanged: a round that closes without moving the model."""

    parent: Artifact[StateManifest]

    def support(self) -> Mapping[str, Support]:
        """No strategy is applied."""
        return {}

    def shapes(self) -> Shapes:
        """The parent's shapes."""
        return {tensor.name: tensor.shape for tensor in self.parent.manifest.tensors}

    def settle(self, files: Sequence[TensorFile]) -> None:
        """No first pass is needed."""

    def chunks(self, name: str, files: Sequence[TensorFile]) -> Iterator[np.ndarray]:
        """The parent's values; their SHA-256 is checked at the end."""
        yield from files[0].checked_chunks(name, CHUNK_ELEMENTS)


@dataclass(frozen=True)
class ServerMethod:
    """One method on the coordinator, and wherever an update is checked."""

    name: ClassVar[str]
    trains: ClassVar[bool] = True  # False: there are no rounds, only state 0

    def decide(self, facts: Facts) -> Decided:
        """Decide all `auto` settings and what follows from them.  Raises `BadInput` and `DoesNotFit`.

        The default trains all layers that have adapters, from `first_layer` on, streamed where the smallest budget
        asks for it.
        """
        depth = facts.model.num_layers
        decisions = MethodDecisions(method=self.name, first_layer=self.first_layer(depth))
        (assignment,) = decisions.assignments(depth)
        adapter = facts.width(len(assignment.layers))
        micro_batch = fitting_micro_batch(facts, assignment, decisions, adapter, always=not self.trains)
        return Decided(facts.settings.chain, decisions, adapter, micro_batch)

    def first_layer(self, num_layers: int) -> int:
        """The first layer with an adapter; `num_layers` if there is none."""
        return 0

    def shapes(self, plan: PlanManifest) -> Shapes:
        """Shapes of the tensors of state 0."""
        layers = range(plan.decisions.first_layer, plan.model.num_layers)
        adapters = adapter_shapes(layers, hidden_size=plan.model.hidden_size, bottleneck=plan.bottleneck)
        return {**adapters, **{f"head.{one.name}": one.shape for one in plan.head_parameters}}

    def initial(self, plan: PlanManifest, head: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The tensors of state 0, float32, as in `shapes`; `head` holds the head's initial values by parameter."""
        layers = range(plan.decisions.first_layer, plan.model.num_layers)
        size, bottleneck = plan.model.hidden_size, plan.bottleneck
        adapters = fresh_adapters(layers, hidden_size=size, bottleneck=bottleneck, seed=plan.settings.seed)
        return adapters | {f"head.{name}": values for name, values in head.items()}

    def first(self, plan: PlanManifest) -> Next:
        """The assignment and progress of round 0."""
        return Next(plan.decisions.assignments(plan.model.num_layers)[0], MethodProgress(method=self.name))

    def next(
        self, plan: PlanManifest, parent: StateManifest, accepted: Sequence[UpdateManifest], train_loss: float
    ) -> Next:
        """The next round's assignment and progress.  `train_loss` is the updates' mean, weighted by example counts."""
        return Next(parent.assignment, parent.progress)

    def assignment(self, plan: PlanManifest, state: StateManifest, device: str) -> Assignment:
        """What a participant trains in the round that starts from `state`."""
        assert state.assignment is not None, "a method whose assignments differ by device overrides `assignment`"
        return state.assignment

    def may_train(self, assigned: Assignment, trained: Assignment) -> bool:
        """Whether an update that trained `trained` counts if `assigned` was assigned."""
        return trained == assigned

    def narrowed(self, assigned: Assignment, layers: int) -> Assignment | None:
        """The part of an assignment with that many layers which a device may train instead; None if there is none."""
        return assigned if layers == len(assigned.layers) else None

    def expected(self, plan: PlanManifest, state: StateManifest, assignment: Assignment) -> Expected:
        """What an update must hold: the adapters of the assigned layers, and the head."""
        layers = set(assignment.layers)
        return Expected({one.name: one.shape for one in state.tensors if trains(one.name, layers)})

    def combine(
        self, plan: PlanManifest, parent: Artifact[StateManifest], accepted: Sequence[Update]
    ) -> Combination | None:
        """How updates become the next state; None if the round closes without moving the model.

        Raises `TooFewUpdates`.
        """
        return Aggregation(parent, accepted, plan.settings.federation)

    def costs(self, plan: PlanManifest, assignment: Assignment) -> Costs:
        """Costs for one device: forward passes up to the last assigned layer, backward passes down to the first.

        Not through the first: its adapter is behind it, so no gradient passes the layer itself.
        """
        span, depth = assignment.span, plan.model.num_layers
        shapes = self.shapes(plan)
        layers = set(assignment.layers)
        return Costs(
            forward_passes=span.stop if span else depth,
            backward_passes=len(span.layers) - 1 if span else 0,
            bytes_up=_bytes({name: shape for name, shape in shapes.items() if trains(name, layers)}),
            bytes_down=_bytes(shapes),
        )

    def explain(self, plan: PlanManifest) -> list[str]:
        """The reasons for the plan's decisions, as lines for `plan --explain`."""
        layers = plan.model.num_layers - plan.decisions.first_layer
        return [f"Method {self.name}: {f'{layers} layers have adapters' if layers else 'no layer has an adapter'}."]

    def warnings(self, plan: PlanManifest) -> list[str]:
        """Warnings about running this plan."""
        return []


def fitting_micro_batch(
    facts: Facts, assignment: Assignment, decisions: MethodDecisions, adapter: AdapterSettings, *, always: bool = False
) -> int:
    """The largest micro-batch with which an assignment fits the smallest budget.  Raises `DoesNotFit` unless `always`.

    The layers may be streamed one at a time.
    """
    bottleneck = adapter.bottleneck(facts.model.hidden_size)
    peaks: list[int] = []
    for micro_batch in facts.micro_batches:
        peaks.append(facts.predict_peak(assignment, decisions.first_layer, micro_batch, bottleneck=bottleneck))
        if peaks[-1] <= facts.smallest.memory_budget_bytes or always:
            return micro_batch
    raise does_not_fit(facts.smallest, min(peaks), what=f"training {assignment}")


def over_limit(unit: str, limit: int, needed: int, *, what: str) -> DoesNotFit:
    """The error where a round costs a device more than the recipe allows."""
    return DoesNotFit(
        f"{what} costs a device more {unit} than a round may",
        values={f"federation.round_{unit}": limit, "needed": needed},
        hint=f"raise federation.round_{unit}, or leave what the recipe fixes in [chain] and [adapter] at auto",
    )


def does_not_fit(smallest: Smallest, needed_bytes: int, *, what: str) -> DoesNotFit:
    """The error where nothing that a method could choose fits the smallest budget."""
    return DoesNotFit(
        f"{what} does not fit the memory budget of device {smallest.device}",
        values={"budget": mebibytes(smallest.memory_budget_bytes), "needed": mebibytes(needed_bytes)},
        hint="leave that device out, lower encoding.max_length, or raise adapter.reduction_factor",
    )


def trains(tensor: str, layers: set[int]) -> bool:
    """Whether a state's tensor is trained with `layers`: the head and the adapters of those layers are."""
    group, _, rest = tensor.partition(".")
    return group == "head" or (group == "adapters" and int(rest.split(".")[0]) in layers)


def _bytes(shapes: Shapes) -> int:
    return FLOAT32_BYTES * sum(elements(shape) for shape in shapes.values())
