"""What killed writers left: told apart by name, removed or put back by whoever looks, and never followed."""

import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import BadInput
from schemas.plan import PlanManifest
from stages.store.artifact import check_place, verify_artifact
from stages.store.bundle import pack
from stages.store.files import complete_directory, put_back, sweep, write_file
from tests import fleet
from tests.fleet import chainctl, make_update, make_world, write_update

LEFT = "1f2e3d4c"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Whose they are.

NEIGHBOURS = [
    ("phone", "phone.two"),
    ("phone", f"phone.{LEFT}"),
    ("phone", f"phone.{LEFT}.old"),
    ("phone", "phone.old"),
    ("a", "a.b.c"),
    ("x.tar", "x.tar.001"),
    ("*", "anything"),
    ("[a]", "a"),
]


@pytest.mark.parametrize(("name", "neighbour"), NEIGHBOURS)
@pytest.mark.parametrize("ending", ["", ".old"])
def test_what_is_left_of_a_neighbour_is_not_touched(name: str, neighbour: str, ending: str, tmp_path: Path) -> None:
    left = tmp_path / f".{neighbour}.{LEFT}{ending}.partial"
    left.mkdir()
    (left / "kept").write_text("")
    sweep(tmp_path / name)
    assert names(tmp_path) == [left.name]
    (tmp_path / neighbour).mkdir()
    sweep(tmp_path / neighbour)
    assert names(tmp_path) == [neighbour]


# What had been put away comes back, whatever it was and whatever command looks for it.


def a_folder(place: Path) -> Path:
    place.mkdir()
    (place / "kept").write_text("kept")
    return place


def a_file(place: Path) -> Path:
    place.write_text("kept")
    return place


def a_link(place: Path) -> Path:
    place.symlink_to("nowhere")
    return place


@pytest.mark.parametrize("make", [a_folder, a_file, a_link])
def test_what_was_put_away_comes_back(make: Callable[[Path], Path], tmp_path: Path) -> None:
    make(tmp_path / f".phone.{LEFT}.old.partial")
    put_back(tmp_path)
    assert names(tmp_path) == ["phone"]


@pytest.mark.parametrize("make", [a_folder, a_file, a_link])
def test_what_has_a_successor_does_not(make: Callable[[Path], Path], tmp_path: Path) -> None:
    make(tmp_path / f".phone.{LEFT}.old.partial")
    (tmp_path / "phone").mkdir()
    put_back(tmp_path)
    assert len(names(tmp_path)) == 2
    sweep(tmp_path / "phone")
    assert names(tmp_path) == ["phone"]
    assert list((tmp_path / "phone").iterdir()) == []


LOOKS: dict[str, Callable[[Path, Path], list[Any]]] = {
    "verify": lambda folder, one: ["verify", one],
    "inspect": lambda folder, one: ["inspect", one],
    "unpack another": lambda folder, one: ["bundle", "unpack", folder / "another.tar", "--into", one.parent],
    "unpack what is not there": lambda folder, one: ["bundle", "unpack", folder / "gone.tar", "--into", one.parent],
    "pack": lambda folder, one: ["bundle", "pack", one, "--out", folder / "x.tar"],
    "a file in it": lambda folder, one: ["data", "columns", one / "tensors.safetensors"],
    "doctor": lambda folder, one: ["doctor", "--model", one],
    "something beside it": lambda folder, one: ["data", "columns", one.with_name("missing")],
    "aggregate": lambda folder, one: [
        *("aggregate", one.parent, "--plan", folder / "plan", "--state", folder / "state", "--out", folder / "next")
    ],
}


@pytest.mark.parametrize("look", LOOKS)
def test_any_command_that_looks_puts_it_back(look: str, tmp_path: Path) -> None:
    _, state = make_world(tmp_path)
    one = make_update(tmp_path / "in" / "a.one", state, "a", seed=0)
    pack([make_update(tmp_path / "b", state, "b", seed=1)], tmp_path / "another.tar")
    digest = verify_artifact(one).digest
    one.rename(tmp_path / "in" / f".a.one.{LEFT}.old.partial")
    chainctl(*LOOKS[look](tmp_path, one), check=False)
    assert verify_artifact(one).digest == digest
    assert not list((tmp_path / "in").glob("*.partial"))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)


def test_the_work_of_a_live_writer_is_not_touched(tmp_path: Path) -> None:
    for name in (f".phone.{LEFT}.old.partial", f".phone.{LEFT}.partial"):
        (tmp_path / name).mkdir()
    before = names(tmp_path)
    with locked(tmp_path / before[0]), locked(tmp_path / before[1]):
        put_back(tmp_path)
        sweep(tmp_path / "phone")
        assert names(tmp_path) == before
    sweep(tmp_path / "phone")
    assert names(tmp_path) == ["phone"]


# The same command again leaves nothing, though it finds its work done.


def test_a_bundle_that_is_whole(tmp_path: Path) -> None:
    update = write_update(tmp_path / "a")
    made = pack([update.path], tmp_path / "x.tar")
    a_folder(tmp_path / f".x.tar.{LEFT}.partial")
    assert not pack([update.path], tmp_path / "x.tar").is_new
    assert made.is_new
    assert names(tmp_path) == ["a", "x.tar"]


def test_an_artifact_that_is_whole(tmp_path: Path) -> None:
    make_world(tmp_path)
    before = names(tmp_path)
    a_folder(tmp_path / f".plan.{LEFT}.partial")
    check_place(tmp_path / "plan", PlanManifest, force=False)
    assert names(tmp_path) == before


def test_a_training_that_is_finished(tiny_bert: Path, tmp_path: Path) -> None:
    data = fleet.save_texts(tmp_path / "texts.jsonl", fleet.texts(12))
    fleet.begin(tmp_path, tiny_bert, data, fleet.settings())
    for _ in range(2):  # trained, then found
        a_folder(tmp_path / f"..out.checkpoint.{LEFT}.partial")
        fleet.run_train(tmp_path, tiny_bert, data, tmp_path / "out")
        assert [path.name for path in tmp_path.glob("*out*")] == ["out"]


def test_a_file_that_was_half_written(tmp_path: Path) -> None:
    a_file(tmp_path / f".pins.json.{LEFT}.partial")
    write_file(tmp_path / "pins.json", b"{}")
    assert names(tmp_path) == ["pins.json"]


# Links.


def test_links_among_what_is_left_are_not_followed(tmp_path: Path) -> None:
    victim = a_folder(tmp_path / "victim")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / f".out.{LEFT}.partial").symlink_to(victim)
    inside = a_folder(tmp_path / "here" / ".out.abcdefgh.partial")
    (inside / "link").symlink_to(victim)
    (tmp_path / "here" / f".out.{LEFT}.old.partial").symlink_to(victim)
    (tmp_path / "here" / "out").mkdir()
    sweep(tmp_path / "here" / "out")
    assert names(tmp_path / "here") == [f".out.{LEFT}.partial", "out"]
    assert names(victim) == ["kept"]


def test_a_link_at_the_target_is_replaced_and_not_followed(tmp_path: Path) -> None:
    victim = a_file(tmp_path / "victim")
    (tmp_path / "out").symlink_to(victim)
    write_file(tmp_path / "out", b"new")
    assert victim.read_text() == "kept"
    assert not (tmp_path / "out").is_symlink()
    (tmp_path / "folder").symlink_to(a_folder(tmp_path / "victims"))
    write_update(tmp_path / "folder", force=True)
    assert names(tmp_path / "victims") == ["kept"]
    assert verify_artifact(tmp_path / "folder")


def test_a_pipe_under_a_hidden_name_stops_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / f".out.{LEFT}.partial")
    signal.alarm(20)
    try:
        write_file(tmp_path / "out", b"new")
    finally:
        signal.alarm(0)


def test_what_was_put_in_the_place_of_the_hidden_directory_is_not_published(tmp_path: Path) -> None:
    def swapped() -> None:
        with complete_directory(tmp_path / "out", force=False) as partial:
            (partial / "mine").write_text("")
            partial.rename(tmp_path / "away")
            a_folder(partial)

    with pytest.raises(BadInput, match="taken away while it was written"):
        swapped()
    assert not (tmp_path / "out").exists()
