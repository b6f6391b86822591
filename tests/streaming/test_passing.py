"""What is prepared once for all layers changes no bit, and does not grow with the number of texts."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages.model.backbone import Backbone
from stages.model.skeleton import Batch
from stages.streaming.passing import KEPT_BYTES, CanonicalBatches
from stages.streaming.stream import load_layers
from stages.streaming.texts import EncodedTexts
from stages.tuning.tuning import UNTUNED
from tests import fleet


def opened(folder: Path, family: str, **changes: Any) -> Backbone:
    fleet.save_model(folder, family, **changes)
    return Backbone.open(folder, fleet.settings(), pad_id=0)


def encoded(count: int, side: str = "right", *, length: int = 9, row_length: int | None = None) -> EncodedTexts:
    draw = np.random.default_rng(count)
    rows = tuple(draw.integers(3, 20, draw.integers(2, length + 1)) for _ in range(count))
    return EncodedTexts(rows, 0, side, 3, row_length=row_length)


@pytest.mark.parametrize("side", ["right", "left", "packed"])
@pytest.mark.parametrize("family", fleet.FAMILIES)
@torch.no_grad()
def test_layers_on_recorded_arguments_give_the_bits_of_the_models_forward(
    family: str, side: str, tmp_path: Path
) -> None:
    backbone = opened(tmp_path, family)
    if side == "packed" and not backbone.skeleton.takes_positions:
        pytest.skip("packing is for decoders with positions")
    texts = encoded(7, "right" if side == "packed" else side, row_length=16 if side == "packed" else None)
    weights = load_layers(backbone, range(backbone.num_layers))
    for one in CanonicalBatches(backbone, texts):
        assert one.arguments is not None
        hidden = backbone.embed(one.batch)
        around = alone = hidden
        for layer in weights:
            around = backbone.run_layers({layer: weights[layer]}, around, one.batch, UNTUNED)
            alone = backbone.run_layers({layer: weights[layer]}, alone, one.batch, UNTUNED, one.arguments)
            assert torch.equal(around, alone)
        assert torch.equal(backbone.run_layers(weights, hidden, one.batch, UNTUNED), alone)
        assert torch.equal(backbone.run_layers(weights, hidden, one.batch, UNTUNED, one.arguments), alone)


def test_gradients_through_recorded_arguments_are_those_of_the_models_forward(tmp_path: Path) -> None:
    backbone = opened(tmp_path, "llama")
    batch = encoded(3).batch([0, 1, 2])
    weights, arguments = load_layers(backbone, [1, 2]), backbone.skeleton.layer_arguments(batch)
    gradients: list[torch.Tensor] = []
    for recorded in (None, arguments):
        hidden = backbone.embed(batch).requires_grad_()
        output = backbone.run_layers(weights, hidden, batch, UNTUNED, recorded)
        gradients += torch.autograd.grad(output.square().sum(), [hidden])
    assert torch.equal(*gradients)


def test_batches_are_the_same_at_every_layer_and_only_the_first_are_kept(tmp_path: Path) -> None:
    backbone, texts = opened(tmp_path, "bert"), encoded(40)
    whole = list(CanonicalBatches(backbone, texts))
    assert [one.indices for one in whole] == texts.chunks()
    for limit in (0, 2000, KEPT_BYTES):
        batches = CanonicalBatches(backbone, texts, kept_bytes=limit)
        first, second = list(batches), list(batches)
        again = sum(one is other for one, other in zip(first, second, strict=True))
        assert (again == 0) == (limit == 0)
        assert (again == len(first)) == (limit == KEPT_BYTES)
        for passes in (first, second):
            for one, other in zip(passes, whole, strict=True):
                assert one.indices == other.indices
                assert one.layout == other.layout
                assert torch.equal(one.batch.input_ids, other.batch.input_ids)
                assert torch.equal(one.batch.attention_mask, other.batch.attention_mask)


def test_what_is_kept_does_not_grow_with_the_texts(tmp_path: Path) -> None:
    backbone = opened(tmp_path, "llama")
    for count in (50, 400):
        batches = CanonicalBatches(backbone, encoded(count), kept_bytes=5000)
        for _ in range(2):
            for _ in batches:
                pass
        kept = [one.arguments.total_bytes for one in batches._kept if one.arguments is not None]
        assert 0 < sum(kept) <= 5000


def test_arguments_that_a_layer_may_write_to_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = opened(tmp_path, "bert")
    ids = torch.tensor([[1, 5, 6]])
    batch = Batch(ids, torch.ones_like(ids))
    assert backbone.skeleton.layer_arguments(batch) is not None
    notebook: Any = object()
    for slot in backbone.skeleton.slots:
        inner = slot.forward
        monkeypatch.setattr(slot, "forward", partial(inner, notebook=notebook))
    assert backbone.skeleton.layer_arguments(batch) is None
    assert all(one.arguments is None for one in CanonicalBatches(backbone, encoded(4)))


def test_an_error_in_the_forward_leaves_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = opened(tmp_path, "bert")
    ids = torch.tensor([[1, 5, 6]])
    monkeypatch.setattr(backbone.skeleton.slots[1], "forward", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        backbone.skeleton.layer_arguments(Batch(ids, torch.ones_like(ids)))
    assert backbone.skeleton.recorded is None
