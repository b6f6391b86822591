"""A train-window that is killed goes on from its checkpoint, to the same bytes as one that was not."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from schemas.checkpoint import CheckpointManifest
from schemas.update import UpdateManifest
from stages.store.artifact import Artifact, open_artifact
from stages.training.optimizer import Optimizer
from stages.training.resume import TrainingCheckpoint
from tests import fleet

STEPS = 12  # 24 texts, 4 a step, two epochs


class Stopped(Exception):
    """As a kill between two steps would leave things."""


@pytest.fixture(scope="module", params=["adamw", "sgd"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    optimizer = {"name": request.param, "batch_size": 4, "epochs": 2, "momentum": 0.9}
    data = fleet.save_texts(folder / "texts.jsonl", fleet.texts(24))
    fleet.begin(folder, tiny_bert, data, fleet.settings(optimizer=optimizer))
    return folder


def train(world: Path, model: Path, out: Path, **options: Any) -> Artifact[UpdateManifest]:
    return fleet.run_train(world, model, world / "texts.jsonl", out, **options)


def stop_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next training stops before it takes one step more."""
    taken = 0
    step = Optimizer.step

    def counted(self: Optimizer) -> None:
        nonlocal taken
        taken += 1
        if taken > steps:
            raise Stopped
        step(self)

    monkeypatch.setattr(Optimizer, "step", counted)


@pytest.mark.parametrize("stops", [(5,), (3, 3, 4), (1, 1), (11,)])
def test_stopped_anywhere_it_goes_on_to_the_same_bytes(
    stops: tuple[int, ...], world: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    whole = train(world, tiny_bert, tmp_path / "whole")
    out, checkpoint = tmp_path / "out", tmp_path / ".out.checkpoint"
    before = 0
    for steps in stops:
        with pytest.MonkeyPatch.context() as patch:
            stop_after(steps, patch)
            with pytest.raises(Stopped):
                train(world, tiny_bert, out, checkpoint_every=1)
        before += steps
        assert len(open_artifact(checkpoint, CheckpointManifest).manifest.steps) == before
        assert not out.exists()
    with pytest.MonkeyPatch.context() as patch:
        stop_after(STEPS - before, patch)  # no step is taken twice
        made = train(world, tiny_bert, out, checkpoint_every=5)
    assert made.digest == whole.digest
    assert not checkpoint.exists()


@pytest.mark.parametrize("attack", ["altered", "cut", "foreign", "empty"])
def test_a_checkpoint_that_cannot_be_used_is_as_good_as_none(
    attack: str, world: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    out, checkpoint = tmp_path / "out", tmp_path / ".out.checkpoint"
    with pytest.MonkeyPatch.context() as patch:
        stop_after(4, patch)
        with pytest.raises(Stopped):
            train(world, tiny_bert, out, checkpoint_every=2)
    tensors = checkpoint / "tensors.safetensors"
    if attack == "altered":
        fleet.flip(tensors, -5)
    elif attack == "cut":
        tensors.write_bytes(tensors.read_bytes()[:-1])
    elif attack == "foreign":
        manifest = open_artifact(checkpoint, CheckpointManifest).manifest
        other = manifest.model_copy(update={"device": "two"})
        (checkpoint / "manifest.json").write_bytes(other.canonical_bytes())
    else:
        shutil.rmtree(checkpoint)
        checkpoint.mkdir()
    assert train(world, tiny_bert, out).digest == train(world, tiny_bert, tmp_path / "whole").digest
    assert not checkpoint.exists()


def test_killed_for_real_between_checkpoints(world: Path, tiny_bert: Path, tmp_path: Path) -> None:
    """SIGKILL while the seventh checkpoint is being written."""
    script = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[1])\n"
        "from stages.training.resume import TrainingCheckpoint\n"
        "from stages.store import artifact\n"
        "finish, count = artifact.Draft.finish, 0\n"
        "def dying(self, manifest, measured):\n"
        "    global count; count += 1\n"
        "    if count == 7: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    finish(self, manifest, measured)\n"
        "artifact.Draft.finish = dying\n"
        "from chainctl.cli import main; sys.argv = ['chainctl', *sys.argv[2:]]; main()\n"
    )
    arguments = [
        *("train-window", "--model", tiny_bert, "--plan", world / "plan", "--state", world / "state"),
        *("--data", world / "texts.jsonl", "--device", "one", "--out", tmp_path / "out", "--checkpoint-every", 1),
    ]
    killed = subprocess.run(
        [sys.executable, "-c", script, str(fleet.ROOT), *map(str, arguments)], check=False, cwd=tmp_path
    )
    assert killed.returncode == -9
    kept = open_artifact(tmp_path / ".out.checkpoint", CheckpointManifest).manifest
    assert len(kept.steps) == 6
    fleet.chainctl(*arguments)
    whole = train(world, tiny_bert, tmp_path / "whole")
    assert open_artifact(tmp_path / "out", UpdateManifest).digest == whole.digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_checkpoints_lie_beside_the_update_and_are_off_by_default(world: Path, tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingCheckpoint, "save", lambda *_: pytest.fail("nobody asked for one"))
        assert train(world, tiny_bert, tmp_path / "out").manifest.steps == STEPS
