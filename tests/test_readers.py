"""Every command that reads a federation asks who signed what it reads: what it is given, and what it finds.

What a person gives and nobody vouches for is an error; what a search finds is left out, and that is said once.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schemas.evaluation import EvaluationManifest
from schemas.plan import PlanManifest
from schemas.trust import EnrolledDevice
from stages.store.artifact import open_artifact
from tests import fleet
from tests.fleet.signed import DEVICE, OFFICE, STRANGER, SignedFederation

ONE = {"high": 1.0, "low": 1.0, "value": 1.0}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> SignedFederation:
    with pytest.MonkeyPatch.context() as patch:
        made = SignedFederation(tmp_path_factory.mktemp("readers") / "world", tiny_bert)
        patch.setenv("CHAINCTL_HOME", str(made.home))
        return made.make()


@pytest.fixture
def world(original: SignedFederation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SignedFederation:
    copied = original.copy(tmp_path / "world")
    monkeypatch.setenv("CHAINCTL_HOME", str(copied.home))
    monkeypatch.chdir(copied.folder)
    return copied


# Commands by what they do; each reads the artifacts of its line by its options.
OF_STATE = ("--plan", "plan", "--state", "states/0001")
GIVEN: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "plan": (("profiles/phone",), ("plan", "profiles/phone", "--roster", "roster.toml", "--key", OFFICE)),
    "train-window": (
        ("plan", "states/0001"),
        ("train-window", *OF_STATE, "--data", "data.jsonl", "--device", DEVICE, "--key", DEVICE),
    ),
    "aggregate": (
        ("plan", "states/0000"),
        ("aggregate", "updates", "--plan", "plan", "--state", "states/0000", "--key", OFFICE),
    ),
    "eval": (("plan", "states/0001"), ("eval", *OF_STATE, "--data", "data.jsonl")),
    "eval --benchmark": (("plan", "states/0001"), ("eval", *OF_STATE, "--data", ".", "--benchmark", "mmlu")),
    "generate": (("plan", "states/0001"), ("generate", *OF_STATE, "--prompt", "the tide")),
    "export": (
        ("plan", "states/0001", "evals/0001"),
        ("export", *OF_STATE, "--format", "hf", "--evaluation", "evals/0001"),
    ),
    "log": (("plan", "states/0000", "states/0001"), ("log", "states/0001")),
    "status": (("plan", "states/0001"), ("status", ".")),
    "verify": (
        ("plan", "profiles/phone", "states/0000", "states/0001", "updates/phone", "evals/0001"),
        ("verify", "plan", "profiles/phone", "states/0000", "states/0001", "updates/phone", "evals/0001"),
    ),
}
ATTACKS: dict[str, Callable[[SignedFederation, str], None]] = {
    "unsigned": lambda world, artifact: world.strip(artifact),
    "signed by a stranger": lambda world, artifact: world.sign(artifact, STRANGER),
    "with another's signature": lambda world, artifact: world.swap(
        artifact, "plan" if artifact == "states/0000" else "states/0000"
    ),
}


def run(world: SignedFederation, command: str) -> fleet.Done:
    fleet.write_recipe(world.folder / "recipe.toml", fleet.settings())
    key = world.keys.open(DEVICE).public
    (world.folder / "roster.toml").write_text(f'[{DEVICE}]\nkey = "{key}"\nmax_examples = 20\n')
    arguments = list(GIVEN[command][1])
    if arguments[0] not in ("aggregate", "log", "status", "verify"):
        arguments += ["--model", str(world.model)]
    if arguments[0] == "plan":
        arguments += ["--recipe", "recipe.toml", "--out", "new/plan", "--state", "new/state"]
    elif arguments[0] in ("train-window", "aggregate", "eval", "export"):
        arguments += ["--out", "new"]
    elif arguments[0] == "verify":
        arguments += ["--plan", "plan"]
    return fleet.chainctl(*arguments, check=False)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize(
    ("command", "artifact"), [(command, artifact) for command, (read, _) in GIVEN.items() for artifact in read]
)
def test_what_nobody_vouches_for_is_refused(command: str, artifact: str, attack: str, world: SignedFederation) -> None:
    ATTACKS[attack](world, artifact)
    done = run(world, command)
    assert done.returncode == 4, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "hint:" in done.stderr
    assert not (world.folder / "new").exists()


@pytest.mark.parametrize("command", ["log", "status", "verify", "export"])
def test_what_the_right_key_signed_is_read(command: str, world: SignedFederation) -> None:
    done = run(world, command)
    assert done.returncode in (0, 7), done.stderr
    assert "left out" not in done.stdout + done.stderr


def planted(world: SignedFederation) -> None:
    """What somebody without the office's key can put among the updates: the best of scores, after the last round."""
    lie: dict[str, Any] = {"accuracy": ONE, "round": 10**9}
    world.plant("evals/0001", "updates/unsigned", **lie)
    world.plant("evals/0001", "updates/stranger", key=STRANGER, **lie)
    world.plant("evals/0001", "updates/device", key=DEVICE, **lie | {"loss": 0.5})


@pytest.mark.parametrize("removed", [False, True])
def test_log_and_status_show_only_scores_that_the_coordinator_signed(removed: bool, world: SignedFederation) -> None:
    planted(world)
    true = open_artifact(world.folder / "evals" / "0001", EvaluationManifest).manifest.accuracy.value
    if removed:
        shutil.rmtree(world.folder / "evals")
    log = fleet.chainctl("log", "states/0001", "--search", "updates", "--json")
    found = json.loads(log.stdout)
    assert [line["accuracy"] for line in found["history"]] == [None if removed else true, None]
    assert (found["signed"], found["left_out"]) == (True, 2)  # of three, two are one manifest
    assert log.stderr.count("2 evaluations beside it are not signed by the coordinator, and left out") == 1
    status = fleet.chainctl("status", ".", "--json", check=False)
    assert status.returncode == 7
    assert json.loads(status.stdout)["metric"] == ("" if removed else f"accuracy {true:.4f} after round 1")
    assert status.stderr.count("2 evaluations beside it are not signed by the coordinator, and left out") == 1


def test_status_takes_the_round_from_the_ledger_whoever_signed_an_evaluation(world: SignedFederation) -> None:
    world.sign("evals/0001", OFFICE, round=10**9)
    state = {"state": "sha256:" + "1" * 64}
    world.plant("evals/0001", "evals/elsewhere", key=OFFICE, accuracy=ONE, **state)
    assert "after round 1\n" in fleet.chainctl("status", ".", check=False).stdout


def test_status_counts_what_the_plan_has_done_not_another_in_the_same_folder(world: SignedFederation) -> None:
    before = json.loads(fleet.chainctl("status", ".", "--json", check=False).stdout)
    assert (before["rounds_closed"], before["updates_counted"]) == (1, 1)
    office = world.keys.open(OFFICE)
    planned = open_artifact(world.folder / "plan", PlanManifest).manifest
    fleet.run_plan(
        *([world.folder / "profiles" / DEVICE], world.model, planned.settings),
        *(world.folder / "plan-2", world.folder / "states" / "another"),
        policy=planned.trust.model_copy(update={"expires": "2100-01-01T00:00:00Z"}),
        roster=(EnrolledDevice(name=DEVICE, key=world.keys.open(DEVICE).public, max_example_count=20),),
        signer=office,
    )
    after = json.loads(fleet.chainctl("status", ".", "--json", check=False).stdout)
    assert (after["round"], after["rounds_closed"], after["updates_counted"]) == (0, 0, 0)
    assert after["plan"] != before["plan"]


def test_a_copy_that_somebody_put_before_it_hides_no_state_and_no_plan(world: SignedFederation) -> None:
    for name in ("plan", "states/0000", "states/0001", "evals/0001"):
        shutil.copytree(world.folder / name, world.folder / "a" / name.replace("/", "-"))
        world.strip(f"a/{name.replace('/', '-')}")
    assert [line["round"] for line in json.loads(fleet.chainctl("log", "states/0001", "--json").stdout)["history"]] == [
        1,
        0,
    ]
    status = fleet.chainctl("status", ".", "--json", check=False)
    assert json.loads(status.stdout)["metric"].endswith("after round 1")
    assert json.loads(status.stdout)["left_out"] == 0


def test_without_its_plan_nothing_is_claimed_of_a_state(world: SignedFederation) -> None:
    planted(world)
    shutil.rmtree(world.folder / "plan")
    done = fleet.chainctl("log", "states/0001", "--json")
    found = json.loads(done.stdout)
    assert [line["accuracy"] for line in found["history"]] == [None, None]
    assert found["signed"] is None
    assert "no signature could be checked" in done.stderr
    assert fleet.chainctl("status", ".", check=False).returncode == 3


def test_a_plan_that_has_expired_is_still_history(world: SignedFederation) -> None:
    trust = json.loads((world.folder / "plan" / "manifest.json").read_bytes())["trust"]
    world.sign("plan", OFFICE, trust=trust | {"expires": "2020-01-01T00:00:00Z"})
    world.sign("states/0000", OFFICE, plan=open_artifact(world.folder / "plan", PlanManifest).digest)
    found = json.loads(fleet.chainctl("log", "states/0000", "--json").stdout)
    assert (found["signed"], len(found["history"])) == (True, 1)
    assert "has expired" in fleet.chainctl("verify", "states/0000", "--plan", "plan", check=False).stderr


def test_a_machine_that_pins_another_coordinator_shows_none_of_it(world: SignedFederation, tmp_path: Path) -> None:
    home = tmp_path / "elsewhere"
    fleet.chainctl("trust", "add", "other", world.keys.open(STRANGER).public, home=home)
    for command in (("log", "states/0001"), ("status", "."), ("verify", "states/0001", "--plan", "plan")):
        done = fleet.chainctl(*command, check=False, home=home)
        assert done.returncode == 4
        assert "not pinned here" in done.stderr
