"""stdout and stderr, as nobody promised them: in another encoding than UTF-8, closed, full, or without a reader.

None of that may end a command that has work to do: what it makes is in its artifact.
"""

import errno
import io
import os
import sys
from typing import Any, TextIO, cast

from schemas.errors import ChainError
from schemas.visible import visible, visible_text


def prepare_streams() -> None:
    """Show what an encoding does not have as `\\u2192`; where a stream is closed, write to nowhere.

    A closed one is opened first of all: its number would otherwise be that of the next file, an artifact's perhaps.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            _open_nowhere(number)
            if number:
                setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))  # noqa: SIM115
        elif number and isinstance(stream, io.TextIOWrapper) and not _shows_all(stream):
            stream.reconfigure(errors="backslashreplace")
    if not isinstance(sys.stderr, Escaped):
        sys.stderr = cast(TextIO, Escaped(sys.stderr))


class Escaped:
    """stderr as libraries, Python's own warnings and the parser of the command line find it: they steer no terminal."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write a text, what steers a terminal spelled out."""
        return self.stream.write(visible_text(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def unescaped(stream: TextIO) -> TextIO:
    """The stream for what we have drawn ourselves, colours and all."""
    return stream.stream if isinstance(stream, Escaped) else stream


def write_line(text: str, stream: TextIO) -> None:
    """Print one line for people, whatever is in it; see `write_drawn`."""
    write_drawn(visible(text), stream)


def write_drawn(text: str, stream: TextIO) -> None:
    """Print what is fit for a terminal.  Where it cannot be written, the rest of the stream goes nowhere, the work on.

    A reader that has gone (`| head -1`) did so on purpose; anything else is said on stderr.
    """
    try:
        print(f"{text}\n", end="", file=unescaped(stream), flush=True)  # in one piece, whatever other threads write
    except OSError as error:
        drop(stream)
        if error.errno != errno.EPIPE and stream is not sys.stderr:
            write_line(f"warning: {_cannot(error)}; the work goes on without it", sys.stderr)


def write_result(text: str) -> None:
    """Print a line for programs on stdout.  Raises `ChainError` where it cannot be written and somebody reads."""
    try:
        print(text, flush=True)
    except OSError as error:
        drop(sys.stdout)
        if error.errno != errno.EPIPE:
            hint = "what was made is whole: run the same command again, with another stdout, to read its result"
            raise ChainError(_cannot(error), hint=hint) from None


def write_document(text: str) -> None:
    """Write a document to stdout in UTF-8, whatever the terminal speaks: it is meant for a file.  Raises `OSError`."""
    sys.stdout.flush()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.buffer.write(text.encode())
    else:
        sys.stdout.write(text)
    sys.stdout.flush()


def drop(stream: TextIO) -> None:
    """Let a stream write to nowhere, so that what is left in it fails neither now nor when Python ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _open_nowhere(number: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != number:
        os.dup2(nowhere, number)
        os.close(nowhere)


def _shows_all(stream: io.TextIOWrapper) -> bool:
    """Whether no character is an error: names of files that are no UTF-8 come back as the bytes that they were."""
    utf8 = stream.encoding.lower().replace("-", "") == "utf8"
    return stream.errors == "backslashreplace" or (utf8 and stream.errors == "surrogateescape")


def _cannot(error: OSError) -> str:
    return f"standard output cannot be written: {error.strerror or type(error).__name__}"
