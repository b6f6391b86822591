"""The published JSON Schemas are those of the code, and golden documents fit them by a small walker of our own."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from schemas.kinds import DOCUMENTS, LINES
from schemas.published import json_schema
from schemas.settings import Settings

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "docs" / "schemas"
GOLDEN = ROOT / "tests" / "golden"
MANIFESTS = sorted(set(DOCUMENTS) - {"recipe", *LINES})
TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "null": (type(None),),
    "boolean": (bool,),
}


def newest(name: str) -> Any:
    """The golden document of the newest version."""
    return json.loads(max(GOLDEN.glob(f"v*/{name}.json")).read_bytes())


def tag_of(value: Any, schema: Any) -> Any:
    """What says which alternative of a tagged union a value is."""
    return value.get(schema.get("discriminator", {}).get("propertyName")) if isinstance(value, dict) else None


def misfits(value: Any, schema: Any, root: Any, path: str = "$") -> Iterator[str]:
    """Where `value` does not fit the types, constants, fields and items of `schema`."""
    if "$ref" in schema:
        yield from misfits(value, root["$defs"][schema["$ref"].rpartition("/")[2]], root, path)
    chosen = schema.get("discriminator", {}).get("mapping", {}).get(tag_of(value, schema))
    if chosen:
        yield from misfits(value, {"$ref": chosen}, root, path)
    elif "anyOf" in schema and all(list(misfits(value, one, root, path)) for one in schema["anyOf"]):
        yield f"{path}: fits no alternative"
    if "type" in schema and not isinstance(value, TYPES[schema["type"]]):
        yield f"{path}: is no {schema['type']}"
        return
    if ("const" in schema and value != schema["const"]) or ("enum" in schema and value not in schema["enum"]):
        yield f"{path}: is another value"
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        yield from (f"{path}.{name}: is missing" for name in schema.get("required", []) if name not in value)
        for name, item in value.items():
            inner = properties.get(name, schema.get("additionalProperties", True))
            if inner is False:
                yield f"{path}.{name}: is unknown"
            elif inner is not True:
                yield from misfits(item, inner, root, f"{path}.{name}")
    if isinstance(value, list):
        first = schema.get("prefixItems", [])
        for number, item in enumerate(value):
            inner = first[number] if number < len(first) else schema.get("items", {})
            yield from misfits(item, inner or {}, root, f"{path}[{number}]")


def objects(schema: Any) -> Iterator[dict[str, Any]]:
    """Every schema of an object with fields, at any depth."""
    if isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict):
            yield schema
        for inner in schema.values():
            yield from objects(inner)


@pytest.mark.parametrize("name", sorted(DOCUMENTS))
def test_a_published_schema_is_that_of_the_code(name: str) -> None:
    expected = json.dumps(json_schema(name), indent=2, sort_keys=True) + "\n"
    assert (PUBLISHED / f"{name}.json").read_bytes() == expected.encode()


def test_every_document_is_published_and_nothing_else() -> None:
    assert sorted(path.name for path in PUBLISHED.iterdir()) == sorted(f"{name}.json" for name in DOCUMENTS)


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_golden_document_fits_its_published_schema(name: str) -> None:
    schema = json.loads((PUBLISHED / f"{name}.json").read_text(encoding="utf-8"))
    document = newest(name)
    assert list(misfits(document, schema, schema)) == []
    assert document.keys() == schema["properties"].keys()


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_golden_document_fits_no_other_published_schema(name: str) -> None:
    document = newest(name)
    for other in set(MANIFESTS) - {name}:
        schema = json_schema(other)
        assert list(misfits(document, schema, schema)), other


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_field_of_a_manifest_is_required(name: str) -> None:
    for schema in objects(json_schema(name)):
        assert sorted(schema.get("required", [])) == sorted(schema["properties"]), schema["title"]


@pytest.mark.parametrize("name", sorted(DOCUMENTS))
def test_every_object_is_closed(name: str) -> None:
    for schema in objects(json_schema(name)):
        assert schema["additionalProperties"] is False


def test_no_setting_of_a_recipe_is_required() -> None:
    assert all("required" not in schema for schema in objects(json_schema("recipe")))


def test_default_settings_fit_the_schema_of_recipes() -> None:
    schema = json_schema("recipe")
    assert list(misfits(Settings().model_dump(mode="json"), schema, schema)) == []
    assert list(misfits({}, schema, schema)) == []
    assert list(misfits({"chain": {}}, schema, schema)) == []
    assert list(misfits({"chain": {"window": 3}}, schema, schema)) == ["$.chain: fits no alternative"]
    named = {"chain": {"method": "chain", "window": 3}}
    assert list(misfits(named, schema, schema)) == ["$.chain.window: is unknown"]


@pytest.mark.parametrize(
    ("name", "file"),
    [("planned-device", "devices"), ("participant", "participants"), ("accepted-update", "accepted")],
)
def test_golden_lines_fit_their_published_schema(name: str, file: str) -> None:
    schema = json.loads((PUBLISHED / f"{name}.json").read_text(encoding="utf-8"))
    for line in (GOLDEN / "v1" / f"{file}.jsonl").read_bytes().splitlines():
        document = json.loads(line)
        assert list(misfits(document, schema, schema)) == []
        assert document.keys() == schema["properties"].keys()
