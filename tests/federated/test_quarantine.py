"""A refused update is moved into a folder of the coordinator's own, or stays: whatever was planted there before."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from schemas.errors import BadInput
from schemas.refusal import RefusalManifest
from stages.federated.delivery import RefusedUpdate
from stages.federated.quarantine import refusal_of, set_aside
from stages.store.artifact import verify_artifact
from stages.store.folder import identity_of
from tests import fleet
from tests.fleet import combine, make_update, make_world

NOBODY = 65534


def broken(place: Path) -> Path:
    """Something that claims to be an update and is refused."""
    place.mkdir(parents=True)
    (place / "manifest.json").write_text("{}")
    (place / "payload.sh").write_text("payload")
    return place


def link(place: Path, victim: Path) -> None:
    place.symlink_to(victim)


def dead_link(place: Path, victim: Path) -> None:
    place.symlink_to(victim / "later")


def link_over_a_link(place: Path, victim: Path) -> None:
    victim.with_name("other").symlink_to(victim)
    place.symlink_to(victim.with_name("other"))


def file(place: Path, _victim: Path) -> None:
    place.write_text("kept")


def pipe(place: Path, _victim: Path) -> None:
    os.mkfifo(place)


def folder_of_somebody_else(place: Path, _victim: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    place.mkdir()
    os.chown(place, NOBODY, NOBODY)


@pytest.mark.parametrize(
    "plant",
    [link, dead_link, link_over_a_link, file, pipe, folder_of_somebody_else],
    ids=lambda plant: plant.__name__,
)
def test_through_what_is_planted_nothing_is_moved_and_the_round_closes(
    plant: Callable[[Path, Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, state = make_world(tmp_path)
    (tmp_path / "victim").mkdir()
    make_update(tmp_path / "in" / "a", state, "a", seed=0)
    evil = broken(tmp_path / "in" / "evil")
    plant(tmp_path / "in" / ".refused", tmp_path / "victim")
    before = (tmp_path / "in" / ".refused").lstat()
    seen: list[tuple[Path, Path | None]] = []
    with caplog.at_level(logging.WARNING):
        made = combine(
            tmp_path, [tmp_path / "in"], on_refusal=lambda refused, place: seen.append((refused.path, place))
        )
    assert fleet.accepted_devices(made) == ["a"]
    assert seen == [(evil, None)]
    assert sorted(path.name for path in evil.iterdir()) == ["manifest.json", "payload.sh"]
    assert list((tmp_path / "victim").iterdir()) == []
    after = (tmp_path / "in" / ".refused").lstat()
    assert (identity_of(after), after.st_mtime_ns) == (
        identity_of(before),
        before.st_mtime_ns,
    ) or after.st_uid == NOBODY
    if after.st_uid == NOBODY:
        assert list((tmp_path / "in" / ".refused").iterdir()) == []
    (said,) = [record.getMessage() for record in caplog.records if "cannot be moved" in record.getMessage()]
    assert "'evil' cannot be moved into .refused: " in said


def test_a_folder_that_is_given_by_a_link_is_followed_once(tmp_path: Path) -> None:
    _, state = make_world(tmp_path)
    make_update(tmp_path / "stick" / "in" / "a", state, "a", seed=0)
    broken(tmp_path / "stick" / "in" / "evil")
    (tmp_path / "mounted").symlink_to("stick")
    combine(tmp_path, [tmp_path / "mounted" / "in"])
    kept = [path.name for path in (tmp_path / "stick" / "in" / ".refused").iterdir() if path.is_dir()]
    assert [name.rpartition("-")[0] for name in kept] == ["evil-unreadable"]


def test_another_directory_in_the_place_of_the_one_examined_is_not_moved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan, state = make_world(tmp_path)
    examined = broken(tmp_path / "in" / "evil")
    identity = identity_of(examined.lstat())
    examined.rename(tmp_path / "elsewhere")
    precious = make_update(tmp_path / "in" / "evil", state, "a", seed=0)
    refused = RefusedUpdate(examined, "unreadable", BadInput("broken"), None, None)
    assert set_aside(examined, refusal_of(refused, plan, state), identity) is None
    assert "something else has taken its place" in caplog.text
    assert verify_artifact(precious)
    assert list((tmp_path / "in" / ".refused").iterdir()) == []


def test_an_update_that_is_gone_is_no_error(tmp_path: Path) -> None:
    plan, state = make_world(tmp_path)
    (tmp_path / "in").mkdir()
    refused = RefusedUpdate(tmp_path / "in" / "gone", "unreadable", BadInput("broken"), None, None)
    assert set_aside(refused.path, refusal_of(refused, plan, state), None) is None


NAMES = [b"dev-\xff\xfe", b"\xed\xa0\x80", b"a\nb\x1b]0;t\x07", "😀".encode() * 60, b"x" * 255, b"%2e%2e", b"a b"]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_any_name_can_be_moved_aside_and_its_reason_is_read(name: bytes, tmp_path: Path) -> None:
    plan, state = make_world(tmp_path)
    evil = broken(tmp_path / "in" / os.fsdecode(name))
    refused = RefusedUpdate(evil, "unreadable", BadInput(f"{evil} is not one", values={f"{evil}": evil}), None, None)
    place = set_aside(evil, refusal_of(refused, plan, state), identity_of(evil.lstat()))
    assert place is not None
    assert place.name.isascii()
    assert place.name.isprintable()
    assert sorted(path.name for path in place.iterdir()) == ["manifest.json", "payload.sh"]
    assert not evil.exists()
    why = RefusalManifest.from_bytes(place.with_name(f"{place.name}.json").read_bytes(), source="why")
    assert why.reason == "unreadable"
