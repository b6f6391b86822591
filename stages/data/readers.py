"""One reader per format, yielding records in order; errors name file and line.

Nothing is believed of a file: it is opened as a regular one, a record has at most `RECORD_BYTES`, and what unpacks has
as much memory as that takes.
"""

import csv
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from schemas.errors import BadInput
from stages.process.confined import limited_memory
from stages.store.foreign import read_document
from stages.store.regular import open_regular

T = TypeVar("T")

UNWANTED = re.compile(r"[\x00\ud800-\udfff]")
RECORD_BYTES = 16 * 2**20  # a line, a field or a file of one text: five times War and Peace
LONG_LINE = 2**20  # characters of JSON that may become far more memory
BATCH_ROWS = 32  # of Parquet: as many records are in memory at once
UNPACKED_BYTES = 64 * 2**20  # what any Parquet file may unpack to, and for each of its bytes:
UNPACKED_RATIO = 1000


@dataclass(frozen=True)
class Columns:
    """The columns that a record must have, and those that it may have; others are not read."""

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()


@dataclass(frozen=True)
class Record:
    """One record of a file, by column; `where` is "file, line 3"."""

    where: str
    values: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"Record({self.where})"

    def text(self, column: str) -> str:
        """The text of a column.  Raises `BadInput`."""
        return as_text(self.values[column], self.where, column)


def read_jsonl(path: Path, columns: Columns) -> Iterator[Record]:
    """One JSON object per line.  Blank lines are skipped."""
    for number, line in _utf8_lines(path):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            with limited_memory() if len(line) > LONG_LINE else nullcontext():
                record = json.loads(line, object_pairs_hook=_no_duplicates)
        except (ValueError, RecursionError, MemoryError) as error:
            raise BadInput(
                f"{where}: not a JSON object",
                values={"expected": "one JSON object per line", "length": f"{len(line)} characters"},
                hint=str(error) if isinstance(error, _DuplicateKeyError) else "",
            ) from None
        if not isinstance(record, dict):
            raise BadInput(f"{where}: not a JSON object", values={"expected": "object", "found": type(record).__name__})
        yield _record(where, record, columns)


def read_csv(path: Path, columns: Columns) -> Iterator[Record]:
    """Comma separated, column names in the first line, quoted as in RFC 4180."""
    csv.field_size_limit(RECORD_BYTES)  # the module's own default is 131,072 characters
    lines = (line for _, line in _utf8_lines(path))
    reader = csv.reader(lines, strict=True)
    try:
        names = next(reader, None)
        if names is None:
            return
        if len(set(names)) != len(names):
            distinct = f"{len(set(names))} distinct names"
            raise BadInput(
                f"{path}, line 1: a column name appears twice",
                values={"expected": f"{len(names)} names", "found": distinct},
            )
        for fields in reader:
            where = f"{path}, line {reader.line_num}"
            if not fields:
                continue
            if len(fields) != len(names):
                found = f"{len(fields)} fields"
                raise BadInput(f"{where}: wrong number of fields", values={"expected": len(names), "found": found})
            yield _record(where, dict(zip(names, fields, strict=True)), columns)
    except csv.Error as error:
        raise BadInput(f"{path}, line {reader.line_num}: not CSV", values={"reason": error}) from None


def read_parquet(path: Path, columns: Columns) -> Iterator[Record]:
    """Records of a Parquet file, batch by batch.  Needs the extra `[data]`."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise BadInput(f"reading {path} needs pyarrow", hint="pip install 'chainctl[data]'") from None
    number, unpacked = 0, 0
    try:
        with os.fdopen(open_regular(path, follow_links=True), "rb") as opened:
            most = max(UNPACKED_BYTES, UNPACKED_RATIO * os.fstat(opened.fileno()).st_size)
            file = parquet.ParquetFile(opened)
            _require_columns(str(path), file.schema_arrow.names, columns.required)
            there = [name for name in (*columns.required, *columns.optional) if name in file.schema_arrow.names]
            batches = file.iter_batches(batch_size=BATCH_ROWS, columns=there, use_threads=False)
            for records in _limited(batch.to_pylist() for batch in batches):
                for record in records:
                    number += 1
                    unpacked += sum(len(value) for value in record.values() if isinstance(value, str))
                    yield _record(f"{path}, row {number}", record, columns)
                if unpacked > most:
                    raise MemoryError
    except MemoryError:
        raise BadInput(
            f"{path}: the rows after {number} unpack to more than a file of its size can hold",
            values={"at most": f"{UNPACKED_RATIO} times its size, and {BATCH_ROWS} rows in the memory of a record"},
            hint="write it as JSONL; a text has at most 16 MiB",
        ) from None
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        raise BadInput(
            f"{path} is not a Parquet file that can be read", values={"reason": type(error).__name__}
        ) from None


def _limited(parts: Iterator[T]) -> Iterator[T]:
    """The same parts, each made in limited memory.  Raises `MemoryError`."""
    while True:
        with limited_memory():
            try:
                part = next(parts)
            except StopIteration:
                return
        yield part


def read_folder(path: Path, columns: Columns) -> Iterator[Record]:
    """A folder per class, a text per file: the label is the folder's name.  In order of label, then file name.

    The first of the columns is the text; the second, if any, is the label.
    """
    if not any(entry.is_dir() for entry in path.iterdir()):
        raise BadInput(
            f"{path} has no folders",
            values={"expected": "a folder per class, a text file per example"},
            hint="give the file itself for JSONL, CSV or Parquet",
        )
    for folder in sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")):
        for file in sorted(entry for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith(".")):
            text = decode(read_document(file, at_most=RECORD_BYTES), str(file))
            refuse_empty(text, str(file), "the file's text")
            yield Record(str(file), dict(zip(columns.required, (text, folder.name), strict=False)))


def as_text(value: object, where: str, column: str) -> str:
    """A value that must be a text.  Raises `BadInput`."""
    if not isinstance(value, str):
        raise BadInput(
            f"{where}: the value is not a text",
            values={"column": column, "expected": "a string", "found": type(value).__name__},
        )
    return check_characters(value, where)


def refuse_empty(text: str, where: str, column: str) -> None:
    """Refuse a text of white space alone.  Raises `BadInput`."""
    if not text.strip():
        raise BadInput(
            f"{where}: the text is empty",
            values={"column": column, "length": f"{len(text)} characters", "expected": "some text"},
            hint="remove empty texts, or name another column with --text-column",
        )


def _record(where: str, values: dict[str, Any], columns: Columns) -> Record:
    _require_columns(where, list(values), columns.required)
    return Record(where, {name: values[name] for name in (*columns.required, *columns.optional) if name in values})


def _require_columns(where: str, found: list[str], wanted: Sequence[str]) -> None:
    missing = [column for column in wanted if column not in found]
    if missing:
        # Not the names that were found: in a file without a header they are its first text.
        raise BadInput(
            f"{where}: there is no column {missing[0]!r}",
            values={"expected": ", ".join(wanted), "found": f"{len(found)} other columns"},
            hint="name the columns with --text-column and --label-column, or in [task] of the recipe; "
            "for instruction data set prompt.format",
        )


class _DuplicateKeyError(ValueError):
    pass


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise _DuplicateKeyError("a key appears twice in the object")
    return record


def _utf8_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, from 1.  A byte order mark is skipped; other encodings are refused."""
    with os.fdopen(open_regular(path, follow_links=True), "rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(RECORD_BYTES + 1), b""), 1):
            if len(line) > RECORD_BYTES:
                raise BadInput(
                    f"{path}, line {number}: the line is too long",
                    values={"at most": f"{RECORD_BYTES} bytes", "found": "more"},
                    hint="write one record per line",
                )
            data = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            yield number, decode(data, f"{path}, line {number}")


def decode(data: bytes, where: str) -> str:
    """UTF-8 as text.  Raises `BadInput`."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{where}: not UTF-8",
            values={"at byte": error.start, "of": f"{len(data)} bytes"},
            hint="convert the data to UTF-8",
        ) from None
    return check_characters(text, where)


def check_characters(text: str, where: str) -> str:
    """No NUL, and no half of a surrogate pair (which JSON can spell and UTF-8 cannot).  Raises `BadInput`."""
    found = UNWANTED.search(text)
    if found:
        kind = "a NUL character" if found[0] == "\0" else "half of a surrogate pair"
        values = {"at character": found.start(), "of": f"{len(text)} characters"}
        raise BadInput(f"{where}: the text holds {kind}", values=values)
    return text
