"""chainctl log"""

from pathlib import Path
from typing import Annotated

import typer

from chainctl.console import Console
from chainctl.options import Json, Quiet


def log(
    state: Annotated[Path, typer.Argument(metavar="STATE", help="State artifact to begin at.")],
    search: Annotated[
        list[Path] | None,
        typer.Option("--search", metavar="DIR", help="More folders of artifacts; the state's own are searched anyway."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """The history of a state: every round back to the plan, as far as its artifacts are at hand."""
    console = Console(json=json, quiet=quiet)
    from stages.store.lineage import history

    lines = history(state, search or [])
    score = "perplexity" if any(line.perplexity is not None for line in lines) else "accuracy"
    columns = ("round", "state", "trained", "devices", "texts", "loss", score)
    console.table(columns, [line.cells() for line in lines])
    if lines[-1].missing_parent:
        console.say(f"… older states are not at hand: {lines[-1].missing_parent}")
    else:
        console.say(f"plan {lines[-1].plan} with {lines[-1].profiles} profiles")
    console.result(history=[line.__dict__ for line in lines])
