"""TensorBoard: scalars by round, settings as hyperparameters.

Records are written by TensorBoard's own `RecordWriter`, not by its `SummaryWriter`, whose files are named after the
host.  A run that is continued gets another file, so that what a killed process left of a record spoils none.
"""

import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.summary.writer.record_writer import RecordWriter

from stages.store.files import new_file
from stages.trackers.tracker import Held, TrackedRun

EVENTS = "events.out.tfevents"  # what TensorBoard looks for in a name
ALL = 0  # of a size guidance: keep every event


class EventFiles:
    """`DIRECTORY/NAME/events.out.tfevents.0000000000` and what continues it."""

    def __init__(self, directory: Path, run: TrackedRun) -> None:
        self.folder = directory / run.name
        self.shown_by = f"tensorboard --logdir {directory}"
        self.folder.mkdir(exist_ok=True)
        there = sorted(self.folder.glob(f"{EVENTS}.*"))
        self._held = _read(self.folder) if there else frozenset()
        self._writer = RecordWriter(new_file(self.folder / f"{EVENTS}.{len(there):010d}"))
        if not there:
            self._write(Event(file_version="brain.Event:2"))
            self._write(Event(summary=hparams_pb(dict(run.settings))))

    def held(self) -> Held:
        """What the files hold already."""
        return self._held

    def round(self, number: int, metrics: Mapping[str, float]) -> None:
        """A point of each curve."""
        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._write(Event(step=number, summary=Summary(value=values)))

    def close(self) -> None:
        """The file is complete."""
        self._writer.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._writer.write(event.SerializeToString())
        self._writer.flush()


def open_tracker(directory: Path, run: TrackedRun) -> EventFiles:
    """A run, begun or continued."""
    return EventFiles(directory, run)


def _read(folder: Path) -> Held:
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": ALL})
    accumulator.Reload()
    return frozenset((point.step, tag) for tag in accumulator.Tags()["scalars"] for point in accumulator.Scalars(tag))
