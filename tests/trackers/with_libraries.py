"""Trackers with the real libraries, read back by their own readers: `just trackers`.

Each library is told twice of the same run, then of a longer one; what it wrote is searched for what it should not know.
"""

from __future__ import annotations

import getpass
import json
import shutil
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from schemas.plan import PlanManifest
from schemas.run import SimulationSummary
from stages.store.artifact import open_artifact, read_manifest
from stages.trackers.content import metrics_of_line, tracked_run
from tests import fleet

Curves = dict[str, list[tuple[int, float]]]  # of each metric: rounds and values, as often as they were recorded


def simulate(folder: Path, model: Path, *more: object, rounds: int) -> None:
    fleet.chainctl(
        *("simulate", "--model", model, "--data", folder / "train.jsonl", "--test", folder / "train.jsonl", "--iid"),
        *("--recipe", folder / "recipe.toml", "--devices", 2, "--rounds", rounds, "--out", folder / "run", *more),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    """A run of two rounds that all three followed."""
    folder = tmp_path_factory.mktemp("with-libraries")
    fleet.save_texts(folder / "train.jsonl", fleet.texts(24))
    fleet.write_recipe(folder / "recipe.toml", fleet.settings())
    trackers = [part for name in READERS for part in ("--track", name)]
    simulate(folder, tiny_bert, *trackers, "--track-dir", folder / "followed", rounds=2)
    return folder / "run"


def read_tensorboard(directory: Path) -> tuple[Curves, Mapping[str, object]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.metadata import PLUGIN_NAME, parse_session_start_info_plugin_data

    (folder,) = {path.parent for path in directory.glob("*/*tfevents*")}
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    curves = {
        tag: [(point.step, point.value) for point in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]
    }
    (content,) = (accumulator.summary_metadata["_hparams_/session_start_info"].plugin_data,)
    assert content.plugin_name == PLUGIN_NAME
    start = parse_session_start_info_plugin_data(content.content)
    settings = {name: getattr(value, str(value.WhichOneof("kind"))) for name, value in start.hparams.items()}
    return curves, settings


def read_mlflow(directory: Path) -> tuple[Curves, Mapping[str, object]]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{directory / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("chainctl")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert set(found.data.tags) == {"chainctl.plan", "mlflow.runName"}
    histories = {name: client.get_metric_history(found.info.run_id, name) for name in found.data.metrics}
    curves = {name: [(point.step, point.value) for point in history] for name, history in histories.items()}
    return curves, found.data.params


def read_wandb(directory: Path) -> tuple[Curves, Mapping[str, object]]:
    from wandb.proto.wandb_internal_pb2 import Record

    from stages.trackers.wandb_log import records

    curves: Curves = {}
    settings: dict[str, object] = {}
    for file in sorted(directory.glob("wandb/offline-run-*/run-*.wandb")):
        for data in records(file):
            record = Record.FromString(data)
            if record.HasField("run"):
                settings |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            for item in record.history.item:
                name = item.key or item.nested_key[0]
                if not name.startswith("_"):
                    curves.setdefault(name, []).append((record.history.step.num, float(json.loads(item.value_json))))
    return curves, settings


READERS: dict[str, Callable[[Path], tuple[Curves, Mapping[str, object]]]] = {
    "tensorboard": read_tensorboard,
    "mlflow": read_mlflow,
    "wandb": read_wandb,
}


def expected(run: Path) -> Curves:
    """Every round once."""
    summary = read_manifest(run / "summary.json", SimulationSummary)
    assert summary.accuracy_before is not None
    curves: Curves = {"accuracy": [(0, summary.accuracy_before)]}
    for line in summary.rounds:
        for name, value in metrics_of_line(line).items():
            curves.setdefault(name, []).append((line.round, value))
    return curves


def check(curves: Curves, run: Path) -> None:
    wanted = expected(run)
    assert curves.keys() == wanted.keys()
    for name, points in wanted.items():
        assert [step for step, _ in curves[name]] == [step for step, _ in points], name
        assert [value for _, value in curves[name]] == pytest.approx([value for _, value in points], rel=1e-6), name


@pytest.mark.parametrize("name", READERS)
def test_a_library_holds_each_round_once_however_often_it_is_told(
    name: str, run: Path, tmp_path: Path, tiny_bert: Path
) -> None:
    followed = run.parent / "followed"
    check(READERS[name](followed)[0], run)
    for _ in range(2):
        fleet.chainctl("track", run, "--to", name, "--dir", tmp_path)
        check(READERS[name](tmp_path)[0], run)
    shutil.copytree(run.parent, tmp_path / "copy")
    simulate(tmp_path / "copy", tiny_bert, "--track", name, "--track-dir", tmp_path, rounds=3)
    check(READERS[name](tmp_path)[0], tmp_path / "copy" / "run")
    assert len(expected(tmp_path / "copy" / "run")["train_loss"]) == 3


@pytest.mark.parametrize("name", READERS)
def test_settings_are_parameters(name: str, run: Path) -> None:
    plan = open_artifact(run / "plan", PlanManifest)
    settings = READERS[name](run.parent / "followed")[1]
    for path, value in tracked_run(plan.manifest, plan.digest).settings.items():
        assert settings[path] in (value, str(value)), path


@pytest.mark.parametrize("name", READERS)
def test_nothing_is_recorded_that_tells_of_texts_or_of_this_machine(name: str, run: Path, tmp_path: Path) -> None:
    """But for the logs that wandb keeps beside a run, and never sends."""
    fleet.chainctl("track", run, "--to", name, "--dir", tmp_path)
    label, *_ = fleet.LABELS
    hidden = [label, *(row["text"] for row in fleet.texts(24)), str(run), str(tmp_path), str(fleet.ROOT)]
    hidden += [f"{getpass.getuser()}@", socket.gethostname(), "device-0", str(Path.home())]
    files = [path for path in tmp_path.rglob("*") if path.is_file() and "logs" not in path.parts]
    assert files
    for path in files:
        assert not [one for one in hidden if one in str(path.relative_to(tmp_path))]
        content = path.read_bytes()
        assert not [one for one in hidden if one.encode() in content], path


def test_wandb_stays_offline_whatever_the_environment_says(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    fleet.chainctl("track", run, "--to", "wandb", "--dir", tmp_path)
    assert [path.name[:12] for path in (tmp_path / "wandb").iterdir()] == ["offline-run-"]
    check(read_wandb(tmp_path)[0], run)
