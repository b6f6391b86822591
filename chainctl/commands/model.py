"""chainctl model"""

from pathlib import Path
from typing import Annotated

import typer

from chainctl.console import Console
from chainctl.options import Json, Quiet

app = typer.Typer(no_args_is_help=True, help="Look at base models.")


@app.callback()
def model() -> None:
    """Look at base models."""


@app.command()
def check(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A Hugging Face model directory.")],
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Does block-wise execution equal the architecture's own forward? Tried on a tiny random model of it."""
    console = Console(json=json, quiet=quiet)
    from stages.model.footprint import keep_small

    keep_small()
    from stages.model.check import check_model

    report = check_model(directory)
    for line in report.lines():
        console.say(line)
    console.result(**report.__dict__)
