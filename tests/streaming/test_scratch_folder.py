"""Whatever a command puts away goes to the folder of --scratch-dir, and not unasked to a stick."""

import tempfile
from pathlib import Path
from typing import Any

import pytest

from stages.process.scratch import Medium
from stages.streaming.placement import SMALLEST
from tests import fleet


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> set[Path]:
    """The folders of the temporary files that were made; every stage keeps as little as it can in memory."""
    found: set[Path] = set()
    make = tempfile.TemporaryFile

    def recorded(**options: Any) -> Any:
        found.add(options["dir"])
        return make(**options)

    monkeypatch.setattr("stages.streaming.scratch_file.tempfile.TemporaryFile", recorded)
    monkeypatch.setattr("stages.memory.predict.PLACEMENTS", (SMALLEST,))
    monkeypatch.setattr("stages.session.FASTEST", SMALLEST)  # of a simulation
    return found


@pytest.fixture
def world(tmp_path: Path, tiny_bert: Path) -> dict[str, list[Any]]:
    """Arguments of every command that has temporary files, but for the output; outputs go to a folder `stick`."""
    data = fleet.save_texts(tmp_path / "texts.jsonl", fleet.texts(8))
    recipe = fleet.write_recipe(tmp_path / "recipe.toml", fleet.settings())
    fleet.begin(tmp_path, tiny_bert, data, fleet.settings())
    common = ["--model", tiny_bert, "--data", data]
    turn = ["--plan", tmp_path / "plan", "--state", tmp_path / "state"]
    return {
        "profile": [*common, "--device", "one", "--recipe", recipe],
        "train-window": [*common, *turn, "--device", "one"],
        "eval": [*common, *turn],
        "simulate": [*common, "--test", data, "--recipe", recipe, "--devices", 1, "--rounds", 1, "--iid"],
    }


def test_every_command_takes_the_folder_that_it_is_given(
    world: dict[str, list[Any]], used: set[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for command, arguments in world.items():
        used.clear()
        scratch = tmp_path / "scratch" / command
        fleet.chainctl(command, *arguments, "--out", tmp_path / "stick" / command, "--scratch-dir", scratch)
        assert used == {scratch}
        assert list(scratch.iterdir()) == []
    monkeypatch.setenv("CHAINCTL_SCRATCH_DIR", str(tmp_path / "named"))
    fleet.chainctl("eval", *world["eval"], "--out", tmp_path / "stick" / "again")
    assert used == {scratch, tmp_path / "named"}


def test_a_stick_is_not_written_to_unasked(
    world: dict[str, list[Any]], used: set[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def medium(folder: Path) -> Medium:
        return "removable" if "stick" in folder.parts else "disk"

    monkeypatch.setattr("stages.process.scratch.medium_of", medium)
    monkeypatch.setenv("CHAINCTL_CACHE", str(tmp_path / "cache"))
    for command, arguments in world.items():
        fleet.chainctl(command, *arguments, "--out", tmp_path / "stick" / command)
    assert used == {tmp_path / "cache"}
    used.clear()
    train = world["train-window"]
    fleet.chainctl("train-window", *train, "--out", tmp_path / "stick" / "b", "--cache-dir", tmp_path / "hidden")
    fleet.chainctl("train-window", *train, "--out", tmp_path / "home" / "c")
    assert used == {tmp_path / "hidden", tmp_path / "home"}
