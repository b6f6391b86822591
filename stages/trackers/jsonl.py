"""JSON lines, for whoever reads metrics with a program of their own: a line of settings, then one for each round."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from schemas.errors import BadInput
from stages.trackers.tracker import Held, TrackedRun


class JsonLines:
    """`DIRECTORY/NAME.jsonl`, which is appended to."""

    def __init__(self, path: Path, run: TrackedRun) -> None:
        self.path = path
        self._file = path.open("a+b")
        self._cut_what_is_not_whole()
        self._held = self._read()
        if not self._file.tell():
            self._write({"plan": run.plan, "settings": dict(run.settings)})

    @property
    def shown_by(self) -> str:
        """It is text."""
        return f"cat {self.path}"

    def held(self) -> Held:
        """What was there already."""
        return self._held

    def round(self, number: int, metrics: Mapping[str, float]) -> None:
        """A line."""
        self._write({"round": number, **metrics})

    def close(self) -> None:
        """The file is on disk."""
        os.fsync(self._file.fileno())
        self._file.close()

    def _write(self, content: Mapping[str, object]) -> None:
        self._file.write(json.dumps(content, sort_keys=True).encode() + b"\n")
        self._file.flush()

    def _cut_what_is_not_whole(self) -> None:
        """What a killed process left of a line."""
        self._file.seek(0)
        self._file.truncate(self._file.read().rfind(b"\n") + 1)

    def _read(self) -> Held:
        self._file.seek(0)
        try:
            lines = [json.loads(line) for line in self._file]
            return frozenset((line["round"], name) for line in lines[1:] for name in line if name != "round")
        except (ValueError, KeyError, TypeError):
            raise BadInput(f"{self.path} holds something else than metrics", hint="give another directory") from None


def open_tracker(directory: Path, run: TrackedRun) -> JsonLines:
    """A file of a run, begun or continued.  Raises `BadInput` where something else is there."""
    return JsonLines(directory / f"{run.name}.jsonl", run)
