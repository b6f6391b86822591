"""chainctl status"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from chainctl.console import Console, with_console
from chainctl.options import parse_number
from schemas.errors import Waiting


@with_console
def status(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The coordinator's folder: states, updates, plan, evals.")],
    inbox: Annotated[
        list[Path] | None, typer.Option("--inbox", metavar="DIR", help="More places where updates arrive.")
    ] = None,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Look again and again until every device of the round has delivered; the exit code is then 0, so that "
            "'chainctl status RUN --watch && chainctl aggregate …' closes the round. Ctrl-C ends it sooner.",
        ),
    ] = False,
    every: Annotated[
        float,
        typer.Option(
            "--every",
            metavar="SECONDS",
            parser=parse_number("--every", "seconds, from 0.1 to 86400", lambda number: 0.1 <= number <= 86400),
            help="With --watch: the time between two looks. Only what has changed is read again.",
        ),
    ] = 5.0,
    *,
    console: Console,
) -> None:
    """Show where a federation stands, and whose updates are missing.

    The exit code is 7 while any are.
    """
    from chainctl.waiting import wait
    from stages.report.tables import describe_cost
    from stages.status import Watch
    from stages.status import run as read_status
    from stages.store.lineage import left_out_note

    inboxes = inbox or []
    found = wait(Watch(run, inboxes), every, console) if watch else read_status(run, inboxes=inboxes)
    console.say(f"round {found.round}, layers {found.assignment}, state {found.state[:19]}")
    console.say(f"delivered  {', '.join(found.delivered) or 'none'}")
    console.say(f"missing    {', '.join(found.missing) or 'none'}")
    if found.refused:
        console.say(f"refused    {', '.join(found.refused)}")
    if found.metric:
        console.say(f"last       {found.metric}")
    if found.left_out:
        console.say(f"left out   {left_out_note(found.left_out)}")
    console.say(
        f"so far     {found.rounds_closed} rounds, {found.updates_counted} updates counted, "
        f"{found.updates_refused} refused"
    )
    if found.cost.updates:
        console.say(f"cost       {describe_cost(found.cost)}")
    console.say(f"disk       {found.disk}")
    console.result(**asdict(found) | {"cost": found.cost.model_dump()}, waiting=found.waiting)
    raise typer.Exit(Waiting.exit_code if found.waiting else 0)
