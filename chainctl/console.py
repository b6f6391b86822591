"""One sink for everything a command says: sentences for people, one JSON object for machines.

Whatever is said is a line, and shows the characters that are not printable by their names: a device, a file or a label
that is called like an escape sequence or like a message of ours is neither.

With `--json` stdout carries exactly one JSON object and messages for people go to stderr; with `--quiet` there are
none.  Progress bars and tables that change appear on a terminal only.  With `--log-format jsonl` stderr holds events
and nothing else (`events.py`); stdout stays what it is.
"""

import functools
import inspect
import io
import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from chainctl.events import EventLog, event_log
from chainctl.live import open_terminal
from chainctl.options import LogFormat, LogFormatOption
from chainctl.streams import write_drawn, write_line, write_result
from schemas.errors import ChainError
from schemas.visible import visible, visible_text

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console as Terminal
    from rich.progress import Progress as Bar
    from rich.table import Table

    from stages.process.progress import Progress

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout; messages go to stderr.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
PIPED_WIDTH = 10_000  # of a table that is read by a program: rows are never wrapped


class Console:
    """What a command writes to."""

    def __init__(self, *, json: bool = False, quiet: bool = False) -> None:
        self.json = json
        self.quiet = quiet

    def say(self, text: str) -> None:
        """A line for people."""
        self.log("Said", text=text)
        self.say_drawn(visible(text))

    def log(self, kind: str, **fields: Any) -> None:
        """An event for machines, where they are asked for; see `EventLog.emit`."""
        log = event_log()
        if log and not self.quiet:
            log.emit(kind, **fields)

    def say_text(self, text: str, *, before: str = "") -> None:
        """Text that a model wrote, after a few words of ours: as it is, and on a terminal without what steers one."""
        on_terminal = self._stream.isatty()
        self.say_drawn(before + (visible_text(text) if on_terminal else text))

    def say_drawn(self, text: str) -> None:
        """What is fit for a terminal as it is; no event."""
        if not self.quiet and not isinstance(self._stream, EventLog):
            write_drawn(text, self._stream)

    @property
    def _stream(self) -> TextIO:
        return sys.stderr if self.json else sys.stdout

    def say_truncated(self, artifact: Any) -> dict[str, int]:
        """How many texts were longer than the plan allows, where `measured.json` counts them; the counts."""
        measured = artifact.measured()
        if measured is None or measured.texts is None:
            return {}
        texts = measured.texts
        if texts.truncated:
            lost = f"; {texts.without_loss} have no response left" if texts.without_loss else ""
            self.say(f"{texts.truncated} of {texts.read} texts were truncated at encoding.max_length{lost}")
        return {"texts": texts.read, "truncated": texts.truncated, "without_loss": texts.without_loss}

    def say_left_out(self, data: "Path") -> dict[str, int]:
        """How many files of a folder of data were not read, where there are any; the counts by why."""
        from stages.data.folder import left_out

        counts = left_out(data)
        if counts:
            total = sum(counts.values())
            listed = ", ".join(f"{count} {why}" for why, count in counts.items())
            self.say(f"{total} file{'' if total == 1 else 's'} of {data} skipped: {listed}")
        return counts

    def result(self, **fields: Any) -> None:
        """The command's outcome for machines: one JSON object on stdout, with `--json` only."""
        if self.json:
            write_result(json.dumps(fields, default=str))

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Aligned columns for people, numbers to the right; wrapped on a narrow terminal and nowhere else."""
        if self.quiet:
            return
        from rich.console import Console as Terminal

        stream = self._stream
        drawn = io.StringIO()  # `capture()` of rich writes to the stream too, which may be full
        terminal = Terminal(file=drawn, force_terminal=stream.isatty(), width=None if stream.isatty() else PIPED_WIDTH)
        terminal.print(aligned(columns, rows))
        for line in drawn.getvalue().splitlines():
            self.say_drawn(line.rstrip())

    @contextmanager
    def progress(self) -> "Iterator[Progress]":
        """A callable (phase, done, total) that moves a bar on a terminal."""
        log, terminal = event_log(), open_terminal(spoken=False)
        if self.quiet or terminal is None:
            yield log.progress if log and not self.quiet else lambda phase, done, total: None
            return
        with progress_bar(terminal) as bar:
            task = bar.add_task("", total=None)
            yield lambda phase, done, total: bar.update(task, description=phase, completed=done, total=total)


def aligned(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> "Table":
    """A table without lines, numbers to the right."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for number, column in enumerate(columns):
        numeric = all(isinstance(row[number], int | float) for row in rows)
        table.add_column(Text(visible(column)), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(visible(str(cell))) for cell in row))
    return table


def progress_bar(terminal: "Terminal") -> "Bar":
    """A bar that leaves nothing behind.  What goes to stdout appears above it only where that is a terminal too."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description:>8}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Bar(*columns, console=terminal, transient=True, redirect_stdout=sys.stdout.isatty())


def with_console(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command its `console`, and the command line `--json` and `--quiet` in the place of that parameter.

    ```python
    @with_console
    def inspect(directory: ..., *, console: Console) -> None: ...
    ```
    """

    @functools.wraps(command)
    def wrapped(context: typer.Context, *, json: bool, quiet: bool, log_format: LogFormat, **arguments: Any) -> None:  # noqa: ARG001 -- `events.logged` has looked
        logging.getLogger("stages").setLevel(logging.ERROR if quiet else logging.WARNING)
        start_log(context, quiet=quiet)
        _put_back(arguments.values())
        command(**arguments, console=Console(json=json, quiet=quiet))

    flags = {"json": (Json, False), "quiet": (Quiet, False), "log_format": (LogFormatOption, LogFormat.TEXT)}
    return taking_flags(wrapped, command, flags | {"context": (typer.Context, inspect.Parameter.empty)})


def taking_flags(
    wrapped: Callable[..., None], command: Callable[..., None], flags: Mapping[str, tuple[Any, Any]]
) -> Callable[..., None]:
    """`wrapped` with the options of `command` and these flags (how Typer reads each, and its default).

    `console` is not an option.
    """
    signature = inspect.signature(command)
    kept = [parameter for parameter in signature.parameters.values() if parameter.name != "console"]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=flag)
        for name, (flag, default) in flags.items()
    ]
    parameters = [*kept, *added]
    wrapped.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapped


def start_log(context: typer.Context, *, quiet: bool) -> None:
    """Log that a command begins, where a log was asked for."""
    log = event_log()
    if log and not quiet:
        log.start(_name(context))


def _name(context: typer.Context) -> str:
    """Of a command, with its group's: `data split`."""
    names: list[str] = []
    while context.parent is not None:
        names.insert(0, str(context.info_name))
        context = context.parent  # type: ignore[assignment]
    return " ".join(names)


def _put_back(arguments: Iterable[Any]) -> None:
    """What a killed command had put away is back before another looks for it."""
    from pathlib import Path

    from stages.store.files import put_back

    for argument in arguments:
        for path in argument if isinstance(argument, list) else [argument]:
            if isinstance(path, Path):
                put_back(path)


def existed_already(out: "Path", *, force: bool) -> str:
    """What to add to the line that names an output, asked before the work: the same one may be there."""
    return " (existed already)" if out.exists() and not force else ""


def print_error(error: ChainError, *, as_json: bool) -> None:
    """The fact, both values and the way out, on stderr; with `--json` the same as an object on stdout."""
    log = event_log()
    if log:
        log.fail(error)
    else:
        write_drawn(_drawn(error), sys.stderr)
    if as_json:
        values = {label: str(value) for label, value in error.values.items()}
        content = {"fact": error.fact, "values": values, "hint": error.hint, "exit_code": error.exit_code}
        write_line(json.dumps({"error": content}), sys.stdout)


def _drawn(error: ChainError) -> str:
    """The lines of an error, in colours on a terminal."""
    from rich.console import Console as Terminal

    drawn = io.StringIO()
    terminal = Terminal(file=drawn, force_terminal=sys.stderr.isatty(), highlight=False, soft_wrap=True)
    terminal.print("error:", style="bold red", end=" ")
    terminal.print(str(error), markup=False, emoji=False)
    return drawn.getvalue().removesuffix("\n")
