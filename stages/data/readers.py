"""One reader per format, yielding records in order; errors name file and line."""

import csv
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from schemas.errors import BadInput
from stages.data.json_list import json_list
from stages.data.opening import COMPRESSED, Unpacked, first_byte, import_pyarrow, too_large, utf8_lines, utf8_pieces
from stages.data.records import RECORD_BYTES, Columns, Record, refuse_twice
from stages.process.confined import limited_memory
from stages.store.regular import open_regular

T = TypeVar("T")

LONG_LINE = 2**20  # characters of JSON that may become far more memory
BATCH_ROWS = 32  # of Parquet: as many records are in memory at once
DELIMITERS = (",", ";", "\t")
SEPARATOR = re.compile(r'"?sep=([,;\t])"?')
NOTHING = Columns(())


@dataclass(frozen=True)
class Format:
    """How files of one kind are read: their records, and the names of their columns (of JSON, the first record's)."""

    name: str
    read: Callable[[Path, Columns], Iterator[Record]]
    names: Callable[[Path], Sequence[str]]


def read_json(path: Path, columns: Columns) -> Iterator[Record]:
    """One JSON object per line, or a list of objects, whatever the file's name.  Blank lines are skipped."""
    first = True
    for where, values in json_objects(path):
        _refuse_records_inside(values, where, columns)
        names = columns.among(list(values), where, path, first=first)
        first = False
        yield Record(where, {column: values[name] for column, name in names.items()})


def read_csv(path: Path, columns: Columns, *, usual: str = ",") -> Iterator[Record]:
    """Column names in the first line, quoted as in RFC 4180; separated by commas, semicolons or tabs.

    Of the three it is the one by which the first line has the wanted columns; where several have, or none, the
    `usual` one.
    """
    table = _Table.open(path, columns, usual)
    if not table.names:
        return
    refuse_twice(table.names, table.where)
    wanted = columns.among(table.names, table.where, path)
    places = {column: table.names.index(name) for column, name in wanted.items()}
    for where, fields in table.rows():
        yield Record(where, {column: fields[place] for column, place in places.items()})


def read_parquet(path: Path, columns: Columns) -> Iterator[Record]:
    """Records of a Parquet file, batch by batch.  Needs the extra `[data]`."""
    with _parquet_file(path) as file:
        refuse_twice(file.schema_arrow.names, str(path))
        names = columns.among(file.schema_arrow.names, str(path), path)
        number = 0
        unpacked = Unpacked(path)
        batches = file.iter_batches(batch_size=BATCH_ROWS, columns=list(names.values()), use_threads=False)
        for records in _limited(batch.to_pylist() for batch in batches):
            for values in records:
                number += 1
                unpacked.add(sum(len(value) for value in values.values() if isinstance(value, str)))
                yield Record(f"{path}, row {number}", {column: values[name] for column, name in names.items()})


def _limited(parts: Iterator[T]) -> Iterator[T]:
    """The same parts, each made in limited memory.  Raises `MemoryError`."""
    while True:
        with limited_memory():
            try:
                part = next(parts)
            except StopIteration:
                return
        yield part


def format_of(path: Path) -> Format | None:
    """The format that a file's name says, compressed or not; None where it says none."""
    suffix = path.suffix.lower()
    if suffix in COMPRESSED:
        inner = FORMATS.get(path.with_suffix("").suffix.lower())
        return None if inner is PARQUET else inner
    return FORMATS.get(suffix)


@dataclass(frozen=True)
class _Table:
    """A CSV file whose column names are read, at `where`."""

    path: Path
    where: str
    names: list[str]
    delimiter: str
    reader: Any  # of csv

    @classmethod
    def open(cls, path: Path, columns: Columns, usual: str) -> "_Table":
        """Raises `BadInput` for a first line that is not CSV."""
        csv.field_size_limit(RECORD_BYTES)  # the module's own default is 131,072 characters
        lines = (line for _, line in utf8_lines(path))
        before, header, said = _header(lines)
        delimiter = said or delimiter_of(header, columns, usual)
        reader = csv.reader(itertools.chain(["\n"] * before, [header], lines), delimiter=delimiter, strict=True)
        try:
            names = next((fields for fields in reader if fields), [])
            return cls(path, f"{path}, line {reader.line_num}", names, delimiter, reader)
        except csv.Error as error:
            raise _not_csv(path, reader.line_num, error) from None

    def rows(self) -> Iterator[tuple[str, list[str]]]:
        """("file, line 3", fields) of each record that is not empty.  Raises `BadInput`."""
        try:
            for fields in self.reader:
                where = f"{self.path}, line {self.reader.line_num}"
                if fields:
                    self._check(fields, where)
                    yield where, fields
        except csv.Error as error:
            raise _not_csv(self.path, self.reader.line_num, error) from None

    def _check(self, fields: list[str], where: str) -> None:
        if len(fields) != len(self.names):
            raise BadInput(
                f"{where}: wrong number of fields",
                values={"expected": len(self.names), "found": f"{len(fields)} fields"},
                hint=f"put fields that hold {_called(self.delimiter)} in quotation marks",
            )
        if self.delimiter == "\t" and any("\t" in field and "\n" in field for field in fields):
            raise BadInput(
                f"{where}: a field in quotation marks holds a tab and an end of line",
                values={"expected": "a record per line"},
                hint="if quotation marks are part of the texts, put each text in quotation marks and double those "
                "within it, or write JSON lines",
            )


def _header(lines: Iterator[str]) -> tuple[int, str, str]:
    """How many lines stand before the column names; those names; and the delimiter that Excel's `sep=;` says."""
    said = ""
    for before, line in enumerate(lines):
        excel = SEPARATOR.fullmatch(line.strip()) if not said else None
        if excel:
            said = excel[1]
        elif line.strip():
            return before, line, said
    return 0, "", said


def delimiter_of(header: str, columns: Columns, usual: str) -> str:
    """What separates the names in the first line of a table: see `read_csv`."""

    def wanted(delimiter: str) -> tuple[bool, int, int]:
        try:
            names = next(csv.reader([header], delimiter=delimiter, strict=True), [])
        except csv.Error:
            return False, 0, 0
        required = set(columns.required)
        return required <= set(names), len(required & set(names)) + len(columns.like(names)), len(names)

    return max((usual, *DELIMITERS), key=wanted)


def json_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """("file, line 3", object) of each object of a file of lines or of a list.  Raises `BadInput`."""
    decoder = json.JSONDecoder(object_pairs_hook=_no_duplicates)
    is_list = first_byte(path) == b"["
    items = json_list(utf8_pieces(path), str(path), decoder) if is_list else _json_lines(path, decoder)
    for where, value in items:
        if not isinstance(value, dict):
            raise BadInput(f"{where}: not a JSON object", values={"expected": "object", "found": type(value).__name__})
        yield where, value


def _json_lines(path: Path, decoder: json.JSONDecoder) -> Iterator[tuple[str, Any]]:
    for number, line in utf8_lines(path):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            with limited_memory() if len(line) > LONG_LINE else nullcontext():
                value = decoder.decode(line)
        except (ValueError, RecursionError, MemoryError) as error:
            raise BadInput(
                f"{where}: not a JSON object",
                values={"expected": "one JSON object per line, or one list", "length": f"{len(line)} characters"},
                hint=str(error)
                if isinstance(error, _DuplicateKeyError)
                else "objects of several lines go into one list: [ …, … ]",
            ) from None
        yield where, value


def _refuse_records_inside(values: dict[str, Any], where: str, columns: Columns) -> None:
    """`{"version": 1, "data": [ …, … ]}`: the records are one floor down."""
    for inside in values.values() if not set(columns.required) <= set(values) else ():
        if (
            isinstance(inside, list)
            and inside
            and isinstance(inside[0], dict)
            and set(columns.required) <= set(inside[0])
        ):
            raise BadInput(
                f"{where}: the records are in a list inside an object",
                values={"expected": "a list of objects, or one object per line", "found": f"a list of {len(inside)}"},
                hint="write that list alone into a file",
            )


class _DuplicateKeyError(ValueError):
    pass


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise _DuplicateKeyError("a key appears twice in the object")
    return record


def _not_csv(path: Path, line: int, error: csv.Error) -> BadInput:
    if str(error).startswith("new-line character"):
        return BadInput(
            f"{path}, line {line}: a carriage return outside quotation marks",
            values={"expected": "lines that end in LF or CR LF"},
            hint="of a file of an old Macintosh: tr '\\r' '\\n' < OLD > NEW; else put the field in quotation marks",
        )
    return BadInput(
        f"{path}, line {line}: not CSV",
        values={"reason": error},
        hint="a field that begins with a quotation mark ends with one, and those within it are doubled; "
        "JSON lines need no such rule",
    )


def _called(delimiter: str) -> str:
    return {",": "a comma", ";": "a semicolon"}.get(delimiter, "a tab")


def _json_names(path: Path) -> list[str]:
    return next((list(values) for _, values in json_objects(path)), [])


def _csv_names(path: Path, usual: str = ",") -> list[str]:
    return _Table.open(path, NOTHING, usual).names


def _parquet_names(path: Path) -> list[str]:
    with _parquet_file(path) as file:
        return list(file.schema_arrow.names)


@contextmanager
def _parquet_file(path: Path) -> Iterator[Any]:
    pyarrow, parquet = import_pyarrow(path)
    try:
        with os.fdopen(open_regular(path, follow_links=True), "rb") as file:
            yield parquet.ParquetFile(file)
    except MemoryError:
        raise too_large(path) from None
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        raise BadInput(
            f"{path} is not a Parquet file that can be read", values={"reason": type(error).__name__}
        ) from None


JSON = Format("JSON", read_json, _json_names)
CSV = Format("CSV", read_csv, _csv_names)
TSV = Format("TSV", partial(read_csv, usual="\t"), partial(_csv_names, usual="\t"))
PARQUET = Format("Parquet", read_parquet, _parquet_names)
FORMATS = {
    ".jsonl": JSON,
    ".ndjson": JSON,
    ".json": JSON,
    ".csv": CSV,
    ".tsv": TSV,
    ".parquet": PARQUET,
}
