"""A real terminal for a process of its own: what is on its screen, and keys that are typed."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import subprocess
import termios
import time
from collections.abc import Callable, Sequence
from types import TracebackType

import pyte

from tests.fleet.processes import ROOT

PATIENCE_SECONDS = 120.0


class Terminal:
    """A process whose three streams are a terminal of that size; a block ends when the process has."""

    def __init__(self, command: Sequence[object], *, columns: int = 80, lines: int = 24, **environment: str) -> None:
        self.screen = pyte.HistoryScreen(columns, lines, history=10_000)
        self._stream = pyte.ByteStream(self.screen)
        self._main, side = pty.openpty()
        termios.tcsetwinsize(self._main, (lines, columns))
        # In the workers of pytest-xdist these say how large the terminal of the whole run is.
        surroundings = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            [*map(str, command)],
            cwd=ROOT,
            env={**surroundings, "TERM": "xterm-256color", **environment},
            stdin=side,
            stdout=side,
            stderr=side,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(side)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is not None:
            self.process.kill()
        give_up = time.monotonic() + PATIENCE_SECONDS
        while self._read(give_up):
            pass
        os.close(self._main)
        self.process.wait()

    @property
    def exit_code(self) -> int:
        """Of the process, after the block."""
        return int(self.process.returncode)

    @property
    def shown(self) -> list[str]:
        """The lines of the screen, empty ones at the end left out."""
        lines = [line.rstrip() for line in self.screen.display]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    @property
    def left(self) -> list[str]:
        """Everything that scrolled away, and the screen."""
        above = [
            "".join(line[column].data for column in range(self.screen.columns)) for line in self.screen.history.top
        ]
        return [*(line.rstrip() for line in above), *self.shown]

    @property
    def cursor_is_shown(self) -> bool:
        """Whether whoever types next sees where."""
        return not self.screen.cursor.hidden

    def type(self, keys: bytes) -> None:
        """Press keys: `\\x03` is ctrl-C."""
        os.write(self._main, keys)

    def interrupt(self) -> None:
        """Press ctrl-C, which the terminal does not show: it would at any place of what is just being drawn."""
        modes = termios.tcgetattr(self._main)
        modes[3] &= ~termios.ECHO
        termios.tcsetattr(self._main, termios.TCSANOW, modes)
        self.type(b"\x03")

    def until(self, holds: Callable[[list[str]], bool]) -> list[str]:
        """Read on until the screen is like that; the screen."""
        give_up = time.monotonic() + PATIENCE_SECONDS
        while not holds(self.shown):
            assert self._read(give_up), "\n".join(self.left)
        return self.shown

    def _read(self, give_up: float) -> bool:
        """Whatever comes next; False at the end."""
        if not select.select([self._main], [], [], max(0.0, give_up - time.monotonic()))[0]:
            self.process.kill()
            return False
        try:
            data = os.read(self._main, 2**16)
        except OSError:  # nobody has the other side any more
            return False
        self._stream.feed(data)
        return bool(data)
