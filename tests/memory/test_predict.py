"""Predicted memory against what allocation counts and the operating system say."""

from pathlib import Path

import pytest
import torch

from schemas.errors import DoesNotFit
from schemas.refs import Window
from stages.memory.layers import meta_weights
from stages.memory.live_bytes import LiveBytes
from stages.memory.predict import MemoryModel, fit
from stages.process.fork import run_in_fork
from stages.streaming.placement import PLACEMENTS, SMALLEST, Placement
from stages.tuning.adapters import Adapter
from stages.tuning.tuning import BottleneckTuning
from tests import fleet

MIB = 2**20


def test_live_bytes_counts_what_lives_at_once() -> None:
    live = LiveBytes()
    with live:
        first = torch.zeros(1000, dtype=torch.uint8)
        second = torch.zeros(500, dtype=torch.uint8)
        assert live.now == 1500
        del first
        third = torch.zeros(200, dtype=torch.uint8)
        assert live.now == 700
    assert live.peak == 1500
    assert second.nbytes + third.nbytes == 700


@pytest.mark.parametrize("family", ["bert", "llama", "mixtral", "mamba"])
def test_the_meta_device_counts_what_the_processor_would_hold(family: str, tmp_path: Path) -> None:
    """The forward and backward pass of a window, counted where tensors have memory, is what was predicted."""
    fleet.save_model(tmp_path, family)
    chosen = fleet.settings(adapter={"activation": "relu"})
    backbone = fleet.open_backbone(tmp_path, chosen)
    model = MemoryModel(backbone, chosen, 8, tokens=100)
    layers = [0, 1]
    predicted = model._layers_activations(layers, backward=True).peak
    batch = model._batch(backward=True)
    weights = {
        layer: {name: torch.zeros(value.shape) for name, value in meta_weights(backbone, layer).items()}
        for layer in layers
    }
    adapters = {
        layer: Adapter.of(
            (torch.zeros(value.shape, requires_grad=True) for value in model._meta_adapter().parameters()), "relu"
        )
        for layer in layers
    }
    hidden = torch.zeros(*batch.input_ids.shape, 64)
    known = [value for layer in weights.values() for value in layer.values()]
    live = LiveBytes([*known, hidden, *(value for adapter in adapters.values() for value in adapter.parameters())])
    with live:
        backbone.run_layers(weights, hidden, batch, BottleneckTuning(adapters, {})).sum().backward()
    # Experts choose their tokens when there are values to choose by; elsewhere the count is close to exact.
    assert abs(live.peak - predicted) <= (0.5 if family == "mixtral" else 0.15) * predicted


def test_more_layers_in_the_window_need_more_memory_unless_they_pass_one_at_a_time(tmp_path: Path) -> None:
    fleet.save_model(tmp_path, "llama")
    chosen = fleet.settings(adapter={"activation": "silu"})
    model = MemoryModel(fleet.open_backbone(tmp_path, chosen), chosen, 8, tokens=100)
    windows = [Window(start=0, stop=stop) for stop in (1, 2, 3)]
    for choice in PLACEMENTS[:4]:
        peaks = [model.train_layers(window, choice, trained=2, first_layer=0, foresight=True) for window in windows]
        assert peaks == sorted(set(peaks))
    resident, streamed = (
        model.train_layers(windows[2], choice, trained=3, first_layer=0, foresight=True)
        for choice in (PLACEMENTS[3], PLACEMENTS[-1])
    )
    assert streamed < resident


def test_the_fastest_placement_that_keeps_the_budget_is_taken() -> None:
    peaks = dict(
        zip(PLACEMENTS, (500 * MIB, 400 * MIB, 300 * MIB, 200 * MIB, 180 * MIB, 150 * MIB, 100 * MIB), strict=True)
    )
    for budget, expected in ((None, 0), (500, 0), (499, 1), (300, 2), (250, 3), (190, 4), (179, 5), (100, 6)):
        placement, peak = fit(peaks.__getitem__, budget and budget * MIB, what="it")
        assert placement == PLACEMENTS[expected]
        assert peak == peaks[placement]


def test_a_budget_below_the_smallest_placement_is_refused_with_what_would_do() -> None:
    def predict(placement: Placement) -> int:
        return 100 * MIB if placement == SMALLEST else 200 * MIB

    with pytest.raises(DoesNotFit, match="it does not fit") as caught:
        fit(predict, 90 * MIB, what="it")
    assert "90 MiB" in str(caught.value)
    assert "104 MiB" in str(caught.value)


def test_what_runs_aside_leaves_nothing_here_but_its_result() -> None:
    here: list[int] = []

    def work() -> int:
        here.append(1)
        return 7

    assert run_in_fork(work) == 7
    assert here == []


def test_what_fails_aside_fails_here() -> None:
    def work() -> int:
        raise DoesNotFit("no", hint="")

    with pytest.raises(DoesNotFit):
        run_in_fork(work)
