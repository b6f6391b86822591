"""chainctl aggregate"""

from pathlib import Path
from typing import Annotated

import typer

from chainctl.console import Console
from chainctl.options import Force, Json, Out, Plan, Quiet, State


def aggregate(
    updates: Annotated[list[Path], typer.Argument(metavar="UPDATE…", help="Update artifacts of one round.")],
    plan: Plan,
    state: State,
    out: Out,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """By the coordinator: average a round's updates, weighted by their example counts, into the next state."""
    console = Console(json=json, quiet=quiet)
    from stages.aggregate import run

    artifact = run(updates, plan=plan, state=state, out=out, force=force)
    manifest = artifact.manifest
    console.say(f"round {manifest.round}: {len(manifest.accepted)} updates, training loss {manifest.train_loss:.4f}")
    console.say(f"next: window {manifest.window} on {', '.join(manifest.participants)}")
    console.say(f"state {artifact.digest[:19]} -> {out}")
    console.result(
        path=out,
        digest=artifact.digest,
        round=manifest.round,
        train_loss=manifest.train_loss,
        window=[manifest.window.start, manifest.window.stop],
        participants=manifest.participants,
    )
