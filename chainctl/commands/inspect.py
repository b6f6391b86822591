"""chainctl inspect"""

from pathlib import Path
from typing import Annotated

import typer

from chainctl.console import Console, with_console


@with_console
def inspect(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="An artifact of any kind.")],
    *,
    console: Console,
) -> None:
    """Verify one artifact and describe it."""
    from stages.report.explain import describe_artifact
    from stages.store.artifact import verify_artifact

    artifact = verify_artifact(directory)
    for line in describe_artifact(artifact):
        console.say(line)
    measured = artifact.measured()
    console.result(
        path=directory,
        digest=artifact.digest,
        manifest=artifact.manifest.model_dump(mode="json"),
        measured=measured.model_dump(mode="json") if measured else None,
    )
