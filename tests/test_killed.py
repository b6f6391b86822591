"""SIGKILL at any moment: no half artifact, and the same command finishes the work with the same digest."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from schemas.settings import Settings
from schemas.update import UpdateManifest
from stages.store.artifact import open_artifact
from tests import fleet
from tests.fleet import ROOT

KILLS = int(os.environ.get("CHAINCTL_TEST_KILLS", "3"))
ROUNDS = max(18, 6 * KILLS)  # enough to be killed in
TRAININGS = max(2, KILLS // 10)  # kills of a training
EPOCHS = 8 * TRAININGS  # as above


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> list[str]:
    folder = tmp_path_factory.mktemp("killed")
    train = fleet.save_texts(folder / "train.jsonl", fleet.texts(24))
    test = fleet.save_texts(folder / "test.jsonl", fleet.texts(8, seed=9))
    recipe = fleet.write_recipe(folder / "recipe.toml", fleet.settings())
    arguments = [
        *("simulate", "--model", tiny_bert, "--data", train, "--test", test, "--recipe", recipe, "--devices", 2),
        *("--rounds", ROUNDS, "--iid", "--memory-budget", "2GiB", "--json"),
    ]
    return [sys.executable, "-m", "chainctl", *map(str, arguments)]


def test_a_killed_run_leaves_whole_artifacts_and_is_continued_to_the_same_digest(
    command: list[str], tmp_path: Path
) -> None:
    undisturbed = json.loads(
        subprocess.run([*command, "--out", str(tmp_path / "a")], capture_output=True, cwd=ROOT, check=True).stdout
    )
    out, draw = tmp_path / "b", random.Random(0)
    kills = 0
    for _ in range(KILLS):
        if not killed_after(command, out, started=draw.random()):
            break  # it finished first
        kills += 1
        for manifest in out.rglob("manifest.json"):
            if not any(part.startswith(".") for part in manifest.relative_to(out).parts):
                verify(manifest.parent)
    assert kills > 0
    print(f"{kills} kills")
    finished = json.loads(
        subprocess.run([*command, "--out", str(out)], capture_output=True, cwd=ROOT, check=True).stdout
    )
    assert finished["final_state"] == undisturbed["final_state"]
    assert not list(out.rglob("*.partial"))


# What trains with as little in memory as it can: adapters and moments in the scratch folder.  Models that are fast to
# test fit any budget, so the larger placements are taken away.
SMALLEST_ALONE = """
import sys
from chainctl.cli import main
from stages.memory import predict
from stages.streaming.placement import SMALLEST
predict.PLACEMENTS = (SMALLEST,)
main()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "chain",
    [{"foresight": "layers", "window_size": 2, "local_weight": 0.5}, {"method": "full-adapters"}],
    ids=["exact foresight", "full adapters"],
)
def test_a_killed_training_whose_adapters_are_on_disk_goes_on_to_the_same_bytes(
    chain: dict[str, object], tiny_bert: Path, tmp_path: Path
) -> None:
    data = fleet.save_texts(tmp_path / "texts.jsonl", fleet.texts(24))
    method = {"method": "chain"} | chain
    chosen = fleet.settings(optimizer={"batch_size": 4, "epochs": EPOCHS}).model_dump() | {"chain": method}
    fleet.begin(tmp_path, tiny_bert, data, Settings.model_validate(chosen))
    places = ["--plan", tmp_path / "plan", "--state", tmp_path / "state", "--data", data, "--device", "one"]
    options = ["--model", tiny_bert, "--checkpoint-every", 1, "--scratch-dir", tmp_path / "scratch"]
    arguments = ["train-window", *map(str, [*places, *options])]
    whole = fleet.run_train(tmp_path, tiny_bert, data, tmp_path / "whole")
    command = [sys.executable, "-c", SMALLEST_ALONE, *arguments, "--out", str(tmp_path / "out")]
    draw, steps = random.Random(1), [0]
    for _ in range(TRAININGS):
        kept = killed_in_training(command, tmp_path / ".out.checkpoint", tmp_path / "scratch", steps[-1], draw.random())
        if kept is None:
            break  # it finished first
        steps.append(kept)
        assert not (tmp_path / "out").exists()
    print(f"killed after steps {steps[1:]} of {whole.manifest.steps}")
    assert len(steps) > 1
    subprocess.run(command, capture_output=True, cwd=ROOT, check=True)
    assert open_artifact(tmp_path / "out", UpdateManifest).digest == whole.digest
    assert list((tmp_path / "scratch").iterdir()) == []
    assert sorted(path.name for path in tmp_path.glob("*out*")) == ["out"]


def killed_in_training(command: list[str], checkpoint: Path, scratch: Path, before: int, seconds: float) -> int | None:
    """Train until a checkpoint has more steps than `before`, then so many seconds more; the steps that are kept.

    None where it finished first.  Until it was killed it had files in `scratch`, and none of them has a name.
    """
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    while process.poll() is None and (reached := steps_of(checkpoint)) <= before:
        assert reached in (before, 0), "it began again"  # 0: it has just finished
        time.sleep(0.01)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGSTOP)
        # The signal takes its time: until it has stopped, the process opens and closes files.
        changed = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        if changed is None or changed.si_code != os.CLD_STOPPED:
            process.wait()
            return None
        opened = [entry.readlink() for entry in Path(f"/proc/{process.pid}/fd").iterdir()]
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert any(place.parent == scratch for place in opened)
        assert list(scratch.iterdir()) == []
        assert steps_of(checkpoint) > before
        return steps_of(checkpoint)
    return None


def steps_of(checkpoint: Path) -> int:
    """How many steps a checkpoint has; 0 where there is none."""
    try:
        return len(json.loads((checkpoint / "manifest.json").read_bytes())["steps"])
    except FileNotFoundError:
        return 0


def killed_after(command: list[str], out: Path, *, started: float) -> bool:
    """Run until the first artifact of this run appears, then `started` seconds more; whether a kill was needed."""
    before = files(out)
    process = subprocess.Popen(
        [*command, "--out", str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT
    )
    while process.poll() is None and files(out) <= before:
        time.sleep(0.02)
    try:
        process.wait(started)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True
    return False


def files(folder: Path) -> set[str]:
    """What lies there now; folders come and go meanwhile, which `os.walk` does not mind."""
    return {os.path.join(place, name) for place, _, names in os.walk(folder) for name in names}  # noqa: PTH118


def verify(artifact: Path) -> None:
    from stages.store.artifact import verify_artifact

    verify_artifact(artifact)


def test_ctrl_c_says_what_the_same_command_will_do_and_it_does(command: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    many = [*command, "--out", str(out)]
    many[many.index("--rounds") + 1] = "900"  # never finished
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is not
    try:
        process = subprocess.Popen(many, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    finally:
        signal.signal(signal.SIGINT, heard)
    while process.poll() is None and not (out / "states" / "0001").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130
    assert said == (
        "interrupted; nothing half-written was left; run the same command again: it continues from what is finished\n"
    )
    rounds = len(list((out / "states").glob("[0-9]*")))
    first = (out / "states" / "0001" / "manifest.json").stat()
    many[many.index("900")] = str(rounds)  # the first of them are there
    subprocess.run(many, capture_output=True, cwd=ROOT, check=True)
    assert (out / "states" / "0001" / "manifest.json").stat().st_mtime_ns == first.st_mtime_ns
