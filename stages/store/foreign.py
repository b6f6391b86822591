"""The door for files that come from anywhere: whole documents, of a bounded size, and whom to blame for them.

A file is opened as a regular one (`open_regular`), so that a pipe never blocks and a device never fills the memory.
What a library then makes of its bytes is the file's doing: `blamed_on` turns any exception into an error that names
the file.  Weights and texts, which are streamed, pass the same door without the bound.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from schemas.errors import BadInput, ChainError
from stages.process.confined import limited_memory
from stages.store.regular import check_size, file_size, read_regular

DOCUMENT_BYTES = 64 * 2**20  # twice the largest tokenizer that is in use
REASON_CHARACTERS = 160


def read_document(path: Path, *, at_most: int = DOCUMENT_BYTES) -> bytes:
    """The bytes of a file, which may be reached through links.

    Raises `BadInput` where it is not a regular file, or larger than `at_most` bytes.
    """
    return read_regular(path, at_most=at_most, follow_links=True)


def check_document(path: Path, *, at_most: int = DOCUMENT_BYTES) -> None:
    """The same for a file that a library opens itself.  Raises `BadInput` as `read_document` does."""
    check_size(path, file_size(path, follow_links=True), at_most=at_most)


def read_json(path: Path, *, at_most: int = DOCUMENT_BYTES) -> Any:
    """The value in a JSON file.  Raises `BadInput` where it is not one, and as `read_document` does."""
    data = read_document(path, at_most=at_most)
    try:
        with limited_memory():
            return json.loads(data)
    except (ValueError, RecursionError, MemoryError) as error:
        raise BadInput(f"{path} is not JSON", values=_where(error), hint="correct it there, or copy it again") from None


@contextmanager
def blamed_on(path: Path, fact: str, *, hint: str, quotes: bool = False) -> Iterator[None]:
    """Whatever a library raises in the block is `path`'s doing.  Raises `BadInput`: `path` `fact`.

    With `quotes` the error repeats the first line of the library's message: only where that cannot hold a user's text.
    """
    try:
        yield
    except ChainError:
        raise
    except Exception as error:
        raise BadInput(f"{path} {fact}", values={"reason": _reason(error, quotes)}, hint=hint) from error


def _reason(error: Exception, quotes: bool) -> str:
    kind, words = type(error).__name__, str(error).strip().partition("\n")[0] if quotes else ""
    return ascii(f"{kind}: {words}")[1:-1][:REASON_CHARACTERS] if words else kind


def _where(error: Exception) -> dict[str, object]:
    """Where JSON ends to be JSON."""
    if isinstance(error, json.JSONDecodeError):
        return {"line": error.lineno, "column": error.colno, "reason": error.msg}
    nested = isinstance(error, RecursionError)
    return {"reason": "it is nested too deeply" if nested else type(error).__name__}
