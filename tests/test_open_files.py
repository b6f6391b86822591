"""A round of many updates closes in a process that may have few files open: often 1,024, on macOS 256."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from schemas.errors import BadInput
from stages import aggregate
from tests.fleet import combine, make_update, make_world

COUNT, LIMIT = 260, 200


@contextmanager
def few_files(limit: int) -> Iterator[None]:
    """At most `limit` files may be open meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("strategy", [{}, {"strategy": "coordinate-median", "clip_norm": "median"}])
def test_more_updates_than_files_may_be_open(
    strategy: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"d{number:03}" for number in range(COUNT)]
    _, state = make_world(tmp_path, devices=names, federation=strategy)
    for number, name in enumerate(names):
        make_update(tmp_path / "in" / name, state, name, seed=number)
    before = len(list(Path("/dev/fd").iterdir()))
    with few_files(LIMIT):
        made = combine(tmp_path, [tmp_path / "in"])
    assert made.manifest.accepted_count == COUNT
    assert len(list(Path("/dev/fd").iterdir())) == before
    with monkeypatch.context() as patch:
        patch.setattr(aggregate, "MOST_OPEN", COUNT + 1)
        assert combine(tmp_path, [tmp_path / "in"], "again", force=True).digest == made.digest
        with few_files(LIMIT), pytest.raises(BadInput, match="Too many open files"):
            combine(tmp_path, [tmp_path / "in"], "once more", force=True)
