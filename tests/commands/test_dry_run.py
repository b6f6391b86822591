"""`--dry-run`: refused as the command is, announces what the command then writes, and writes nothing itself."""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from chainctl.cli import COMMANDS
from schemas.plan import PlanManifest
from schemas.update import UpdateManifest
from stages.process import intent
from stages.store.artifact import open_artifact
from stages.store.bundle import pack
from tests import fleet
from tests.fleet import DEVICES, Done, chainctl, make_update, make_world
from tests.fleet.signed import DEVICE, OFFICE, SignedFederation

ELSEWHERE = "ed25519:3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"  # RFC 8032, test 2
READERS = {
    ("assets", "list"),
    ("config", "show"),
    ("data", "columns"),
    ("doctor",),
    ("generate",),  # what it writes is what it says
    ("inspect",),
    ("keys", "list"),
    ("keys", "show"),
    ("log",),
    ("model", "check"),
    ("model", "info"),
    ("schema",),
    ("status",),
    ("trust", "list"),
    ("verify",),
}


def leaves(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name, child in command.commands.items():
        yield from leaves(child, (*path, name))


def test_every_command_either_only_reads_or_can_be_tried_without_writing() -> None:
    found = {path: command for entry in COMMANDS for path, command in leaves(entry.load(), (entry.name,))}
    assert found.keys() >= READERS
    for path, command in found.items():
        options = {option for parameter in command.params for option in parameter.opts}
        assert ("--dry-run" in options) == (path not in READERS), path
        if path in READERS:
            assert not options & {"--out", "--into", "--force"}, path


# What changes a file system, as Python is asked for it.

CHANGES = (
    *("os.chmod", "os.chown", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink"),
    *("os.truncate", "os.utime", "shutil.rmtree", "tempfile.mkdtemp", "tempfile.mkstemp"),
)
TO_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_changes: list[str] | None = None


def _listen(event: str, arguments: tuple[Any, ...]) -> None:
    if _changes is None:
        return
    if event == "open":
        path, _, flags = arguments
        if isinstance(path, int) or not flags & TO_WRITE or os.fsdecode(path).startswith(("/proc/", "/dev/")):
            return
    elif event not in CHANGES:
        return
    if "__pycache__" not in str(arguments):
        _changes.append(f"{event} {arguments}")


sys.addaudithook(_listen)


@contextmanager
def nothing_changes(folder: Path) -> Iterator[None]:
    """Names, sizes, times and contents below `folder` stay, and nobody asks for a change of anything."""
    global _changes
    before = stamps(folder)
    _changes = []
    try:
        yield
        assert _changes == []
    finally:
        _changes = None
    assert stamps(folder) == before


def stamps(folder: Path) -> dict[Path, tuple[object, ...]]:
    found: dict[Path, tuple[object, ...]] = {}
    for path in [folder, *folder.rglob("*")]:
        info = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[path] = (info.st_ino, info.st_mode, info.st_size, info.st_mtime_ns, content)
    return found


def dry(folder: Path, *arguments: object, home: Path | None = None) -> dict[str, Any]:
    """What a dry run announces."""
    with nothing_changes(folder):
        done = chainctl(*arguments, "--dry-run", "--json", home=home)
    announced: dict[str, Any] = json.loads(done.stdout)
    assert announced["dry_run"] is True
    return announced


def written(announced: dict[str, Any]) -> dict[Path, int | None]:
    return {Path(one["path"]).absolute(): one["bytes"] for one in announced["writes"]}


def size_of(path: Path) -> int:
    return sum(one.stat().st_size for one in [path, *path.rglob("*")] if one.is_file())


@pytest.fixture(scope="module")
def made(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> SignedFederation:
    folder = tmp_path_factory.mktemp("dry") / "federation"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHAINCTL_HOME", str(folder / "home"))
        federation = SignedFederation(folder, tiny_bert).make()
    chosen = fleet.settings(federation={"max_update_norm": "auto"})
    fleet.write_recipe(folder / "recipe.toml", chosen)
    key = federation.keys.open(DEVICE).public
    (folder / "roster.toml").write_text(f'[{DEVICE}]\nkey = "{key}"\nmax_examples = 20\n')
    return federation


@pytest.fixture
def world(made: SignedFederation, tmp_path: Path) -> SignedFederation:
    return made.copy(tmp_path / "world")


def story(world: SignedFederation) -> Iterator[list[object]]:
    """Commands one after the other, each of which goes on from what those before it wrote."""
    here, model = world.folder, ("--model", world.model)
    recipe = ("--recipe", here / "recipe.toml")

    def at(state: str) -> tuple[object, ...]:
        return "--plan", here / "plan", "--state", here / "states" / state

    yield ["keys", "new", "another"]
    yield ["trust", "add", "elsewhere", ELSEWHERE]
    yield ["trust", "remove", "elsewhere"]
    yield ["recipe", "new", here / "new.toml", "--data", world.data]
    yield ["data", "split", world.data, "--devices", 2, "--iid", "--out", here / "shards"]
    yield ["data", "holdout", world.data, "--out", here / "data"]
    yield ["model", "import", world.model, "--out", here / "imported"]
    yield [
        *("profile", *model, "--data", world.data, *recipe, "--device", DEVICE, "--key", DEVICE),
        *("--out", here / "profiles" / "again"),
    ]
    yield [
        *("plan", here / "profiles" / DEVICE, *model, *recipe, "--roster", here / "roster.toml", "--key", OFFICE),
        *("--out", here / "new" / "plan", "--state", here / "new" / "states" / "0000", "--set", "seed=1"),
    ]
    yield [
        *("train-window", *model, *at("0001"), "--data", world.data, "--device", DEVICE, "--key", DEVICE),
        *("--cache-dir", here / "cache", "--out", here / "updates" / "0001" / DEVICE),
    ]
    yield [
        *("aggregate", here / "updates" / "0001", *at("0001"), "--key", OFFICE, "--out", here / "states" / "0002"),
    ]
    yield [
        *("eval", *model, *at("0002"), "--data", world.data, "--key", OFFICE, "--out", here / "evals" / "0002"),
    ]
    yield ["export", *model, *at("0002"), "--evaluation", here / "evals" / "0002", "--out", here / "exported"]
    yield ["bundle", "pack", here / "states" / "0002", here / "plan", "--out", here / "stick.tar", "--split", "64KiB"]
    yield ["bundle", "unpack", here / "stick.tar", "--into", here / "unpacked"]
    yield ["trust", "accept", *at("0002")]


def test_a_dry_run_announces_what_the_command_then_writes(world: SignedFederation) -> None:
    for command in story(world):
        announced = dry(world.folder, *command, home=world.home)
        before = stamps(world.folder)
        chainctl(*command, home=world.home)
        after = stamps(world.folder)
        changed = {path for path, stamp in after.items() if path.is_file() and before.get(path) != stamp}
        kept = {path for path in changed if path.suffix != ".lock"}  # they are empty
        places = written(announced)
        assert before.keys() <= after.keys(), command
        stray = {path for path in kept if not any(path.is_relative_to(place) for place in places)}
        assert not stray, (command, announced)
        for place, size in places.items():
            assert any(path.is_relative_to(place) for path in kept), (command, place)
            assert size is None or size <= size_of(place) <= 2 * size + 2**16, (command, place, size)
        assert all(Path(one["path"]).exists() for one in announced["reads"])


def test_a_command_whose_output_is_there_would_write_nothing(world: SignedFederation) -> None:
    here = world.folder
    common = ("--plan", here / "plan", "--state", here / "states" / "0001", "--data", world.data, "--key", OFFICE)
    command = ["eval", "--model", world.model, *common, "--out", here / "evals" / "0001"]
    announced = dry(here, *command, home=world.home)
    assert announced["writes"] == []
    assert announced["reads"]
    said = chainctl(*command, "--dry-run", home=world.home).stdout
    assert said.splitlines()[-1] == "dry run: nothing was written, and nothing would be"


def test_of_a_plan_and_its_state_only_what_is_missing_would_be_written(world: SignedFederation) -> None:
    here = world.folder
    shutil.rmtree(here / "states")
    roster = ("--roster", here / "roster.toml", "--key", OFFICE)
    command = ["plan", here / "profiles" / DEVICE, "--model", world.model, "--recipe", here / "recipe.toml", *roster]
    outputs = ("--out", here / "plan", "--state", here / "states" / "0000")
    announced = written(dry(here, *command, *outputs, home=world.home))
    assert here / "states" / "0000" in announced
    assert here / "plan" not in announced


def test_a_machine_without_a_home_gets_none(tmp_path: Path) -> None:
    home = tmp_path / "home"
    announced = written(dry(tmp_path, "keys", "new", "office", home=home))
    assert announced.keys() == {home / "keys" / "office.pem", home / "keys" / "office.pub"}
    assert written(dry(tmp_path, "trust", "add", "office", ELSEWHERE, home=home)).keys() == {
        home / "trust" / "coordinators.json"
    }


def training(world: SignedFederation, *more: object, state: str = "0001", device: str = DEVICE) -> list[object]:
    here = world.folder
    return [
        *("train-window", "--model", world.model, "--plan", here / "plan", "--state", here / "states" / state),
        *("--data", world.data, "--device", device, "--key", DEVICE, *more),
    ]


def test_training_says_what_it_trains_in_which_memory(world: SignedFederation) -> None:
    command = training(world, "--out", world.folder / "out", "--memory-budget", "8GiB")
    predicted = dry(world.folder, *command, home=world.home)["predicted"]
    planned = open_artifact(world.folder / "plan", PlanManifest).manifest
    assert predicted["layers"] in [list(entry.assignment.layers) for entry in planned.memory]
    assert (predicted["round"], predicted["texts"], predicted["budget_bytes"]) == (1, 12, 2**33)
    assert 0 < predicted["peak_bytes"] <= 2**33
    assert predicted["in_memory"] == "everything kept"
    assert predicted["scratch_bytes"] == 0 < predicted["scratch_free_bytes"]
    with_checkpoints = written(dry(world.folder, *command, "--checkpoint-every", 1, home=world.home))
    assert world.folder / ".out.checkpoint" in with_checkpoints
    assert "seconds" not in predicted  # of such a round nothing was measured here
    said = chainctl(*command, "--dry-run", home=world.home).stdout
    assert "memory budget: 8.0 GiB" in said
    assert said.splitlines()[-1] == "dry run: nothing was written"
    assert chainctl(*command, "--dry-run", "--quiet", home=world.home).stdout == ""


def test_seconds_are_those_of_the_same_work_on_this_machine(world: SignedFederation) -> None:
    update = world.folder / "updates" / DEVICE
    measured = open_artifact(update, UpdateManifest).measured()
    assert measured is not None
    command = training(world, "--out", update, "--force", state="0000")
    # The machine has gone on to no other state since, so it may train on this one once more.
    announced = dry(world.folder, *command, home=world.home)
    assert announced["predicted"]["seconds"] == measured.seconds
    assert [one["exists"] for one in announced["writes"] if one["path"] == str(update)] == [True]
    said = chainctl(*command, "--dry-run", home=world.home).stdout
    assert f"{update}, at least" in said
    assert "KiB, is there now" in said
    path = update / "measured.json"
    path.write_bytes(path.read_bytes().replace(measured.machine.encode(), b"Another machine"))
    assert "seconds" not in dry(world.folder, *command, home=world.home)["predicted"]


# Refused alike.


def error_of(done: Done) -> str:
    return done.stderr[done.stderr.index("error:") :]


def refused_alike(folder: Path, command: Sequence[object], code: int, home: Path | None = None) -> None:
    with nothing_changes(folder):
        tried = chainctl(*command, "--dry-run", "--json", check=False, home=home)
    done = chainctl(*command, "--json", check=False, home=home)
    assert (tried.returncode, error_of(tried)) == (code, error_of(done))
    assert done.returncode == code
    assert json.loads(tried.stdout)["error"] == json.loads(done.stdout)["error"]


def test_a_dry_run_is_refused_as_the_command_is(world: SignedFederation) -> None:
    here = world.folder
    plan = here / "plan"
    round_ = ("--plan", plan, "--state", here / "states" / "0000", "--key", OFFICE)
    (here / "empty").mkdir()
    pack([here / "updates" / DEVICE], here / "altered.tar")
    fleet.flip(here / "altered.tar", -3000)
    cases: list[tuple[int, list[object]]] = [
        (2, ["keys", "new", OFFICE]),
        (2, ["trust", "remove", "nobody"]),
        (2, ["data", "split", world.data, "--devices", 2, "--iid", "--out", here / "updates"]),
        (2, ["recipe", "new", here / "plan"]),
        (2, ["model", "random", "--like", "nothing", "--out", here / "out"]),
        (2, ["assets", "get", "nothing"]),
        (2, training(world, "--out", here / "plan")),
        (3, training(world, "--out", here / "out", device="tablet")),
        (3, ["data", "holdout", here / "missing.jsonl", "--out", here / "out"]),
        (3, ["bundle", "pack", here / "empty", "--out", here / "x.tar"]),
        (4, ["bundle", "unpack", here / "altered.tar", "--into", here / "out"]),
        (5, training(world, "--out", here / "out", "--memory-budget", "8MiB")),
        (6, ["aggregate", here / "empty", *round_, "--out", here / "out"]),
    ]
    for code, command in cases:
        refused_alike(here, command, code, home=world.home)
    world.strip("plan")
    refused_alike(here, training(world, "--out", here / "out"), 4, home=world.home)


# The coordinator's round.


def test_aggregate_says_which_updates_would_count_and_why_others_would_not(tmp_path: Path) -> None:
    _, state = make_world(tmp_path)
    for seed, name in enumerate(DEVICES):
        changes: dict[str, object] = {"round": 3} if name == "b" else {}
        make_update(tmp_path / "updates" / name, state, name, seed=seed, changes=changes)
    round_ = ("--plan", tmp_path / "plan", "--state", tmp_path / "state", "--out", tmp_path / "next")
    command = ["aggregate", tmp_path / "updates", *round_, "--quorum", 2]
    announced = dry(tmp_path, *command)
    (refused,) = announced["predicted"]["refused"]
    assert announced["predicted"]["accepted"] == ["a", "c"]
    assert (Path(refused["path"]).name, refused["reason"], refused["device"]) == ("b", "another-round", "b")
    assert f"would refuse {refused['path']} (another-round)" in chainctl(*command, "--dry-run").stdout
    done = json.loads(chainctl(*command, "--json").stdout)
    assert done["accepted"] == ["a", "c"]
    assert [(one["path"], one["reason"]) for one in done["refused"]] == [(refused["path"], "another-round")]
    assert all(place.exists() for place in written(announced))
    assert Path(done["refused"][0]["place"]) in written(announced)


def test_too_few_updates_are_too_few_in_a_dry_run(tmp_path: Path) -> None:
    _, state = make_world(tmp_path)
    make_update(tmp_path / "updates" / "a", state, "a", seed=0)
    round_ = ("--plan", tmp_path / "plan", "--state", tmp_path / "state", "--out", tmp_path / "next")
    refused_alike(tmp_path, ["aggregate", tmp_path / "updates", *round_, "--quorum", 2], 6)


# Whole federations, and what comes from elsewhere.


def test_a_simulation_says_how_many_rounds_of_how_many_devices_in_what_memory(tiny_bert: Path, tmp_path: Path) -> None:
    train = fleet.save_texts(tmp_path / "train.jsonl", fleet.texts(12))
    recipe = fleet.write_recipe(tmp_path / "recipe.toml", fleet.settings())
    command = [
        *("simulate", "--model", tiny_bert, "--data", train, "--test", train, "--recipe", recipe, "--devices", 3),
        *("--per-round", 2, "--rounds", 4, "--iid", "--out", tmp_path / "run"),
    ]
    announced = dry(tmp_path, *command)
    predicted = announced["predicted"]
    assert (predicted["devices"], predicted["devices_per_round"], predicted["rounds"]) == (3, 2, 4)
    assert predicted["peak_bytes"] > 0
    assert tmp_path / "run" in written(announced)
    refused_alike(tmp_path, [*command, "--model", tmp_path], 3)


def test_an_asset_that_is_not_in_the_cache_would_be_put_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAINCTL_CACHE", str(tmp_path / "cache"))
    announced = dry(tmp_path, "assets", "get", "minilm", "bbc-news")
    assert [path.parent for path in written(announced)] == [tmp_path / "cache"] * 2
    assert not any(one["exists"] for one in announced["writes"])
    announced = dry(tmp_path, "demo", "--out", tmp_path / "run")
    assert tmp_path / "run" in written(announced)
    assert len(written(announced)) == 3


def test_a_random_model_says_how_large_it_would_be(tmp_path: Path) -> None:
    announced = dry(tmp_path, "model", "random", "--like", "llama-2-7b", "--out", tmp_path / "model")
    assert written(announced) == {tmp_path / "model": 13_476_831_232}


def test_a_recipe_that_would_be_printed_is_not(tmp_path: Path) -> None:
    assert dry(tmp_path, "recipe", "new", "-")["writes"] == []


def test_outside_a_dry_run_nothing_is_noted_and_work_begins() -> None:
    assert not intent.is_dry_run()
    intent.begin()
    with intent.rehearsing() as noted:
        intent.will_write(Path("a/b"), 3)
        intent.begin(Path("a"), Path("c"))
    assert noted.writes == {Path("a/b"): 3, Path("c"): None}
    assert not intent.is_dry_run()
