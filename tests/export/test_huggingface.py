"""An exported folder loads in transformers, offline, and gives the values of the streamed model: difference 0.0."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from schemas.errors import BadInput, UsageProblem
from schemas.state import StateManifest
from stages import eval as evaluation
from stages.export.export import run
from stages.model.skeleton import Batch
from stages.store.artifact import open_artifact
from tests import fleet
from tests.export.federation import LANGUAGE, Federation

DECODERS = ("llama", "qwen3", "gemma3", "gpt2", "opt", "mixtral", "mamba")
ENCODERS = ("bert", "roberta", "distilbert", "modernbert")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@torch.no_grad()
def difference(loaded: Any, batch: Batch, expected: Tensor) -> float:
    found = loaded(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits.float()
    if found.dim() == 3:
        found, expected = found[batch.attention_mask.bool()], expected[batch.attention_mask.bool()]
    return float((found - expected).abs().max())


def load(factory: Any, folder: Path) -> Any:
    loaded, report = factory.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    assert not report["missing_keys"], report
    assert not report["unexpected_keys"], report
    return loaded.eval()


@pytest.mark.parametrize(
    ("family", "dtype"),
    # Mamba's own forward keeps float32 between bfloat16 layers, the stages do not.
    [*((family, "float32") for family in DECODERS), *((family, "bfloat16") for family in DECODERS[:-1])],
)
def test_a_language_model_is_the_streamed_one(family: str, dtype: str, tmp_path: Path) -> None:
    federation = Federation(tmp_path, family, fleet.settings(**LANGUAGE, numerics={"dtype": dtype}))
    done = run(**federation.inputs(), out=tmp_path / "out", format="hf")
    assert done.path == tmp_path / "out"
    loaded = load(AutoModelForCausalLM, tmp_path / "out")
    assert str(loaded.dtype) == f"torch.{dtype}"
    assert difference(loaded, *federation.answers()) == 0.0


@pytest.mark.parametrize("form", ["mean", "transformers"])
@pytest.mark.parametrize("family", [*ENCODERS, "llama", "gpt2"])
def test_a_classifier_is_the_streamed_one(family: str, form: str, tmp_path: Path) -> None:
    federation = Federation(tmp_path, family, fleet.settings(head={"form": form}))
    run(**federation.inputs(), out=tmp_path / "out", format="hf")
    loaded = load(AutoModelForSequenceClassification, tmp_path / "out")
    assert difference(loaded, *federation.answers()) == 0.0
    assert loaded.config.id2label == dict(enumerate(fleet.LABELS))


def test_a_tied_head_is_not_written_twice_and_shards_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.model.shards.group.__kwdefaults__", {"limit_bytes": 60_000})
    federation = Federation(tmp_path, "llama", fleet.settings(**LANGUAGE), tie_word_embeddings=True)
    run(**federation.inputs(), out=tmp_path / "out", format="hf")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    assert "lm_head.weight" not in index["weight_map"]
    loaded = load(AutoModelForCausalLM, tmp_path / "out")
    assert difference(loaded, *federation.answers()) == 0.0


def test_it_generates_with_its_tokenizer(tmp_path: Path) -> None:
    federation = Federation(tmp_path, "llama", fleet.settings(**LANGUAGE))
    run(**federation.inputs(), out=tmp_path / "out", format="hf")
    loaded = load(AutoModelForCausalLM, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    written = loaded.generate(
        **tokenizer("the moon", return_tensors="pt", return_token_type_ids=False), max_new_tokens=4
    )
    assert written.shape[1] > 2


def test_the_same_state_gives_the_same_bytes_with_a_card(tmp_path: Path) -> None:
    federation = Federation(tmp_path, "bert", fleet.settings())
    evaluation.run(**federation.inputs(), data=federation.data, out=tmp_path / "eval")
    for name in ("a", "b"):
        run(**federation.inputs(), out=tmp_path / name, format="hf", evaluations=[tmp_path / "eval"])
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "b").iterdir())
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)
    card = (tmp_path / "a" / "README.md").read_text()
    state = open_artifact(federation.state, StateManifest)
    for wanted in (state.digest, state.manifest.plan, "| accuracy", "texts on them", "| 12", "trust_remote_code=True"):
        assert wanted in card, wanted
    assert card.startswith("---\nlibrary_name: transformers\n")


def test_an_evaluation_of_another_state_is_refused(tmp_path: Path) -> None:
    federation = Federation(tmp_path, "bert", fleet.settings())
    inputs = federation.inputs() | {"state": tmp_path / "fresh"}
    evaluation.run(**inputs, data=federation.data, out=tmp_path / "eval")
    with pytest.raises(BadInput, match="evaluates another state"):
        run(**federation.inputs(), out=tmp_path / "out", format="hf", evaluations=[tmp_path / "eval"])
    with pytest.raises(BadInput, match="is no evaluation"):
        run(**federation.inputs(), out=tmp_path / "out", format="hf", evaluations=[tmp_path / "plan"])
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageProblem, match="exists already"):
        run(**federation.inputs(), out=tmp_path / "out", format="hf")
