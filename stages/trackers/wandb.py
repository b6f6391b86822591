"""W&B, offline: records lie in a folder, and go nowhere before somebody says `wandb sync`.

What W&B adds to a run by itself is switched off: host, user, program, its arguments, commit, code, packages, what the
terminal shows, measurements of the machine.  What remains: the versions of Python and of wandb, when it ran, and beside
the run, in `logs/`, which is not sent, what wandb notes for its own developers, paths among it.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

os.environ["WANDB_ERROR_REPORTING"] = "false"  # read when wandb is imported
import wandb
from wandb.proto.wandb_internal_pb2 import Record

from stages.trackers.tracker import PROJECT, Held, TrackedRun
from stages.trackers.wandb_log import records


class Offline:
    """`DIRECTORY/wandb/offline-run-…-NAME`; a run that is continued has several, which W&B puts together."""

    def __init__(self, directory: Path, run: TrackedRun) -> None:
        self.directory, self.run = directory, run
        self.shown_by = f"wandb sync {directory / 'wandb' / 'offline-run-*'}"
        self._open: wandb.Run | None = None

    def held(self) -> Held:
        """What the folders of this run hold."""
        files = sorted(self.directory.glob(f"wandb/offline-run-*-{self.run.name}/run-*.wandb"))
        return frozenset(each for file in files for each in _read(file))

    def round(self, number: int, metrics: Mapping[str, float]) -> None:
        """A row of the run's history."""
        if self._open is None:
            self._open = self._begin()
        self._open.log(dict(metrics), step=number)

    def close(self) -> None:
        """The folder is complete."""
        if self._open is not None:
            self._open.finish()
            wandb.teardown()  # its own process writes the file, and has written all of it only when it has ended

    def _begin(self) -> "wandb.Run":
        """Only when there is something new: each beginning is a folder of its own."""
        quiet = wandb.Settings(
            mode="offline",
            silent=True,
            console="off",
            host="",
            username="",
            email="",
            program="",
            disable_git=True,
            disable_code=True,
            save_code=False,
            disable_job_creation=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            symlink=False,
            x_transaction_log_flush_interval=1.0,
        )
        return wandb.init(
            project=PROJECT,
            id=self.run.name,
            name=self.run.name,
            resume="allow",
            dir=self.directory,
            config={**self.run.settings, "plan": self.run.plan},
            settings=quiet,
        )


def open_tracker(directory: Path, run: TrackedRun) -> Offline:
    """A run, begun or continued."""
    return Offline(directory, run)


def _read(file: Path) -> Iterator[tuple[int, str]]:
    for data in records(file):
        history = Record.FromString(data).history
        names = (item.key or ".".join(item.nested_key) for item in history.item)
        yield from ((history.step.num, name) for name in names if not name.startswith("_"))
