"""Passes of texts through frozen layers: those that an update reports are those that were made."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from schemas.measured import LayerPasses
from stages.methods.registry import server_method
from stages.model.skeleton import Batch
from stages.streaming.placement import PLACEMENTS, Placement
from tests.fleet.device import OneDevice

DEPTH, TEXTS, EPOCHS = 3, 10, 2
VISITS = TEXTS * EPOCHS
EXACT = {"foresight": "layers"}


class _Counted(torch.autograd.Function):
    """The identity, which tells of its backward pass."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, counts: dict[str, int]) -> Tensor:
        ctx.counts, ctx.rows = counts, len(output)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        ctx.counts["backward"] += ctx.rows
        return gradients[0], None


def counting(device: OneDevice) -> dict[str, int]:
    """Counts of rows through the layers' own modules, from now on."""
    counts = {"forward": 0, "backward": 0}

    def hook(_module: object, _arguments: object, output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) else output
        counts["forward"] += len(first)
        told = _Counted.apply(first, counts)  # type: ignore[no-untyped-call]
        return (told, *output[1:]) if isinstance(output, tuple) else told

    for layer in device.model.backbone.skeleton.layers:
        layer.register_forward_hook(hook)
    return counts


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("chain", [{}, EXACT, EXACT | {"local_weight": 0.5}])
@pytest.mark.parametrize(("start", "size"), [(0, 1), (1, 2), (0, 3)])
def test_passes_counted_are_passes_made(
    placement: Placement, chain: dict[str, Any], start: int, size: int, tmp_path: Path
) -> None:
    device = OneDevice(tmp_path, "bert", window_size=size, chain=chain)
    made, before = counting(device), device.model.backbone.skeleton.passes.counted()
    device.train(placement, start=start)
    found = device.model.backbone.skeleton.passes.counted(before)
    assert (found.forward + found.recomputed, found.backward) == (made["forward"], made["backward"])
    stop = DEPTH if chain else start + size
    span = stop - start
    streamed = not placement.window_resident
    assert found == LayerPasses(
        forward=TEXTS * start + VISITS * span,
        recomputed=VISITS * span if streamed else 0,
        backward=VISITS * (span - 1),
        visits=VISITS,
    )


@pytest.mark.parametrize("chain", [{}, EXACT])
def test_a_plan_says_the_passes_of_a_step(chain: dict[str, Any], tmp_path: Path) -> None:
    """Of a device with room for the window, in the first epoch."""
    device = OneDevice(tmp_path, "bert", window_size=2, epochs=1, chain=chain)
    plan = device.plan.manifest
    for entry in plan.memory:
        before = device.model.backbone.skeleton.passes.counted()
        device.train(PLACEMENTS[0], start=entry.assignment.layers[0])
        found = device.model.backbone.skeleton.passes.counted(before)
        costs = server_method("chain").costs(plan, entry.assignment)
        assert (costs.forward_passes, costs.backward_passes) == (found.forward / TEXTS, found.backward / TEXTS)


def test_texts_that_share_a_row_are_counted_each() -> None:
    ids, positions = torch.zeros(2, 5, dtype=torch.int64), torch.tensor([[0, 1, 0, 1, 2], [0, 1, 2, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
    assert Batch(ids, mask, positions, packed=True).texts == 4
    assert Batch(ids, mask, positions).texts == 2
