"""The history of a state: state, parent state, …, plan, profiles.  Found by digest, as a commit finds its parents."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from schemas.assignment import described
from schemas.devices import MOST_DEVICES
from schemas.errors import ChainError
from schemas.evaluation import EvaluationManifest
from schemas.measured import Cost
from schemas.perplexity import PerplexityManifest
from schemas.plan import PlanManifest
from schemas.state import StateManifest
from stages.store.artifact import MANIFEST_FILE, Artifact, kind_and_version, open_artifact, verify_artifact
from stages.store.debris import without_debris
from stages.store.files import put_back
from stages.store.regular import file_digest

MOST_DIRECTORIES = MOST_DEVICES  # a folder of profiles has one for each device


@dataclass(frozen=True)
class HistoryLine:
    """One state in the history, newest first."""

    round: int
    state: str
    trained: str  # layers of the round that made it
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
        told = (self.round, self.state[:19], self.trained, self.devices, self.texts, loss, " ".join(scores))
        return (*told, passes, sent)


def history(state: Path, search: Sequence[Path]) -> list[HistoryLine]:
    """Walk from `state` to round 0, or to the first parent that was not found.

    Looks in the folders around the state and in `search`.  Every artifact on the way is verified.
    """
    found = index([state.parent, *_beside(state), *search])
    accuracies, perplexities = _scores(found)
    lines: list[HistoryLine] = []
    current: Artifact[StateManifest] | None = open_artifact(state, StateManifest)
    while current is not None:
        verify_artifact(current.path)
        manifest = current.manifest
        parent_path = found.get(manifest.parent) if manifest.parent else None
        parent = open_artifact(parent_path, StateManifest) if parent_path else None
        lines.append(
            HistoryLine(
                round=manifest.round,
                state=current.digest,
                trained=described(parent.manifest.assignment) if parent else "",
                devices=manifest.accepted_count,
                texts=manifest.example_count,
                train_loss=manifest.train_loss,
                accuracy=accuracies.get(current.digest),
                perplexity=perplexities.get(current.digest),
                cost=measured.updates if (measured := current.measured()) else None,
                plan=manifest.plan,
                profiles=_profiles(found, manifest.plan),
                missing_parent=manifest.parent if manifest.parent and not parent else "",
            )
        )
        current = parent
    return lines


def index(directories: Sequence[Path]) -> dict[str, Path]:
    """Artifacts by digest: every folder in `directories`, and in the folders below them, that holds a manifest."""
    found: dict[str, Path] = {}
    for directory in directories:
        for count, candidate in enumerate(_candidates(directory)):
            if count > MOST_DIRECTORIES:
                break
            manifest = candidate / MANIFEST_FILE
            if manifest.is_file() and not manifest.is_symlink():
                found.setdefault(file_digest(manifest), candidate)
    return found


def _candidates(directory: Path) -> Iterator[Path]:
    yield directory
    put_back(directory)
    for below in sorted(without_debris(directory.iterdir())) if directory.is_dir() else ():
        if below.is_dir() and not below.name.startswith("."):
            yield below


def _beside(state: Path) -> list[Path]:
    """The folders beside the state's own: `plan`, `evals`, …"""
    around = state.resolve().parent.parent
    entries = sorted(without_debris(around.iterdir()))
    return [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")]


def _scores(found: dict[str, Path]) -> tuple[dict[str, float], dict[str, float]]:
    """Accuracies and perplexities by state."""
    accuracies: dict[str, float] = {}
    perplexities: dict[str, float] = {}
    for path in found.values():
        try:
            kind, _ = kind_and_version(path)
            if kind == EvaluationManifest.KIND:
                evaluation = open_artifact(path, EvaluationManifest).manifest
                accuracies[evaluation.state] = evaluation.accuracy.value
            elif kind == PerplexityManifest.KIND:
                foretold = open_artifact(path, PerplexityManifest).manifest
                perplexities[foretold.state] = foretold.perplexity.value
        except ChainError:
            continue
    return accuracies, perplexities


def _profiles(found: dict[str, Path], plan: str) -> int | None:
    return open_artifact(found[plan], PlanManifest).manifest.device_count if plan in found else None
