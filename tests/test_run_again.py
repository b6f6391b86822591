"""A command that was killed after its last step finds its output when it is run again, and nothing but its own."""

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.store.artifact import verify_artifact
from stages.store.bundle import pack
from stages.store.files import write_file
from tests import fleet
from tests.fleet import Done, chainctl, make_update, make_world

Command = Callable[[Path, int], list[Any]]  # in a world; its output is `out`, the number makes another one


def model(world: Path) -> Path:
    return world / "model"


COMMANDS: dict[str, Command] = {
    "data split": lambda world, seed: [
        *("data", "split", world / "texts.jsonl", "--devices", 2, "--iid", "--seed", seed, "--out", world / "out")
    ],
    "data holdout": lambda world, seed: [
        *("data", "holdout", world / "texts.jsonl", "--seed", seed, "--out", world / "out")
    ],
    "model import": lambda world, seed: [
        *("model", "import", world / "model", "--out", world / "out", "--dtype", ["float32", "bfloat16"][seed])
    ],
    "model random": lambda world, seed: [
        *("model", "random", "--like", "bert-base", "--layers", 1, "--seed", seed, "--out", world / "out")
    ],
    "export": lambda world, seed: [
        *("export", "--model", world / "model", "--plan", world / "plan", "--state", world / "state"),
        *("--format", ["hf", "adapterhub"][seed], "--out", world / "out"),
    ],
    "recipe new": lambda world, seed: [
        *("recipe", "new", world / "out", "--set", f"seed={seed}", "--data", world / "texts.jsonl")
    ],
}


@pytest.fixture(scope="module")
def world(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    (folder / "model").symlink_to(tiny_bert)
    data = fleet.save_texts(folder / "texts.jsonl", fleet.texts(12))
    fleet.begin(folder, tiny_bert, data, fleet.settings())
    return folder


def stamps(path: Path) -> dict[Path, tuple[int, int]]:
    found = [path, *path.rglob("*")] if path.is_dir() else [path]
    return {one: (one.stat().st_ino, one.stat().st_mtime_ns) for one in found}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_same_command_again_finds_its_output_and_another_replaces_nothing(
    name: str, world: Path, tmp_path: Path
) -> None:
    for entry in world.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    first = chainctl(*COMMANDS[name](tmp_path, 0))
    assert "existed already" not in first.stdout
    before = stamps(tmp_path / "out")
    again = chainctl(*COMMANDS[name](tmp_path, 0))
    assert "(existed already)" in again.stdout
    other = chainctl(*COMMANDS[name](tmp_path, 1), check=False)
    assert other.returncode == 2, other.stderr
    assert "exists already" in other.stderr
    assert "--force" in other.stderr
    assert stamps(tmp_path / "out") == before
    assert not list(tmp_path.glob(".*"))
    forced = chainctl(*COMMANDS[name](tmp_path, 1), "--force")
    assert "existed already" not in forced.stdout
    assert stamps(tmp_path / "out") != before


def longer(out: Path) -> None:
    with (out / "test.jsonl").open("a") as file:
        file.write("\n")


def one_byte(out: Path) -> None:
    fleet.flip(out / "train.jsonl", 12)


def one_more(out: Path) -> None:
    (out / "mine").write_text("")


def one_less(out: Path) -> None:
    (out / "test.jsonl").unlink()


def linked(out: Path) -> None:
    (out / "test.jsonl").rename(out.with_name("aside"))
    (out / "test.jsonl").symlink_to(out.with_name("aside"))


def folder_in_its_place(out: Path) -> None:
    (out / "test.jsonl").unlink()
    (out / "test.jsonl").mkdir()


def linked_whole(out: Path) -> None:
    out.rename(out.with_name("aside"))
    out.symlink_to("aside")


@pytest.mark.parametrize(
    "change",
    [longer, one_byte, one_more, one_less, linked, folder_in_its_place, linked_whole],
    ids=lambda change: change.__name__,
)
def test_an_output_that_differs_is_somebody_else_s(change: Callable[[Path], None], tmp_path: Path) -> None:
    fleet.save_texts(tmp_path / "texts.jsonl", fleet.texts(12))
    command = COMMANDS["data holdout"](tmp_path, 0)
    chainctl(*command)
    change(tmp_path / "out")
    before = stamps(tmp_path / "out")
    assert chainctl(*command, check=False).returncode == 2
    assert stamps(tmp_path / "out") == before


def test_what_an_operating_system_leaves_in_an_output_does_not_count(tmp_path: Path) -> None:
    fleet.save_texts(tmp_path / "texts.jsonl", fleet.texts(12))
    command = COMMANDS["data holdout"](tmp_path, 0)
    chainctl(*command)
    (tmp_path / "out" / ".DS_Store").write_text("")
    assert "(existed already)" in chainctl(*command).stdout


def test_a_recipe_that_is_there_is_refused_with_the_argument_that_the_command_has(tmp_path: Path) -> None:
    chainctl("recipe", "new", tmp_path / "out")
    other = chainctl("recipe", "new", tmp_path / "out", "--set", "seed=1", check=False)
    assert "give another FILE, or replace it with --force" in other.stderr


# Several at once.


def at_once(count: int, function: Callable[[int], Any]) -> list[Any]:
    """What each of many processes, all started before any begins, returns."""
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(count), context.SimpleQueue()

    def work(number: int) -> None:
        barrier.wait()
        answers.put(function(number))

    workers = [context.Process(target=work, args=(number,)) for number in range(count)]
    for worker in workers:
        worker.start()
    found = [answers.get() for _ in workers]
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    return found


@pytest.mark.parametrize("force", [[], ["--force"]], ids=["", "force"])
def test_two_that_unpack_at_once_leave_what_one_would(force: list[str], tmp_path: Path) -> None:
    _, state = make_world(tmp_path)
    updates = [make_update(tmp_path / "in" / name, state, name, seed=seed) for seed, name in enumerate("abc")]
    pack(updates, tmp_path / "x.tar")
    command = ["bundle", "unpack", tmp_path / "x.tar", "--into", tmp_path / "into", *force]
    done: list[Done] = at_once(2, lambda number: chainctl(*command, check=False))
    assert {one.returncode for one in done} <= {0, 2}
    assert not any("Traceback" in one.stderr for one in done)
    assert "(existed already)" in chainctl("bundle", "unpack", tmp_path / "x.tar", "--into", tmp_path / "into").stdout
    assert sorted(path.name for path in (tmp_path / "into").iterdir()) == ["a", "b", "c"]
    for path in updates:
        assert verify_artifact(tmp_path / "into" / path.name).digest == verify_artifact(path).digest


@pytest.mark.parametrize("force", [[], ["--force"]], ids=["", "force"])
def test_several_that_split_at_once_leave_what_one_would(force: list[str], tmp_path: Path) -> None:
    fleet.save_texts(tmp_path / "texts.jsonl", fleet.texts(12))
    command = [*COMMANDS["data split"](tmp_path, 0), *force]
    done: list[Done] = at_once(4, lambda number: chainctl(*command, check=False))
    assert {one.returncode for one in done} == {0}, [one.stderr for one in done]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "texts.jsonl"]
    assert "(existed already)" in chainctl(*COMMANDS["data split"](tmp_path, 0)).stdout


def test_a_file_that_many_write_at_once_is_one_of_theirs(tmp_path: Path) -> None:
    contents = [os.urandom(1000) for _ in range(8)]

    def write(number: int) -> None:
        for _ in range(20):
            write_file(tmp_path / "pins.json", contents[number])

    at_once(8, write)
    assert (tmp_path / "pins.json").read_bytes() in contents
    assert [path.name for path in tmp_path.iterdir()] == ["pins.json"]


def test_no_command_replaces_what_it_reads(tmp_path: Path) -> None:
    """`--force` deletes what is at `--out`; a typing mistake must not cost the texts, or a state."""
    data = tmp_path / "data"
    fleet.save_texts(data / "all.jsonl", fleet.texts(12))
    _, state = make_world(tmp_path)
    make_update(tmp_path / "updates" / "a", state, "a", seed=0)
    (tmp_path / "updates" / "circle").symlink_to("circle")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    round_ = ("aggregate", tmp_path / "updates", "--plan", tmp_path / "plan", "--state", tmp_path / "state")
    for command in (
        ("data", "holdout", data / "all.jsonl", "--out", data),
        ("data", "split", data / "all.jsonl", "--devices", 2, "--iid", "--out", data),
        ("data", "split", data / "all.jsonl", "--devices", 2, "--iid", "--out", tmp_path),
        (*round_, "--out", tmp_path / "state"),
        (*round_, "--out", tmp_path / "updates"),
        (*round_, "--out", tmp_path),
    ):
        refused = chainctl(*command, "--force", check=False)
        assert refused.returncode == 2, command
        assert "is read, and is what --out would replace" in refused.stderr
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    given = (round_[0], *sorted((tmp_path / "updates").iterdir()), *round_[2:])
    assert chainctl(*given, "--out", tmp_path / "next", "--force").returncode == 0  # a link in circles is refused alone
