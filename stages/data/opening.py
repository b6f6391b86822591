"""A data file as bytes, lines or pieces of text, decompressed on the way: never all of it at once.

What a file is compressed with is known from its first bytes: neither gzip's nor zstd's can begin a text in UTF-8.
"""

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from schemas.errors import BadInput
from stages.data.records import check_characters, decode, not_utf8

GZIP = b"\x1f\x8b"
ZSTD = b"\x28\xb5\x2f\xfd"
COMPRESSED = (".gz", ".zst")
PIECE_BYTES = 2**20
NEW_LINE = "\n"


@contextmanager
def open_data(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file, decompressed.  Raises `BadInput`, also from reading: cut short, or damaged."""
    try:
        with path.open("rb") as file, _decompressed(path, file) as stream:
            yield stream
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(f"{path} cannot be read", values={"reason": type(error).__name__}) from None


def utf8_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, from 1.  A byte order mark is skipped; other encodings are refused."""
    with open_data(path) as file:
        for number, line in enumerate(file, 1):
            data = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            yield number, decode(data, f"{path}, line {number}")


def utf8_pieces(path: Path) -> Iterator[str]:
    """The text in pieces of about a MiB, whatever its lines.  As `utf8_lines` otherwise."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    lines, size = 1, 0
    with open_data(path) as file:
        data = b"start"
        while data:
            data = file.read(PIECE_BYTES)
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
