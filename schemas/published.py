"""JSON Schemas of every document, for tools that are not ours."""

from typing import Any

from schemas.kinds import document_model


def json_schema(name: str) -> dict[str, Any]:
    """The JSON Schema (2020-12) of a document.  In manifests every field is required."""
    return document_model(name).model_json_schema(mode="validation" if name == "recipe" else "serialization")
