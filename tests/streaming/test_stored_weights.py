"""Weights stay as they are stored; arithmetic is in another dtype, and gives what the converted model gives."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from schemas.refs import Window
from stages.memory.layers import layer_bytes
from stages.memory.predict import MemoryModel
from stages.model import stored
from stages.model.language_head import LanguageHead
from stages.streaming.placement import PLACEMENTS, SMALLEST
from stages.streaming.stream import load_layers
from stages.training.criterion import backward_with_gradient
from stages.tuning.tuning import UNTUNED
from tests import fleet
from tests.fleet.device import OneDevice, same

FAMILIES = ("bert", "llama", "gpt2", "mixtral", "mamba")
LINEAR = ("bert", "llama", "gpt2", "mamba")  # all their matrices are in linear layers
BLOCK_BYTES = 64 * 64 * 4


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny models' wide matrices take several blocks."""
    monkeypatch.setattr(stored, "BLOCK_BYTES", BLOCK_BYTES)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_ten_steps_are_those_of_the_model_stored_in_float32(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """AdamW on every placement: the tensors of the update, to the bit."""
    kept, single = (
        OneDevice(
            tmp_path / name,
            family,
            epochs=5,
            save=partial(save, dtype=dtype, exact=exact),
        )
        for name, exact in (("half", False), ("single", True))
    )
    assert kept.model.backbone.reader.names.dtype == dtype
    assert kept.model.backbone.dtype == torch.float32
    expected = single.train(PLACEMENTS[0])
    assert any(np.abs(value).max() > 0 for name, value in expected.items() if "up.weight" in name)
    for placement in PLACEMENTS:
        assert same(kept.train(placement), expected)


def save(directory: Path, family: str, *, dtype: torch.dtype, exact: bool) -> Any:
    return fleet.save_stored_as(directory, family, dtype, exact=exact)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "mamba"])
def test_logits_and_losses_are_those_of_transformers_in_float32(family: str, side: str, tmp_path: Path) -> None:
    fleet.save_stored_as(tmp_path, family, torch.bfloat16, factory=AutoModelForCausalLM)
    own: Any = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval().requires_grad_(False)
    backbone, batch = fleet.open_backbone(tmp_path, fleet.settings(**fleet.LANGUAGE)), fleet.batch(side)
    expected = own(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    found = LanguageHead.of(backbone).logits(fleet.stream(backbone, batch, {}), batch)
    real = batch.attention_mask.bool()
    torch.testing.assert_close(found[real], expected[real], rtol=0, atol=0)


@pytest.mark.parametrize("family", LINEAR)
def test_gradients_are_those_of_transformers_in_float32(family: str, tmp_path: Path) -> None:
    """Of every layer's input, given a gradient of the last layer's output."""
    fleet.save_stored_as(tmp_path, family, torch.bfloat16)
    own: Any = AutoModel.from_pretrained(tmp_path, dtype=torch.float32).eval().requires_grad_(False)
    backbone = fleet.open_backbone(tmp_path)
    batch = fleet.batch()
    arriving: list[torch.Tensor] = []

    def keep(module: object, arguments: tuple[Any, ...]) -> tuple[Any, ...]:  # noqa: ARG001
        hidden = arguments[0].requires_grad_()
        hidden.retain_grad()
        arriving.append(hidden)
        return (hidden, *arguments[1:])

    from stages.model.architecture import find_layers

    layers = find_layers(own)[1]
    outputs: list[Any] = []
    handles = [layer.register_forward_pre_hook(keep) for layer in layers]
    handles.append(layers[-1].register_forward_hook(lambda module, inputs, output: outputs.append(output)))
    own(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    for handle in handles:
        handle.remove()
    last = outputs[0][0] if isinstance(outputs[0], tuple) else outputs[0]
    gradient = torch.randn(last.shape, generator=torch.Generator().manual_seed(1))
    last.backward(gradient)
    weights = load_layers(backbone, range(fleet.DEPTH))
    hidden = arriving[0].detach().clone().requires_grad_()
    backward_with_gradient(backbone.run_layers(weights, hidden, batch, UNTUNED), gradient)
    assert hidden.grad is not None
    assert arriving[0].grad is not None
    assert torch.equal(hidden.grad, arriving[0].grad)


@pytest.mark.parametrize("family", FAMILIES)
def test_matrices_of_a_layer_are_in_memory_as_they_are_stored(family: str, tmp_path: Path) -> None:
    fleet.save_stored_as(tmp_path, family, torch.bfloat16)
    backbone = fleet.open_backbone(tmp_path)
    weights = load_layers(backbone, [0])[0]
    names = backbone.skeleton.stay_stored(0)
    assert names
    assert {weights[name].dtype for name in names} == {torch.bfloat16}
    assert {value.dtype for name, value in weights.items() if name not in names} == {torch.float32}
    copied = sum(value.nbytes for name, value in weights.items() if name not in names)
    predicted = layer_bytes(backbone, 0)
    merged = max((value.nbytes // 2 for value in weights.values() if value.dim() == 3), default=0)  # Mixtral's experts
    assert predicted == backbone.reader.layer_bytes(0) + copied + (merged if family == "mixtral" else 0)


def test_a_layer_of_half_the_bytes_needs_half_the_memory(tmp_path: Path) -> None:
    peaks = {}
    for name, exact in (("half", False), ("single", True)):
        fleet.save_stored_as(tmp_path / name, "llama", torch.bfloat16, exact=exact)
        chosen = fleet.settings(adapter={"activation": "silu"})
        memory = MemoryModel(fleet.open_backbone(tmp_path / name, chosen), chosen, 8, tokens=100, baseline_bytes=0)
        peaks[name] = layer_bytes(memory.backbone, 0)
        assert memory.train_layers(Window(start=1, stop=2), SMALLEST, trained=1, first_layer=1, foresight=True) > 0
    assert peaks["half"] <= 0.51 * peaks["single"]
