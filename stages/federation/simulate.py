"""A whole federation on one machine, through the same stages and the same artifacts.

    run/shards/device-00.jsonl …       each device's texts
    run/profiles/device-00 …           what each device said of itself
    run/plan  run/states/0000 …        what the coordinator has
    run/updates/0000/device-03 …       what each round's devices sent
    run/evals/0000 …                   accuracy of every state
    run/summary.json

Every step leaves an artifact that is complete or absent, and a step whose artifact is there is not done again: a run
that was stopped is continued by the same command.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from schemas.assignment import described
from schemas.base import canonical_json
from schemas.errors import UsageProblem
from schemas.perplexity import PerplexityManifest
from schemas.plan import PlanManifest
from schemas.settings import Settings
from schemas.state import StateManifest
from schemas.update import UpdateManifest
from stages import aggregate, eval, plan, profile, train_window
from stages.data.load import data_digest, label_set, load_labelled
from stages.data.split import split_file
from stages.methods.registry import server_method
from stages.model.loading import LoadedModel
from stages.process.measure import device_memory_bytes
from stages.process.progress import Progress, silent
from stages.session import Machine
from stages.store.artifact import Artifact
from stages.store.cache_directory import CacheDirectory
from stages.store.devices import participants
from stages.store.files import write_file
from stages.store.trust import isolated_home

RoundDone = Callable[["RoundLine"], None]


@dataclass(frozen=True)
class Federation:
    """What is simulated.  `alpha = None` is IID; budgets are given to the devices in turn, cyclically."""

    model_dir: Path
    data: Path
    test: Path
    settings: Settings
    devices: int
    rounds: int
    alpha: float | None
    memory_budgets: tuple[int, ...] = ()
    eval_every: int = 1  # rounds; the last is always evaluated

    def describe(self) -> dict[str, object]:
        """Everything that decides the run, in words and digests: what must agree for a run to be continued."""
        return {
            "data": data_digest(load_labelled(self.data, self.settings.task, self.settings.prompt)),
            "test": data_digest(load_labelled(self.test, self.settings.task, self.settings.prompt)),
            "devices": self.devices,
            "alpha": self.alpha,
            "memory_budgets": list(self.memory_budgets),
            "settings": self.settings.model_dump(mode="json"),
        }


@dataclass(frozen=True)
class Score:
    """Of a state on the test texts: the one that the task has."""

    accuracy: float | None = None
    perplexity: float | None = None


@dataclass(frozen=True)
class RoundLine:
    """One round.  `seconds` is the sum over its devices, `peak_bytes` the largest of theirs.

    A task has accuracy or perplexity, where the round was evaluated.
    """

    round: int
    trained: str  # layers
    devices: int
    train_loss: float
    accuracy: float | None
    perplexity: float | None
    seconds: float
    peak_bytes: int
    predicted_peak_bytes: int
    bytes_up: int
    bytes_down: int

    def line(self) -> str:
        """For people and logs."""
        return (
            f"round {self.round:>3}  layers {self.trained:<5}  {self.devices:>3} devices  loss {self.train_loss:.4f}  "
            f"{self._score()}{self.seconds:5.1f} s  peak {self.peak_bytes / 2**20:.0f} MiB  "
            f"up {self.bytes_up / 2**10:.0f} KiB  down {self.bytes_down / 2**10:.0f} KiB"
        )

    def _score(self) -> str:
        scores = (("accuracy", self.accuracy), ("perplexity", self.perplexity))
        return "".join(f"{name} {value:.4f}  " for name, value in scores if value is not None)


@dataclass(frozen=True)
class SimulationSummary:
    """The whole run.  Bytes are summed over all rounds and devices."""

    final_state: str
    accuracy_before: float | None
    accuracy_after: float | None
    perplexity_before: float | None
    perplexity_after: float | None
    rounds: tuple[RoundLine, ...]
    first_layer: int  # that has adapters
    assignments: int  # that rounds go through

    def totals(self) -> dict[str, int]:
        """Bytes up and down, and the largest peaks."""
        return {
            "bytes_up": sum(line.bytes_up for line in self.rounds),
            "bytes_down": sum(line.bytes_down for line in self.rounds),
            "peak_bytes": max((line.peak_bytes for line in self.rounds), default=0),
            "predicted_peak_bytes": max((line.predicted_peak_bytes for line in self.rounds), default=0),
        }


def run(
    federation: Federation,
    *,
    out: Path,
    on_round: RoundDone = lambda line: None,
    progress: Progress = silent,
    like: Path | None = None,
) -> SimulationSummary:
    """Simulate, or continue to simulate, into `out`.

    `like` is the finished run of another method on the same data: its shards, its profiles (they depend on no method)
    and its cache of hidden states serve this run too.  Raises `UsageProblem` where `out` holds a run of something
    else, and whatever the stages raise.
    """
    _claim(federation, out)
    if like is not None:
        for made in ("shards", "profiles"):
            shutil.copytree(like / made, out / made, dirs_exist_ok=True)
    with isolated_home(out / "home"):
        return _simulate(federation, out, CacheDirectory((like or out) / "cache"), on_round, progress)


def _simulate(
    federation: Federation, out: Path, cache: CacheDirectory, on_round: RoundDone, progress: Progress
) -> SimulationSummary:
    settings = _with_labels(federation)
    model = LoadedModel.open(federation.model_dir, settings).remembering()
    machine = Machine.simulating(federation.model_dir, model, cache)
    profiles = list(_profiles(federation, settings, machine, out, progress))
    planned, state = plan.run(
        profiles,
        model_dir=federation.model_dir,
        settings=settings,
        out=out / "plan",
        state_out=_state(out, 0),
        model=model,
    )
    opened = LoadedModel.open(federation.model_dir, planned.manifest.settings, expected=planned.manifest.model)
    machine = Machine.simulating(federation.model_dir, opened.remembering(model), cache)
    rounds = _Rounds(federation, planned, machine, out, progress)
    before = rounds.evaluate(0)
    lines: list[RoundLine] = []
    trains = server_method(settings.chain.method).trains
    for _ in range(federation.rounds if trains else 0):
        state, line = rounds.one(state)
        lines.append(line)
        on_round(line)
    summary = SimulationSummary(
        final_state=state.digest,
        accuracy_before=before.accuracy,
        accuracy_after=lines[-1].accuracy if lines else before.accuracy,
        perplexity_before=before.perplexity,
        perplexity_after=lines[-1].perplexity if lines else before.perplexity,
        rounds=tuple(lines),
        first_layer=planned.manifest.decisions.first_layer,
        assignments=len(planned.manifest.memory),
    )
    write_file(out / "summary.json", json.dumps(asdict(summary) | summary.totals(), indent=2).encode() + b"\n")
    return summary


@dataclass(frozen=True)
class _Rounds:
    """The rounds of one run."""

    federation: Federation
    plan: Artifact[PlanManifest]
    machine: Machine
    out: Path
    progress: Progress

    def one(self, state: Artifact[StateManifest]) -> tuple[Artifact[StateManifest], RoundLine]:
        """Train on every participant, aggregate, evaluate."""
        updates = [self._train(state, device) for device in participants(state)]
        following = aggregate.run(
            [update.path for update in updates],
            plan=self.plan.path,
            state=state.path,
            out=_state(self.out, state.manifest.round + 1),
        )
        measured = [update.measured() for update in updates]
        number = following.manifest.round
        due = number % self.federation.eval_every == 0 or number == self.federation.rounds
        score = self.evaluate(number) if due else Score()
        return following, RoundLine(
            round=following.manifest.round,
            trained=described(state.manifest.assignment),
            devices=len(updates),
            train_loss=following.manifest.train_loss or 0.0,
            accuracy=score.accuracy,
            perplexity=score.perplexity,
            seconds=sum(cost.seconds for cost in measured if cost),
            peak_bytes=max(cost.peak_bytes or 0 for cost in measured if cost),
            predicted_peak_bytes=max(cost.predicted_peak_bytes or 0 for cost in measured if cost),
            bytes_up=sum(_size(update.path) for update in updates),
            bytes_down=_size(state.path) * len(updates),
        )

    def evaluate(self, round_number: int) -> Score:
        """How good a state is on the test texts."""
        evaluation = eval.run(
            machine=self.machine,
            plan=self.plan.path,
            state=_state(self.out, round_number),
            data=self.federation.test,
            out=self.out / "evals" / f"{round_number:04d}",
            progress=self.progress,
        )
        if isinstance(evaluation.manifest, PerplexityManifest):
            return Score(perplexity=evaluation.manifest.perplexity.value)
        return Score(accuracy=evaluation.manifest.accuracy.value)

    def _train(self, state: Artifact[StateManifest], device: str) -> Artifact[UpdateManifest]:
        return train_window.run(
            machine=self.machine,
            plan=self.plan.path,
            state=state.path,
            data=_device(self.out, device),
            device=device,
            out=self.out / "updates" / f"{state.manifest.round:04d}" / device,
            progress=self.progress,
        )


def _claim(federation: Federation, out: Path) -> None:
    """Remember what this run is of; refuse to continue a run of something else."""
    wanted = canonical_json(federation.describe())
    path = out / "federation.json"
    if path.exists():
        if path.read_bytes() == wanted:
            return
        before, now = json.loads(path.read_bytes()), json.loads(wanted)
        key = next(key for key in now if before.get(key) != now[key])
        raise UsageProblem(
            f"{out} holds a run of another federation: {key} differs",
            hint="give another --out, or delete that folder",
        )
    if out.exists() and any(out.iterdir()):
        raise UsageProblem(f"{out} is not empty and holds no run", hint="give another --out")
    write_file(path, wanted)


def _with_labels(federation: Federation) -> Settings:
    """Settings with a label set: the recipe's, or that of the training data."""
    settings = federation.settings
    if settings.task.labels or settings.task.kind == "causal-lm":
        return settings
    labels = label_set(load_labelled(federation.data, settings.task))
    return settings.model_copy(update={"task": settings.task.model_copy(update={"labels": labels})})


def _profiles(
    federation: Federation, settings: Settings, machine: Machine, out: Path, progress: Progress
) -> Iterator[Path]:
    """Split the data, then profile every device."""
    shards = out / "shards"
    if not shards.exists():
        task = settings.task
        split_file(
            federation.data,
            shards,
            devices=federation.devices,
            alpha=federation.alpha,
            seed=settings.seed,
            text_column=task.text_column,
            label_column=None if task.kind == "causal-lm" and federation.alpha is None else task.label_column,
            prompt=settings.prompt,
        )
    assert machine.shared is not None
    fingerprint = machine.shared.backbone.reader.fingerprint()
    budgets: Sequence[int] = federation.memory_budgets or (device_memory_bytes(),)
    for index, shard in enumerate(sorted(shards.glob("*.jsonl"))):
        progress("profiles", index, federation.devices)
        target = out / "profiles" / shard.stem
        profile.run(
            machine=replace(machine, memory_budget_bytes=budgets[index % len(budgets)]),
            data=shard,
            settings=settings,
            device=shard.stem,
            out=target,
            fingerprint=fingerprint,
        )
        yield target


def _state(out: Path, round_number: int) -> Path:
    return out / "states" / f"{round_number:04d}"


def _device(out: Path, device: str) -> Path:
    return out / "shards" / f"{device}.jsonl"


def _size(artifact: Path) -> int:
    """Bytes of an artifact as it travels."""
    with os.scandir(artifact) as entries:
        return sum(entry.stat().st_size for entry in entries)
