"""A language model through all stages: dialogues, responses, steps a round, perplexity, generation; as commands."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from schemas.settings import Settings
from stages.store.artifact import Artifact
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
