"""The states of a run's history: of each what is shown of it, so that no manifest is kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from schemas.assignment import Assignment
from schemas.errors import ChainError, NotTrusted
from schemas.measured import Cost
from schemas.plan import PlanManifest
from schemas.state import StateManifest
from stages.run_view.view import Problem
from stages.store.artifact import Artifact, artifact_bytes
from stages.store.lineage import Found, find_state

State = Artifact[StateManifest]


@dataclass(frozen=True)
class StateFacts:
    """What is shown of a state; of one that is not here, or not signed, only that it is not."""

    problem: Problem = ""
    assignment: Assignment | None = None  # of the round that starts from it
    kept: tuple[int, ...] = ()
    moved: bool | None = None
    texts: int | None = None
    train_loss: float | None = None
    cost: Cost | None = None
    size_bytes: int = 0  # that each participant fetches


def read_states(
    digests: Sequence[str], found: Found, plan: Artifact[PlanManifest], visit: Callable[[State], None]
) -> dict[str, StateFacts]:
    """The facts of each state; `visit` sees every state that is whole and signed as the plan asks."""
    facts: dict[str, StateFacts] = {}
    for digest in digests:
        try:
            state = find_state(found, digest, plan)
            if state is not None:
                visit(state)
                facts[digest] = _facts(state)
            else:
                facts[digest] = StateFacts("missing")
        except NotTrusted:
            facts[digest] = StateFacts("not trusted")
        except ChainError:  # no copy of it is whole
            facts[digest] = StateFacts("missing")
    return facts


def _facts(state: State) -> StateFacts:
    manifest, measured = state.manifest, state.measured()
    return StateFacts(
        assignment=manifest.assignment,
        kept=tuple(covered.layer for covered in manifest.coverage if covered.kept),
        moved=manifest.moved,
        texts=manifest.example_count,
        train_loss=manifest.train_loss,
        cost=measured.updates if measured else None,
        size_bytes=artifact_bytes(state.path),
    )
