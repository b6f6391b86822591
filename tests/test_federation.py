"""The five stages through the command line: by hand equals simulated, twice equals once, mixing is refused."""

import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import UsageProblem
from schemas.state import StateManifest
from stages.store.artifact import open_artifact, verify_artifact
from stages.turn import Turn
from tests import fleet
from tests.fleet import ROOT
from tests.fleet.fork_server import chainctl_on_path

ROUNDS = 2


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> dict[str, Path]:
    """A model, training and test texts, a recipe, and a simulated run of three devices."""
    folder = tmp_path_factory.mktemp("world")
    train = fleet.save_texts(folder / "train.jsonl", fleet.texts(48))
    test = fleet.save_texts(folder / "test.jsonl", fleet.texts(20, seed=9))
    recipe = fleet.write_recipe(folder / "recipe.toml", fleet.settings())
    fleet.chainctl(*simulate_arguments(tiny_bert, train, test, recipe, folder / "run"))
    return {"model": tiny_bert, "train": train, "test": test, "recipe": recipe, "run": folder / "run", "folder": folder}


def simulate_arguments(model: Path, train: Path, test: Path, recipe: Path, out: Path) -> list[object]:
    return [
        *("simulate", "--model", model, "--data", train, "--test", test, "--recipe", recipe, "--devices", 3),
        *("--rounds", ROUNDS, "--alpha", 1.0, "--memory-budget", "2GiB", "--out", out),
    ]


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a `chainctl` that runs this source tree."""
    with chainctl_on_path(tmp_path_factory.mktemp("tools")) as folder:
        yield folder


def run_example(script: str, *arguments: object, tools: Path) -> subprocess.CompletedProcess[str]:
    """A script of `examples/`."""
    environment = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}"}
    command = ["bash", str(ROOT / "examples" / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def digest_of(artifact: Path) -> str:
    from schemas.base import sha256_digest

    return sha256_digest((artifact / "manifest.json").read_bytes())


def test_by_hand_equals_simulated(world: dict[str, Path], tools: Path, tmp_path: Path) -> None:
    inputs = (world["model"], world["train"], world["test"], world["recipe"], ROUNDS)
    done = run_example("sneakernet.sh", tmp_path / "work", *inputs, tools=tools)
    simulated = digest_of(world["run"] / "states" / f"{ROUNDS:04d}")
    assert done.stdout.splitlines()[-1] == f"final state {simulated}"
    assert digest_of(tmp_path / "work" / "coordinator" / "plan") == digest_of(world["run"] / "plan")


def test_a_signed_federation_over_a_stick(world: dict[str, Path], tools: Path, tmp_path: Path) -> None:
    inputs = (world["model"], world["train"], world["test"], world["recipe"])
    done = run_example("signed.sh", tmp_path / "work", *inputs, tools=tools)
    assert "altered" in done.stderr
    assert "so far     1 rounds, 2 updates counted, 0 refused" in done.stdout
    assert done.stdout.count("missing    device-01\n") == 1
    assert done.stdout.count("missing    device-00, device-01\n") == 1  # of the next round
    assert (tmp_path / "work" / "office" / "states" / "0001" / "manifest.dsse.json").exists()


def test_each_stage_can_be_a_job_of_its_own(world: dict[str, Path], tools: Path, tmp_path: Path) -> None:
    inputs = (world["model"], world["train"], world["test"], world["recipe"])
    done = run_example("ci/pipeline.sh", tmp_path / "work", *inputs, tools=tools)
    assert done.stdout.count("whole ") == 8


def test_training_lowers_the_loss_of_the_whole_batch(world: dict[str, Path], tmp_path: Path) -> None:
    steps = (
        "--set",
        "optimizer.batch_size=64",
        "--set",
        "optimizer.epochs=20",
        "--set",
        "optimizer.learning_rate=0.01",
    )
    made = {"--plan": tmp_path / "plan", "--state": tmp_path / "state"}
    fleet.chainctl(
        *("plan", world["run"] / "profiles" / "device-00", "--model", world["model"], "--recipe", world["recipe"]),
        *(*steps, "--out", made["--plan"], "--state", made["--state"]),
    )
    done = fleet.chainctl(
        *("train-window", "--model", world["model"], "--data", world["run"] / "shards" / "device-00.jsonl"),
        *("--device", "device-00", "--out", tmp_path / "update", "--json", *(x for pair in made.items() for x in pair)),
    )
    loss = json.loads(done.stdout)["loss"]
    assert loss["last"] < 0.9 * loss["first"]


def test_a_device_with_less_memory_trains_the_last_layers_of_the_window(world: dict[str, Path], tmp_path: Path) -> None:
    run = world["run"]
    for number, device in enumerate(("device-00", "device-01", "device-02")):
        data, size = run / "shards" / f"{device}.jsonl", 1 if number == 0 else None
        out = tmp_path / "in" / device
        fleet.run_train(run, world["model"], data, out, device=device, state="states/0000", window_size=size)
    state = shutil.copytree(run / "states" / "0000", tmp_path / "states" / "0000")  # away from the ledger of the run
    made = fleet.combine(run, [tmp_path / "in"], tmp_path / "states" / "0001", state).manifest
    window = fleet.assigned(open_artifact(run / "states" / "0000", StateManifest)).span
    assert window is not None
    assert [(entry.layer, entry.devices) for entry in made.coverage] == [(window.start, 2), (window.stop - 1, 3)]
    narrow = verify_artifact(tmp_path / "in" / "device-00").manifest
    assert narrow.assignment.layers == (window.stop - 1,)
    with pytest.raises(UsageProblem, match="that many layers") as caught:
        Turn.open(run / "plan", run / "states" / "0000", "device-00", window_size=3)
    assert caught.value.values == {"this round trains": f"2 layers, {window}", "--window-size": 3}


def test_a_machine_that_pinned_somebody_can_still_simulate(world: dict[str, Path], home: Path, tmp_path: Path) -> None:
    fleet.chainctl("trust", "add", "office", "ed25519:" + "fe" * 32)
    inputs = (world["model"], world["train"], world["test"], world["recipe"], tmp_path / "run")
    fleet.chainctl(*simulate_arguments(*inputs), "--rounds", 1)
    refused = fleet.chainctl(
        *("eval", "--model", world["model"], "--plan", tmp_path / "run" / "plan", "--data", world["test"]),
        *("--state", tmp_path / "run" / "states" / "0001", "--out", tmp_path / "eval"),
        check=False,
    )
    assert refused.returncode == 4
    assert sorted(path.name for path in home.iterdir()) == ["trust"]


def test_a_run_started_again_changes_nothing(world: dict[str, Path]) -> None:
    before = snapshot(world["run"])
    inputs = (world["model"], world["train"], world["test"], world["recipe"], world["run"])
    done = fleet.chainctl(*simulate_arguments(*inputs), "--json")
    assert json.loads(done.stdout)["final_state"] == digest_of(world["run"] / "states" / f"{ROUNDS:04d}")
    assert snapshot(world["run"]) == before


def test_a_run_of_something_else_is_not_continued(world: dict[str, Path]) -> None:
    arguments = simulate_arguments(world["model"], world["train"], world["test"], world["recipe"], world["run"])
    done = fleet.chainctl(*arguments, "--set", "seed=5", check=False)
    assert done.returncode == 2
    assert "settings differs" in done.stderr


def test_nothing_outside_the_window_changes(world: dict[str, Path]) -> None:
    states = [read(world["run"] / "states" / f"{number:04d}") for number in range(ROUNDS + 1)]
    for before, after in itertools.pairwise(states):
        layers = before["assignment"]["layers"]
        tensors = {tensor["name"]: tensor["sha256"] for tensor in after["tensors"]}
        for tensor in before["tensors"]:
            group, _, rest = tensor["name"].partition(".")
            trained = group == "head" or int(rest.split(".")[0]) in layers
            assert (tensors[tensor["name"]] != tensor["sha256"]) == trained


def test_the_same_command_twice_gives_the_same_digest(world: dict[str, Path], tmp_path: Path) -> None:
    run = world["run"]
    command = [
        *("train-window", "--model", world["model"], "--plan", run / "plan", "--state", run / "states" / "0001"),
        *("--data", run / "shards" / "device-01.jsonl", "--device", "device-01"),
    ]
    fleet.chainctl(*command, "--out", tmp_path / "one")
    fleet.chainctl_process(*command, "--out", tmp_path / "two")
    assert digest_of(tmp_path / "one") == digest_of(tmp_path / "two")
    assert digest_of(tmp_path / "one") == digest_of(run / "updates" / "0001" / "device-01")
    again = fleet.chainctl(*command, "--out", tmp_path / "two")
    assert again.returncode == 0


@pytest.mark.parametrize(
    ("what", "arguments", "code", "says"),
    [
        ("a device that is not in the plan", {"--device": "stranger"}, 3, "does not take part"),
        ("a state of another plan", {"--plan": "other-plan"}, 3, "another plan"),
        ("a budget below the prediction", {"--memory-budget": "100MiB"}, 5, "does not fit"),
        ("a size that is none", {"--memory-budget": "much"}, 2, "not a size"),
        ("texts with an unknown label", {"--data": "unknown.jsonl"}, 3, "line 1"),
        ("an altered state", {"--state": "altered"}, 4, "altered"),
        ("another base model", {"--model": "other-model"}, 4, "base model"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value else "",
)
def test_what_does_not_go_together_is_refused(
    what: str, arguments: dict[str, str], code: int, says: str, world: dict[str, Path], wrong: Path, tmp_path: Path
) -> None:
    run = world["run"]
    given: dict[str, Any] = {
        "--model": world["model"],
        "--plan": run / "plan",
        "--state": run / "states" / "0001",
        "--data": run / "shards" / "device-01.jsonl",
        "--device": "device-01",
        "--out": tmp_path / "out",
    }
    for option, value in arguments.items():
        given[option] = wrong / value if (wrong / value).exists() else value
    flat = [part for pair in given.items() for part in pair]
    done = fleet.chainctl("train-window", *flat, "--json", check=False)
    assert done.returncode == code, what
    assert says in done.stderr
    assert json.loads(done.stdout)["error"]["exit_code"] == code
    assert "secret" not in done.stderr + done.stdout
    assert not (tmp_path / "out").exists()


def test_profiles_with_different_settings_are_refused_together(world: dict[str, Path], tmp_path: Path) -> None:
    run = world["run"]
    data = run / "shards" / "device-00.jsonl"
    fleet.chainctl(
        *("profile", "--model", world["model"], "--recipe", world["recipe"], "--data", data, "--device", "other"),
        *("--set", "similarity.estimator=biased", "--memory-budget", "2GiB", "--out", tmp_path / "biased"),
    )
    done = fleet.chainctl(
        *("plan", tmp_path / "biased", run / "profiles" / "device-00", "--model", world["model"]),
        *("--recipe", world["recipe"], "--out", tmp_path / "plan", "--state", tmp_path / "state"),
        check=False,
    )
    assert done.returncode == 3
    assert "similarity.estimator" in done.stderr
    assert "biased" in done.stderr
    assert "unbiased" in done.stderr


def test_log_walks_back_to_the_plan(world: dict[str, Path]) -> None:
    done = fleet.chainctl("log", world["run"] / "states" / f"{ROUNDS:04d}", "--json")
    lines = json.loads(done.stdout)["history"]
    assert [line["round"] for line in lines] == [2, 1, 0]
    assert all(line["accuracy"] is not None for line in lines)
    assert lines[-1]["profiles"] == 3


@pytest.mark.parametrize("method", ["full-adapters", "linear-probe", "no-ft"])
def test_the_references_run_through_the_same_stages(method: str, world: dict[str, Path], tmp_path: Path) -> None:
    arguments = simulate_arguments(world["model"], world["train"], world["test"], world["recipe"], tmp_path / "run")
    done = fleet.chainctl(*arguments, "--method", method, "--json")
    summary = json.loads(done.stdout)
    assert len(summary["rounds"]) == (0 if method == "no-ft" else ROUNDS)
    if method == "linear-probe":
        state = read(tmp_path / "run" / "states" / f"{ROUNDS:04d}")
        assert {tensor["name"].split(".")[0] for tensor in state["tensors"]} == {"head"}


@pytest.fixture(scope="module")
def wrong(world: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts, a plan, a state and a model that do not belong to the run."""
    run, folder = world["run"], tmp_path_factory.mktemp("wrong")
    fleet.save_texts(folder / "unknown.jsonl", [{"text": "a secret text", "label": "secretlabel"}])
    fleet.chainctl(
        *("plan", run / "profiles" / "device-00", "--model", world["model"], "--recipe", world["recipe"]),
        *("--set", "seed=9", "--out", folder / "other-plan", "--state", folder / "other-state"),
    )
    shutil.copytree(run / "states" / "0001", folder / "altered")
    tensors = folder / "altered" / "tensors.safetensors"
    fleet.flip(tensors, -1)
    shutil.copytree(world["model"], folder / "other-model")
    config = folder / "other-model" / "tokenizer.json"
    config.write_text(config.read_text() + "\n")
    return folder


def read(artifact: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((artifact / "manifest.json").read_text())
    return document


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
