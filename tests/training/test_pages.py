"""Tensors that are put away come back as they were, and a full-adapter step needs one layer's at a time."""

import gc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from schemas.errors import DoesNotFit
from schemas.refs import Window
from schemas.settings import OptimizerSettings
from stages.memory.predict import MemoryModel
from stages.store.artifact import read_tensors
from stages.streaming.boundaries import Boundaries
from stages.streaming.placement import PLACEMENTS, SMALLEST
from stages.streaming.scratch_file import ScratchFile
from stages.training.optimizer import HEAD, Optimizer
from stages.training.pages import Pages
from stages.tuning.state_adapters import StateAdapters
from stages.tuning.tuning import BottleneckTuning
from tests import fleet
from tests.fleet.device import OneDevice, same


def leaves(seed: int) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=draw).requires_grad_() for shape in ((4, 3), (4,), (3, 4), (3,))]


def test_a_tensor_that_is_put_away_has_a_shape_and_no_memory(tmp_path: Path) -> None:
    pages, (weight, *_) = Pages(tmp_path), leaves(0)
    before = weight.detach().clone()
    pages.add(0, [weight])
    assert weight.shape == before.shape
    assert weight.untyped_storage().nbytes() == 4
    with pages.holding(0), pages.holding(0):
        assert torch.equal(weight, before)
        with torch.no_grad():
            weight.mul_(2)
        pages.changed(0)
    with pages.holding(0, 7):  # nobody put anything into 7
        assert torch.equal(weight, 2 * before)
    assert weight.untyped_storage().nbytes() == 4
    assert list(tmp_path.iterdir()) == []


def test_what_did_not_change_is_not_written(tmp_path: Path) -> None:
    pages = Pages(tmp_path)
    pages.add(0, leaves(0))
    written = ScratchFile.scratch_bytes_written
    with pages.holding(0):
        pass
    assert ScratchFile.scratch_bytes_written == written


@pytest.mark.parametrize(
    "settings",
    [
        OptimizerSettings(weight_decay=0.1),
        OptimizerSettings(name="sgd", momentum=0.9),
        OptimizerSettings(name="sgd"),
        OptimizerSettings(max_gradient_norm=1.0),
        OptimizerSettings(name="sgd", max_gradient_norm=1e6),
    ],
    ids=str,
)
def test_an_optimizer_in_a_file_is_the_one_in_memory(settings: OptimizerSettings, tmp_path: Path) -> None:
    """Steps a group at a time, a checkpoint in the middle: to the bit."""
    kept, filed, resumed = Optimizer(settings), *(Optimizer(settings, pages=Pages(tmp_path)) for _ in range(2))
    for optimizer in (kept, filed, resumed):
        for group in (0, 1, HEAD):
            optimizer.add(group, leaves(group + 5))
    for step in range(4):
        if step == 2:
            resumed.restore(dict(filed.tensors()), steps=2)
        for optimizer in (kept, filed, *((resumed,) if step >= 2 else ())):
            for group in (1, 0, HEAD):
                draw = torch.Generator().manual_seed(100 * step + group)
                with optimizer.pages.holding(group):
                    for index in optimizer._groups[group]:
                        parameter = optimizer._parameters[index]
                        parameter.grad = torch.randn(parameter.shape, generator=draw)
                    optimizer.complete(group)
            optimizer.step()
    for optimizer in (filed, resumed):
        assert same(dict(kept.tensors()), dict(optimizer.tensors()))


@pytest.mark.parametrize("clipping", [{}, {"max_gradient_norm": 0.1}], ids=["as they are", "clipped"])
@pytest.mark.parametrize("family", ["bert", "llama", "mixtral", "mamba"])
def test_ten_streamed_steps_of_full_adapters_are_those_of_resident_ones(
    family: str, clipping: dict[str, Any], tmp_path: Path
) -> None:
    """AdamW over every layer, one layer in memory at a time: the tensors of the update, to the bit."""
    device = OneDevice(tmp_path, family, window_size=fleet.DEPTH, epochs=5, **clipping)
    expected = device.train(PLACEMENTS[0])
    assert any(np.abs(value).max() > 0 for name, value in expected.items() if "up.weight" in name)
    assert same(device.train(SMALLEST), expected)


def test_adapters_of_a_state_are_those_that_are_read_at_once(tmp_path: Path) -> None:
    device = OneDevice(tmp_path, "bert")
    plan, state = device.plan.manifest, device.state
    whole = BottleneckTuning.of(plan, read_tensors(state), torch.float32)
    lazy = StateAdapters(plan, state, torch.float32)
    assert list(lazy) == sorted(whole.adapters)
    for layer in (2, 0, 0, 1):
        for left, right in zip(lazy[layer].parameters(), whole.adapters[layer].parameters(), strict=True):
            assert torch.equal(left, right)
    assert 9 not in lazy
    with pytest.raises(KeyError):
        lazy[9]


@pytest.mark.parametrize("clipping", [{}, {"max_gradient_norm": 0.1}], ids=["as they are", "clipped"])
def test_the_size_of_temporary_files_is_predicted_and_checked_before_the_work(
    clipping: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a step writes is what was predicted; a disk without room for it refuses the work, and nothing is written."""
    device = OneDevice(tmp_path, "llama", window_size=fleet.DEPTH, **clipping)
    written: list[int] = []
    for kind in (Pages, Boundaries):
        monkeypatch.setattr(kind, "close", lambda self: written.append(self._end))
    device.train(SMALLEST)
    gc.collect()
    settings, tokens = device.plan.manifest.settings, sum(device.texts.lengths)
    memory = MemoryModel(device.model.backbone, settings, device.plan.manifest.bottleneck, tokens, longest=16)
    window = Window(start=0, stop=fleet.DEPTH)
    predicted = memory.train_scratch(window, SMALLEST, trained=fleet.DEPTH) - tokens * fleet.WIDTH * 4
    assert 0 < sum(set(written)) <= predicted
    assert memory.train_scratch(window, PLACEMENTS[0], trained=fleet.DEPTH) == 0
    monkeypatch.setattr("stages.memory.placing.shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    monkeypatch.setattr("stages.memory.placing.fit", lambda predict, budget, what: (SMALLEST, 1))
    with pytest.raises(DoesNotFit, match="temporary files of training 0-2 do not fit the disk"):
        fleet.run_train(tmp_path, tmp_path / "model", tmp_path / "data.jsonl", tmp_path / "update")
    assert not (tmp_path / "update").exists()
