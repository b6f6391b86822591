"""One sink for everything a command says: sentences for people, one JSON object for machines.

With `--json` stdout carries exactly one JSON object and people's lines go to stderr; with `--quiet` they go nowhere.
Progress moves on a terminal and is silent elsewhere.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from schemas.errors import ChainError

Progress = Callable[[str, int, int], None]


class Console:
    """What a command writes to."""

    def __init__(self, *, json: bool = False, quiet: bool = False) -> None:
        self.json = json
        self.quiet = quiet

    def say(self, text: str) -> None:
        """A line for people."""
        if not self.quiet:
            print(text, file=sys.stderr if self.json else sys.stdout, flush=True)

    def say_what_was_cut(self, artifact: Any) -> dict[str, int]:
        """Texts longer than the plan allows, where an artifact's `measured.json` counts them; the counts."""
        measured = artifact.measured()
        if measured is None or measured.texts is None:
            return {}
        texts = measured.texts
        if texts.cut:
            lost = f"; {texts.unlearned} have no response left" if texts.unlearned else ""
            self.say(f"{texts.cut} of {texts.read} texts were cut at encoding.max_length{lost}")
        return {"texts": texts.read, "cut": texts.cut, "unlearned": texts.unlearned}

    def result(self, **fields: Any) -> None:
        """The command's outcome for machines: one JSON object on stdout, with `--json` only."""
        if self.json:
            print(json.dumps(fields, default=str), flush=True)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Aligned columns for people; numbers to the right."""
        cells = [[str(cell) for cell in row] for row in [columns, *rows]]
        widths = [max(len(row[column]) for row in cells) for column in range(len(columns))]
        numeric = [all(isinstance(row[column], int | float) for row in rows) for column in range(len(columns))]
        for row in cells:
            aligned = [
                cell.rjust(width) if right else cell.ljust(width)
                for cell, width, right in zip(row, widths, numeric, strict=True)
            ]
            self.say("  ".join(aligned).rstrip())

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """A callable (phase, done, total) that moves a bar on a terminal."""
        if self.quiet or not sys.stderr.isatty():
            yield lambda phase, done, total: None
            return
        from rich.console import Console as Terminal
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        columns = (TextColumn("{task.description:>8}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Bar(*columns, console=Terminal(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=None)
            yield lambda phase, done, total: bar.update(task, description=phase, completed=done, total=total)


def print_error(error: ChainError, *, as_json: bool) -> None:
    """The fact, both values and the way out, on stderr; with `--json` the same as an object on stdout."""
    from rich.console import Console as Terminal

    terminal = Terminal(stderr=True, highlight=False, soft_wrap=True)
    terminal.print("error:", style="bold red", end=" ")
    terminal.print(str(error), markup=False)
    if as_json:
        values = {label: str(value) for label, value in error.values.items()}
        content = {"fact": error.fact, "values": values, "hint": error.hint, "exit_code": error.exit_code}
        print(json.dumps({"error": content}), flush=True)
