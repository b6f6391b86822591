"""What trackers are told of a run, as it goes on and afterwards; with the one that needs no library."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from schemas.plan import PlanManifest
from schemas.run import SimulationSummary
from stages.store.artifact import open_artifact, read_manifest
from stages.trackers.content import tracked_run
from tests import fleet

LIBRARIES = ("mlflow", "tensorboard", "wandb")


def simulate(folder: Path, model: Path, *more: object, out: str = "run", rounds: int = 2) -> fleet.Done:
    return fleet.chainctl(
        *("simulate", "--model", model, "--data", folder / "train.jsonl", "--test", folder / "train.jsonl", "--iid"),
        *("--recipe", folder / "recipe.toml", "--devices", 2, "--rounds", rounds, "--out", folder / out, *more),
        check=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    """A run of two rounds, tracked as it went on."""
    folder = tmp_path_factory.mktemp("tracked")
    fleet.save_texts(folder / "train.jsonl", fleet.texts(24))
    fleet.write_recipe(folder / "recipe.toml", fleet.settings())
    done = simulate(folder, tiny_bert, "--track", "jsonl")
    assert done.returncode == 0, done.stderr
    return folder


def lines(directory: Path) -> list[Any]:
    (path,) = directory.glob("*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_settings_and_every_round_are_recorded_as_the_run_goes_on(folder: Path) -> None:
    settings, before, *rounds = lines(folder / "run" / "tracking")
    summary = read_manifest(folder / "run" / "summary.json", SimulationSummary)
    assert settings["plan"] == summary.plan
    assert settings["settings"]["chain.window_size"] == 2
    assert settings["settings"]["devices"] == 2
    assert before == {"round": 0, "accuracy": summary.accuracy_before}
    assert [one["round"] for one in rounds] == [1, 2]
    for told, line in zip(rounds, summary.rounds, strict=True):
        assert {
            name: told[name] for name in ("accuracy", "train_loss", "seconds", "passes", "bytes_up", "peak_bytes")
        } == {
            name: getattr(line, name)
            for name in ("accuracy", "train_loss", "seconds", "passes", "bytes_up", "peak_bytes")
        }


def test_afterwards_the_artifacts_tell_the_same_and_nothing_is_recorded_twice(folder: Path, tmp_path: Path) -> None:
    as_it_went = lines(folder / "run" / "tracking")
    done = fleet.chainctl("track", folder / "run", "--to", "jsonl", "--dir", tmp_path, "--json")
    assert json.loads(done.stdout)["recorded"] == {"jsonl": 3}
    assert lines(tmp_path) == as_it_went
    again = fleet.chainctl("track", folder / "run", "--to", "jsonl", "--dir", tmp_path, "--json")
    assert json.loads(again.stdout)["recorded"] == {"jsonl": 0}
    fleet.chainctl("track", folder / "run", "--to", "jsonl")
    assert lines(folder / "run" / "tracking") == lines(tmp_path) == as_it_went


@pytest.mark.parametrize("content", [b"mine\n", b"[]\n", b'{"plan": 1}\n{"loss": 1}\n', b'{"plan": "sha', b"\xff"])
def test_what_is_something_else_is_refused_and_kept(content: bytes, folder: Path, tmp_path: Path) -> None:
    fleet.chainctl("track", folder / "run", "--to", "jsonl", "--dir", tmp_path)
    (path,) = tmp_path.glob("*.jsonl")
    path.write_bytes(content)
    done = fleet.chainctl("track", folder / "run", "--to", "jsonl", "--dir", tmp_path, check=False)
    assert done.returncode == 3
    assert "holds something else" in done.stderr
    assert path.read_bytes() == content


def test_rounds_that_are_missing_are_added(folder: Path, tmp_path: Path) -> None:
    fleet.chainctl("track", folder / "run", "--to", "jsonl", "--dir", tmp_path)
    (path,) = tmp_path.glob("*.jsonl")
    whole = path.read_bytes()
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:-1]))
    fleet.chainctl("track", folder / "run", "--to", "jsonl", "--dir", tmp_path)
    assert path.read_bytes() == whole


def test_a_run_that_is_continued_adds_its_rounds(folder: Path, tmp_path: Path, tiny_bert: Path) -> None:
    before = lines(folder / "run" / "tracking")
    shutil.copytree(folder / "run", folder / "longer")
    done = simulate(folder, tiny_bert, "--track", "jsonl", "--track-dir", tmp_path, out="longer", rounds=3)
    assert done.returncode == 0
    after = lines(tmp_path)
    assert after[: len(before)] == before
    assert [one["round"] for one in after[1:]] == [0, 1, 2, 3]


def test_no_label_no_text_no_path_and_no_device_is_told(folder: Path) -> None:
    plan = open_artifact(folder / "run" / "plan", PlanManifest)
    run = tracked_run(plan.manifest, plan.digest)
    told = json.dumps([run.name, run.plan, dict(run.settings)]) + json.dumps(lines(folder / "run" / "tracking"))
    hidden = [*fleet.LABELS, *(row["text"] for row in fleet.texts(24)), str(folder), folder.name, "device-0"]
    assert not [one for one in hidden if one in told]
    assert run.settings["labels"] == len(fleet.LABELS)


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_missing_library_is_said_before_any_work(
    name: str, folder: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, f"stages.trackers.{name}", raising=False)
    done = simulate(folder, tiny_bert, "--track", name, out=f"none-{name}")
    assert done.returncode == 3
    assert f"pip install 'chainctl[{name}]'" in done.stderr
    assert not (folder / f"none-{name}").exists()
    done = fleet.chainctl("track", folder / "run", "--to", name, check=False)
    assert f"pip install 'chainctl[{name}]'" in done.stderr


def test_a_dry_run_refuses_a_place_that_can_hold_no_records(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dead").symlink_to("nowhere")
    for place in (tmp_path / "file", tmp_path / "dead", tmp_path / "file" / "below"):
        command = ("track", folder / "run", "--to", "jsonl", "--dir", place)
        tried, done = (fleet.chainctl(*command, *more, check=False) for more in (("--dry-run",), ()))
        assert (tried.returncode, tried.stderr) == (done.returncode, done.stderr)
        assert tried.returncode == 2
    announced = json.loads(fleet.chainctl("track", folder / "run", "--to", "jsonl", "--dry-run", "--json").stdout)
    assert announced["unchecked"] == [f"whether jsonl can go on from what is in {folder / 'run' / 'tracking'}"]
