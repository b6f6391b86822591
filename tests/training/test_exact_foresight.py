"""The exact global branch: a window's gradient is that of the true end-to-end loss, whatever is in memory.

The oracle is transformers' own resident model with adapters as hooks, and autograd.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own convention
from torch import Tensor
from transformers import AutoModelForCausalLM

from schemas.errors import BadInput
from schemas.methods import ChainSettings
from schemas.methods.chain import LossWeights
from schemas.refs import Window
from schemas.settings import Settings
from stages.methods.chain.server import windows_of
from stages.model.architecture import find_layers
from stages.model.language_head import LanguageHead
from stages.streaming.boundaries import Boundaries
from stages.streaming.placement import PLACEMENTS, SMALLEST
from stages.streaming.scratch_file import ScratchFile
from stages.streaming.stream import load_layers
from stages.training.criterion import ClassCriterion, TokenCriterion, backward_with_gradient
from stages.training.objective import Objective
from stages.tuning.adapters import Adapter
from stages.tuning.tuning import BottleneckTuning
from tests import fleet
from tests.fleet.device import OneDevice, same

DEPTH = fleet.DEPTH
EXACT = {"foresight": "layers", "start": 0}


# --------------------------------------------------------------------------------------------------
# against autograd


def window_adapters(window: Window) -> dict[int, Adapter]:
    """Random adapters of all layers; those of the window train."""
    adapters = fleet.random_adapters()
    for layer, adapter in adapters.items():
        for value in adapter.parameters():
            value.requires_grad_(layer in window.layers)
    return adapters


def gradients(adapters: dict[int, Adapter], window: Window) -> list[Tensor]:
    found = [value.grad for layer in window.layers for value in adapters[layer].parameters()]
    assert all(gradient is not None for gradient in found)
    return [gradient for gradient in found if gradient is not None]


@pytest.mark.parametrize("window", [Window(start=0, stop=1), Window(start=0, stop=2), Window(start=1, stop=3)])
@pytest.mark.parametrize("family", ["bert", "llama", "gpt2", "mamba"])
def test_streamed_gradients_are_those_of_autograd_on_the_resident_model(
    family: str, window: Window, tmp_path: Path
) -> None:
    """From the same gradient of the last hidden state down, to the bit, one layer at a time."""
    model = fleet.save_model(tmp_path, family).requires_grad_(False)
    backbone, batch = fleet.open_backbone(tmp_path), fleet.batch()
    theirs, ours = window_adapters(window), window_adapters(window)
    kept: list[Tensor] = []
    with fleet.adapted(model, theirs):
        layers = find_layers(model)[1]
        handle = layers[-1].register_forward_hook(
            lambda m, i, out: kept.append(out[0] if isinstance(out, tuple) else out)
        )
        model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        handle.remove()
    (last,) = kept
    gradient = torch.randn(last.shape, generator=torch.Generator().manual_seed(2))
    last.backward(gradient)
    tuning = BottleneckTuning(ours, {})
    hidden = {window.start: fleet.stream(backbone, batch, ours, window.start)}
    for layer in range(window.start, DEPTH - 1):
        with torch.no_grad():
            hidden[layer + 1] = backbone.run_layers(load_layers(backbone, [layer]), hidden[layer], batch, tuning)
    for layer in reversed(range(window.start, DEPTH)):
        arrived = hidden[layer].detach().requires_grad_(layer != window.start)
        backward_with_gradient(backbone.run_layers(load_layers(backbone, [layer]), arrived, batch, tuning), gradient)
        if layer != window.start:
            assert arrived.grad is not None
            gradient = arrived.grad
    for left, right in zip(gradients(ours, window), gradients(theirs, window), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mamba"])
@pytest.mark.parametrize("window", [Window(start=0, stop=1), Window(start=0, stop=2), Window(start=1, stop=2)])
def test_the_exact_loss_of_a_decoder_has_the_gradient_of_the_whole_model(
    family: str, window: Window, tmp_path: Path
) -> None:
    """With the language head: within 1e-5, since the chunked softmax sums in another order."""
    model = fleet.save_model(tmp_path, family, factory=AutoModelForCausalLM).requires_grad_(False)
    backbone = fleet.open_backbone(tmp_path, fleet.settings(**fleet.LANGUAGE))
    batch, theirs = fleet.batch(), window_adapters(window)
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
    count = int((labels[:, 1:] != -100).sum())
    with fleet.adapted(model, theirs):
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum").div(count).backward()
    targets = torch.cat([labels[:, 1:], torch.full((len(labels), 1), -100)], dim=1)
    for recomputes in (False, True):
        ours = window_adapters(window)
        objective = Objective(
            backbone,
            window,
            BottleneckTuning(ours, {}),
            LossWeights(local=0.0, downstream=1.0, through_layers=True),
            TokenCriterion(LanguageHead.of(backbone)),
            recomputes=recomputes,
        )
        hidden = fleet.stream(backbone, batch, ours, window.start)
        loss = objective.accumulate(
            load_layers(backbone, range(window.start, DEPTH)), hidden, batch, targets, count=count
        )
        assert loss.local is None
        assert loss.total == loss.downstream
        for left, right in zip(gradients(ours, window), gradients(theirs, window), strict=True):
            torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)


def test_layers_that_do_not_train_need_no_backward_pass_whatever_is_in_memory(tmp_path: Path) -> None:
    """Only the head trains, behind frozen layers: its gradient is the same with and without their graph."""
    fleet.save_model(tmp_path, "bert")
    backbone, batch = fleet.open_backbone(tmp_path), fleet.batch()
    found = []
    for recomputes in (False, True):
        head = {name: value.clone().requires_grad_() for name, value in backbone.initial_head.items()}
        objective = Objective(
            backbone,
            Window(start=0, stop=DEPTH),
            BottleneckTuning({}, head),
            LossWeights(),
            ClassCriterion(backbone, head),
            recomputes=recomputes,
        )
        targets = torch.zeros(len(batch.input_ids), dtype=torch.int64)
        hidden = fleet.stream(backbone, batch, {}, 0)
        objective.accumulate(load_layers(backbone, range(DEPTH)), hidden, batch, targets, count=len(targets))
        found.append([value.grad for value in head.values()])
    for left, right in zip(*found, strict=True):
        assert left is not None
        assert right is not None
        assert torch.equal(left, right)


# --------------------------------------------------------------------------------------------------
# whatever is in memory


@pytest.mark.parametrize(
    "weights",
    [{}, {"local_weight": 0.5}, {"local_weight": 1.0, "global_weight": 0.3}, {"local_weight": 1, "global_weight": 0}],
)
@pytest.mark.parametrize("family", ["bert", "llama", "mixtral", "mamba"])
def test_every_placement_trains_the_same_bytes(family: str, weights: dict[str, float], tmp_path: Path) -> None:
    """Through frozen layers behind the window, with and without a local loss: optimiser included."""
    device = OneDevice(tmp_path, family, window_size=1, chain=EXACT | weights)
    expected, *others = (device.train(placement, start=1) for placement in PLACEMENTS)
    assert any(np.abs(value).max() > 0 for name, value in expected.items() if "up.weight" in name)
    assert all(same(expected, other) for other in others)


def test_a_window_of_all_layers_is_full_adapters(tmp_path: Path) -> None:
    exact = OneDevice(tmp_path / "exact", "bert", window_size=DEPTH, chain=EXACT)
    whole = OneDevice(tmp_path / "paper", "bert", window_size=DEPTH)
    assert same(exact.train(SMALLEST), whole.train(PLACEMENTS[0]))


def test_the_last_window_has_one_loss_whatever_the_weights(tmp_path: Path) -> None:
    trained = [
        OneDevice(tmp_path / str(number), "bert", window_size=1, chain=chain).train(SMALLEST, start=DEPTH - 1)
        for number, chain in enumerate(({}, EXACT, EXACT | {"local_weight": 0.5, "global_weight": 0.1}))
    ]
    assert same(trained[0], trained[1])
    assert same(trained[0], trained[2])


def test_exact_foresight_is_not_the_papers(tmp_path: Path) -> None:
    paper = OneDevice(tmp_path / "paper", "bert", window_size=1).train(SMALLEST)
    exact = OneDevice(tmp_path / "exact", "bert", window_size=1, chain=EXACT).train(SMALLEST)
    assert not same(paper, exact)


def test_states_between_layers_are_the_same_in_a_file(tmp_path: Path) -> None:
    """Tensors of any shape and dtype come back, a place is written again, and no file is left behind."""
    kept, filed, before = Boundaries(None), Boundaries(tmp_path), ScratchFile.scratch_bytes_written
    draw = torch.Generator().manual_seed(0)
    for layer, part, shape, dtype in (
        *((layer, part, (2, 3 + part, 4), torch.float32) for layer in range(3) for part in range(2)),
        (1, 1, (2, 7, 4), torch.float32),  # larger than before
        (2, 0, (2, 3, 4), torch.bfloat16),
    ):
        tensor = torch.randn(shape, generator=draw).to(dtype)
        for store in (kept, filed):
            store.put(layer, part, tensor)
    for layer in range(3):
        for part in range(2):
            assert torch.equal(kept.get(layer, part), filed.get(layer, part))
            assert kept.get(layer, part).dtype == filed.get(layer, part).dtype
    assert list(tmp_path.iterdir()) == []
    assert ScratchFile.scratch_bytes_written == before + 4 * (3 * 2 * (3 + 4) * 4 + 2 * 7 * 4) + 2 * (2 * 3 * 4)
    filed.close()


# --------------------------------------------------------------------------------------------------
# which windows


@pytest.mark.parametrize(
    ("order", "stride", "expected"),
    [
        ("upwards", 1, [2, 3, 4, 5, 6]),
        ("downwards", 1, [6, 5, 4, 3, 2]),
        ("upwards", 2, [2, 4, 6]),
        ("downwards", 2, [6, 4, 2]),
        ("upwards", "window", [2, 5, 6]),  # the last is moved back
        ("downwards", "window", [6, 3, 2]),
    ],
)
def test_windows_by_order_and_stride(order: Any, stride: Any, expected: list[int]) -> None:
    chain = ChainSettings(order=order, stride=stride)
    windows = windows_of(chain, 2, 9, 3)
    assert [window.start for window in windows] == expected
    assert {layer for window in windows for layer in window.layers} == set(range(2, 9))


def test_a_stride_that_skips_layers_is_refused() -> None:
    with pytest.raises(BadInput, match="skipped"):
        windows_of(ChainSettings(stride=4), 0, 9, 3)


def test_a_loss_of_nothing_is_refused() -> None:
    for weights in ({"local_weight": 0, "global_weight": 0}, {"foresight": "layers", "global_weight": 0}):
        with pytest.raises(ValueError, match="both 0"):
            Settings.model_validate({"chain": weights})
