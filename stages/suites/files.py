"""Files of benchmarks, read with the same care as private texts: errors name file, line and lengths, never a value."""

import codecs
import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from schemas.errors import BadInput
from stages.data.records import RECORD_BYTES, check_characters, decode
from stages.store.debris import without_debris
from stages.store.foreign import read_document

FILE_BYTES = 2**30  # ten times the largest benchmark


def read_text(path: Path) -> str:
    """A UTF-8 file, without its byte order mark.  Raises `BadInput`."""
    data = read_document(path, at_most=FILE_BYTES)
    return decode(data.removeprefix(codecs.BOM_UTF8), str(path))


def read_json(path: Path) -> Any:
    """A JSON document.  Raises `BadInput`."""
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError, MemoryError):
        raise BadInput(
            f"{path} is not JSON", values={"expected": "one JSON document", "length": f"{len(text)} characters"}
        ) from None


def read_csv(path: Path, *, delimiter: str = ",") -> Iterator[tuple[str, list[str]]]:
    """("file, line 3", fields) of each record that is not empty.  Raises `BadInput`."""
    csv.field_size_limit(RECORD_BYTES)
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter, strict=True)
    try:
        for fields in reader:
            if fields:
                yield f"{path}, line {reader.line_num}", fields
    except csv.Error as error:
        raise BadInput(f"{path}, line {reader.line_num}: not CSV", values={"reason": error}) from None


def files_of(folder: Path, pattern: str, *, expected: str) -> list[Path]:
    """The files of a folder that match `pattern`, by name.  Raises `BadInput` where there are none."""
    found = sorted(path for path in without_debris(folder.glob(pattern)) if path.is_file())
    if not found:
        raise BadInput(
            f"{folder} does not hold the benchmark",
            values={"expected": expected, "found": "no such file" if folder.is_dir() else "no folder"},
            hint="give the folder as it was published, unpacked",
        )
    return found


def file_or_in(path: Path, name: str) -> Path:
    """`path`, or the file called `name` where it is a folder.  Raises `BadInput` where there is none."""
    return files_of(path, name, expected=name)[0] if path.is_dir() else path


def check_shots(path: Path, what: str, shots: int, found: int, *, leaving: int = 0) -> None:
    """Refuse more shots than a file has records, less those that must be left to ask.  Raises `BadInput`."""
    if not 0 <= shots <= found - leaving:
        raise BadInput(f"{path} has too few {what}", values={"--shots": shots, "found": found})


def an_object(value: object, where: str) -> dict[str, Any]:
    """`value` if it is a JSON object.  Raises `BadInput`."""
    if isinstance(value, dict):
        return value
    raise BadInput(f"{where}: not a JSON object", values={"expected": "object", "found": type(value).__name__})


def a_list(record: dict[str, Any], key: str, where: str) -> Sequence[Any]:
    """A list of an object, empty where it is absent.  Raises `BadInput`."""
    value = record.get(key, [])
    if isinstance(value, list):
        return value
    raise BadInput(
        f"{where}: the value is not a list", values={"field": key, "expected": "list", "found": type(value).__name__}
    )


def a_text(record: dict[str, Any], key: str, where: str, *, default: str | None = None) -> str:
    """A string of an object.  Raises `BadInput` where it is absent (and there is no default) or not a string."""
    value = record.get(key, default)
    if isinstance(value, str):
        return check_characters(value, where)
    found = "nothing" if key not in record else type(value).__name__
    raise BadInput(f"{where}: the value is not a text", values={"field": key, "expected": "a string", "found": found})
