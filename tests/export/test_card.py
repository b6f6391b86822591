"""The card of an export as `huggingface_hub` reads it: what is added there comes back, offline, and nothing is lost."""

import socket
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from stages.export.export import run
from tests import fleet
from tests.fleet.federation import Federation


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A card with an evaluation."""
    folder = tmp_path_factory.mktemp("card")
    federation = Federation(folder, "bert", fleet.settings())
    fleet.run_eval(folder, federation.model_dir, federation.data, folder / "eval")
    run(**federation.inputs(), out=folder / "out", format="hf", evaluations=[folder / "eval"])
    return folder / "out" / "README.md"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_an_unchanged_card_comes_back_to_the_byte(card: Path, tmp_path: Path) -> None:
    loaded = ModelCard.load(card)
    assert loaded.data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "tags": ["chainctl", "adapters", "federated"],
    }
    loaded.save(tmp_path / "README.md")
    assert ModelCard.load(tmp_path / "README.md").data.to_dict() == loaded.data.to_dict()
    assert (tmp_path / "README.md").read_text().split("---\n", 2)[2] == card.read_text().split("---\n", 2)[2]


def test_licence_base_model_and_metrics_can_be_added(card: Path, tmp_path: Path) -> None:
    loaded = ModelCard.load(card)
    result = EvalResult(
        task_type="text-classification",
        dataset_type="text",
        dataset_name="held out",
        metric_type="accuracy",
        metric_value=0.75,
    )
    added = {"license": "apache-2.0", "base_model": "org/base", "metrics": ["accuracy"], "datasets": ["org/texts"]}
    loaded.data = ModelCardData(**loaded.data.to_dict() | added, model_name="tuned", eval_results=[result])
    loaded.save(tmp_path / "README.md")
    again = ModelCard.load(tmp_path / "README.md")
    assert again.data.to_dict() == loaded.data.to_dict()
    assert again.data.to_dict().items() >= added.items()
    assert again.data.eval_results == [result]
    assert "trust_remote_code=True" in again.text
