"""`--dry-run`: the command itself, up to where its work would begin, and then what it would have done.

    with --json     {"dry_run": true, "reads": […], "writes": […], "predicted": {…}, "unchecked": […]}

Its checks are the command's own, so it is refused as the command is, with the same exit code.  Nothing is written:
`stages/process/intent.py` says how.
"""

import functools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from chainctl.console import Console, start_log, taking_flags
from schemas.errors import some

if TYPE_CHECKING:
    from stages.process.intent import Intent

DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Make the checks, say what would be read, written and needed, and write nothing."),
]
MOST_LISTED = 12  # paths in one folder, for people
LABELS = {
    "peak_bytes": "predicted peak",
    "budget_bytes": "memory budget",
    "in_memory": "stays in memory",
    "scratch_bytes": "predicted temporary files",
    "scratch_free_bytes": "free for them",
    "scratch_folder": "their folder",
    "seconds": "this machine took before",
}


def with_dry_run(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command that writes, made by `with_console`, the flag `--dry-run`.

    What the command says of its results is not said: it has none.
    """

    @functools.wraps(command)
    def wrapped(*, dry_run: bool, **arguments: Any) -> None:
        if not dry_run:
            command(**arguments)
            return
        from stages.process.intent import rehearsing

        start_log(arguments["context"], quiet=arguments["quiet"])
        console = Console(json=arguments["json"], quiet=arguments["quiet"])
        with rehearsing() as intent:
            command(**arguments | {"json": False, "quiet": True})
        for line in lines(intent):
            console.say(line)
        console.result(
            dry_run=True,
            reads=[{"path": path, "what": what} for path, what in intent.reads.items()],
            writes=[
                {"path": path, "bytes": size, "exists": os.path.lexists(path)} for path, size in intent.writes.items()
            ],
            predicted=intent.predicted,
            unchecked=intent.unchecked,
        )

    return taking_flags(wrapped, command, {"dry_run": (DryRun, False)})


def lines(intent: "Intent") -> Iterator[str]:
    """What a command would do, for people."""
    yield from _listed("read ", {path: f" ({what})" for path, what in intent.reads.items()})
    yield from _listed("write", {path: _size(path, size) for path, size in intent.writes.items()})
    for name, value in intent.predicted.items():
        if name == "refused":
            refused = cast(list[dict[str, str]], value)
            yield from (f"would refuse {one['path']} ({one['reason']}): {one['fact']}" for one in refused)
        else:
            yield f"{LABELS.get(name, name.replace('_', ' '))}: {_shown(name, value)}"
    yield from (f"not checked: {what}" for what in intent.unchecked)
    yield "dry run: nothing was written" + ("" if intent.writes else ", and nothing would be")


def _size(path: Path, size: int | None) -> str:
    from stages.report.tables import format_bytes

    known = "" if size is None else f", at least {format_bytes(size)}"
    return known + (", is there now" if os.path.lexists(path) else "")


def _listed(verb: str, paths: Mapping[Path, str]) -> Iterator[str]:
    """A line for each path; of many in one folder a line for all."""
    folders = Counter(path.parent for path in paths)
    for path, fact in paths.items():
        if folders[path.parent] <= MOST_LISTED:
            yield f"would {verb}  {path}{fact}"
    yield from (f"would {verb}  {count} in {folder}" for folder, count in folders.items() if count > MOST_LISTED)


def _shown(name: str, value: Any) -> str:
    if name.endswith("_bytes"):
        from stages.report.tables import format_bytes

        return format_bytes(value)
    if name == "seconds":
        return f"{value:.1f} s"
    return (some(list(map(str, value))) or "none") if isinstance(value, list) else str(value)
