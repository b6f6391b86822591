"""chainctl verify"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chainctl.console import Console, print_error, with_console
from chainctl.options import Artifacts
from schemas.errors import ChainError

if TYPE_CHECKING:
    from schemas.plan import PlanManifest
    from stages.store.artifact import Artifact


@with_console
def verify(
    directories: Artifacts,
    plan: Annotated[
        Path | None,
        typer.Option("--plan", metavar="DIR", help="Check signatures too, against this plan."),
    ] = None,
    *,
    console: Console,
) -> None:
    """Check artifacts down to the last byte, and their signatures.

    Manifests, file sets, sizes and hashes; with --plan, also who signed them. Of the ledger that is beside states,
    that each line names the one before.
    """
    from stages.store.debris import without_debris

    planned = open_trusted(plan) if plan else None
    results: list[dict[str, object]] = []
    worst = 0
    for directory in without_debris(directories):
        try:
            kind, digest, signer = _examined(directory, planned)
        except ChainError as error:
            worst = max(worst, error.exit_code)
            print_error(error, as_json=False)
            results.append({"path": str(directory), "whole": False, "fact": error.fact, "exit_code": error.exit_code})
            continue
        console.say(f"whole  {kind:<10} {digest[:19]}  {directory}  ({signer})")
        results.append({"path": str(directory), "whole": True, "digest": digest, "signer": signer})
    console.result(artifacts=results)
    raise typer.Exit(worst)


def open_trusted(path: Path) -> "Artifact[PlanManifest]":
    """Open a plan and check that this machine trusts it."""
    from schemas.plan import PlanManifest
    from stages.store.artifact import open_artifact
    from stages.store.trust import Trust

    planned = open_artifact(path, PlanManifest)
    Trust.of_this_machine().check_plan(planned)
    return planned


def _examined(path: Path, plan: "Artifact[PlanManifest] | None") -> tuple[str, str, str]:
    """Kind, digest, and what is known of the origin of an artifact, or of a ledger: it is beside states, as `states/*`
    names it too."""
    from stages.store.ledger import LEDGER_FILE, End, Ledger

    if path.name == LEDGER_FILE and path.is_file():
        end = End()
        for _ in end.watch(Ledger(path).events()):
            pass
        return "ledger", end.line or "", f"unsigned; {end.line_count} lines, each names the one before"
    artifact, signer = examine(path, plan)
    return artifact.manifest.KIND, artifact.digest, signer


def examine(directory: Path, plan: "Artifact[PlanManifest] | None") -> tuple["Artifact[Any]", str]:
    """Verify an artifact; it, and who signed it: checked against the plan, or as it claims."""
    from stages.store.artifact import verify_artifact
    from stages.store.signing import signed_by
    from stages.store.trust import check_signed

    artifact = verify_artifact(directory)
    if plan is not None:
        return artifact, f"signed by {check_signed(artifact, plan)}"
    claimed = signed_by(directory)
    return artifact, f"claims key id {claimed[:16]}" if claimed else "unsigned"
