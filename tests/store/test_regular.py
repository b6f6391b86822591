"""Regular files: links and devices are refused unless links are asked for, and digests are sha256sum's."""

import hashlib
import os
from functools import partial
from pathlib import Path

import pytest

from schemas.errors import BadInput
from stages.store.regular import CHUNK_BYTES, file_digest, file_size, open_regular, read_regular, read_start


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1])
def test_size_and_digest_of_a_file(size: int, tmp_path: Path) -> None:
    data = b"x" * size
    (tmp_path / "file").write_bytes(data)
    assert file_size(tmp_path / "file") == size
    assert file_digest(tmp_path / "file") == f"sha256:{hashlib.sha256(data).hexdigest()}"


def test_a_link_is_followed_where_that_is_asked_for_and_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"data")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert file_digest(tmp_path / "link", follow_links=True) == file_digest(tmp_path / "file")
    for reader in (open_regular, file_size, file_digest, partial(read_regular, at_most=10)):
        with pytest.raises(BadInput, match="cannot be opened as a regular file"):
            reader(tmp_path / "link")


@pytest.mark.parametrize("follow_links", [True, False])
def test_pipes_folders_and_nothing_are_refused_at_once(follow_links: bool, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder", "nothing"):
        with pytest.raises(BadInput, match="regular file"):
            open_regular(tmp_path / name, follow_links=follow_links)


@pytest.mark.parametrize("size", [0, 1, 9, 10])
def test_a_file_within_its_bound_is_read_whole(size: int, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * size)
    assert read_regular(tmp_path / "file", at_most=10) == b"x" * size
    assert read_start(tmp_path / "file", 4) == b"x" * min(size, 4)


@pytest.mark.parametrize("size", [11, 2**40])
def test_a_larger_one_is_refused_with_both_sizes(size: int, tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.truncate(size)
    with pytest.raises(BadInput, match="too large") as caught:
        read_regular(tmp_path / "file", at_most=10)
    assert caught.value.values == {"at most": "10 bytes", "found": f"{size} bytes"}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux has files that say they are empty")
def test_a_file_that_says_it_is_empty_is_read_whole_and_bounded() -> None:
    whole = read_regular(Path("/proc/self/status"), at_most=2**16)
    assert whole.startswith(b"Name:")
    assert b"Threads:" in whole
    with pytest.raises(BadInput, match="too large") as caught:
        read_regular(Path("/proc/self/status"), at_most=10)
    assert caught.value.values["found"] == "11 bytes"  # no more are read


def test_what_is_looked_at_is_not_left_open(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")  # noqa: PTH208
    (tmp_path / "file").write_bytes(b"data")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with pytest.raises(BadInput, match="not a regular file"):
        open_regular(tmp_path)
    assert file_size(tmp_path / "link", follow_links=True) == 4
    assert os.listdir("/proc/self/fd") == before  # noqa: PTH208
