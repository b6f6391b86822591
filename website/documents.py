"""The reference of what is in files: every setting of a recipe, every field of a document, from the pydantic models."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from schemas.kinds import ARTIFACTS, DOCUMENTS, LINES, document_model
from schemas.methods import known_methods, settings_class
from schemas.published import json_schema
from schemas.settings import Settings
from stages.report.recipe import EXPLAINED, to_toml
from website.markdown import code, escaped, paragraphs, table

UNBOUNDED = 2.0**53  # bounds from here on only keep arithmetic exact
SETTINGS = "recipe"
Schema = Mapping[str, Any]


def settings_page() -> str:
    """Every setting with type, default and meaning."""
    schema = json_schema(SETTINGS)
    records, top = schema["$defs"], schema["properties"]
    sections = {name: one["$ref"].rpartition("/")[2] for name, one in top.items() if "$ref" in one}
    parts = [
        "# Settings\n",
        "Every setting of a recipe, made from the models that read it. `chainctl recipe new` writes them all, "
        "`chainctl config show` says where each value comes from. [Where settings come from](index.md#settings).\n",
        _settings("", {name: one for name, one in top.items() if name not in sections and name != "chain"}),
    ]
    for name in Settings.model_fields:
        if name in sections:
            record = records[sections[name]]
            parts += [f"## {name}\n", paragraphs(record["description"]), _settings(f"{name}.", record["properties"])]
        elif name == "chain":
            parts += ["## chain\n", "The settings of the method that `chain.method` names.\n", *_methods(records)]
    return "\n".join(parts)


def _methods(records: Schema) -> Iterator[str]:
    for method in known_methods():
        record = records[settings_class(method).__name__]
        yield f'### method = "{method}"\n'
        yield paragraphs(record["description"])
        yield _settings("chain.", record["properties"])


def _settings(prefix: str, properties: Schema) -> str:
    rows = [
        (code(prefix + key), type_of(one), code(to_toml(one["default"])), escaped(EXPLAINED.get(prefix + key, "")))
        for key, one in properties.items()
    ]
    return table(("setting", "type", "default", "meaning"), rows)


def documents_page() -> str:
    """Every field of every document on disk, and the records that they are made of."""
    parts = [
        "# Documents\n",
        "Every document that chainctl writes, field by field, made from the models that read it. All are version 1. "
        "`chainctl schema KIND` prints the JSON Schema. What each is for is in [artifacts](artifacts.md).\n",
    ]
    shared: dict[str, Schema] = {}
    for name in DOCUMENTS:
        if name == SETTINGS:
            continue
        schema = json_schema(name)
        shared |= schema.get("$defs", {})
        where = "`manifest.json` of an artifact." if name in ARTIFACTS else ""
        where = "A line of a file beside a manifest." if name in LINES else where
        parts += [f"## {name}\n", where, "", *_record(schema, document_model(name).__doc__ or "")]
    parts.append("## Records { #records }\n\nThe parts of documents, by name.\n")
    sections = {field.annotation for field in Settings.model_fields.values()}
    settings = {one.__name__ for one in sections if isinstance(one, type)} | {"Settings"}
    settings |= {settings_class(method).__name__ for method in known_methods()}
    for name in sorted(shared):
        parts.append(f"### {name} {{ #{_anchor(name)} }}\n")
        if name in settings:
            parts.append("Settings: see [the reference of settings](settings.md).\n")
        else:
            parts += _record(shared[name], shared[name].get("description", ""))
    return "\n".join(parts)


def _record(schema: Schema, docstring: str) -> Iterator[str]:
    yield paragraphs(docstring) if docstring else ""
    if "properties" in schema:
        rows = [(code(name), type_of(one)) for name, one in schema["properties"].items()]
        yield table(("field", "type"), rows)


def _anchor(record: str) -> str:
    return f"record-{record.lower()}"


def type_of(schema: Schema) -> str:
    """A JSON Schema's type in words, as Markdown; records are links to where they are described."""
    if "$ref" in schema:
        name = str(schema["$ref"]).rpartition("/")[2]
        return f"[{name}](documents.md#{_anchor(name)})"
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return " or ".join(map(type_of, schema[several]))
    if "const" in schema:
        return code(json.dumps(schema["const"]))
    if "enum" in schema:
        return ", ".join(code(json.dumps(one)) for one in schema["enum"])
    if schema.get("type") == "array":
        return _array(schema)
    if schema.get("type") == "object":
        items = [*schema.get("patternProperties", {}).values(), schema.get("additionalProperties", {})]
        values = next((type_of(one) for one in items if isinstance(one, dict) and one), "anything")
        return f"table of {values}"
    names = {"integer": "whole number", "string": "text", "boolean": "`true` or `false`", "null": "`null`"}
    kind = str(schema.get("type", "anything"))
    return names.get(kind, kind) + _bounds(schema)


def _array(schema: Schema) -> str:
    if "prefixItems" in schema:
        return f"({', '.join(map(type_of, schema['prefixItems']))})"
    return f"list of {type_of(schema.get('items', {}))}"


def _bounds(schema: Schema) -> str:
    """`, 1 to 64`, `, above 0`; without the bounds that only keep arithmetic exact."""
    keywords = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
    low, high, above, below = (
        f"{schema[one]:g}" if abs(schema.get(one, UNBOUNDED)) < UNBOUNDED else "" for one in keywords
    )
    words = {"at least": low, "at most": high, "above": above, "below": below}
    said = [f"{word} {bound}" for word, bound in words.items() if bound]
    if low and high:
        said[:2] = [f"{low} to {high}"]
    if "pattern" in schema:
        said.append(f"matching {code(schema['pattern'])}")
    return "".join(f", {one}" for one in said)
