"""Who watches a simulation: what is told of it while it runs."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from schemas.plan import PlanManifest
from schemas.run import RoundLine
from stages.store.artifact import Artifact


@dataclass(frozen=True)
class Begun:
    """The plan is made and state 0 evaluated: by accuracy or by perplexity, whichever the task has."""

    plan: Artifact[PlanManifest]
    rounds: int  # to come, those that an earlier run of the same command has finished among them
    accuracy: float | None
    perplexity: float | None


class Watcher(Protocol):
    """Is told what happens, in this order: `begin` once, then `round` for each; `progress` at any time."""

    def progress(self, phase: str, done: int, total: int) -> None:
        """A phase of the work has got that far."""
        ...

    def begin(self, begun: Begun) -> None:
        """The rounds begin."""
        ...

    def round(self, line: RoundLine) -> None:
        """A round is finished, now or by an earlier run of the same command."""
        ...


Watch = Callable[[], AbstractContextManager[Watcher]]  # a watcher for one simulation
