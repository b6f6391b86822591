"""A data file as bytes, lines or pieces of text, decompressed on the way: never all of it at once.

What a file is compressed with is known from its first bytes: neither gzip's nor zstd's can begin a text in UTF-8.
"""

import codecs
import gzip
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from schemas.errors import BadInput
from stages.data.records import RECORD_BYTES, check_characters, decode, not_utf8
from stages.store.regular import file_size, open_regular

GZIP = b"\x1f\x8b"
ZSTD = b"\x28\xb5\x2f\xfd"
COMPRESSED = (".gz", ".zst")
PIECE_BYTES = 2**20
UNPACKED_BYTES = 64 * 2**20  # what any file may unpack to, and for each of its bytes:
UNPACKED_RATIO = 200  # texts are compressed to a tenth
NEW_LINE = "\n"


class Unpacked:
    """How much a file has unpacked to, which its own size bounds: a few bytes may stand for gigabytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.left = max(UNPACKED_BYTES, UNPACKED_RATIO * file_size(path, follow_links=True))

    def add(self, size: int) -> None:
        """So many more bytes or characters.  Raises `BadInput`."""
        self.left -= size
        if self.left < 0:
            raise too_large(self.path)


def too_large(path: Path) -> BadInput:
    """The error for a file that unpacks to far more than its size."""
    return BadInput(
        f"{path} unpacks to more than a file of its size can hold",
        values={"at most": f"{UNPACKED_RATIO} times its size", "a record": f"at most {RECORD_BYTES} bytes"},
        hint="if that is what it should hold, write it as JSONL, not compressed",
    )


@contextmanager
def open_data(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file, decompressed.  Raises `BadInput`, also from reading: cut short, or damaged."""
    try:
        with os.fdopen(open_regular(path, follow_links=True), "rb") as file, _decompressed(path, file) as stream:
            yield stream
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(f"{path} cannot be read", values={"reason": type(error).__name__}) from None


def utf8_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, from 1.  A byte order mark is skipped; other encodings are refused."""
    with open_data(path) as file:
        unpacked = Unpacked(path)
        for number, line in enumerate(iter(lambda: file.readline(RECORD_BYTES + 1), b""), 1):
            unpacked.add(len(line))
            if len(line) > RECORD_BYTES:
                raise BadInput(
                    f"{path}, line {number}: the line is too long",
                    values={"at most": f"{RECORD_BYTES} bytes", "found": "more"},
                    hint="write one record per line",
                )
            data = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            yield number, decode(data, f"{path}, line {number}")


def utf8_pieces(path: Path) -> Iterator[str]:
    """The text in pieces of about a MiB, whatever its lines.  As `utf8_lines` otherwise."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    lines, size = 1, 0
    with open_data(path) as file:
        unpacked = Unpacked(path)
        data = b"start"
        while data:
            data = file.read(PIECE_BYTES)
            unpacked.add(len(data))
            held = len(decoder.getstate()[0])
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                line = lines + error.object[: error.start].count(b"\n")
                raise not_utf8(f"{path}, line {line}", size - held + error.start, "the file's bytes") from None
            before = text[: max(0, text.find("\0"))]
            yield check_characters(text, f"{path}, line {lines + before.count(NEW_LINE)}")
            lines += text.count(NEW_LINE)
            size += len(data)


def first_byte(path: Path) -> bytes:
    """The first byte of a text that is neither white space nor its byte order mark; empty where there is none."""
    with open_data(path) as file:
        data = file.read(PIECE_BYTES).removeprefix(codecs.BOM_UTF8)
        while data and not data.strip():
            data = file.read(PIECE_BYTES)
    return data.lstrip()[:1]


def import_pyarrow(path: Path) -> tuple[Any, Any]:
    """`pyarrow` and `pyarrow.parquet`.  Raises `BadInput` where the extra `[data]` is not installed."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise BadInput(f"reading {path} needs pyarrow", hint="pip install 'chainctl[data]'") from None
    return pyarrow, parquet


def _decompressed(path: Path, file: io.BufferedReader) -> BinaryIO:
    start = file.peek(len(ZSTD))
    if start.startswith(GZIP):
        return cast(BinaryIO, gzip.GzipFile(fileobj=file))
    if start.startswith(ZSTD):
        pyarrow, _ = import_pyarrow(path)
        return io.BufferedReader(pyarrow.CompressedInputStream(file, "zstd"), PIECE_BYTES)
    return file
