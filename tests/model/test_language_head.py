"""The language head in chunks against transformers' own logits, its own loss and autograd on the resident model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own convention
from hypothesis import given
from hypothesis import settings as fast
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from schemas.errors import BadInput
from schemas.methods.chain import LossWeights
from schemas.refs import Window
from stages.model.architecture import check_head, find_layers
from stages.model.backbone import Backbone
from stages.model.language_head import IGNORED, LanguageHead
from stages.model.skeleton import Batch
from stages.streaming.check import compare
from stages.streaming.stream import load_layers
from stages.streaming.texts import EncodedTexts
from stages.training.criterion import TokenCriterion
from stages.training.objective import Objective
from stages.tuning.tuning import BottleneckTuning
from tests import fleet

DEPTH = fleet.DEPTH
LANGUAGE = fleet.settings(**fleet.LANGUAGE)


@pytest.mark.parametrize("family", [*fleet.LANGUAGE_MODELS, *fleet.FINISHING])
def test_the_logits_equal_the_models_own(family: str) -> None:
    report = compare(fleet.config_of(family), "language-model")
    # A head in chunks is other matrix products than the whole head: the last bit may differ.
    assert report.difference <= 1e-5


@pytest.mark.parametrize("family", ["gemma2", "granite"])
def test_a_model_that_changes_its_logits_is_noticed(family: str, tmp_path: Path) -> None:
    backbone, _ = _open(tmp_path, family, **({"logits_scaling": 3.0} if family == "granite" else {}))
    assert LanguageHead.of(backbone)._is_finished_by_the_model


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "granite"])
@pytest.mark.parametrize("chunk", [1, 7, 40, 96, 1000])
@pytest.mark.parametrize("resident", [True, False])
def test_loss_and_gradient_equal_those_of_whole_logits(family: str, chunk: int, resident: bool, tmp_path: Path) -> None:
    backbone, _ = _open(tmp_path, family)
    head = LanguageHead.of(backbone, resident=resident)
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(11, backbone.hidden_size, generator=generator)
    targets = torch.randint(head.vocabulary, (11,), generator=generator)
    losses, gradient = head.cross_entropy(rows, targets, gradient=True, chunk=chunk)
    leaf = rows.clone().requires_grad_()
    table = torch.cat([part.clone() for _, part in head.chunks(head.vocabulary)])
    whole = head._through_model(leaf @ table.T)
    expected = F.cross_entropy(whole, targets, reduction="none")
    expected.sum().backward()
    assert torch.allclose(losses, expected, atol=1e-5, rtol=1e-5)
    assert gradient is not None
    assert leaf.grad is not None
    assert torch.allclose(gradient, leaf.grad, atol=1e-5, rtol=1e-4)
    alone, nothing = head.cross_entropy(rows, targets, gradient=False, chunk=chunk)
    assert torch.equal(alone, losses)
    assert nothing is None


@fast(max_examples=60, deadline=None)
@given(data=st.data(), scale=st.sampled_from([0.0, 1.0, 100.0, 1e4]), chunk=st.integers(1, 50))
def test_no_logit_is_too_large(data: st.DataObject, scale: float, chunk: int) -> None:
    """The running maximum keeps the sum finite, in whatever order large logits come."""
    count, width, vocabulary = data.draw(st.integers(1, 5)), 4, 37
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    head = _Table(torch.randn(vocabulary, width, generator=generator) * scale)
    rows = torch.randn(count, width, generator=generator)
    targets = torch.randint(vocabulary, (count,), generator=generator)
    losses, gradient = head.cross_entropy(rows, targets, gradient=True, chunk=chunk)
    leaf = rows.double().requires_grad_()
    expected = F.cross_entropy(leaf @ head.rows.double().T, targets, reduction="none")
    expected.sum().backward()
    assert leaf.grad is not None
    assert gradient is not None
    assert torch.allclose(losses.double(), expected, atol=1e-4 * max(1.0, scale), rtol=1e-4)
    assert torch.allclose(gradient.double(), leaf.grad, atol=1e-3 * max(1.0, scale), rtol=1e-3)


class _Table(LanguageHead):
    """A head over rows in memory, with no model around it."""

    _threads = 1

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows
        self.resident = rows
        self.__dict__["_is_finished_by_the_model"] = False

    @property
    def vocabulary(self) -> int:
        return len(self.rows)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "gemma2", "mixtral", "mamba"])
@pytest.mark.parametrize("window", fleet.windows(DEPTH), ids=str)
@pytest.mark.parametrize("side", ["right", "left"])
def test_window_gradients_equal_autograd_on_the_resident_language_model(
    family: str, window: Window, side: str, tmp_path: Path
) -> None:
    """Both losses of Eq. 2 through transformers' own model and its own loss function."""
    backbone, model = _open(tmp_path, family)
    batch, weight = fleet.batch(side), 0.6
    adapters = fleet.random_adapters()
    hidden = fleet.stream(backbone, batch, adapters, window.start)
    targets = _targets(batch)
    count = int((targets != IGNORED).sum())
    criterion = TokenCriterion(LanguageHead.of(backbone))
    objective = Objective(backbone, window, BottleneckTuning(adapters, {}), LossWeights(downstream=weight), criterion)
    loss = objective.accumulate(load_layers(backbone, window.layers), hidden, batch, targets, count=count)
    found = {layer: [value.grad for value in adapters[layer].parameters()] for layer in window.layers}
    expected_loss, expected = _resident(model, batch, window, weight)
    assert loss.total == pytest.approx(expected_loss, abs=1e-5)
    for layer in window.layers:
        for ours, theirs in zip(found[layer], expected[layer], strict=True):
            assert ours is not None
            assert theirs is not None
            assert torch.allclose(ours, theirs, atol=1e-5, rtol=1e-3)


def test_targets_are_the_next_real_tokens_on_either_side() -> None:
    rows = (np.array([4, 5, 6]), np.array([7, 8]), np.array([9]))
    right, left = (EncodedTexts(rows, 0, side, 3) for side in ("right", "left"))
    assert right.targets([0, 1]).tolist() == [[5, 6, IGNORED], [8, IGNORED, IGNORED]]
    assert left.targets([0, 1]).tolist() == [[5, 6, IGNORED], [IGNORED, 8, IGNORED]]
    assert right.target_counts == left.target_counts == [2, 1, 0]
    in_loss = (np.array([False, False, True]), np.array([True, False]), np.array([True]))
    assert EncodedTexts(rows, 0, "right", 3, in_loss).targets([0, 1]).tolist() == [[IGNORED, 6, IGNORED], [IGNORED] * 3]


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_an_encoder_has_no_language_head(family: str) -> None:
    with pytest.raises(BadInput, match="no causal language model"):
        check_head(fleet.config_of(family), "language-model")


def test_the_head_is_never_loaded_whole(tmp_path: Path) -> None:
    backbone, model = _open(tmp_path, "llama")
    assert not model.config.tie_word_embeddings
    assert "lm_head.weight" not in backbone.reader.rest()
    assert backbone.initial_head == {}
    assert backbone.skeleton.output_names == ["lm_head.weight"]


def _open(folder: Path, family: str, **changes: Any) -> tuple[Backbone, Any]:
    model = fleet.save_model(folder, family, factory=AutoModelForCausalLM, **changes)
    return fleet.open_backbone(folder, LANGUAGE), model


def _targets(batch: Batch) -> Tensor:
    """The token after each real token that a real token follows."""
    targets = torch.full_like(batch.input_ids, IGNORED)
    follows = (batch.attention_mask[:, :-1] * batch.attention_mask[:, 1:]).bool()
    targets[:, :-1][follows] = batch.input_ids[:, 1:][follows]
    return targets


def _resident(
    model: nn.Module, batch: Batch, window: Window, weight: float
) -> tuple[float, dict[int, list[Tensor | None]]]:
    """Loss and gradients with forward hooks for adapters, layers behind the window skipped by hooks that undo them."""
    adapters = fleet.random_adapters()
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, IGNORED)
    # transformers shifts labels itself; a token that no real token comes before is not predicted
    labels[:, 1:][batch.attention_mask[:, :-1] == 0] = IGNORED

    def loss(behind: bool) -> Tensor:
        entering: dict[int, Tensor] = {}
        handles = []
        for index, layer in enumerate(find_layers(model)[1]):

            def before(_module: Any, arguments: Any, index: int = index) -> None:
                entering[index] = arguments[0]

            def after(_module: Any, _arguments: Any, output: Any, index: int = index) -> Any:
                own = output[0] if isinstance(output, tuple) else output
                if index < window.stop:
                    changed = adapters[index](own)
                else:
                    changed = adapters[index](entering[index]) if behind else entering[index]
                return (changed, *output[1:]) if isinstance(output, tuple) else changed

            handles += [layer.register_forward_pre_hook(before), layer.register_forward_hook(after)]
        try:
            output = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels)
        finally:
            for handle in handles:
                handle.remove()
        value: Tensor = output.loss
        return value

    total = loss(behind=False)
    if window.stop < DEPTH:
        total = total + weight * loss(behind=True)
    total.backward()
    gradients = {layer: [value.grad for value in adapters[layer].parameters()] for layer in window.layers}
    return total.item(), gradients
