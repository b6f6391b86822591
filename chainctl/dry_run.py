"""`--dry-run`: the command itself, up to where its work would begin, and then what it would have done.

    with --json     {"dry_run": true, "reads": […], "writes": […], "predicted": {…}, "unchecked": […]}

Its checks are the command's own, so it is refused as the command is, with the same exit code.  Nothing is written:
`stages/process/intent.py` says how.
"""

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chainctl.console import Console, taking_flags
from schemas.errors import some

if TYPE_CHECKING:
    from stages.process.intent import Intent

DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Make the checks, say what would be read, written and needed, and write nothing."),
]
MOST_LISTED = 12  # inputs of one kind, for people


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

        console = Console(json=arguments["json"], quiet=arguments["quiet"])
        with rehearsing() as intent:
            command(**arguments | {"json": False, "quiet": True})
        for line in lines(intent):
            console.say(line)
        console.result(
            dry_run=True,
            reads=[{"path": path, "what": what} for path, what in intent.reads.items()],
            writes=[{"path": path, "bytes": size} for path, size in intent.writes.items()],
            predicted=intent.predicted,
            unchecked=intent.unchecked,
        )

    return taking_flags(wrapped, command, {"dry_run": DryRun})


def lines(intent: "Intent") -> Iterator[str]:
    """What a command would do, for people."""
    from stages.report.tables import format_bytes

    counts = Counter(intent.reads.values())
    for path, what in intent.reads.items():
        if counts[what] <= MOST_LISTED:
            yield f"would read   {path} ({what})"
    yield from (f"would read   {count} of {what}" for what, count in counts.items() if count > MOST_LISTED)
    for path, size in intent.writes.items():
        yield f"would write  {path}" + ("" if size is None else f", at least {format_bytes(size)}")
    for name, value in intent.predicted.items():
        yield from described(name, value)
    yield from (f"unchecked    {what}" for what in intent.unchecked)
    yield "dry run: nothing was written" + ("" if intent.writes else ", and nothing would be")


def described(name: str, value: Any) -> Iterator[str]:
    """A prediction by its name: sizes end in `_bytes`."""
    from stages.report.tables import format_bytes

    label = name.removesuffix("_bytes").replace("_", " ")
    if name == "refused":
        yield from (f"would refuse {one['path']} ({one['reason']}): {one['fact']}" for one in value)
    elif name.endswith("_bytes"):
        yield f"predicted    {label} {format_bytes(value)}"
    elif name == "seconds":
        yield f"predicted    {value:.1f} s, as measured here before"
    else:
        yield f"predicted    {label} {(some(list(map(str, value))) or 'none') if isinstance(value, list) else value}"
