"""Permissions of what commands write: the umask narrows all of it, and what is made of private texts stays private."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stages.store.permissions import file_mode, folder_mode
from tests import fleet
from tests.fleet import chainctl


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    """Of everything in a folder, by its path there."""
    return {str(path.relative_to(folder)): stat.S_IMODE(path.lstat().st_mode) for path in folder.rglob("*")}


@pytest.mark.parametrize("mask", [0o077, 0o022, 0o027])
def test_the_umask_narrows_whatever_any_command_writes(mask: int, tiny_bert: Path, tmp_path: Path) -> None:
    texts = fleet.save_texts(tmp_path / "texts.jsonl", fleet.texts(12))
    texts.chmod(0o644)
    out, home = tmp_path / "out", tmp_path / "home"
    model, data, device = ["--model", tiny_bert], ["--data", texts], ["--device", "one"]
    round_ = ["--plan", out / "plan", "--state", out / "states/0000"]
    recipe = fleet.write_recipe(tmp_path / "recipe.toml", fleet.settings())
    cached = ["--cache-dir", tmp_path / "cache"]
    commands: list[list[object]] = [
        ["data", "split", texts, "--devices", "2", "--iid", "--out", out / "data/shards"],
        ["data", "holdout", texts, "--out", out / "data/held"],
        ["recipe", "new", out / "recipe.toml", *data],
        ["profile", *model, *data, *device, "--recipe", recipe, "--memory-budget", "8GiB", "--out", out / "profile"],
        ["plan", out / "profile", *model, "--recipe", recipe, "--out", out / "plan", "--state", out / "states/0000"],
        ["train-window", *model, *round_, *data, *device, *cached, "--checkpoint-every", 1, "--out", out / "in/one"],
        ["aggregate", out / "in", *round_, "--out", out / "states/0001"],
        ["aggregate", out / "in", *round_, "--out", out / "states/0001", "--force"],
        ["eval", *model, *round_, *data, *cached, "--out", out / "eval"],
        ["export", *model, *round_, "--format", "hf", "--out", out / "exported/hf"],
        ["model", "import", tiny_bert, "--out", out / "imported"],
        ["model", "random", "--like", "bert-base", "--layers", "1", "--out", out / "random"],
        ["bundle", "pack", out / "in/one", "--out", out / "bundles/x.tar", "--split", "20KiB"],
        ["bundle", "unpack", out / "bundles/x.tar", "--into", out / "unpacked"],
        ["keys", "new", "one"],
        ["trust", "add", "office", "ed25519:" + "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"],
    ]
    with umask(mask):
        for command in commands:
            chainctl(*command, home=home)
    found = modes(out)
    assert len(found) > 30
    wrong = {
        path: oct(mode) for path, mode in found.items() if mode != (0o777 if (out / path).is_dir() else 0o666) & ~mask
    }
    assert wrong == {}
    wide = {path: oct(mode) for path, mode in modes(home).items() if mode & 0o666 & mask}
    assert wide == {}
    assert modes(home)["keys/one.pem"] == 0o600


@pytest.mark.parametrize(
    ("source", "made"), [(0o600, 0o600), (0o400, 0o600), (0o640, 0o640), (0o644, 0o644), (0o666, 0o644), (0o604, 0o604)]
)
def test_private_texts_stay_private(source: int, made: int, tmp_path: Path) -> None:
    texts = fleet.save_texts(tmp_path / "texts.jsonl", fleet.texts(12))
    texts.chmod(source)
    with umask(0o022):
        chainctl("data", "split", texts, "--devices", "2", "--iid", "--out", tmp_path / "out/shards")
        chainctl("data", "holdout", texts, "--out", tmp_path / "out/held")
    expected = {"shards/device-00.jsonl", "shards/device-01.jsonl", "held/train.jsonl", "held/test.jsonl"}
    found = modes(tmp_path / "out")
    assert {path: found[path] for path in expected} == dict.fromkeys(expected, made)
    assert found["shards"] == found["held"] == folder_mode(made)


def test_the_strictest_file_of_a_folder_of_texts_decides(tmp_path: Path) -> None:
    for name in ("a", "b"):
        fleet.save_texts(tmp_path / "texts" / f"{name}.jsonl", fleet.texts(12)).chmod(0o644)
    (tmp_path / "texts").chmod(0o755)
    assert file_mode(tmp_path / "texts") == 0o644
    (tmp_path / "texts" / "b.jsonl").chmod(0o640)
    assert file_mode(tmp_path / "texts") == 0o640
    (tmp_path / "texts").chmod(0o700)
    assert file_mode(tmp_path / "texts") == 0o600
    with umask(0):
        chainctl("data", "holdout", tmp_path / "texts", "--out", tmp_path / "out")
    assert set(modes(tmp_path / "out").values()) == {0o600}
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o700


def test_the_shards_of_a_simulation_are_as_private_as_its_texts(tiny_bert: Path, tmp_path: Path) -> None:
    texts = fleet.save_texts(tmp_path / "texts.jsonl", fleet.texts(12))
    texts.chmod(0o600)
    recipe = fleet.write_recipe(tmp_path / "recipe.toml", fleet.settings())
    options = ["--devices", 2, "--rounds", 1, "--iid", "--recipe", recipe, "--memory-budget", "8GiB"]
    command = ["simulate", "--model", tiny_bert, "--data", texts, "--test", texts, *options]
    with umask(0o022):
        chainctl(*command, "--out", tmp_path / "run")
    shards = next(path for path in (tmp_path / "run").rglob("device-00.jsonl")).parent
    assert stat.S_IMODE(shards.stat().st_mode) == 0o700
    assert set(modes(shards).values()) == {0o600}
