"""chainctl schema"""

import json as json_library
from enum import StrEnum
from typing import Annotated

import typer

from schemas.kinds import DOCUMENTS, STREAMED

Kind = StrEnum("Kind", {name: name for name in (*DOCUMENTS, *STREAMED)})  # type: ignore[misc]


def schema(kind: Annotated[Kind, typer.Argument(help="Which document.")]) -> None:
    """Print the JSON Schema of a manifest, of the recipe or of a log event."""
    from schemas.published import json_schema

    typer.echo(json_library.dumps(json_schema(str(kind)), indent=2, sort_keys=True))
