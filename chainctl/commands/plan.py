"""chainctl plan"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chainctl.console import Console, with_console
from chainctl.options import Force, Key, ModelDir, Out, RecipeFile, Set, load_settings, open_key, read_text
from schemas.errors import UsageProblem

if TYPE_CHECKING:
    from schemas.trust import TrustPolicy
    from stages.store.signing import Signer


@with_console
def plan(
    profiles: Annotated[list[Path], typer.Argument(metavar="PROFILE…", help="Profile artifacts, one per device.")],
    model: ModelDir,
    out: Out,
    state: Annotated[Path, typer.Option("--state", metavar="DIR", help="Where state 0 goes.")],
    recipe: RecipeFile = None,
    set_: Set = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Explain how start layer and window size were chosen.")
    ] = False,
    roster: Annotated[
        Path | None,
        typer.Option("--roster", metavar="FILE", help="Enrolled devices (TOML): everything must then be signed."),
    ] = None,
    expires: Annotated[
        str | None,
        typer.Option("--expires", metavar="DATE", help="The plan is refused from this date on: 2027-01-31, UTC."),
    ] = None,
    key: Key = None,
    force: Force = False,
    *,
    console: Console,
) -> None:
    """On the coordinator: choose start layer and windows from all profiles.

    Writes the plan and state 0.
    """
    settings = load_settings(recipe, set_)
    from stages.process.footprint import keep_small

    keep_small()
    from stages.plan import run
    from stages.report.explain import EARLY_WORDS, asks_for_words_too_early, explain_plan

    signer = open_key(key)
    planned, first = run(
        profiles,
        model_dir=model,
        settings=settings,
        out=out,
        state_out=state,
        policy=trust_policy(roster, expires, signer),
        signer=signer,
        force=force,
    )
    manifest = planned.manifest
    if explain:
        console.say(explain_plan(manifest))
    elif asks_for_words_too_early(manifest):
        console.say(EARLY_WORDS)
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


def trust_policy(roster: Path | None, expires: str | None, signer: "Signer | None") -> "TrustPolicy":
    """Whose signatures the plan asks for: a roster and the coordinator's key go together."""
    from schemas.trust import TrustPolicy, parse_roster
    from stages.store.trust import read_moment

    until = read_moment(expires) if expires else None
    if roster is None and signer is None:
        return TrustPolicy(expires=until)
    if roster is None or signer is None:
        raise UsageProblem(
            "a signed plan needs a roster and a key",
            values={"--roster": roster or "none", "--key": signer.name if signer else "none"},
            hint="'chainctl keys show NAME' on each device prints its line for the roster",
        )
    devices = parse_roster(read_text(roster, "roster"), source=str(roster))
    return TrustPolicy(signatures="required", coordinator=signer.public, devices=devices, expires=until)
