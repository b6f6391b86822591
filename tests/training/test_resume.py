"""A train-window that is killed goes on from its checkpoint, to the same bytes as one that was not."""

import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from schemas.checkpoint import CheckpointManifest
from schemas.update import UpdateManifest
from stages.store.artifact import Artifact, open_artifact, read_tensors
from stages.store.signing import SIGNATURE_FILE, KeyRing, check_signature
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


@pytest.fixture(scope="module")
def whole(world: Path, tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of an update whose training was not stopped."""
    return train(world, tiny_bert, tmp_path_factory.mktemp("whole") / "out").digest


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


def stopped(world: Path, model: Path, out: Path, after: int, **options: Any) -> Path:
    """The checkpoint of a training that was stopped."""
    with pytest.MonkeyPatch.context() as patch:
        stop_after(after, patch)
        with pytest.raises(Stopped):
            train(world, model, out, checkpoint_every=1, **options)
    return out.parent / f".{out.name}.checkpoint"


def test_with_a_key_a_checkpoint_is_signed_and_used(
    world: Path, whole: str, tiny_bert: Path, tmp_path: Path, home: Path
) -> None:
    signer = KeyRing(home).new("one")
    checkpoint = stopped(world, tiny_bert, tmp_path / "out", 7, signer=signer)
    artifact = open_artifact(checkpoint, CheckpointManifest)
    check_signature(checkpoint, artifact.bytes(), signer.public, whose="one")
    with pytest.MonkeyPatch.context() as patch:
        stop_after(STEPS - 7, patch)
        made = train(world, tiny_bert, tmp_path / "out", signer=signer)
    assert made.digest == whole
    assert not checkpoint.exists()


@pytest.mark.parametrize(
    "attack", ["no signature", "another key", "signature of another", "other values", "cut", "a line of steps", "empty"]
)
def test_with_a_key_no_other_checkpoint_is_used(
    attack: str,
    world: Path,
    whole: str,
    tiny_bert: Path,
    tmp_path: Path,
    home: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It fits in all that the device knows; whoever can write beside the update could have put it there."""
    signer, stranger = KeyRing(home).new("one"), KeyRing(home).new("stranger")
    out = tmp_path / "out"
    signers = {"no signature": None, "another key": stranger}
    checkpoint = stopped(world, tiny_bert, out, 7, signer=signers.get(attack, signer))
    artifact = open_artifact(checkpoint, CheckpointManifest)
    signature = checkpoint / SIGNATURE_FILE
    if attack == "no signature":
        poisoned = {name: values + 0.05 for name, values in read_tensors(artifact).items()}
        fleet.rewrite(artifact, checkpoint, poisoned, force=True)
    elif attack == "signature of another":
        other = stopped(world, tiny_bert, tmp_path / "other", 3, signer=signer)
        shutil.copy(other / SIGNATURE_FILE, signature)
    elif attack == "other values":
        fleet.flip(checkpoint / "tensors.safetensors", -5)
    elif attack == "cut":
        signature.write_bytes(signature.read_bytes()[:-1])
    elif attack == "a line of steps":
        fewer = artifact.manifest.model_copy(update={"steps": artifact.manifest.steps[:-1]})
        (checkpoint / "manifest.json").write_bytes(fewer.canonical_bytes())
    elif attack == "empty":
        signature.write_bytes(b"")
    with caplog.at_level(logging.WARNING, logger="stages"):
        made = train(world, tiny_bert, out, signer=signer)
    assert made.digest == whole
    assert [record.message.split(": ")[:2] for record in caplog.records] == [
        ["note", "training starts over, without its checkpoint"]
    ]


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
