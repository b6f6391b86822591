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
    from schemas.measured import Cost
    from stages.report.tables import describe_cost
    from stages.store.lineage import history

    found = history(state, search or [])
    lines = found.lines
    score = "perplexity" if any(line.perplexity is not None for line in lines) else "accuracy"
    columns = ("round", "state", "trained", "devices", "texts", "loss", score, "passes per text", "sent")
    console.table(columns, [line.cells() for line in lines])
    if lines[-1].missing_parent:
        console.say(f"… older states were not found: {lines[-1].missing_parent}")
    elif lines[-1].profiles is not None:
        console.say(f"plan {lines[-1].plan} with {lines[-1].profiles} profiles")
    for note in found.notes():
        console.say(note)
    total = Cost.sum(line.cost for line in lines if line.cost)
    if total.updates:
        console.say(f"cost {describe_cost(total)}")
    console.result(
        history=[line.__dict__ | {"cost": line.cost and line.cost.model_dump()} for line in lines],
        cost=total.model_dump(),
        signed=found.signed,
        left_out=found.left_out,
    )
