"""chainctl schema"""

import json as json_library
from enum import StrEnum
from typing import Annotated

import typer

from schemas.kinds import DOCUMENTS

Kind = StrEnum("Kind", {name: name for name in DOCUMENTS})  # type: ignore[misc]


def schema(kind: Annotated[Kind, typer.Argument(help="Which document.")]) -> None:
    """Print the JSON Schema of a manifest or of the recipe."""
    from schemas.published import json_schema

    typer.echo(json_library.dumps(json_schema(str(kind)), indent=2, sort_keys=True))
