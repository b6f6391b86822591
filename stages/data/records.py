"""What every reader of data yields: records with their place, the columns that are read, and texts that can be used.

An error names the file, the line (or row), the column, a length and what was expected.  It never shows a value, and a
column's name only where it is a wanted one but for case: the first line of a file without names is a text.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from schemas.errors import BadInput

TEXT_OPTION, LABEL_OPTION = "--text-column", "--label-column"
STANDARD = {TEXT_OPTION: "text", LABEL_OPTION: "label"}  # what `data split` and `data holdout` write
COMPLETE = "the records before this one have it: add it to this one, or remove the record"
RECORD_BYTES = 16 * 2**20  # a line, a field or a file of one text: five times War and Peace
DROPPING = "data holdout and data split leave such records out with --drop-empty"
UNWANTED = re.compile(r"[\x00\ud800-\udfff]")


class EmptyValue(BadInput):
    """A record without a text or a label, as tables have them."""


@dataclass(frozen=True)
class Columns:
    """The columns that a record must have, and those that it may have; others are not read.

    `options` are the options that name required columns, by column; `instead` is a second name of some.
    """

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    instead: Mapping[str, str] = field(default_factory=dict)

    def among(self, names: Sequence[str], where: str, path: Path, *, first: bool = True) -> dict[str, str]:
        """The wanted columns that are among `names`, each with its name there.  Raises `BadInput` for a missing one.

        What `data split` and `data holdout` wrote has the standard names and no others: it is read whatever the names
        in the data that they had read.  Where the names are not the `first` of a file, those before had all columns.
        """
        optional = {column: column for column in self.optional if column in names}
        own = {column: column if column in names else self.instead.get(column, column) for column in self.required}
        if set(own.values()) <= set(names):
            return {**own, **optional}
        standard = {column: STANDARD.get(self.options.get(column, ""), column) for column in self.required}
        if set(standard.values()) <= set(names) <= {*standard.values(), *self.optional, STANDARD[LABEL_OPTION]}:
            return {**standard, **optional}
        raise self._missing(names, where, self._ways_out(names, path) if first else COMPLETE)

    def like(self, names: Sequence[str]) -> dict[str, str]:
        """Missing required columns whose name is among `names` once but for case and blanks around it."""
        found = {}
        for column in self.required:
            alike = [name for name in names if name.strip().casefold() == column.casefold()]
            if column not in names and len(alike) == 1:
                found[column] = alike[0]
        return found

    def _missing(self, names: Sequence[str], where: str, hint: str) -> BadInput:
        missing = next(column for column in self.required if column not in names)
        return BadInput(
            f"{where}: there is no column {missing!r}",
            values={"expected": ", ".join(map(self._names_of, self.required)), "found": _count(names)},
            hint=hint,
        )

    def _names_of(self, column: str) -> str:
        return f"{column} or {self.instead[column]}" if column in self.instead else column

    def _ways_out(self, names: Sequence[str], path: Path) -> str:
        missing = [column for column in self.required if column not in names]
        alike = self.like(names)
        listing = f"to list the columns: chainctl data columns {shlex.quote(str(path))}"
        if not all(column in self.options for column in missing):
            renamed = "".join(f"rename {shlex.quote(name)} to {column}; " for column, name in alike.items())
            return f"{renamed}--format, or prompt.format of the recipe, says which columns are needed; {listing}"
        given = [f"{self.options[column]} {shlex.quote(alike[column])}" for column in missing if column in alike]
        given += [f"{self.options[column]} NAME" for column in missing if given and column not in alike]
        named = f"give {' '.join(given)}" if given else "name them with --text-column and --label-column"
        recipe = "in [task] of the recipe where a command has no such option"
        return f"{named}, or {recipe}; for instruction data set prompt.format; {listing}"


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


def refuse_twice(names: Sequence[str], where: str) -> None:
    """Refuse a table in which two columns have one name; columns without a name may be many.  Raises `BadInput`."""
    named = [name for name in names if name]
    if len(set(named)) != len(named):
        raise BadInput(
            f"{where}: a column name appears twice",
            values={"expected": f"{len(named)} names", "found": f"{len(set(named))} distinct names"},
            hint="rename or remove one of the two columns",
        )


def as_text(value: object, where: str, column: str) -> str:
    """A value that must be a text.  Raises `BadInput`."""
    if not isinstance(value, str):
        raise (EmptyValue if value is None else BadInput)(
            f"{where}: the value is not a text",
            values={"column": column, "expected": "a string", "found": type(value).__name__},
            hint=DROPPING if value is None else "",
        )
    return check_characters(value, where)


def refuse_empty(text: str, where: str, column: str, *, hint: str = "remove empty texts") -> None:
    """Refuse a text of white space alone.  Raises `BadInput`."""
    if not text.strip():
        raise EmptyValue(
            f"{where}: the text is empty",
            values={"column": column, "length": f"{len(text)} characters", "expected": "some text"},
            hint=hint,
        )


def decode(data: bytes, where: str) -> str:
    """UTF-8 as text.  Raises `BadInput`."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(where, error.start, f"{len(data)} bytes") from None
    return check_characters(text, where)


def not_utf8(where: str, byte: int, size: str) -> BadInput:
    """The refusal of another encoding, from its first wrong byte."""
    return BadInput(f"{where}: not UTF-8", values={"at byte": byte, "of": size}, hint="convert the data to UTF-8")


def check_characters(text: str, where: str) -> str:
    """No NUL, and no half of a surrogate pair (which JSON can spell and UTF-8 cannot).  Raises `BadInput`."""
    found = UNWANTED.search(text)
    if found:
        kind = "a NUL character" if found[0] == "\0" else "half of a surrogate pair"
        values = {"at character": found.start(), "of": f"{len(text)} characters"}
        raise BadInput(f"{where}: the text holds {kind}", values=values)
    return text


def _count(names: Sequence[str]) -> str:
    return f"{len(names)} column{'' if len(names) == 1 else 's'}"
