"""The coordinator's half of a method: what a plan decides, who trains what, what arrives, what becomes of it.

numpy alone.  The defaults are those of a method that tunes adapters and a head, averages them by the plan's strategy
and trains the same layers in every round; a method overrides what it does otherwise.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from schemas.assignment import Assignment
from schemas.methods import MethodDecisions, MethodProgress, MethodSettings
from schemas.plan import PlanManifest
from schemas.profile import LayerSimilarity
from schemas.refs import ModelFingerprint, Window
from schemas.settings import Settings
from schemas.state import StateManifest
from schemas.update import UpdateManifest
from stages.federated.aggregation import CHUNK_ELEMENTS, Aggregation
from stages.federated.rules import Expected, Update
from stages.store.artifact import Artifact
from stages.store.tensors import Shapes, TensorFile, elements
from stages.tuning.tensors import adapter_shapes, fresh_adapters

FLOAT32_BYTES = 4


class PredictPeak(Protocol):
    """Predicts the peak of `train-window` in bytes, as small as the smallest budget asks for."""

    def __call__(self, span: Window, first_layer: int, micro_batch: int, *, streamed: bool = True) -> int:
        """For training the layers of `span`, where layers from `first_layer` on have adapters.

        `streamed`: the span's layers may pass through memory one at a time.
        """
        ...


@dataclass(frozen=True)
class Smallest:
    """The device with the smallest memory budget."""

    device: str
    memory_budget_bytes: int


@dataclass(frozen=True)
class Facts:
    """What a plan is decided from: the model, the recipe, the profiles' mean curve, and what would fit."""

    model: ModelFingerprint
    settings: Settings
    curve: Sequence[LayerSimilarity]
    smallest: Smallest
    predict_peak: PredictPeak

    @property
    def micro_batch(self) -> int:
        """The recipe's, or what fills a processor."""
        return self.settings.numerics.decided(self.settings.encoding.max_length).rows


@dataclass(frozen=True)
class Decided:
    """A plan's decisions: the method's settings without `auto`, what follows from them, and the micro-batch."""

    settings: MethodSettings
    decisions: MethodDecisions
    micro_batch: int


@dataclass(frozen=True)
class Next:
    """What the next round does.  `assignment` is None where it differs by device."""

    assignment: Assignment | None
    progress: MethodProgress


@dataclass(frozen=True)
class Costs:
    """Of one assignment.  Passes are layers that a text passes in a step, bytes what travels in a round."""

    forward_passes: int
    backward_passes: int
    bytes_up: int
    bytes_down: int


class Combination(Protocol):
    """How accepted updates become the tensors of the next state, a chunk at a time."""

    def shapes(self) -> Shapes:
        """Of every tensor of the next state."""
        ...

    def settle(self, files: Sequence[TensorFile]) -> None:
        """Look through everything once, where that is needed.  `files`: the parent's, then the updates' in order."""
        ...

    def chunks(self, name: str, files: Sequence[TensorFile]) -> Iterator[np.ndarray]:
        """The float32 values of one tensor, in order."""
        ...


@dataclass(frozen=True)
class Unmoved:
    """The parent's tensors as they are: a round that closes without moving the model."""

    parent: Artifact[StateManifest]

    def shapes(self) -> Shapes:
        """The parent's."""
        return {tensor.name: tensor.shape for tensor in self.parent.manifest.tensors}

    def settle(self, files: Sequence[TensorFile]) -> None:
        """Nothing to look for."""

    def chunks(self, name: str, files: Sequence[TensorFile]) -> Iterator[np.ndarray]:
        """The parent's values, compared with their SHA-256 at the end."""
        yield from files[0].checked_chunks(name, CHUNK_ELEMENTS)


@dataclass(frozen=True)
class ServerMethod:
    """One method, on the coordinator's side and wherever an update is judged."""

    name: ClassVar[str]
    trains: ClassVar[bool] = True  # False: there are no rounds, only state 0

    def decide(self, facts: Facts) -> Decided:
        """Settings without `auto`, and what follows.  Raises `BadInput` and `DoesNotFit`.

        The default trains all layers that have adapters, from `first_layer` on.
        """
        settings = facts.settings.chain
        decisions = MethodDecisions(method=self.name, first_layer=self.first_layer(facts.model.num_layers))
        return Decided(settings, decisions, facts.micro_batch)

    def first_layer(self, num_layers: int) -> int:
        """The first layer that has an adapter."""
        return 0

    def shapes(self, plan: PlanManifest) -> Shapes:
        """Of the tensors of state 0."""
        layers = range(plan.decisions.first_layer, plan.model.num_layers)
        adapters = adapter_shapes(layers, hidden_size=plan.model.hidden_size, bottleneck=plan.bottleneck)
        return {**adapters, **{f"head.{one.name}": one.shape for one in plan.head_parameters}}

    def initial(self, plan: PlanManifest, head: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The tensors of state 0, float32, of the shapes above; `head` are the head's first values by parameter."""
        layers = range(plan.decisions.first_layer, plan.model.num_layers)
        size, bottleneck = plan.model.hidden_size, plan.bottleneck
        adapters = fresh_adapters(layers, hidden_size=size, bottleneck=bottleneck, seed=plan.settings.seed)
        return adapters | {f"head.{name}": values for name, values in head.items()}

    def first(self, plan: PlanManifest) -> Next:
        """What round 0 does."""
        return Next(plan.decisions.assignments(plan.model.num_layers)[0], MethodProgress(method=self.name))

    def next(
        self, plan: PlanManifest, parent: StateManifest, accepted: Sequence[UpdateManifest], train_loss: float
    ) -> Next:
        """What the round after this one does.  `train_loss` is the mean of the updates', by their example counts."""
        return Next(parent.assignment, parent.progress)

    def assignment(self, plan: PlanManifest, state: StateManifest, device: str) -> Assignment:
        """What a participant of a state's round is to train."""
        assert state.assignment is not None, "a method whose assignments differ by device works them out"
        return state.assignment

    def may_train(self, assigned: Assignment, trained: Assignment) -> bool:
        """Whether an update of `trained` counts where `assigned` was assigned."""
        return trained == assigned

    def narrowed(self, assigned: Assignment, layers: int) -> Assignment | None:
        """A part of an assignment, for a device that can hold that many layers; None where there is no such part."""
        return assigned if layers >= len(assigned.layers) else None

    def expected(self, plan: PlanManifest, state: StateManifest, assignment: Assignment) -> Expected:
        """What an update of an assignment holds: the adapters of its layers, and the head."""
        layers = set(assignment.layers)
        return Expected({one.name: one.shape for one in state.tensors if trains(one.name, layers)})

    def combine(
        self, plan: PlanManifest, parent: Artifact[StateManifest], accepted: Sequence[Update]
    ) -> Combination | None:
        """How updates become the next state; None: not yet, the round closes and the model stays as it is."""
        return Aggregation(parent, accepted, plan.settings.federation)

    def costs(self, plan: PlanManifest, assignment: Assignment) -> Costs:
        """What one device spends on an assignment: forwards up to its last layer, backwards down to its first."""
        span, depth = assignment.span, plan.model.num_layers
        shapes = self.shapes(plan)
        layers = set(assignment.layers)
        return Costs(
            forward_passes=span.stop if span else depth,
            backward_passes=len(span.layers) if span else 0,
            bytes_up=_bytes({name: shape for name, shape in shapes.items() if trains(name, layers)}),
            bytes_down=_bytes(shapes),
        )

    def explain(self, plan: PlanManifest) -> list[str]:
        """How the plan came about, line by line, for `plan --explain`."""
        layers = plan.model.num_layers - plan.decisions.first_layer
        return [f"Method {self.name}: {f'{layers} layers have adapters' if layers else 'no layer has an adapter'}."]

    def warnings(self, plan: PlanManifest) -> list[str]:
        """What a person should know before running this plan."""
        return []


def trains(tensor: str, layers: set[int]) -> bool:
    """Whether a tensor of a state trains with `layers`: the head's do, and the adapters of those layers."""
    group, _, rest = tensor.partition(".")
    return group == "head" or (group == "adapters" and int(rest.split(".")[0]) in layers)


def _bytes(shapes: Shapes) -> int:
    return FLOAT32_BYTES * sum(elements(shape) for shape in shapes.values())
