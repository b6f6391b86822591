"""The items of a JSON list, one after the other: `json` itself would hold them all.

[                                   place of the second item: "record 2, line 3"
  {"text": "…", "label": "a"},
  {"text": "…", "label": "b"}
]
"""

import json
import re
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

from schemas.errors import BadInput
from stages.data.records import RECORD_BYTES
from stages.process.confined import limited_memory

LONG_VALUE = 2**22  # characters held, of which a piece is a quarter
BLANKS = re.compile(r"[ \t\r\n]*")


def json_list(pieces: Iterator[str], name: str, decoder: json.JSONDecoder) -> Iterator[tuple[str, Any]]:
    """("file, record 2, line 3", item) of each item of a list whose text arrives in pieces; `name` is the file's.

    Raises `BadInput` where the text is not one JSON list, after the items before that place.
    """
    text = _Text(pieces)
    text.skip()  # the opening bracket
    separator = text.skip() if text.next_character() == "]" else ","
    number = 0
    while separator == ",":
        number += 1
        text.next_character()
        where = f"{name}, record {number}, line {text.line}"
        yield where, text.value(decoder, where)
        separator = text.skip()
    if separator != "]" or text.next_character():
        raise BadInput(
            f"{name}, line {text.line}: the JSON list is not well formed",
            values={"expected": "a comma or ] after a record, and nothing after the list", "records so far": number},
            hint="a list that was cut short has no ] at its end: write or copy it again",
        )


class _Text:
    """A window on a text that arrives in pieces: what is before `at` is read, and forgotten with the next piece."""

    def __init__(self, pieces: Iterator[str]) -> None:
        self.pieces = pieces
        self.held = ""
        self.at = 0
        self.line = 1

    def next_character(self) -> str:
        """The next character that is not blank, which is not read yet; empty at the end."""
        while True:
            blanks = BLANKS.match(self.held, self.at)
            assert blanks is not None
            self._read_to(blanks.end())
            if self.at < len(self.held):
                return self.held[self.at]
            if not self._more():
                return ""

    def skip(self) -> str:
        """Read the next character that is not blank."""
        character = self.next_character()
        self._read_to(self.at + len(character))
        return character

    def value(self, decoder: json.JSONDecoder, where: str) -> Any:
        """Read the JSON value that begins here.  Raises `BadInput`."""
        while True:
            try:
                with limited_memory() if len(self.held) > LONG_VALUE else nullcontext():
                    value, end = decoder.raw_decode(self.held, self.at)
            except (ValueError, RecursionError, MemoryError) as error:
                small = len(self.held) - self.at <= RECORD_BYTES
                if isinstance(error, json.JSONDecodeError) and small and self._more():
                    continue
                raise BadInput(
                    f"{where}: not a JSON object",
                    values={"expected": f"an object of at most {RECORD_BYTES} characters"},
                    hint="" if isinstance(error, json.JSONDecodeError | RecursionError | MemoryError) else str(error),
                ) from None
            self._read_to(end)
            return value

    def _read_to(self, end: int) -> None:
        self.line += self.held.count("\n", self.at, end)
        self.at = end

    def _more(self) -> bool:
        """Hold at least twice as much as is not read yet, so that a long value costs no more than its length."""
        rest = self.held[self.at :]
        added: list[str] = []
        size = 0
        for piece in self.pieces:
            added.append(piece)
            size += len(piece)
            if size > len(rest):
                break
        self.held, self.at = rest + "".join(added), 0
        return size > 0
