"""JSON lines, for whoever reads metrics with a program of their own: a line of settings, then one for each round."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from schemas.errors import BadInput
from stages.store.files import write_file
from stages.store.foreign import read_document
from stages.trackers.tracker import Held, TrackedRun


class JsonLines:
    """`DIRECTORY/NAME.jsonl`, which is whole at any time."""

    def __init__(self, path: Path, run: TrackedRun) -> None:
        self.path = path
        self.shown_by = f"cat {path}"
        self._lines = _read(path) if os.path.lexists(path) else []
        if not self._lines:
            self._add({"plan": run.plan, "settings": dict(run.settings)})

    def held(self) -> Held:
        """What was there already."""
        return frozenset((line["round"], name) for line in self._lines[1:] for name in line if name != "round")

    def round(self, number: int, metrics: Mapping[str, float]) -> None:
        """A line."""
        self._add({"round": number, **metrics})

    def close(self) -> None:
        """Every line is on disk already."""

    def _add(self, line: dict[str, Any]) -> None:
        self._lines.append(line)
        write_file(self.path, b"".join(json.dumps(one, sort_keys=True).encode() + b"\n" for one in self._lines))


def open_tracker(directory: Path, run: TrackedRun) -> JsonLines:
    """A file of a run, begun or continued.  Raises `BadInput` where something else is there."""
    return JsonLines(directory / f"{run.name}.jsonl", run)


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        lines = [json.loads(line) for line in read_document(path).splitlines()]
        if all(isinstance(line, dict) for line in lines) and all(isinstance(line["round"], int) for line in lines[1:]):
            return lines
    except (ValueError, KeyError, RecursionError):
        pass
    raise BadInput(f"{path} holds something else than metrics", hint="give another directory")
