"""A simulation that trackers record while it is watched."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from schemas.run import RoundLine
from stages.federation.watcher import Begun, Watcher
from stages.trackers.content import metrics_of_line, score_metrics, tracked_run
from stages.trackers.tracker import Tracking, check_tracker, open_tracking

TRACKING = "tracking"  # folder of a run


@contextmanager
def tracked(watcher: Watcher, trackers: Sequence[str], directory: Path) -> Iterator[Watcher]:
    """The watcher, with trackers that are told too.  Raises `BadInput` where the library of one is missing."""
    for name in trackers:
        check_tracker(name)
    both = Tracked(watcher, list(dict.fromkeys(trackers)), directory)
    try:
        yield both if trackers else watcher
    finally:
        both.close()


class Tracked:
    """Passes on what it is told, and lets trackers record it."""

    def __init__(self, watcher: Watcher, trackers: Sequence[str], directory: Path) -> None:
        self.progress = watcher.progress
        self._watcher, self._trackers, self._directory = watcher, trackers, directory
        self._open: list[Tracking] = []

    def begin(self, begun: Begun) -> None:
        """The rounds begin: the plan, whose settings trackers record, is there."""
        run = tracked_run(begun.plan.manifest, begun.plan.digest)
        for name in self._trackers:
            self._open.append(open_tracking(name, self._directory, run))
        self._record(0, score_metrics(begun.accuracy, begun.perplexity))
        self._watcher.begin(begun)

    def round(self, line: RoundLine) -> None:
        """A round is finished."""
        self._record(line.round, metrics_of_line(line))
        self._watcher.round(line)

    def close(self) -> None:
        """Everything is recorded."""
        for one in self._open:
            one.close()

    def _record(self, number: int, metrics: dict[str, float]) -> None:
        for one in self._open:
            one.round(number, metrics)
