"""The door: what is not a regular file of a bounded size is refused, without blocking; errors name the file."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from schemas.errors import BadInput, NotTrusted
from stages.store.foreign import blamed_on, read_document, read_json


def a_fifo(path: Path) -> None:
    os.mkfifo(path)


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(path))


def a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def a_folder(path: Path) -> None:
    path.mkdir()


def a_broken_link(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere"))


def a_sparse_giant(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(6 * 2**30)


@pytest.mark.parametrize("make", [a_fifo, a_socket, a_device, a_folder, a_broken_link, a_sparse_giant])
def test_what_is_not_a_document_is_refused_by_name(make: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    make(path)
    with pytest.raises(BadInput, match="config"):
        read_document(path)


def test_the_bound_is_the_last_size_that_is_read_and_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert read_document(tmp_path / "link", at_most=5) == b"12345"
    with pytest.raises(BadInput, match="too large"):
        read_document(tmp_path / "link", at_most=4)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1,}', "column"),
        ('{"a": ' * 100_000, "nested too deeply"),
        ("\udcff", "UnicodeDecodeError"),
        ("1" * 10_000, "ValueError"),
    ],
)
def test_json_that_cannot_be_read_says_why(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(BadInput, match=said):
        read_json(path)


def test_a_library_s_error_names_the_file_and_is_its_cause(tmp_path: Path) -> None:
    with (
        pytest.raises(BadInput, match="texts cannot be read") as caught,
        blamed_on(tmp_path / "texts", "cannot be read", hint="x"),
    ):
        raise RecursionError("a text of the user's")
    assert caught.value.values == {"reason": "RecursionError"}
    assert isinstance(caught.value.__cause__, RecursionError)


def test_a_refusal_of_ours_passes(tmp_path: Path) -> None:
    with pytest.raises(NotTrusted), blamed_on(tmp_path, "cannot be read", hint="x"):
        raise NotTrusted("altered")


@pytest.mark.parametrize(
    ("error", "quoted"),
    [
        (ValueError("  bad header\nand the user's text"), "ValueError: bad header"),
        (ValueError("\x1b[2Jé"), "ValueError: \\x1b[2J\\xe9"),
        (ValueError("x" * 1000), "ValueError: " + "x" * (160 - len("ValueError: "))),
        (ValueError(" \n "), "ValueError"),
    ],
)
def test_of_a_library_s_message_the_first_line_is_quoted_where_that_is_allowed(error: Exception, quoted: str) -> None:
    for quotes in (True, False):
        with pytest.raises(BadInput) as caught, blamed_on(Path("file"), "is bad", hint="mend it", quotes=quotes):
            raise error
        assert caught.value.values == {"reason": quoted if quotes else "ValueError"}
        assert (caught.value.fact, caught.value.hint) == ("file is bad", "mend it")


def test_json_that_ends_too_soon_says_where(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b'{"a": 1,\n  "b": }')
    with pytest.raises(BadInput, match="is not JSON") as caught:
        read_json(tmp_path / "file")
    assert caught.value.values == {"line": 2, "column": 8, "reason": "Expecting value"}


def test_json_larger_than_it_may_be_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"[1, 2, 3]")
    assert read_json(tmp_path / "file", at_most=9) == [1, 2, 3]
    with pytest.raises(BadInput):
        read_json(tmp_path / "file", at_most=8)


def test_json_nested_too_deeply_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"[" * 100_000)
    with pytest.raises(BadInput) as caught:
        read_json(tmp_path / "file")
    assert caught.value.values == {"reason": "it is nested too deeply"}
