"""chainctl demo"""

from pathlib import Path
from typing import Annotated

import typer

from chainctl.console import Console, with_console
from chainctl.dry_run import with_dry_run
from chainctl.options import LARGEST_SEED


@with_dry_run
@with_console
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Run folder.")] = Path("runs/demo"),
    seed: Annotated[
        int,
        typer.Option("--seed", min=0, max=LARGEST_SEED, help="Another federation: shards, devices, order of texts."),
    ] = 0,
    *,
    console: Console,
) -> None:
    """Adapt a real sentence encoder to BBC news on 20 simulated devices.

    Ends with a table and a picture.
    """
    from stages.process.footprint import prepare_process

    prepare_process()
    from chainctl.watching import watching
    from stages.demo import run

    summary = run(out, say=console.say, watch=lambda: watching(console), seed=seed)
    console.result(**summary.model_dump(mode="json"))
