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

from tests import fleet
from tests.fleet import ROOT

KILLS = int(os.environ.get("CHAINCTL_TEST_KILLS", "3"))
ROUNDS = max(18, 6 * KILLS)  # enough to be killed in


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
