"""What may lie among the updates on a stick: whatever it is, the round closes at once, and again without a new word."""

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from schemas.assignment import Assignment
from schemas.errors import TooFewUpdates, UsageProblem
from schemas.refusal import RefusalManifest
from schemas.update import UpdateManifest
from stages import aggregate
from stages.federated.delivery import candidates
from stages.federated.intake import Intake
from stages.methods.registry import server_method
from stages.plan import open_profiles
from stages.store.artifact import open_artifact, read_tensors
from stages.store.ledger import Ledger
from stages.store.trust import open_trusted
from tests import fleet
from tests.fleet import combine, make_update, make_world

Plant = Callable[[bytes, Path], None]


def manifest(name: bytes, data: bytes = b"{}") -> Plant:
    """A directory of that name with that manifest."""

    def plant(inbox: bytes, _: Path) -> None:
        os.mkdir(inbox + b"/" + name)  # noqa: PTH102 -- names that are not UTF-8
        with open(inbox + b"/" + name + b"/manifest.json", "wb") as file:  # noqa: PTH123
            file.write(data)

    return plant


def another_file(name: bytes) -> Plant:
    """A whole update with one more file in it."""

    def plant(inbox: bytes, good: Path) -> None:
        shutil.copytree(good, os.fsdecode(inbox) + "/bad")
        with open(inbox + b"/bad/" + name, "wb"):  # noqa: PTH123
            pass

    return plant


def link_to(target: bytes) -> Plant:
    def plant(inbox: bytes, _: Path) -> None:
        os.symlink(target, inbox + b"/link")  # noqa: PTH211

    return plant


def manifest_is_a_folder(inbox: bytes, _: Path) -> None:
    os.makedirs(inbox + b"/bad/manifest.json")  # noqa: PTH103


def manifest_is_a_socket(inbox: bytes, _: Path) -> None:
    os.mkdir(inbox + b"/bad")  # noqa: PTH102
    place = Path.cwd()
    os.chdir(inbox + b"/bad")  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("manifest.json")
    os.chdir(place)


def tensors_are_a_folder(inbox: bytes, good: Path) -> None:
    bad = Path(shutil.copytree(good, os.fsdecode(inbox) + "/bad"))
    (bad / "tensors.safetensors").unlink()
    (bad / "tensors.safetensors").mkdir()


def altered(old: bytes, new: bytes) -> Plant:
    def plant(inbox: bytes, good: Path) -> None:
        bad = Path(shutil.copytree(good, os.fsdecode(inbox) + "/bad"))
        data = (bad / "manifest.json").read_bytes()
        assert data.count(old) == 1
        (bad / "manifest.json").write_bytes(data.replace(old, new))

    return plant


HOSTILE: dict[str, Plant] = {
    "a name that is not UTF-8": manifest(b"\xff\xfe"),
    "a name with a line break and escapes": manifest(b"a\nb\x1b[31m\x9b"),
    "a name of 255 bytes": manifest(b"n" * 255),
    "a long name of four-byte characters": manifest("\U0001f600".encode() * 63),
    "a name turned right to left": manifest("a\u202eb".encode()),
    "a deep manifest": manifest(b"bad", b"[" * 60_000),
    "a field with a very long name": manifest(b"bad", b'{"kind": "update", "version": 1, "' + b"x" * 60_000 + b'": 1}'),
    "a field whose name is half a character": manifest(b"bad", b'{"kind": "update", "version": 1, "\\ud800": 1}'),
    "a kind that is half a character": manifest(b"bad", b'{"kind": "\\udcff", "version": 1}'),
    "a manifest in UTF-16": manifest(b"bad", '{"kind": "update", "version": 1}'.encode("utf-16")),
    "a manifest that is a folder": manifest_is_a_folder,
    "a manifest that is a socket": manifest_is_a_socket,
    "tensors that are a folder": tensors_are_a_folder,
    "a file whose name is not UTF-8": another_file(b"\xff\xfe"),
    "a file with a line break in its name": another_file(b"a\nb"),
    "a file with a name of 255 bytes": another_file(b"n" * 255),
    "a link to a name that is not UTF-8": link_to(b"/nowhere/\xff"),
    "a link to itself": link_to(b"link"),
    "a link that goes far": link_to(b"../" * 1000),
    "a count of 400 digits": altered(b'"example_count": 5', b'"example_count": ' + b"9" * 400),
    "a count of 5000 digits": altered(b'"example_count": 5', b'"example_count": ' + b"9" * 5000),
    "a loss beyond float64": altered(b'"mean": 9.0', b'"mean": 1e999'),
    "a loss that makes a mean infinite": altered(b'"mean": 9.0', b'"mean": 1.7e+308'),
    "a negative loss": altered(b'"mean": 9.0', b'"mean": -9.0'),
    "a layer beyond any model": altered(
        b'"layers": [\n      0,\n      1', b'"layers": [\n      0,\n      ' + b"9" * 30
    ),
}


@pytest.mark.parametrize("case", sorted(HOSTILE))
def test_a_round_closes_whatever_lies_among_the_updates(case: str, tmp_path: Path) -> None:
    _, state = make_world(tmp_path)
    inbox = tmp_path / "inbox"
    make_update(inbox / "a", state, "a", seed=0)
    make_update(inbox / "b", state, "b", seed=1)
    HOSTILE[case](os.fsencode(inbox), make_update(tmp_path / "good", state, "c", seed=9))
    reasons: list[str] = []
    made = combine(tmp_path, [inbox], on_refusal=lambda refused, _: reasons.append(refused.reason))
    assert fleet.accepted_devices(made) == ["a", "b"]
    assert len(reasons) == 1
    lines = (tmp_path / "ledger.jsonl").read_bytes()
    for path in (inbox / ".refused").glob("*.json"):
        written = RefusalManifest.from_bytes(path.read_bytes(), source="refusal")
        assert str(tmp_path) not in str(written)
        assert written.fact.isprintable()
    again = combine(tmp_path, [inbox])
    assert again.digest == made.digest
    assert (tmp_path / "ledger.jsonl").read_bytes() == lines


def test_what_cannot_be_told_apart_is_recorded_once_however_often_it_comes(tmp_path: Path) -> None:
    _, state = make_world(tmp_path)
    make_update(tmp_path / "inbox" / "a", state, "a", seed=0)
    for number in range(6):
        for name in ("x", "y"):
            manifest(f"{name}{number}".encode())(os.fsencode(tmp_path / "inbox"), tmp_path)
        combine(tmp_path, [tmp_path / "inbox"])
    events = [event.event for event in Ledger(tmp_path / "ledger.jsonl").events()]
    assert events == ["refused", "accepted", "closed"]


@pytest.mark.parametrize("step", ["manifest.json", "tensors.safetensors", ""])
def test_an_update_that_disappears_while_it_is_read_is_refused_alone(step: str, tmp_path: Path) -> None:
    """The stick is pulled out: what the first checks saw is not there for the next."""
    plan, state = make_world(tmp_path)
    make_update(tmp_path / "inbox" / "a", state, "a", seed=0)
    gone = make_update(tmp_path / "inbox" / "b", state, "b", seed=1)
    planned, parent = open_trusted(plan.path, state.path)
    intake = Intake(planned, parent, {}, server_method("chain"))
    update = open_artifact(gone, UpdateManifest)
    checks = intake.checks(update)
    shutil.rmtree(gone) if not step else (gone / step).unlink()
    read = dict(checks)["altered"]
    if step == "manifest.json":
        read()  # it was read already
    else:
        with pytest.raises(Exception, match="cannot be read"):
            read()
    taken = intake.take([tmp_path / "inbox"])
    assert [one.manifest.device for one in taken.accepted] == ["a"]


def test_a_link_that_was_given_is_followed_and_stays_with_all_that_is_behind_it(tmp_path: Path) -> None:
    _, state = make_world(tmp_path)
    stick = tmp_path / "stick"
    make_update(stick / "a", state, "a", seed=0)
    make_update(stick / "b", state, "b", seed=1, changes={"steps": 7})
    own = tmp_path / "updates"
    own.symlink_to(stick)
    places: list[Path | None] = []
    made = combine(tmp_path, [own], on_refusal=lambda _, place: places.append(place))
    assert fleet.accepted_devices(made) == ["a"]
    assert places == [None]
    assert own.is_symlink()
    assert sorted(path.name for path in stick.iterdir()) == ["a", "b"]


@pytest.mark.parametrize("target", ["update", "nowhere"])
def test_a_link_that_was_given_in_place_of_an_update_is_refused_and_stays(target: str, tmp_path: Path) -> None:
    _, state = make_world(tmp_path)
    make_update(tmp_path / "update", state, "a", seed=0)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / target)
    with pytest.raises(TooFewUpdates, match="link"):
        combine(tmp_path, [link])
    assert link.is_symlink()
    assert not (tmp_path / ".refused").exists()


def test_a_folder_that_cannot_be_listed_is_an_error_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("stages.federated.delivery.os.scandir", refused)  # whoever runs the tests may read everything
    with pytest.raises(UsageProblem, match="cannot be listed") as caught:
        list(candidates([tmp_path], []))
    assert caught.value.values["found"] == "Permission denied"


def test_a_document_that_cannot_be_made_leaves_everything_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, state = make_world(tmp_path)
    inbox = tmp_path / "inbox"
    make_update(inbox / "a", state, "a", seed=0)
    make_update(inbox / "b", state, "b", seed=1, changes={"steps": 7})

    def broken(*_: object, **__: object) -> None:
        raise ValueError("no such document")

    monkeypatch.setattr(aggregate, "describe", broken)
    with pytest.raises(ValueError, match="no such document"):
        combine(tmp_path, [inbox])
    assert sorted(path.name for path in inbox.iterdir()) == ["a", "b"]
    assert not (tmp_path / "next").exists()
    assert not list(Ledger(tmp_path / "ledger.jsonl").events())


@pytest.mark.parametrize("server", ["none", "fedavgm", "fedadam", "fedyogi"])
def test_without_a_cap_too_no_finite_value_makes_a_state_that_nobody_can_read(server: str, tmp_path: Path) -> None:
    _, state = make_world(tmp_path, federation={"max_update_norm": "none", "server_optimizer": server})
    make_update(tmp_path / "in" / "a", state, "a", seed=0, changes={"value": 9e18})
    make_update(tmp_path / "in" / "b", state, "b", seed=1, changes={"value": 3e38})
    reasons: list[str] = []
    made = combine(tmp_path, [tmp_path / "in"], on_refusal=lambda refused, _: reasons.append(refused.reason))
    assert reasons == ["norm"]
    assert all(np.isfinite(values).all() for values in read_tensors(made).values())


def test_a_folder_of_profiles_is_an_error_that_says_how_they_are_given(tmp_path: Path) -> None:
    (tmp_path / "profiles" / "a").mkdir(parents=True)
    (tmp_path / "profiles" / "a" / "manifest.json").write_text("{}")
    with pytest.raises(UsageProblem, match="folder of artifacts") as caught:
        list(open_profiles([tmp_path / "profiles"], None))
    assert caught.value.hint == f"give each of them: {tmp_path}/profiles/*"


def test_an_assignment_of_no_real_layer_is_none() -> None:
    for layers in ((4096,), (0, 10**30)):
        with pytest.raises(ValueError, match="less than 4096"):
            Assignment(layers=layers)
