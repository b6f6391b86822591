"""chainctl track"""

from pathlib import Path
from typing import Annotated

import typer

from chainctl.console import Console, with_console
from chainctl.dry_run import with_dry_run
from chainctl.options import TrackerName


@with_dry_run
@with_console
def track(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a simulation, or the coordinator's.")],
    to: Annotated[
        list[TrackerName],
        typer.Option(
            "--to",
            help="jsonl needs no library; the others have an extra each. W&B keeps its records here too; 'wandb sync' "
            "sends them. May be repeated.",
        ),
    ],
    directory: Annotated[
        Path | None,
        typer.Option("--dir", metavar="DIR", help="Where trackers keep their records; default: RUN/tracking."),
    ] = None,
    *,
    console: Console,
) -> None:
    """Record the settings and rounds of a run with a tracker: TensorBoard, MLflow, W&B or JSON lines.

    Run it again after further rounds: nothing is recorded twice.  No texts, labels, paths or devices are recorded.
    """
    from chainctl.tracking import TRACKING
    from stages.run_view.read import read_run
    from stages.trackers.send import send
    from stages.trackers.tracker import check_tracker

    for name in to:
        check_tracker(name)
    found = read_run(run)
    into = directory or run / TRACKING
    recorded = {}
    for name in dict.fromkeys(to):
        sent = send(found, name, into)
        recorded[str(name)] = sent.recorded
        console.say(f"{name}: {sent.recorded} rounds recorded, {sent.known} were there already; see: {sent.shown_by}")
    for note in found.notes():
        console.say(note)
    console.result(path=into, recorded=recorded)
