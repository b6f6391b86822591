"""chainctl verify"""

from pathlib import Path
from typing import Annotated

import typer

from chainctl.console import Console, print_error
from chainctl.options import Json, Quiet
from schemas.errors import ChainError


def verify(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR…", help="Artifacts of any kind.")],
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check artifacts to the last byte: manifests, file sets, sizes, hashes."""
    console = Console(json=json, quiet=quiet)
    from stages.store.artifact import verify_artifact
    from stages.store.signing import signed_by

    results: list[dict[str, object]] = []
    worst = 0
    for directory in directories:
        try:
            artifact = verify_artifact(directory)
        except ChainError as error:
            worst = max(worst, error.exit_code)
            print_error(error, as_json=False)
            results.append({"path": str(directory), "whole": False, "fact": error.fact, "exit_code": error.exit_code})
            continue
        claimed = signed_by(directory)
        signature = f"signed by key id {claimed[:16]}" if claimed else "unsigned"
        console.say(f"whole  {artifact.manifest.KIND:<10} {artifact.digest[:19]}  {directory}  ({signature})")
        results.append({"path": str(directory), "whole": True, "digest": artifact.digest, "claims_key_id": claimed})
    console.result(artifacts=results)
    raise typer.Exit(worst)
