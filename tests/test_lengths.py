"""How long a text may be: a length above the model's positions is refused before any work, `auto` fits the texts."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from schemas.errors import BadInput, UsageProblem
from schemas.plan import PlanManifest
from schemas.settings import READ_TOKENS, Settings
from stages import generate
from stages.federated.profiles import gather
from stages.inference.generate import Sampling
from stages.memory.fits import predictor
from stages.plan import decide_length
from stages.store.artifact import open_artifact
from tests import fleet

LIMIT = 64  # of the tiny BERT
AUTO: dict[str, Any] = {"encoding": {"max_length": "auto"}}


def texts_of(tokens: Sequence[int]) -> list[dict[str, str]]:
    """Labelled texts of that many tokens, the first of which is [CLS]."""
    return [
        {"text": " ".join(["wave", "soil"][number % 2] for _ in range(count - 1)), "label": fleet.LABELS[number % 2]}
        for number, count in enumerate(tokens)
    ]


def profiled(folder: Path, model_dir: Path, devices: Sequence[Sequence[int]], chosen: Settings) -> list[Path]:
    """A profile of each device, whose texts have those lengths."""
    for number, tokens in enumerate(devices):
        data = fleet.save_texts(folder / f"{number}.jsonl", texts_of(tokens))
        fleet.run_profile(model_dir, data, chosen, folder / f"profile-{number}", device=f"device-{number}")
    return [folder / f"profile-{number}" for number in range(len(devices))]


def planned(folder: Path, model_dir: Path, devices: Sequence[Sequence[int]], chosen: Settings) -> PlanManifest:
    profiles = profiled(folder, model_dir, devices, chosen)
    return fleet.run_plan(profiles, model_dir, chosen, folder / "plan", folder / "state")[0].manifest


@pytest.mark.parametrize(
    ("devices", "most"),
    [
        ([[5] * 10], 8),
        ([[5] * 60, [30] * 40], 32),
        ([[5] * 198, [30] * 2], 8),  # a hundredth of all texts may be longer
        ([[5] * 10, [LIMIT + 20] * 10], LIMIT),
    ],
    ids=["short", "two devices", "few long texts", "longer than the model takes"],
)
def test_auto_is_what_99_percent_of_all_devices_texts_need(
    tmp_path: Path, tiny_bert: Path, devices: list[list[int]], most: int
) -> None:
    plan = planned(tmp_path, tiny_bert, devices, fleet.settings(**AUTO))
    assert plan.settings.encoding.max_length == most
    assert plan.lengths is not None
    assert (plan.lengths.read, plan.lengths.p99) == (LIMIT, most)


def test_a_plan_of_auto_trains_and_evaluates_at_its_number(tmp_path: Path, tiny_bert: Path) -> None:
    settings = fleet.settings(**AUTO)
    data = fleet.save_texts(tmp_path / "data.jsonl", texts_of([5] * 99 + [40]))
    profile = fleet.run_profile(tiny_bert, data, settings, tmp_path / "profile")
    assert profile.manifest.encoding.max_length == LIMIT
    assert profile.manifest.lengths is not None
    assert profile.manifest.lengths.by_percentage() == {50: 8, 90: 8, 99: 8, 100: 40}
    again = fleet.run_profile(tiny_bert, data, settings, tmp_path / "profile")
    assert again.digest == profile.digest
    recipe = fleet.write_recipe(tmp_path / "recipe.toml", settings)
    arguments = [tmp_path / "profile", "--model", tiny_bert, "--recipe", recipe, "--state", tmp_path / "state"]
    said = fleet.chainctl("plan", *arguments, "--out", tmp_path / "plan", "--explain").stdout
    assert 'encoding.max_length = "auto" chose 8: 99 % of all texts have at most that many tokens' in said
    assert "Texts are truncated at 8 tokens: 50 % have at most 8, 90 % have at most 8" in said
    assert "99 % have at most 8, 100 % have at most 40" in fleet.chainctl("inspect", tmp_path / "profile").stdout
    assert open_artifact(tmp_path / "plan", PlanManifest).manifest.settings.encoding.max_length == 8
    for done in (
        fleet.run_train(tmp_path, tiny_bert, data, tmp_path / "update"),
        fleet.run_eval(tmp_path, tiny_bert, data, tmp_path / "evaluation"),
    ):
        measured = done.measured()
        assert measured is not None
        assert measured.texts is not None
        assert (measured.texts.read, measured.texts.truncated) == (100, 1)


def test_a_model_without_a_limit_is_read_up_to_a_cap(tmp_path: Path) -> None:
    fleet.save_model(tmp_path / "llama", "llama")
    plan = planned(tmp_path, tmp_path / "llama", [[5] * 8 + [READ_TOKENS + 100]], fleet.settings(**AUTO))
    assert plan.settings.encoding.max_length == READ_TOKENS
    assert predictor(tmp_path / "llama", fleet.settings(**AUTO)).settings.encoding.max_length == READ_TOKENS


def test_rows_that_texts_share_are_as_long_as_what_is_read() -> None:
    settings = fleet.settings(**fleet.LANGUAGE, encoding={"max_length": "auto", "packing": True})
    profiles = gather([fleet.profile_manifest("a", [0.9] * 6)], fleet.decided())
    assert decide_length(settings.encoding, profiles).max_length == profiles.first.encoding.max_length


def test_a_profile_of_a_number_does_not_decide_auto(tmp_path: Path, tiny_bert: Path) -> None:
    profiles = profiled(tmp_path, tiny_bert, [[5] * 8], fleet.settings())
    with pytest.raises(BadInput, match=r"encoding\.max_length differs") as caught:
        fleet.run_plan(profiles, tiny_bert, fleet.settings(**AUTO), tmp_path / "plan", tmp_path / "state")
    assert caught.value.values == {"recipe": str(LIMIT), "device-0": "16"}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> dict[str, Path]:
    """A recipe of auto, texts and a profile."""
    folder = tmp_path_factory.mktemp("inputs")
    settings = fleet.settings(**AUTO)
    data = fleet.save_texts(folder / "data.jsonl", texts_of([5] * 12))  # none of them is long
    fleet.run_profile(tiny_bert, data, settings, folder / "profile")
    return {"recipe": fleet.write_recipe(folder / "recipe.toml", settings), "data": data, "profile": folder / "profile"}


COMMANDS = {
    "profile": "profile --model {model} --data {data} --device a --out {out}/profile",
    "plan": "plan {profile} --model {model} --out {out}/plan --state {out}/state",
    "doctor": "doctor --model {model}",
    "model info": "model info {model}",
    "simulate": "simulate --model {model} --data {data} --test {data} --devices 2 --iid --rounds 1 --out {out}/run",
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_length_above_the_models_positions_is_refused_before_any_work(
    command: str, inputs: dict[str, Path], tiny_bert: Path, tmp_path: Path
) -> None:
    words = [*command.format(**inputs, model=tiny_bert, out=tmp_path).split(), "--recipe", str(inputs["recipe"])]
    refused = fleet.chainctl(*words, "--set", f"encoding.max_length={LIMIT + 1}", "--json", check=False)
    assert refused.returncode == BadInput.exit_code
    error = json.loads(refused.stdout)["error"]
    assert error["values"] == {"encoding.max_length": str(LIMIT + 1), "limit of this bert": str(LIMIT)}
    assert not any(tmp_path.iterdir())
    fleet.chainctl(*words)  # what the hint says: auto


def test_prompts_and_new_tokens_have_positions(tmp_path: Path) -> None:
    fleet.save_model(tmp_path / "gpt2", "gpt2", factory=AutoModelForCausalLM)
    settings = fleet.settings(**fleet.LANGUAGE)
    data = fleet.save_texts(tmp_path / "data.jsonl", texts_of([5] * 8))
    plan, _ = fleet.begin(tmp_path, tmp_path / "gpt2", data, settings)
    places = fleet.places(tmp_path, tmp_path / "gpt2")
    prompts = generate.as_prompts(["wave soil wave"], plan.manifest)
    with pytest.raises(UsageProblem, match="positions") as caught:
        generate.run(**places, prompts=prompts, sampling=Sampling(LIMIT))
    assert caught.value.values == {"limit in tokens": LIMIT, "the prompt": 4, "--max-new-tokens": LIMIT}
    assert caught.value.hint == "give at most --max-new-tokens 60, or shorter prompts"
    assert len(generate.run(**places, prompts=prompts, sampling=Sampling(60))) == 1
