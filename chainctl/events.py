"""`--log-format jsonl`: whatever a command writes to stderr is an event, one JSON object a line (schemas/events.py).

The log stands in the place of stderr, so that a line of a library or of the command line's parser is an event too.
"""

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO, cast

from chainctl.options import LOG_FORMAT_FLAG, LOG_FORMAT_VARIABLE, LogFormat
from chainctl.streams import write_drawn
from schemas.errors import ChainError

SECONDS_BETWEEN = 1.0  # events of progress


class EventLog:
    """stderr as a stream of events."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.started = False
        self._begun = ""  # a line that is not whole yet
        self._progressed = -SECONDS_BETWEEN

    def write(self, text: str) -> int:
        """What others write to stderr: each line is a warning."""
        *lines, self._begun = (self._begun + text).split("\n")
        for line in filter(str.strip, lines):
            self.emit("Warned", text=line)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Several at once."""
        self.write("".join(lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def emit(self, kind: str, **fields: Any) -> None:
        """Write an event: the name of its class in `schemas.events`, and its fields but for the time."""
        from datetime import UTC, datetime

        from schemas import events

        event = getattr(events, kind)(time=datetime.now(UTC), **_encodable(fields))
        write_drawn(json.dumps(event.model_dump(mode="json")), self.stream)

    def start(self, command: str) -> None:
        """The command's name is known."""
        import chainctl

        self.started = True
        self.emit("Started", command=command, chainctl=chainctl.__version__)

    def progress(self, phase: str, done: int, total: int) -> None:
        """A `Progress`: at most one event a second."""
        now = time.monotonic()
        if now - self._progressed >= SECONDS_BETWEEN:
            self._progressed = now
            self.emit("Progressed", phase=phase, done=done, total=total)

    def fail(self, error: ChainError) -> None:
        """The error that ends the command."""
        values = {label: str(value) for label, value in error.values.items()}
        self.emit("Failed", fact=error.fact, values=values, hint=error.hint, exit_code=error.exit_code)

    def close(self, exit_code: object) -> None:
        """The command has ended, with the code of a `SystemExit`."""
        if self._begun:
            self.write("\n")
        if self.started:
            self.emit("Finished", exit_code=exit_code if isinstance(exit_code, int) else int(exit_code is not None))


def event_log() -> EventLog | None:
    """The log of this command, where it was asked for."""
    return sys.stderr if isinstance(sys.stderr, EventLog) else None


@contextmanager
def logged(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Let stderr be a log of events, where the command line or else the environment asks for one."""
    if not _asked(arguments, environment):
        yield
        return
    log = EventLog(sys.stderr)
    sys.stderr = cast(TextIO, log)
    try:
        yield
    except SystemExit as stop:
        log.close(stop.code)
        raise


def _asked(arguments: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Before anything is parsed, so that what cannot be parsed is an event too."""
    ours = arguments[: arguments.index("--")] if "--" in arguments else arguments
    chosen = environment.get(LOG_FORMAT_VARIABLE)
    for argument, following in zip(ours, [*ours[1:], ""], strict=True):
        if argument == LOG_FORMAT_FLAG:
            chosen = following
        elif argument.startswith(f"{LOG_FORMAT_FLAG}="):
            chosen = argument.partition("=")[2]
    return chosen == LogFormat.JSONL


def _encodable(value: Any) -> Any:
    """The same with names that are not UTF-8 spelled out, which no JSON holds."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {_encodable(key): _encodable(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_encodable, value))
    return value
