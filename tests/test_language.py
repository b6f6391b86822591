"""A language model through all stages: dialogues, responses, steps a round, perplexity, generation; as commands."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own convention
from transformers import AutoModelForCausalLM

from schemas.errors import BadInput
from schemas.evaluation import Estimate
from schemas.perplexity import PerplexityManifest
from schemas.plan import PlanManifest
from schemas.settings import Settings
from stages.data.encode import Encoder
from stages.data.load import load_labelled
from stages.eval import perplexity
from stages.federation import simulate
from stages.federation.prepare import Federation
from stages.store.artifact import Artifact, open_artifact
from tests import fleet

# ChatML's form in words of the tiny vocabulary.
TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}{{ 'system\nthe old\n' }}{% endif %}"
    "{{ message['role'] + '\n' + message['content'] + ' old' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant\n' }}{% endif %}"
)


def language(**sections: dict[str, Any]) -> Settings:
    base: dict[str, dict[str, Any]] = {
        "task": {"kind": "causal-lm", "labels": ()},
        "prompt": {"format": "alpaca"},
        "encoding": {"max_length": 24},
        "optimizer": {"learning_rate": 1e-2, "steps": 3, "batch_size": 4},
    }
    for name, section in sections.items():
        base.setdefault(name, {}).update(section)
    return fleet.settings(**base)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-llama")
    fleet.save_model(folder, "llama", factory=AutoModelForCausalLM)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [{"instruction": row["text"], "output": f"{row['label']} wave soil", **row} for row in fleet.texts(40)]
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class World:
    """One device up to state 0."""

    def __init__(self, folder: Path, model_dir: Path, data: Path, chosen: Settings) -> None:
        self.folder, self.model_dir, self.data = folder, model_dir, data
        fleet.begin(folder, model_dir, data, chosen)

    def train(self, name: str = "update", **changes: Any) -> Artifact[Any]:
        return fleet.run_train(self.folder, self.model_dir, self.data, self.folder / name, **changes)

    def evaluate(self, name: str, state: str) -> PerplexityManifest:
        """On the device's own texts."""
        found = fleet.run_eval(self.folder, self.model_dir, self.data, self.folder / name, state=state).manifest
        assert isinstance(found, PerplexityManifest)
        return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, model_dir: Path, data: Path) -> World:
    return World(tmp_path_factory.mktemp("world"), model_dir, data, language())


@torch.no_grad()
def test_perplexity_is_that_of_the_resident_model_over_the_responses(world: World) -> None:
    """State 0 is the pre-trained model; each text alone, without padding."""
    settings = open_artifact(world.folder / "plan", PlanManifest).manifest.settings
    encoder = Encoder.load(world.model_dir, settings.encoding, settings.prompt)
    model = AutoModelForCausalLM.from_pretrained(world.model_dir)
    losses: list[torch.Tensor] = []
    for text in encoder.encode_examples(load_labelled(world.data, settings.task, settings.prompt)):
        assert text.in_loss is not None
        assert 0 < text.in_loss.sum() < len(text.ids)
        logits = model(torch.from_numpy(text.ids)[None]).logits[0, :-1]
        of_each = F.cross_entropy(logits, torch.from_numpy(text.ids[1:]).long(), reduction="none")
        losses.append(of_each[torch.from_numpy(text.in_loss[1:])])
    expected = torch.cat(losses).double()
    found = world.evaluate("untrained", "state")
    assert (found.example_count, found.token_count) == (40, len(expected))
    assert found.loss.value == pytest.approx(float(expected.mean()), abs=1e-5)
    assert found.perplexity.value == pytest.approx(math.exp(found.loss.value))


def test_a_loss_above_all_that_has_an_exponential_is_an_evaluation_too() -> None:
    assert perplexity(2.0) == math.exp(2.0)
    assert Estimate(value=perplexity(1e30), low=perplexity(709.5), high=perplexity(2.0**127)).low == math.exp(709)


def test_a_round_takes_the_steps_that_the_plan_says_and_lowers_the_perplexity(world: World) -> None:
    trained = world.train()
    assert trained.manifest.steps == 3
    fleet.combine(world.folder, [trained.path])
    before, after = world.evaluate("before", "state"), world.evaluate("after", "next")
    assert after.round == 1
    assert after.perplexity.value < before.perplexity.value


def test_chats_and_instructions_go_through_every_command(model_dir: Path, data: Path, tmp_path: Path) -> None:
    recipe = fleet.write_recipe(tmp_path / "recipe.toml", language())
    model, plan, state = ("--model", model_dir), ("--plan", tmp_path / "plan"), ("--state", tmp_path / "state")
    device = ("--data", data, "--device", "one", "--memory-budget", "8GiB")
    fleet.chainctl("profile", *model, "--recipe", recipe, *device, "--out", tmp_path / "profile")
    fleet.chainctl("plan", tmp_path / "profile", *model, "--recipe", recipe, "--out", tmp_path / "plan", *state)
    fleet.chainctl("train-window", *model, *plan, *state, *device, "--out", tmp_path / "update")
    fleet.chainctl("aggregate", tmp_path / "update", *plan, *state, "--out", tmp_path / "next")
    following = ("--state", tmp_path / "next")
    judged = fleet.chainctl("eval", *model, *plan, *following, "--data", data, "--out", tmp_path / "eval", "--json")
    assert json.loads(judged.stdout)["perplexity"]["value"] > 1
    asks = ("--prompt", "the old moon", "--max-new-tokens", 4, "--before", "--json")
    (answer,) = json.loads(fleet.chainctl("generate", *model, *plan, *following, *asks).stdout)["texts"]
    assert answer["before"] != ""
    assert answer["after"] != ""


def as_dialogues(data: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    turns = [[("user", row["instruction"]), ("assistant", row["output"])] for row in rows]
    return [{"messages": [{"role": role, "content": content} for role, content in dialogue]} for dialogue in turns]


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_questions_without_answers_are_prompts_in_every_format(model_dir: Path, data: Path, tmp_path: Path) -> None:
    """With or without what follows them: the answer is the same."""
    dialogues = as_dialogues(data)
    asked = dialogues[0]["messages"][0]["content"]
    questions: dict[str, list[Any]] = {
        "alpaca": [{"instruction": asked}, {"instruction": asked, "input": "", "output": "wave"}],
        "chat": [
            {"messages": dialogues[0]["messages"][:1]},
            dialogues[0],
            {"conversations": [{"from": "human", "value": asked}]},
        ],
        "plain": [{"text": asked}],
    }
    chats = write(tmp_path / "chats.jsonl", dialogues)
    for format, records in questions.items():
        texts, chosen = chats if format == "chat" else data, language(prompt={"format": format})
        world = World(tmp_path / format, model_dir, texts, chosen)
        prompts = write(world.folder / "questions.jsonl", records)
        chain = ("--model", model_dir, "--plan", world.folder / "plan", "--state", world.folder / "state")
        said = fleet.chainctl("generate", *chain, "--prompts", prompts, "--max-new-tokens", 4, "--json").stdout
        found = [one["after"] for one in json.loads(said)["texts"]]
        assert len(found) == len(records)
        assert len(set(found)) == 1


def test_a_simulation_refuses_a_dialogue_by_the_line_of_its_file_and_begins_when_it_is_gone(
    model_dir: Path, data: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(model_dir, model)
    refuse = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    (model / "chat_template.jinja").write_text(refuse + TEMPLATE)
    good = as_dialogues(data)[:16]
    bad = {"messages": [{"role": "system", "content": "the"}, *good[0]["messages"]]}
    texts = tmp_path / "data.jsonl"
    chosen = Federation(model, texts, texts, language(prompt={"format": "chat"}), devices=2, rounds=1, alpha=None)
    write(texts, [*good[:9], bad, *good[9:]])
    with pytest.raises(BadInput, match=rf"{texts}, line 10: the chat template refuses this dialogue"):
        simulate.run(chosen, out=tmp_path / "run")
    write(texts, good)
    assert simulate.run(chosen, out=tmp_path / "run").rounds
