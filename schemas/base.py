"""What every manifest has in common: a kind, a version, canonical bytes and a name.

The rules, which every document on disk obeys:

1. Kind and version are checked before any other field is looked at.
2. Manifests are closed: an unknown field is refused, a missing one is refused, no type is coerced.
3. The bytes on disk are the canonical bytes (JSON, UTF-8, sorted keys, two spaces, no NaN, one newline at
   the end).  Anything else with the same meaning is refused, so one meaning has one name.
4. The name of an artifact is the SHA-256 of its manifest's bytes: `sha256sum manifest.json` prints it.
5. An older version is read by its upgrade, a pure function of the document; the artifact keeps its name.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, FailFast, ValidationError

from schemas.errors import BadInput
from schemas.visible import visible

# Bounds for hostile documents, far above real ones: parsing takes tens of bytes of memory for each byte on disk.
# What is written keeps them too (`Manifest.readable_bytes`); what grows with devices is not in a manifest.
MANIFEST_LIMIT_BYTES = 2**20
LARGE_MANIFEST_LIMIT_BYTES = 4 * 2**20

SMALL_BYTES = 2**16  # documents up to here can be parsed whatever they hold
LINE_LIMIT = 32_768
NAME_LENGTH = 128  # of a field in an error: a document may hold fields of any name
# A line of canonical JSON: one key or none, one scalar, or an opening or closing bracket.
STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'  # possessive: nothing is remembered for each character
CANONICAL_LINE = re.compile(
    rb" *+(?:(?:" + STRING + rb": )?(?:" + STRING + rb"|-?[0-9][0-9.eE+-]*|true|false|null|\[\]?|\{\}?)|[\]}]),?"
)

T = TypeVar("T")
# Any number of items.  The first wrong one ends the check: a list of a million wrong ones is no million errors.
Many = Annotated[tuple[T, ...], FailFast()]

Upgrade = Callable[[dict[str, Any]], dict[str, Any]]


class Record(BaseModel):
    """A frozen, strict, closed value: the building block of manifests and recipes."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        allow_inf_nan=False,
        json_schema_serialization_defaults_required=True,  # canonical bytes spell every field out
    )


class Manifest(Record):
    """A document on disk.  Subclasses pin `kind` and `version` with `Literal` types and defaults."""

    KIND: ClassVar[str]
    VERSION: ClassVar[int] = 1
    LIMIT_BYTES: ClassVar[int] = MANIFEST_LIMIT_BYTES
    OLDER: ClassVar[Mapping[int, Upgrade]] = {}  # version -> what makes it a document of VERSION
    LINES: ClassVar[
        Mapping[str, type[Record]]
    ] = {}  # files of lines beside it, and what a line is (schemas/devices.py)
    SMALLER: ClassVar[str] = "this is a limit of chainctl: please report what you did"  # the way out if it is too large

    def canonical_bytes(self) -> bytes:
        """The only byte string that stands for this manifest."""
        return canonical_json(self.model_dump(mode="json"))

    def readable_bytes(self) -> bytes:
        """The canonical bytes, known to keep the bounds of whoever reads them.  Raises `BadInput`."""
        data = self.canonical_bytes()
        lines = data.count(b"\n")
        if len(data) > self.LIMIT_BYTES or lines > LINE_LIMIT:
            raise BadInput(
                f"this {self.KIND} would be too large to be read again",
                values={
                    "at most": f"{self.LIMIT_BYTES} bytes, {LINE_LIMIT} lines",
                    "it has": f"{len(data)} bytes, {lines} lines",
                },
                hint=self.SMALLER,
            )
        return data

    def checked_lines(self, file: str, lines: Iterator[Any]) -> Iterator[Any]:  # noqa: ARG002 -- for subclasses
        """The lines of one of `LINES` as they come; raises `ValueError` where they contradict the manifest."""
        return lines

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical bytes, as `sha256:<64 hex digits>`: the artifact's name."""
        return sha256_digest(self.canonical_bytes())

    @classmethod
    def from_bytes(cls, data: bytes, *, source: str) -> Self:
        """Parse `data`, refusing everything that is not exactly a `cls` manifest.

        `source` names the file in errors.  Raises `BadInput`.
        """
        kind, version = read_kind_and_version(data, source=source, limit=cls.LIMIT_BYTES)
        if kind == cls.KIND and type(version) is int and version in cls.OLDER:
            data = cls._upgraded(data, cls.OLDER[version], source=source)
        else:
            check_kind_and_version((kind, version), kind=cls.KIND, version=cls.VERSION, source=source)
        try:
            manifest = cls.model_validate_json(data)
        except ValidationError as error:
            raise BadInput(
                f"{source} is not a valid {cls.KIND} manifest",
                values=describe_validation_error(error),
                hint="make the artifact again with a current chainctl, or copy it again",
            ) from None
        if manifest.canonical_bytes() != data:
            raise _not_canonical(source, manifest.canonical_bytes(), data)
        return manifest

    @classmethod
    def _upgraded(cls, data: bytes, upgrade: Upgrade, *, source: str) -> bytes:
        """The canonical bytes of an older document as one of this version."""
        document = json.loads(data)
        try:
            canonical = canonical_json(document)
            upgraded = canonical_json(upgrade(document))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise BadInput(f"{source} is not a valid {cls.KIND} manifest", hint="copy the artifact again") from None
        if canonical != data:
            raise _not_canonical(source, canonical, data)
        return upgraded


def canonical_json(value: Any) -> bytes:
    """Sorted keys, two spaces, UTF-8, one newline at the end, NaN refused with `ValueError`."""
    text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def sha256_digest(data: bytes | memoryview) -> str:
    """`sha256:<64 hex digits>` of `data`."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def added(section: dict[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """`section` of an older document with what it did not have yet.  Raises `ValueError` where it has it."""
    if set(section) & set(fields):
        raise ValueError("an older document holds newer fields")
    return {**section, **fields}


def check_kind_and_version(found: tuple[object, object], *, kind: str, version: int, source: str) -> None:
    """Rule 1: look at `kind` and `version`, and at nothing else.  Raises `BadInput` with both values."""
    found_kind, found_version = found
    if (found_kind, found_version) == (kind, version):
        return
    newer = found_kind == kind and isinstance(found_version, int) and found_version > version
    raise BadInput(
        f"{source} is not the kind of document that is needed here",
        values={"expected": f"{kind} v{version}", "found": describe_kind(found_kind, found_version)},
        hint="it was written by a newer chainctl: upgrade" if newer else "check which directory was given",
    )


def _check_lines(data: bytes, *, source: str) -> None:
    """What is large must look canonical before it is parsed, a value a line: that bounds what parsing can take."""
    if len(data) <= SMALL_BYTES:
        return
    lines = data.count(b"\n")
    if lines > LINE_LIMIT or not all(CANONICAL_LINE.fullmatch(line) for line in data.removesuffix(b"\n").split(b"\n")):
        raise BadInput(
            f"{source} is not in canonical form",
            values={"expected": f"a value a line, {LINE_LIMIT} lines at most", "found": f"{lines} other lines"},
            hint="manifests are never edited by hand: make the artifact again",
        )


def describe_kind(kind: object, version: object) -> str:
    """`plan v2`, where a document says something of the sort; what else it may say is not repeated."""
    plausible = isinstance(kind, str) and re.fullmatch(r"[a-z][a-z-]{0,31}", kind)
    number = version if type(version) is int and abs(version) < 2**31 else "?"
    return f"{kind} v{number}" if plausible else "a document that names no kind"


def _not_canonical(source: str, expected: bytes, found: bytes) -> BadInput:
    return BadInput(
        f"{source} is not in canonical form (key order, spacing, duplicate keys or number format)",
        values={"expected": sha256_digest(expected), "found": sha256_digest(found)},
        hint="manifests are never edited by hand: make the artifact again",
    )


def read_kind_and_version(
    data: bytes, *, source: str, limit: int = LARGE_MANIFEST_LIMIT_BYTES
) -> tuple[object, object]:
    """`kind` and `version` of a JSON document, whatever else it holds.  Raises `BadInput`."""
    if len(data) > limit:
        raise BadInput(
            f"{source} is too large for a manifest",
            values={"limit": f"{limit} bytes", "found": f"{len(data)} bytes or more"},
        )
    _check_lines(data, source=source)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise BadInput(
            f"{source} is not JSON in UTF-8",
            values={"expected": "a JSON object", "found": f"{len(data)} other bytes"},
            hint="the file was cut short or altered: copy the artifact again",
        ) from None
    if not isinstance(document, dict):
        raise BadInput(
            f"{source} is not a JSON object",
            values={"expected": "object", "found": type(document).__name__},
        )
    return document.get("kind"), document.get("version")


def describe_validation_error(error: ValidationError, *, most: int = 4) -> dict[str, object]:
    """Where pydantic disagrees and why, without the offending values (they may be a user's text)."""
    problems = error.errors(include_input=False, include_url=False, include_context=False)
    described: dict[str, object] = {
        visible(".".join(str(part) for part in problem["loc"])[:NAME_LENGTH]) or "document": problem["msg"]
        for problem in problems[:most]
    }
    if len(problems) > most:
        described["…"] = f"{len(problems) - most} more"
    return described
