"""A simulation as it is watched: on a terminal a table that grows, with a bar below it; lines or events elsewhere."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from chainctl.console import Console, aligned, progress_bar
from chainctl.live import ECHO, drawn, open_terminal
from schemas.run import RoundLine
from stages.process.progress import Progress
from stages.report.tables import format_bytes

if TYPE_CHECKING:
    from rich.console import Console as Terminal
    from rich.console import ConsoleOptions, RenderResult

    from stages.federation.watcher import Begun, Watcher

# Columns in their order, each with what a row has there; a narrow terminal has those that come first in IMPORTANCE.
COLUMNS: dict[str, Callable[[RoundLine], object]] = {
    "round": lambda line: line.round,
    "layers": lambda line: line.trained,
    "devices": lambda line: line.devices,
    "refused": lambda line: ", ".join(f"{count} {reason}" for reason, count in sorted(line.refused.items())),
    "accuracy": lambda line: _decimals(line.accuracy),
    "perplexity": lambda line: _decimals(line.perplexity),
    "loss": lambda line: _decimals(line.train_loss),
    "peak": lambda line: format_bytes(line.peak_bytes),
    "up": lambda line: format_bytes(line.bytes_up),
    "down": lambda line: format_bytes(line.bytes_down),
    "passes": lambda line: f"{line.per_text:.1f}",
    "seconds": lambda line: f"{line.seconds:.1f}",
}
IMPORTANCE = (
    *("round", "accuracy", "perplexity", "layers", "peak", "up", "devices", "refused", "down", "seconds", "loss"),
    "passes",
)
GAP = 2  # between columns
BELOW = 4  # lines of the terminal that rows never take: head of the table, where the run is, bar, and one to spare


@contextmanager
def watching(console: Console) -> "Iterator[Watcher]":
    """Watch one simulation.  On a terminal all of its rounds stay there as plain lines."""
    terminal = None if console.quiet else open_terminal(spoken=not console.json)
    if terminal is None:
        with console.progress() as progress:
            yield Told(console, progress)
        return
    table = RoundsTable(terminal)
    try:
        with drawn(table, terminal):
            yield table
    finally:
        if table.lines:
            console.table(*rounds_table(table.lines, terminal.width - ECHO))


class Told:
    """A line for each round, and an event."""

    def __init__(self, console: Console, progress: Progress) -> None:
        self.console = console
        self.progress = progress

    def begin(self, begun: "Begun") -> None:
        """The rounds begin."""
        self.console.log(
            "SimulationBegun",
            plan=begun.plan.digest,
            method=begun.plan.manifest.settings.chain.method,
            rounds=begun.rounds,
            accuracy=begun.accuracy,
            perplexity=begun.perplexity,
        )

    def round(self, line: RoundLine) -> None:
        """A round is finished."""
        self.console.log("RoundDone", **dict(line))
        self.console.say_drawn(line.line())


class RoundsTable:
    """The last rounds that fit the terminal, how many there are and how long they will take, and a bar."""

    def __init__(self, terminal: "Terminal", clock: Callable[[], float] = time.monotonic) -> None:
        self.lines: list[RoundLine] = []
        self.rounds = 0
        self.bar = progress_bar(terminal)
        self._task = self.bar.add_task("", total=None)
        self._clock = clock
        self._since = clock()  # when the last round ended
        self._seconds = 0.0  # that the rounds so far took

    def progress(self, phase: str, done: int, total: int) -> None:
        """Move the bar."""
        self.bar.update(self._task, description=phase, completed=done, total=total)

    def begin(self, begun: "Begun") -> None:
        """The rounds begin."""
        self.rounds, self._since = begun.rounds, self._clock()

    def round(self, line: RoundLine) -> None:
        """A round is finished; one that an earlier run has finished took what its devices measured."""
        now = self._clock()
        self._seconds += max(now - self._since, line.seconds)
        self._since = now
        self.lines.append(line)

    def seconds_left(self) -> float | None:
        """As many rounds as are left, at the mean of those that there were; None before the first has ended."""
        done = len(self.lines)
        if not done:
            return None
        left = self._seconds / done * (self.rounds - done)
        return max(0.0, left - (self._clock() - self._since))

    def __rich_console__(self, terminal: "Terminal", options: "ConsoleOptions") -> "RenderResult":
        from rich.text import Text

        lines = tuple(self.lines)  # rich's own thread draws, while rounds are added
        if lines:
            columns, rows = rounds_table(lines, options.max_width)
            yield aligned(columns, rows[-max(1, terminal.height - BELOW) :])
        if self.rounds:
            left = self.seconds_left()
            where = f"round {min(len(self.lines) + 1, self.rounds)} of {self.rounds}"
            told = where if left is None else f"{where}, {timedelta(seconds=round(left))} left"
            yield Text(told, no_wrap=True, overflow="ellipsis")
        yield self.bar


def rounds_table(lines: Sequence[RoundLine], width: int) -> tuple[list[str], list[list[object]]]:
    """The columns that fit a width, and a row for each round; a column that says nothing is left out."""
    cells = {name: [cell(line) for line in lines] for name, cell in COLUMNS.items()}
    left = width + GAP
    chosen: set[str] = set()
    for name in IMPORTANCE:
        needed = max(len(name), *(len(str(cell)) for cell in cells[name])) + GAP
        if any(cell != "" for cell in cells[name]) and needed <= left:
            chosen.add(name)
            left -= needed
    columns = [name for name in COLUMNS if name in chosen]
    return columns, [list(row) for row in zip(*(cells[name] for name in columns), strict=True)]


def _decimals(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
