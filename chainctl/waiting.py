"""`status --watch`: a round that waits for updates, looked at until the last one is there."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from chainctl.console import Console
from chainctl.live import drawn, open_terminal
from schemas.errors import some
from schemas.visible import visible
from stages.report.tables import describe_cost
from stages.status import Status, Watch

if TYPE_CHECKING:
    from rich.table import Table


def wait(watch: Watch, seconds: float, console: Console) -> Status:
    """The status once no update is missing; what is new meanwhile is shown.  Raises as `stages.status.run` does."""
    with _showing(console) as show:
        found: Status | None = None
        while True:
            changed = watch.look()
            if changed and (found is None or _told(changed) != _told(found)):
                console.log("Looked", **_event(changed))
                show(changed)
            found = changed or found
            if found and not found.waiting:
                return found
            time.sleep(seconds)


@contextmanager
def _showing(console: Console) -> Iterator[Callable[[Status], None]]:
    """A table that is drawn anew on a terminal, a line for each change elsewhere."""
    terminal = None if console.quiet else open_terminal(spoken=not console.json)
    if terminal is None:
        yield lambda found: console.say_drawn(_line(found))
        return
    with drawn("", terminal) as draw:
        yield lambda found: draw(_table(found))


def _table(found: Status) -> "Table":
    """A row for everything there is to know, each on one line of the terminal."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    asked = len(found.delivered) + len(found.missing)
    rows = {
        "round": f"{found.round}, layers {found.assignment}",
        "delivered": f"{len(found.delivered)} of {asked}  {', '.join(found.delivered)}",
        "missing": ", ".join(found.missing) or "none",
        "refused": ", ".join(found.refused),
        "last": found.metric,
        "cost": describe_cost(found.cost) if found.cost.updates else "",
        "disk": found.disk,
    }
    for name, value in rows.items():
        if value:
            table.add_row(name, Text(visible(value), no_wrap=True, overflow="ellipsis"))
    return table


def _line(found: Status) -> str:
    """What is new, for logs."""
    parts = [f"round {found.round}: {len(found.delivered)} delivered"]
    for name, devices in (("missing", found.missing), ("refused", found.refused)):
        if devices:
            parts.append(f"{len(devices)} {name}: {some(devices)}")
    return visible("; ".join(parts))


def _event(found: Status) -> dict[str, object]:
    """The fields of a `Looked`."""
    names = ("round", "assignment", "delivered", "missing", "refused", "metric", "used_bytes", "free_bytes")
    return {name: getattr(found, name) for name in names}


def _told(found: Status) -> dict[str, object]:
    """What makes a status another one for whoever watches."""
    return {name: value for name, value in _event(found).items() if not name.endswith("_bytes")}
