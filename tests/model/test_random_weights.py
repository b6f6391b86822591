"""Made-up models: what transformers would have saved, in constant memory, the same for the same seed."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from schemas.errors import UsageProblem
from stages.model import random_weights
from stages.model.random_weights import LIKE, write_random_model
from tests import fleet


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same architectures, narrow enough for a test."""
    for name, likeness in LIKE.items():
        narrow = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 300, "num_attention_heads": 4}
        narrow |= {"num_key_value_heads": 2, "head_dim": 16} if likeness.language_model else {}
        monkeypatch.setitem(
            LIKE,
            name,
            random_weights.ModelPreset(
                likeness.config, {**likeness.values, **narrow}, likeness.dtype, likeness.language_model
            ),
        )


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("like", sorted(LIKE))
def test_transformers_and_we_read_it_with_nothing_missing(like: str, tmp_path: Path) -> None:
    write_random_model(like, tmp_path / "model", layers=2)
    factory = AutoModelForCausalLM if LIKE[like].language_model else AutoModel
    model, report = factory.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.config.num_hidden_layers == 2
    weights = [value for name, value in model.named_parameters() if value.dim() > 1]
    assert all(0.01 < float(value.detach().float().std()) < 0.03 for value in weights)
    chosen = fleet.settings(task={"kind": "causal-lm", "labels": ()} if LIKE[like].language_model else {})
    assert fleet.open_backbone(tmp_path / "model", chosen, pad_id=1).num_layers == 2


@pytest.mark.usefixtures("small")
def test_the_same_seed_gives_the_same_bytes_in_shards_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = set()
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_random_model("bert-base", tmp_path / folder, seed=seed, layers=2)
        digests.add(hashlib.sha256((tmp_path / folder / "model.safetensors").read_bytes()).hexdigest())
    assert len(digests) == 2
    monkeypatch.setattr(random_weights, "SHARD_BYTES", 100_000)
    write_random_model("bert-base", tmp_path / "shards", seed=1, layers=2)
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    whole, parts = (AutoModel.from_pretrained(tmp_path / name).state_dict() for name in ("a", "shards"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_name_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match="no such model") as caught:
        write_random_model("gpt-17", tmp_path / "model")
    assert "roberta-large" in str(caught.value)


def test_what_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(UsageProblem, match="exists"):
        write_random_model("bert-base", tmp_path / "model")


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("like", ["gemma-3-4b", "qwen3-8b"])
def test_more_layers_than_the_original_list_their_types_too(like: str, tmp_path: Path) -> None:
    write_random_model(like, tmp_path / "model", layers=40)
    assert len(json.loads((tmp_path / "model" / "config.json").read_text())["layer_types"]) == 40
