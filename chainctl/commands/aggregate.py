"""chainctl aggregate"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chainctl.console import Console, with_console
from chainctl.dry_run import with_dry_run
from chainctl.options import Force, Key, Out, Plan, State, open_key
from chainctl.streams import write_line
from schemas.errors import some

if TYPE_CHECKING:
    from stages.federated.delivery import RefusedUpdate


@with_dry_run
@with_console
def aggregate(
    updates: Annotated[list[Path], typer.Argument(metavar="UPDATE…", help="Update artifacts, or folders of them.")],
    plan: Plan,
    state: State,
    out: Out,
    quorum: Annotated[
        int | None, typer.Option("--quorum", min=1, help="Accepted updates that close the round; default: the plan's.")
    ] = None,
    key: Key = None,
    force: Force = False,
    *,
    console: Console,
) -> None:
    """On the coordinator: combine updates into the next state.

    An update that does not belong to the round is moved aside, with the reason.
    """
    from schemas.assignment import described
    from stages.aggregate import run
    from stages.store.devices import accepted_updates, participants

    refusals: list[dict[str, object]] = []

    def refuse(refused: "RefusedUpdate", place: Path | None) -> None:
        where = f"moved to {place}" if place else "left in place"
        write_line(f"refused ({refused.reason}): {refused.error.fact}; {where}", sys.stderr)
        refusals.append({"path": refused.path, "reason": refused.reason, "device": refused.device, "place": place})

    artifact = run(
        updates,
        plan=plan,
        state=state,
        out=out,
        quorum=quorum,
        signer=open_key(key),
        force=force,
        on_refusal=refuse,
    )
    manifest, names = artifact.manifest, participants(artifact)
    for covered in manifest.coverage:
        if covered.kept:
            write_line(str(covered), sys.stderr)
    accepted = list(accepted_updates(artifact))
    console.say(f"round {manifest.round}: {manifest.accepted_count} updates, training loss {manifest.train_loss:.4f}")
    if same := [update.name for update in accepted if not update.example_count]:
        console.say(f"not counted twice, for another device sent the same tensors: {some(same)}")
    console.say(f"next: layers {described(manifest.assignment)} on {some(names)}")
    console.say(f"state {artifact.digest[:19]} -> {out}")
    console.result(
        path=out,
        digest=artifact.digest,
        round=manifest.round,
        train_loss=manifest.train_loss,
        layers=manifest.assignment.layers if manifest.assignment else None,
        moved=manifest.moved,
        coverage=[covered.model_dump() for covered in manifest.coverage],
        participants=names,
        accepted=[update.name for update in accepted],
        refused=refusals,
    )
