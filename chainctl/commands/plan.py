"""chainctl plan"""

from pathlib import Path
from typing import Annotated

import typer

from chainctl.console import Console
from chainctl.options import Force, Json, ModelDir, Out, Quiet, RecipeFile, Set, load_settings


def plan(
    profiles: Annotated[list[Path], typer.Argument(metavar="PROFILE…", help="Profile artifacts, one a device.")],
    model: ModelDir,
    out: Out,
    state: Annotated[Path, typer.Option("--state", metavar="DIR", help="Where state 0 goes.")],
    recipe: RecipeFile = None,
    set_: Set = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say how start layer and window size were chosen.")
    ] = False,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """By the coordinator: choose start layer, window size and windows from all profiles; write plan and state 0."""
    console = Console(json=json, quiet=quiet)
    settings = load_settings(recipe, set_)
    from stages.model.footprint import keep_small

    keep_small()
    from stages.plan import run
    from stages.report.explain import explain_plan

    planned, first = run(profiles, model_dir=model, settings=settings, out=out, state_out=state, force=force)
    manifest = planned.manifest
    if explain:
        console.say(explain_plan(manifest))
    windows = ", ".join(str(window) for window in manifest.windows)
    console.say(f"{len(manifest.devices)} devices, start layer {manifest.start_layer}, windows {windows}")
    console.say(f"plan {planned.digest[:19]} -> {out}, state {first.digest[:19]} -> {state}")
    console.result(
        plan=out,
        plan_digest=planned.digest,
        state=state,
        state_digest=first.digest,
        start_layer=manifest.start_layer,
        start_reason=manifest.start_reason,
        windows=[[window.start, window.stop] for window in manifest.windows],
        participants=first.manifest.participants,
    )
