"""What a simulation does before its first round: it claims its folder, splits the data and profiles every device."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from schemas.errors import UsageProblem
from schemas.run import FederationManifest, SimulationSummary
from schemas.settings import Settings
from stages import profile
from stages.data.encode import check_rendering
from stages.data.load import data_digest, label_set, load_labelled
from stages.data.split import split_file
from stages.federation.folder import RunFolder
from stages.process.measure import device_memory_bytes
from stages.process.progress import Progress
from stages.session import Machine
from stages.store.artifact import read_manifest
from stages.store.debris import without_debris
from stages.store.files import write_file


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
    whole_cycles: bool = False  # rounds are rounded down to whole cycles of the plan's assignments, at least one

    def rounds_of(self, assignments: int) -> int:
        """How many rounds are run where a cycle has that many.  At least one cycle."""
        return max(1, self.rounds // assignments) * assignments if self.whole_cycles else self.rounds

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


def check_texts(federation: Federation) -> None:
    """The model's template accepts all instruction data: said before the run, by the line of the file that was given.

    Raises `BadInput`.
    """
    settings = federation.settings
    if settings.prompt.format != "plain":
        for path in (federation.data, federation.test):
            check_rendering(federation.model_dir, settings.prompt, load_labelled(path, settings.task, settings.prompt))


def claim(federation: Federation, folder: RunFolder) -> None:
    """Record what this run is made of.  Raises `UsageProblem` where the folder holds something else."""
    wanted, path, out = federation.describe(), folder.federation, folder.path
    if os.path.lexists(path):
        there = read_manifest(path, FederationManifest)
        if os.path.lexists(folder.summary):
            read_manifest(folder.summary, SimulationSummary)  # it is made again, but never over something else
        if there == wanted:
            return
        before, now = there.model_dump(), wanted.model_dump()
        raise UsageProblem(
            f"{out} holds a run of another federation: {next(key for key in now if before[key] != now[key])} differs",
            hint="give another --out, or delete that folder",
        )
    if out.exists() and any(without_debris(out.iterdir())):
        raise UsageProblem(f"{out} is not empty and does not hold a run", hint="give another --out")
    write_file(path, wanted.readable_bytes())


def with_labels(federation: Federation) -> Settings:
    """Settings with a label set: the recipe's, or that of the training data."""
    settings = federation.settings
    if settings.task.labels or settings.task.kind == "causal-lm":
        return settings
    labels = label_set(load_labelled(federation.data, settings.task))
    return settings.model_copy(update={"task": settings.task.model_copy(update={"labels": labels})})


def profiles(
    federation: Federation, settings: Settings, machine: Machine, folder: RunFolder, progress: Progress
) -> Iterator[Path]:
    """Split the data, then profile every device."""
    if not folder.shards.exists():
        task = settings.task
        split_file(
            federation.data,
            folder.shards,
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
    for index, shard in enumerate(sorted(without_debris(folder.shards.glob("*.jsonl")))):
        progress("profiles", index, federation.devices)
        target = folder.profiles / shard.stem
        profile.run(
            machine=replace(machine, memory_budget_bytes=budgets[index % len(budgets)]),
            data=shard,
            settings=settings,
            device=shard.stem,
            out=target,
            fingerprint=fingerprint,
        )
        yield target
