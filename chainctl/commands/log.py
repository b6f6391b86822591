"""chainctl log"""

from pathlib import Path
from typing import Annotated

import typer

from chainctl.console import Console, with_console


@with_console
def log(
    state: Annotated[Path, typer.Argument(metavar="STATE", help="State artifact to start from.")],
    search: Annotated[
        list[Path] | None,
        typer.Option(
            "--search", metavar="DIR", help="More folders of artifacts, beside the state's own; may be repeated."
        ),
    ] = None,
    *,
    console: Console,
) -> None:
    """List the history of a state, round by round back to the plan.

    As far as the artifacts are available.
    """
    from stages.store.lineage import history

    lines = history(state, search or [])
    score = "perplexity" if any(line.perplexity is not None for line in lines) else "accuracy"
    columns = ("round", "state", "trained", "devices", "texts", "loss", score)
    console.table(columns, [line.cells() for line in lines])
    if lines[-1].missing_parent:
        console.say(f"… older states were not found: {lines[-1].missing_parent}")
    else:
        console.say(f"plan {lines[-1].plan} with {lines[-1].profiles} profiles")
    console.result(history=[line.__dict__ for line in lines])
