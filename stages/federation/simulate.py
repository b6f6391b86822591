"""A whole federation on one machine, through the same stages and the same artifacts.

    run/shards/device-00.jsonl …       each device's texts
    run/profiles/device-00 …           what each device said of itself
    run/plan  run/states/0000 …        what the coordinator has
    run/updates/0000/device-03 …       what each round's devices sent
    run/evals/0000 …                   accuracy of every state
    run/federation.json                what the run is made of
    run/summary.json                   what came of it (both: schemas/run.py)

Every step leaves an artifact that is complete or absent, and a step whose artifact is there is not done again: a run
that was stopped is continued by the same command.
"""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from schemas.assignment import described
from schemas.errors import UsageProblem
from schemas.perplexity import PerplexityManifest
from schemas.plan import PlanManifest
from schemas.refusal import Reason
from schemas.run import MOST_ROUNDS, FederationManifest, RoundLine, SimulationSummary, totals
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
from stages.store.artifact import Artifact, read_manifest
from stages.store.cache_directory import CacheDirectory
from stages.store.devices import participants
from stages.store.files import write_file
from stages.store.trust import isolated_home

FEDERATION_FILE = "federation.json"
SUMMARY_FILE = "summary.json"

RoundDone = Callable[[RoundLine], None]


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

    def describe(self) -> FederationManifest:
        """Everything that decides the run: what must agree for a run to be continued."""
        return FederationManifest(
            data=data_digest(load_labelled(self.data, self.settings.task, self.settings.prompt)),
            test=data_digest(load_labelled(self.test, self.settings.task, self.settings.prompt)),
            devices=self.devices,
            alpha=self.alpha,
            memory_budgets=self.memory_budgets,
            settings=self.settings,
        )


@dataclass(frozen=True)
class Score:
    """Of a state on the test texts: the one that the task has."""

    accuracy: float | None = None
    perplexity: float | None = None


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
    if federation.rounds > MOST_ROUNDS:
        raise UsageProblem(
            "these are too many rounds for one summary",
            values={"at most": MOST_ROUNDS, "given": federation.rounds},
            hint="simulate fewer rounds",
        )
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
    sums = totals(tuple(lines))
    summary = SimulationSummary(
        plan=planned.digest,
        final_state=state.digest,
        accuracy_before=before.accuracy,
        accuracy_after=lines[-1].accuracy if lines else before.accuracy,
        perplexity_before=before.perplexity,
        perplexity_after=lines[-1].perplexity if lines else before.perplexity,
        rounds=tuple(lines),
        first_layer=planned.manifest.decisions.first_layer,
        assignments=len(planned.manifest.memory),
        bytes_up=sums["bytes_up"],
        bytes_down=sums["bytes_down"],
        peak_bytes=sums["peak_bytes"],
        predicted_peak_bytes=sums["predicted_peak_bytes"],
    )
    write_file(out / SUMMARY_FILE, summary.readable_bytes())
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
        costs = [cost for update in updates if (cost := update.measured())]
        bytes_up = sum(_size(update.path) for update in updates)  # now: what is refused is moved away
        refused: Counter[Reason] = Counter()
        following = aggregate.run(
            [update.path for update in updates],
            plan=self.plan.path,
            state=state.path,
            out=_state(self.out, state.manifest.round + 1),
            on_refusal=lambda one, _: refused.update([one.reason]),
        )
        number = following.manifest.round
        due = number % self.federation.eval_every == 0 or number == self.federation.rounds
        score = self.evaluate(number) if due else Score()
        return following, RoundLine(
            round=number,
            trained=described(state.manifest.assignment),
            devices=len(updates),
            refused=dict(refused),
            train_loss=following.manifest.train_loss or 0.0,
            accuracy=score.accuracy,
            perplexity=score.perplexity,
            seconds=sum(cost.seconds for cost in costs),
            peak_bytes=max((cost.peak_bytes or 0 for cost in costs), default=0),
            predicted_peak_bytes=max((cost.predicted_peak_bytes or 0 for cost in costs), default=0),
            bytes_up=bytes_up,
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
    wanted, path = federation.describe(), out / FEDERATION_FILE
    if os.path.lexists(path):
        there = read_manifest(path, FederationManifest)
        if os.path.lexists(out / SUMMARY_FILE):
            read_manifest(out / SUMMARY_FILE, SimulationSummary)  # it is made again, but never over something else
        if there == wanted:
            return
        before, now = there.model_dump(), wanted.model_dump()
        raise UsageProblem(
            f"{out} holds a run of another federation: {next(key for key in now if before[key] != now[key])} differs",
            hint="give another --out, or delete that folder",
        )
    if out.exists() and any(out.iterdir()):
        raise UsageProblem(f"{out} is not empty and holds no run", hint="give another --out")
    write_file(path, wanted.readable_bytes())


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
