"""chainctl demo"""

from pathlib import Path
from typing import Annotated

import typer

from chainctl.console import Console
from chainctl.options import Json, Quiet


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Run folder.")] = Path("runs/demo"),
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """20 devices adapt a real sentence encoder to BBC news; ends with a table and a picture."""
    console = Console(json=json, quiet=quiet)
    from stages.process.footprint import keep_small

    keep_small()
    from stages.demo import run

    with console.progress() as progress:
        summary = run(out, say=console.say, progress=progress)
    console.result(**summary)
