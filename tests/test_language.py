"""A language model through all stages: dialogues, responses, steps a round, perplexity, generation; as commands."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from schemas.settings import Settings
from stages import plan, profile, train_window
from stages.store.artifact import Artifact
from tests import fleet
from tests.data.test_template import CHATML

TEMPLATE = CHATML.replace("<|im_start|>", "").replace("<|im_end|>", " old").replace("You are helpful", "the")


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
        device: dict[str, Any] = {"device": "one", "memory_budget_bytes": 2**31}
        profile.run(model_dir=model_dir, data=data, settings=chosen, out=folder / "profile", **device)
        plan.run(
            [folder / "profile"], model_dir=model_dir, settings=chosen, out=folder / "plan", state_out=folder / "state"
        )

    def train(self, name: str = "update", **changes: Any) -> Artifact[Any]:
        inputs: dict[str, Any] = {"model_dir": self.model_dir, "data": self.data, "device": "one"}
        inputs |= {"plan": self.folder / "plan", "state": self.folder / "state"}
        return train_window.run(**(inputs | changes), out=self.folder / name)
