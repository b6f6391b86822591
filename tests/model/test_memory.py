"""Predicted memory against what allocation counts and the operating system say."""

from pathlib import Path

import torch

from schemas.refs import Window
from stages.model.backbone import Backbone
from stages.model.memory import LiveBytes, MemoryModel
from tests import fleet


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


def test_the_meta_device_counts_what_the_processor_would_hold(tmp_path: Path) -> None:
    """The forward and backward pass of a window, counted where tensors have memory, is what was predicted."""
    fleet.save_model(tmp_path, "bert")
    chosen = fleet.settings(chain={"global_weight": 0.0})
    backbone = Backbone.open(tmp_path, chosen, pad_id=0)
    chosen = chosen.model_copy(update={"adapter": chosen.adapter.model_copy(update={"activation": "relu"})})
    model = MemoryModel(backbone, chosen, 8, texts=10)
    window = Window(start=0, stop=2)
    predicted = model._peak_of(window, backward=True)
    batch = model._batch()
    weights = {
        layer: {k: torch.zeros(v.shape) for k, v in model._meta_weights(layer).items()} for layer in window.layers
    }
    known = [value for layer in weights.values() for value in layer.values()]
    from stages.model.adapters import Adapter

    adapters = {
        layer: Adapter.of(
            (torch.zeros(v.shape, requires_grad=True) for v in model._meta_adapter().parameters()), "relu"
        )
        for layer in window.layers
    }
    hidden = torch.zeros(*batch.input_ids.shape, 64)
    live = LiveBytes([*known, hidden, *(value for adapter in adapters.values() for value in adapter.parameters())])
    with live:
        backbone.run_layers(weights, hidden, batch, adapters).sum().backward()
    assert abs(live.peak - predicted) <= 0.15 * predicted


def test_more_layers_in_the_window_need_more_memory(tmp_path: Path) -> None:
    fleet.save_model(tmp_path, "llama")
    chosen = fleet.settings(adapter={"activation": "silu"})
    model = MemoryModel(Backbone.open(tmp_path, chosen, pad_id=0), chosen, 8, texts=10)
    peaks = [model.train_window(Window(start=0, stop=stop), start_layer=0) for stop in (1, 2, 3)]
    assert peaks == sorted(set(peaks))
