"""What a plan's method asks of an update, as the intake and the aggregation need to know it."""

from dataclasses import dataclass
from typing import Protocol

from schemas.assignment import Assignment
from schemas.plan import PlanManifest
from schemas.state import StateManifest
from schemas.update import UpdateManifest
from stages.store.artifact import Artifact
from stages.store.tensors import Shapes

Update = Artifact[UpdateManifest]


class Rules(Protocol):
    """What the plan's method asks of an update; `stages.methods.server.ServerMethod` has more of it."""

    def assignment(self, plan: PlanManifest, state: StateManifest, device: str) -> Assignment:
        """What a participant was to train."""
        ...

    def may_train(self, assigned: Assignment, trained: Assignment) -> bool:
        """Whether an update of `trained` counts where `assigned` was assigned."""
        ...

    def expected(self, plan: PlanManifest, state: StateManifest, assignment: Assignment) -> "Expected":
        """What an update of an assignment holds."""
        ...


@dataclass(frozen=True)
class Expected:
    """What an update holds: float32 tensors by shape, and names of numbers."""

    shapes: Shapes
    numbers: frozenset[str] = frozenset()
