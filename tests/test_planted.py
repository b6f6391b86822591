"""A key signs what its process makes, never what is found: whoever can write to a folder can put anything there.

Each stage that signs is run where an artifact of the right kind and inputs lies already.  docs/threats.md names these
tests.
"""

import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.lm_eval_agreement import write_tasks
from schemas.errors import BadInput, NotTrusted, UsageProblem
from stages import benchmark, harness
from stages.store.artifact import Artifact, open_artifact, read_tensors, verify_artifact
from stages.store.signing import SIGNATURE_FILE, KeyRing, Signer, check_signature
from tests import fleet
from tests.fleet.benchmark_files import save_many
from tests.fleet.speaker import make_speaker

HAS_HARNESS = importlib.util.find_spec("lm_eval") is not None


@dataclass(frozen=True)
class World:
    """Two federations of one device up to their state 0, and an update: of labels, and of a language model."""

    folder: Path
    model: Path
    language: Path

    @property
    def texts(self) -> Path:
        return self.folder / "texts.jsonl"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> World:
    folder, language = tmp_path_factory.mktemp("labels"), tmp_path_factory.mktemp("language")
    data = fleet.save_texts(folder / "texts.jsonl", fleet.texts(12))
    fleet.begin(folder, tiny_bert, data, fleet.settings())
    fleet.run_train(folder, tiny_bert, data, folder / "update")
    make_speaker(language)
    save_many(language / "mmlu")
    write_tasks(language / "tasks")
    return World(folder, tiny_bert, language)


@pytest.fixture
def keys(home: Path) -> KeyRing:
    return KeyRing(home)


@pytest.fixture
def signer(keys: KeyRing) -> Signer:
    return keys.new("office")


Make = Callable[..., Artifact[Any]]  # (world, out, **options)


def profile(world: World, out: Path, **options: Any) -> Artifact[Any]:
    return fleet.run_profile(world.model, world.texts, fleet.settings(), out, **options)


def plan(world: World, out: Path, **options: Any) -> Artifact[Any]:
    return fleet.run_plan([world.folder / "profile"], world.model, fleet.settings(), out, beside(out), **options)[0]


def first_state(world: World, out: Path, **options: Any) -> Artifact[Any]:
    return fleet.run_plan([world.folder / "profile"], world.model, fleet.settings(), beside(out), out, **options)[1]


def beside(out: Path) -> Path:
    return out.parent / "beside"


def update(world: World, out: Path, **options: Any) -> Artifact[Any]:
    return fleet.run_train(world.folder, world.model, world.texts, out, **options)


def next_state(world: World, out: Path, **options: Any) -> Artifact[Any]:
    return fleet.run_aggregate([world.folder / "update"], world.folder / "plan", world.folder / "state", out, **options)


def evaluation(world: World, out: Path, **options: Any) -> Artifact[Any]:
    return fleet.run_eval(world.folder, world.model, world.texts, out, **options)


def perplexity(world: World, out: Path, **options: Any) -> Artifact[Any]:
    folder = world.language
    return fleet.run_eval(folder, folder / "model", folder / "texts.jsonl", out, **options)


def answers(world: World, out: Path, **options: Any) -> Artifact[Any]:
    places = fleet.places(world.language, world.language / "model")
    return benchmark.run(**places, benchmark="mmlu", data=world.language / "mmlu", out=out, limit=2, shots=0, **options)


def harness_scores(world: World, out: Path, **options: Any) -> Artifact[Any]:
    places = fleet.places(world.language, world.language / "model")
    return harness.run(
        **places, tasks=["seaside_choice"], tasks_dir=world.language / "tasks", out=out, limit=3, **options
    )


STAGES = [
    *(profile, plan, first_state, update, next_state, evaluation, perplexity, answers),
    pytest.param(harness_scores, marks=pytest.mark.skipif(not HAS_HARNESS, reason="lm-eval is not installed")),
]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("make", STAGES)
def test_what_fits_and_is_not_signed_stays_unsigned(make: Make, world: World, tmp_path: Path, signer: Signer) -> None:
    """It fits to the last byte, and still nobody knows who made it."""
    out = tmp_path / "here" / "out"
    made = make(world, out, signer=signer)
    (out / SIGNATURE_FILE).unlink()
    planted = files(out)
    with pytest.raises(UsageProblem, match="unsigned") as caught:
        make(world, out, signer=signer)
    assert caught.value.values == {"expected": f"a signature by office {signer.public}", "found": "none"}
    assert "--force" in caught.value.hint
    assert files(out) == planted
    assert make(world, out, signer=signer, force=True).digest == made.digest
    check_signature(out, verify_artifact(out).bytes(), signer.public, whose="office")
    signed = files(out)
    assert make(world, out, signer=signer).digest == made.digest
    assert files(out) == signed


@pytest.mark.parametrize("make", STAGES)
def test_what_another_key_signed_is_refused_with_both(
    make: Make, world: World, tmp_path: Path, keys: KeyRing, signer: Signer
) -> None:
    out = tmp_path / "here" / "out"
    make(world, out, signer=keys.new("stranger"))
    planted = files(out)
    with pytest.raises(NotTrusted, match="another key") as caught:
        make(world, out, signer=signer)
    assert signer.public in str(caught.value)
    assert "--force" in caught.value.hint
    assert files(out) == planted


@pytest.mark.parametrize("make", [update, next_state])
@pytest.mark.parametrize("attack", ["other values", "own signature", "signature of another", "empty signature", "link"])
def test_other_tensors_under_the_right_inputs_are_never_signed(
    make: Make, attack: str, world: World, tmp_path: Path, signer: Signer
) -> None:
    out = tmp_path / "here" / "out"
    made = make(world, out, signer=signer)
    signature = (out / SIGNATURE_FILE).read_bytes()
    artifact = open_artifact(out, type(made.manifest))
    fleet.rewrite(artifact, out, {name: values + 1 for name, values in read_tensors(artifact).items()}, force=True)
    if attack == "own signature":
        (out / SIGNATURE_FILE).write_bytes(signature)
    elif attack == "signature of another":
        shutil.copy(profile(world, tmp_path / "profile", signer=signer).path / SIGNATURE_FILE, out)
    elif attack == "empty signature":
        (out / SIGNATURE_FILE).touch()
    elif attack == "link":
        (tmp_path / "kept").write_bytes(signature)
        (out / SIGNATURE_FILE).symlink_to(tmp_path / "kept")
    planted = files(out)
    with pytest.raises((BadInput, NotTrusted, UsageProblem)) as caught:
        make(world, out, signer=signer)
    assert "--force" in caught.value.hint
    assert files(out) == planted


@pytest.mark.parametrize("make", STAGES)
def test_without_a_key_what_fits_is_taken_as_it_is(make: Make, world: World, tmp_path: Path) -> None:
    out = tmp_path / "here" / "out"
    made = make(world, out)
    there = files(out)
    assert make(world, out).digest == made.digest
    assert files(out) == there


def test_a_signed_plan_whose_state_a_kill_prevented_is_completed(world: World, tmp_path: Path, signer: Signer) -> None:
    out = tmp_path / "plan"
    made, first = plan(world, out, signer=signer), verify_artifact(beside(out)).digest
    shutil.rmtree(beside(out))
    assert plan(world, out, signer=signer).digest == made.digest
    assert verify_artifact(beside(out)).digest == first
    check_signature(beside(out), verify_artifact(beside(out)).bytes(), signer.public, whose="office")
