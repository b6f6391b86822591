"""Neither padding nor packing nor micro-batches change the gradient of the responses' loss.

The oracle is transformers' own model and loss, one text at a time, without padding.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from schemas.errors import BadInput
from schemas.methods.chain import LossWeights
from schemas.refs import Window
from schemas.settings import Settings, TaskSettings
from stages.model.backbone import Backbone
from stages.model.language_head import IGNORED, LanguageHead
from stages.streaming.check import check_architecture
from stages.streaming.stream import load_layers
from stages.streaming.texts import EncodedTexts
from stages.training.criterion import TokenCriterion
from stages.training.objective import Objective
from stages.tuning.adapters import Adapter
from stages.tuning.tuning import BottleneckTuning
from tests import fleet

DEPTH, WIDTH = 3, 64
WINDOW = Window(start=1, stop=3)
LANGUAGE = Settings(task=TaskSettings(kind="causal-lm"))
MIXING = ("mamba", "opt")  # their forward knows no packed rows
LENGTHS = (5, 9, 3, 7, 2)
FORMS = {  # padding side, row length, micro-batch
    "right": ("right", None, 5),
    "left": ("left", None, 5),
    "right, micro-batches of two": ("right", None, 2),
    "left, micro-batches of two": ("left", None, 2),
    "packed": ("right", 14, 5),
    "packed, a row at a time": ("right", 14, 1),
}


def texts(side: str, row_length: int | None, micro_batch: int) -> EncodedTexts:
    draw = np.random.Generator(np.random.PCG64(3))
    rows = tuple(draw.integers(3, 90, length) for length in LENGTHS)
    # a response at the end, one in the middle, one that is everything, one at the very start, none
    in_loss = tuple(np.zeros(length, dtype=bool) for length in LENGTHS)
    in_loss[0][2:] = in_loss[1][3:6] = in_loss[2][:] = in_loss[3][:2] = True
    return EncodedTexts(rows, 0, side, micro_batch, in_loss, row_length)


def random_adapters() -> dict[int, Adapter]:
    generator = torch.Generator().manual_seed(5)
    shapes = [(8, WIDTH), (8,), (WIDTH, 8), (WIDTH,)]
    return {
        layer: Adapter.of(
            [(torch.randn(shape, generator=generator) * 0.1).requires_grad_() for shape in shapes], "silu"
        )
        for layer in range(DEPTH)
    }


def ours(backbone: Backbone, encoded: EncodedTexts) -> tuple[float, list[Tensor]]:
    adapters = random_adapters()
    count = sum(encoded.target_counts)
    criterion = TokenCriterion(LanguageHead.of(backbone))
    objective = Objective(backbone, WINDOW, BottleneckTuning(adapters, {}), LossWeights(), criterion)
    weights, total = load_layers(backbone, WINDOW.layers), 0.0
    for indices in encoded.micro_batches(range(len(encoded.rows))):
        batch = encoded.batch(indices)
        hidden = fleet.stream(backbone, batch, adapters, WINDOW.start)
        total += objective.accumulate(weights, hidden, batch, encoded.targets(indices), count=count).total
    return total, gradients(adapters)


def theirs(model: Any, encoded: EncodedTexts) -> tuple[float, list[Tensor]]:
    adapters = random_adapters()
    count, total = sum(encoded.target_counts), torch.zeros(())
    assert encoded.in_loss is not None
    with fleet.adapted(model, adapters):
        for row, in_loss, targets in zip(encoded.rows, encoded.in_loss, encoded.target_counts, strict=True):
            labels = torch.from_numpy(np.where(in_loss, row, IGNORED))[None]
            if targets:
                total = total + model(input_ids=torch.from_numpy(row)[None], labels=labels).loss * targets / count
        total.backward()
    return total.item(), gradients(adapters)


def gradients(adapters: dict[int, Adapter]) -> list[Tensor]:
    found = [value.grad for layer in WINDOW.layers for value in adapters[layer].parameters()]
    return [gradient for gradient in found if gradient is not None]


@pytest.mark.parametrize(
    ("family", "form"),
    [
        (family, form)
        for family in fleet.LANGUAGE_MODELS
        for form in FORMS
        if not (form.startswith("packed") and family in MIXING)
    ],
)
def test_no_form_of_batch_changes_the_gradient(family: str, form: str, tmp_path: Path) -> None:
    model = fleet.save_model(tmp_path, family, factory=AutoModelForCausalLM)
    backbone = fleet.open_backbone(tmp_path, LANGUAGE)
    encoded = texts(*FORMS[form])
    expected_loss, expected = theirs(model, encoded)
    loss, found = ours(backbone, encoded)
    assert loss == pytest.approx(expected_loss, abs=1e-5)
    assert len(found) == len(expected) == 8
    for left, right in zip(found, expected, strict=True):
        assert torch.allclose(left, right, atol=1e-5, rtol=1e-3)


def test_packing_shares_rows() -> None:
    encoded = texts("right", 14, 5)
    assert encoded.batch(range(5)).input_ids.shape == (2, 14)
    assert encoded.batch(range(5)).position_ids is not None
    assert encoded.batch([2, 4]).position_ids.tolist() == [[0, 1, 2, 0, 1]]  # type: ignore[union-attr]


@pytest.mark.parametrize("family", fleet.LANGUAGE_MODELS)
def test_packing_is_refused_where_texts_would_see_each_other(family: str, tmp_path: Path) -> None:
    fleet.save_model(tmp_path, family, factory=AutoModelForCausalLM)
    if family in MIXING:
        with pytest.raises(BadInput, match="packing"):
            check_architecture(tmp_path, "language-model", packing=True)
    else:
        check_architecture(tmp_path, "language-model", packing=True)


def of_lengths(counts: Sequence[int]) -> EncodedTexts:
    return EncodedTexts(tuple(np.zeros(count, dtype=np.int64) for count in counts), 0, "right", 2)


def test_what_encoding_did_is_counted() -> None:
    counts = texts("right", None, 5).counts()
    assert (counts.read, counts.truncated, counts.without_loss) == (5, 0, 1)
    assert of_lengths([1, 2]).counts().without_loss == 1
