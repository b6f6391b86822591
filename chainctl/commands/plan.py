"""chainctl plan"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chainctl.console import Console, with_console
from chainctl.dry_run import with_dry_run
from chainctl.options import Force, Key, ModelDir, Out, RecipeFile, Set, load_settings, open_key, read_text
from schemas.errors import UsageProblem

if TYPE_CHECKING:
    from schemas.trust import EnrolledDevice, TrustPolicy
    from stages.store.signing import Signer


def parse_moment(text: str) -> str:
    """A date or a time, as a plan holds it.  Raises `UsageProblem`."""
    from stages.store.trust import read_moment

    return read_moment(text)


@with_dry_run
@with_console
def plan(
    profiles: Annotated[list[Path], typer.Argument(metavar="PROFILE…", help="Profile artifacts, one per device.")],
    model: ModelDir,
    out: Out,
    state: Annotated[Path, typer.Option("--state", metavar="DIR", help="Where state 0 goes.")],
    recipe: RecipeFile = None,
    set_: Set = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Explain the choice of layers, and show what others would cost.")
    ] = False,
    roster: Annotated[
        Path | None,
        typer.Option("--roster", metavar="FILE", help="Enrolled devices (TOML): everything must then be signed."),
    ] = None,
    expires: Annotated[
        str | None,
        typer.Option(
            "--expires",
            metavar="DATE",
            parser=parse_moment,
            help="The plan is refused from this date on: 2027-01-31, UTC.",
        ),
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
    from stages.process.footprint import prepare_process

    prepare_process()
    from stages.methods.registry import server_method
    from stages.plan import alternatives, run
    from stages.report.explain import chosen_length, explain_options, explain_plan, head_lines, plan_warnings
    from stages.store.devices import participants, planned_devices

    signer = open_key(key)
    policy, enrolled = trust_policy(roster, expires, signer)
    planned, first = run(
        profiles,
        model_dir=model,
        settings=settings,
        out=out,
        state_out=state,
        policy=policy,
        roster=enrolled,
        signer=signer,
        force=force,
        say=console.say,
    )
    manifest = planned.manifest
    method = server_method(manifest.settings.chain.method)
    said = [*method.explain(manifest), *head_lines(manifest), *plan_warnings(manifest, method)]
    if explain:
        said = [
            *explain_plan(manifest, method, planned_devices(planned)),
            *explain_options(alternatives(manifest, model)),
        ]
    for line in said:
        console.say(line)
    if settings.encoding.max_length == "auto":
        console.say(chosen_length(manifest))
    if settings.numerics.compute == "auto" and not explain:
        console.say(f'numerics.compute = "auto" chose {manifest.settings.numerics.computes_in}')
    assignments = [entry.assignment for entry in manifest.memory]
    first_layer, trains = manifest.decisions.first_layer, ", ".join(map(str, assignments))
    console.say(f"{manifest.device_count} devices, adapters from layer {first_layer}, rounds train layers {trains}")
    console.say(f"plan {planned.digest[:19]} -> {out}, state {first.digest[:19]} -> {state}")
    console.result(
        plan=out,
        plan_digest=planned.digest,
        state=state,
        state_digest=first.digest,
        method=method.name,
        decisions=manifest.decisions.model_dump(mode="json"),
        head={one.name: one.start for one in manifest.head_parameters},
        assignments=[assignment.layers for assignment in assignments],
        max_length=manifest.settings.encoding.max_length,
        participants=participants(first),
    )


def trust_policy(
    roster: Path | None, expires: str | None, signer: "Signer | None"
) -> "tuple[TrustPolicy, tuple[EnrolledDevice, ...]]":
    """Whose signatures the plan asks for: a roster and the coordinator's key go together."""
    from schemas.trust import TrustPolicy, parse_roster

    if roster is None and signer is None:
        return TrustPolicy(expires=expires), ()
    if roster is None or signer is None:
        raise UsageProblem(
            "a signed plan needs a roster and a key",
            values={"--roster": roster or "none", "--key": signer.name if signer else "none"},
            hint="'chainctl keys show NAME' on each device prints its line for the roster",
        )
    devices = parse_roster(read_text(roster, "roster"), source=str(roster))
    return TrustPolicy(signatures="required", coordinator=signer.public, expires=expires), devices
