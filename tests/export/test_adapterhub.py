"""What is written for AdapterHub's library, without it.  Its own values are compared by `just adapterhub`."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import linear
from transformers import AutoModelForSequenceClassification

from schemas.errors import BadInput
from stages.export.adapterhub import reduction_factor
from stages.export.export import run
from stages.tuning.tensors import SUFFIXES
from tests import fleet
from tests.fleet.federation import LANGUAGE, Federation

NAMES = ("adapter_down.0.weight", "adapter_down.0.bias", "adapter_up.weight", "adapter_up.bias")
OWN_HEAD = {"head": {"form": "transformers"}}


@pytest.mark.parametrize(
    ("family", "place"),
    [
        ("bert", "encoder.layer.{}.output.adapters.chainctl"),
        ("roberta", "encoder.layer.{}.output.adapters.chainctl"),
        ("distilbert", "transformer.layer.{}.output_adapters.adapters.chainctl"),
        ("llama", "model.layers.{}.output_adapters.adapters.chainctl"),
    ],
)
def test_adapters_from_the_start_layer_on_by_the_names_of_the_library(family: str, place: str, tmp_path: Path) -> None:
    own = LANGUAGE if family == "llama" else OWN_HEAD
    federation = Federation(tmp_path, family, fleet.settings(**own, chain={"start": 1}))
    run(**federation.inputs(), out=tmp_path / "out", format="adapterhub")
    written = load_file(tmp_path / "out" / "adapter.safetensors")
    state = load_file(federation.state / "tensors.safetensors")
    layers = {int(name.split(".")[1]) for name in state if name.startswith("adapters.")}
    pairs = {
        f"{place.format(layer)}.{theirs}": state[f"adapters.{layer}.{ours}"]
        for layer in layers
        for ours, theirs in zip(SUFFIXES, NAMES, strict=True)
    }
    assert written.keys() == pairs.keys()
    assert all(torch.equal(written[name], value) for name, value in pairs.items())
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["config"]["leave_out"] == [0]
    assert config["config"]["non_linearity"] == ("silu" if family == "llama" else "relu")
    assert config["model_type"] == family


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_the_head_is_two_layers_on_the_first_token(family: str, tmp_path: Path) -> None:
    """As the library builds it from head_config.json: linear, activation, linear."""
    federation = Federation(tmp_path, family, fleet.settings(**OWN_HEAD))
    done = run(**federation.inputs(), out=tmp_path / "out", format="adapterhub")
    run(**federation.inputs(), out=tmp_path / "hf", format="hf")
    assert done.notes == ()
    config = json.loads((tmp_path / "out" / "head_config.json").read_text())["config"]
    assert list(config["label2id"].items()) == [("tide", 0), ("root", 1)]
    weights = load_file(tmp_path / "out" / "model_head.safetensors")
    layer_1, layer_4 = ((weights[f"heads.chainctl.{i}.weight"], weights[f"heads.chainctl.{i}.bias"]) for i in (1, 4))
    batch, expected = federation.answers()
    with torch.no_grad():
        hidden = whole(tmp_path / "hf", batch.input_ids, batch.attention_mask)
        found = linear(getattr(torch, config["activation_function"])(linear(hidden[:, 0], *layer_1)), *layer_4)
    assert torch.equal(found, expected)


def whole(folder: Path, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """What leaves the last layer of an exported classifier (B, S, D)."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True).eval()
    hidden: torch.Tensor = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[-1]
    return hidden


@pytest.mark.parametrize(("family", "form"), [("bert", "mean"), ("llama", "transformers")])
def test_a_head_that_the_library_does_not_build_is_said_to_be_left_out(family: str, form: str, tmp_path: Path) -> None:
    federation = Federation(tmp_path, family, fleet.settings(head={"form": form}))
    done = run(**federation.inputs(), out=tmp_path / "out", format="adapterhub")
    assert "Not in this folder: the trained head" in done.notes[0]
    assert done.notes[0] in (tmp_path / "out" / "README.md").read_text()
    assert not (tmp_path / "out" / "head_config.json").exists()


def test_an_architecture_that_the_library_does_not_know_is_refused(tmp_path: Path) -> None:
    federation = Federation(tmp_path, "qwen3", fleet.settings(**LANGUAGE))
    with pytest.raises(BadInput, match="adapters library") as refusal:
        run(**federation.inputs(), out=tmp_path / "out", format="adapterhub")
    assert refusal.value.values["found"] == "qwen3"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("width", [64, 312, 384, 768, 1024, 4096])
def test_the_library_derives_the_same_bottleneck(width: int) -> None:
    bottlenecks = np.arange(1, width + 1)
    assert [int(width // reduction_factor(width, int(r))) for r in bottlenecks] == bottlenecks.tolist()
