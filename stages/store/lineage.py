"""The history of a state: state, parent state, …, plan, profiles.  Found by digest, as a commit finds its parents.

What a search finds is a candidate and no more: where the plan requires signatures, whatever the right key did not sign
is left out, and counted.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from schemas.assignment import described
from schemas.base import LARGE_MANIFEST_LIMIT_BYTES, sha256_digest
from schemas.devices import MOST_DEVICES
from schemas.errors import ChainError, some
from schemas.evaluation import EvaluationManifest
from schemas.kinds import artifact_model
from schemas.measured import Cost
from schemas.perplexity import PerplexityManifest
from schemas.plan import PlanManifest
from schemas.state import StateManifest
from stages.store.artifact import MANIFEST_FILE, Artifact, kind_and_version, open_artifact, verify_artifact
from stages.store.debris import without_debris
from stages.store.files import put_back
from stages.store.regular import read_regular
from stages.store.trust import Trust, check_signed

MOST_DIRECTORIES = MOST_DEVICES  # a folder of profiles has one for each device
MOST_BYTES = 2**30  # of all manifests of a search: those of a hundred thousand devices
SCORES = (EvaluationManifest.KIND, PerplexityManifest.KIND)

T = TypeVar("T")

Scored = EvaluationManifest | PerplexityManifest
Found = Mapping[str, Sequence[Path]]  # by the digest of a manifest, every place that holds it


@dataclass(frozen=True)
class HistoryLine:
    """One state in the history, newest first."""

    round: int
    state: str
    trained: str  # layers of the round that made it
    kept: tuple[int, ...]  # layers among them that too few devices trained: they stayed as they were
    devices: int
    texts: int
    train_loss: float | None
    accuracy: float | None
    perplexity: float | None
    cost: Cost | None  # of the round, as its devices measured it; None for round 0
    plan: str
    profiles: int | None  # None where the plan was not found
    missing_parent: str  # digest of a parent that was not found; empty otherwise

    def cells(self) -> tuple[object, ...]:
        """The cells of a table's row."""
        loss = "" if self.train_loss is None else f"{self.train_loss:.4f}"
        scores = [f"{score:.4f}" for score in (self.accuracy, self.perplexity) if score is not None]
        passes = f"{self.cost.per_text:.1f}" if self.cost and self.cost.visits else ""
        sent = f"{self.cost.bytes_up / 2**10:,.0f} KiB" if self.cost else ""
        trained = f"{self.trained} without {some([*map(str, self.kept)])}" if self.kept else self.trained
        told = (self.round, self.state[:19], trained, self.devices, self.texts, loss, " ".join(scores))
        return (*told, passes, sent)


@dataclass(frozen=True)
class History:
    """The states from the newest back, and how far they can be believed."""

    lines: Sequence[HistoryLine]
    signed: bool | None  # None: the plan was not found, so that nobody could be asked
    left_out: int  # evaluations of these states that the right key did not sign

    def notes(self) -> list[str]:
        """What a person should know before believing it."""
        if self.signed is None:
            plan = self.lines[0].plan
            return [f"plan {plan} was not found: no signature could be checked, and scores are left out"]
        return [left_out_note(self.left_out)] if self.left_out else []


def history(state: Path, search: Sequence[Path]) -> History:
    """Walk from `state` to round 0, or to the first parent that was not found.

    Looks in the folders around the state and in `search`.  Every artifact on the way is verified.  Raises `BadInput`,
    and `NotTrusted` where the plan is found and is not trusted here, or its coordinator did not sign `state`.
    """
    found = index([state.parent, *_beside(state), *search])
    current: Artifact[StateManifest] | None = open_artifact(state, StateManifest)
    assert current is not None
    plan = find_plan(found, current.manifest.plan)
    if plan is not None:
        check_signed(current, plan)
    scores, left_out = _scores(found, plan) if plan else ({}, 0)
    lines: list[HistoryLine] = []
    while current is not None:
        verify_artifact(current.path)
        manifest, measured = current.manifest, current.measured()
        parent = find_state(found, manifest.parent, plan)
        accuracy, perplexity = scores.get(current.digest, (None, None))
        lines.append(
            HistoryLine(
                round=manifest.round,
                state=current.digest,
                trained=described(parent.manifest.assignment) if parent else "",
                kept=tuple(covered.layer for covered in manifest.coverage if covered.kept),
                devices=manifest.accepted_count,
                texts=manifest.example_count,
                train_loss=manifest.train_loss,
                accuracy=accuracy,
                perplexity=perplexity,
                cost=measured.updates if measured else None,
                plan=manifest.plan,
                profiles=plan.manifest.device_count if plan else None,
                missing_parent=manifest.parent if manifest.parent and not parent else "",
            )
        )
        current = parent
    return History(lines, plan.manifest.trust.required if plan else None, left_out)


def index(directories: Sequence[Path]) -> Found:
    """Artifacts by digest: every folder in `directories`, and in the folders below them, that holds a manifest.

    What is larger than any manifest is not one, and is not read.
    """
    found: dict[str, list[Path]] = {}
    left = MOST_BYTES
    for candidate in dict.fromkeys(each.absolute() for one in directories for each in _candidates(one)):
        with suppress(ChainError, OSError):
            data = read_regular(candidate / MANIFEST_FILE, at_most=min(left, LARGE_MANIFEST_LIMIT_BYTES))
            left -= len(data)
            found.setdefault(sha256_digest(data), []).append(candidate)
    return found


def find_plan(found: Found, digest: str) -> Artifact[PlanManifest] | None:
    """The plan with that digest, trusted on this machine; it may have expired, as its history goes on.

    Raises `NotTrusted` where it is there and is not trusted, `BadInput` where no copy of it is whole.
    """
    return first_whole(found, digest, _trusted_plan)


def find_state(found: Found, digest: str | None, plan: Artifact[PlanManifest] | None) -> Artifact[StateManifest] | None:
    """The state with that digest, signed where its `plan` is known and asks for it; None where it is not there.

    Raises `BadInput` and `NotTrusted` where no copy of it is whole and signed.
    """

    def opened(path: Path) -> Artifact[StateManifest]:
        state = open_artifact(path, StateManifest)
        if plan is not None:
            check_signed(state, plan)
        return state

    return first_whole(found, digest, opened) if digest else None


def first_whole(found: Found, digest: str, opened: Callable[[Path], T]) -> T | None:
    """The first copy that can be `opened`, so that one that somebody put before it hides none; None without any.

    Raises `ChainError`: the problem of the last copy.
    """
    problem: ChainError | None = None
    for path in found.get(digest, ()):
        try:
            return opened(path)
        except ChainError as error:
            problem = error
    if problem is not None:
        raise problem
    return None


def evaluations(found: Found, plan: Artifact[PlanManifest]) -> tuple[list[Scored], int]:
    """What was said of the states of a plan by whom it trusts; and how many others said something of them."""
    believed: list[Scored] = []
    left_out = 0
    for paths in found.values():
        opened = [one for one in map(_evaluation, paths) if one is not None and one.manifest.plan == plan.digest]
        signed = [one for one in opened if is_signed(one, plan)]
        believed += [one.manifest for one in signed[:1]]
        left_out += bool(opened) and not signed
    return believed, left_out


def is_signed(artifact: Artifact[Any], plan: Artifact[PlanManifest]) -> bool:
    """Whether an artifact of a search is of the plan, and signed by the right party where that is required."""
    try:
        check_signed(artifact, plan)
    except ChainError:
        return False
    return True


def left_out_note(count: int) -> str:
    """What is said of evaluations that are not believed."""
    many = "evaluation beside it is" if count == 1 else "evaluations beside it are"
    return f"{count} {many} not signed by the coordinator, and left out"


def _trusted_plan(path: Path) -> Artifact[PlanManifest]:
    plan = open_artifact(path, PlanManifest)
    Trust.of_this_machine().check_planner(plan)
    return plan


def _candidates(directory: Path) -> Iterator[Path]:
    yield directory
    put_back(directory)
    below = sorted(without_debris(directory.iterdir())) if directory.is_dir() else []
    for entry in below[:MOST_DIRECTORIES]:
        if entry.is_dir() and not entry.name.startswith("."):
            yield entry


def _beside(state: Path) -> list[Path]:
    """The folders beside the state's own: `plan`, `evals`, …"""
    around = state.resolve().parent.parent
    entries = sorted(without_debris(around.iterdir()))
    return [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")]


def _scores(found: Found, plan: Artifact[PlanManifest]) -> tuple[dict[str, tuple[float | None, float | None]], int]:
    """Accuracy and perplexity by state, and how many evaluations were left out."""
    believed, left_out = evaluations(found, plan)
    scores: dict[str, tuple[float | None, float | None]] = {}
    for one in believed:
        accuracy, perplexity = scores.get(one.state, (None, None))
        if isinstance(one, EvaluationManifest):
            accuracy = one.accuracy.value
        else:
            perplexity = one.perplexity.value
        scores[one.state] = accuracy, perplexity
    return scores, left_out


def _evaluation(path: Path) -> Artifact[Any] | None:
    try:
        kind, _ = kind_and_version(path)
        return open_artifact(path, artifact_model(str(kind))) if kind in SCORES else None
    except ChainError:
        return None
