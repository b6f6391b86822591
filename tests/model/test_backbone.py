"""Streaming changes no number: block by block from disk against transformers' own forward and autograd.

The oracle is always the library's own resident model, the tolerance zero unless a reason stands beside it.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification

from schemas.errors import BadInput, NotTrusted
from schemas.methods.chain import LossWeights
from schemas.refs import Window
from schemas.settings import HeadForm
from stages.data.layout import Layout
from stages.model.architecture import find_layers
from stages.model.backbone import Backbone
from stages.model.skeleton import Batch
from stages.streaming.check import TOLERANCE, _stored_dtype, check_architecture, check_model, compare
from stages.streaming.hidden_states import HiddenStates
from stages.streaming.stream import load_layers, run_prefix, stream_layers
from stages.streaming.texts import EncodedTexts
from stages.training.criterion import ClassCriterion
from stages.training.objective import Objective
from stages.tuning.adapters import Adapter, adapters_from_tensors
from stages.tuning.tensors import fresh_adapters
from stages.tuning.tuning import UNTUNED, BottleneckTuning
from tests import fleet

DEPTH = fleet.DEPTH


@pytest.mark.parametrize("form", ["transformers", "mean"])
@pytest.mark.parametrize("family", fleet.FAMILIES)
def test_block_by_block_equals_the_models_own_forward_to_the_bit(family: str, form: HeadForm) -> None:
    if (family, form) == ("mamba", "transformers"):
        form = "mean"  # transformers has no classification head for Mamba
    report = compare(fleet.config_of(family), form)
    # Experts are grouped by token: the order of a sum may differ in the last bit.
    assert report.difference <= (TOLERANCE if family == "mixtral" else 0.0)


@pytest.mark.parametrize("family", fleet.FAMILIES)
def test_an_architecture_is_checked_with_weights_as_they_are_stored(family: str) -> None:
    """bfloat16 in the file, float32 in the arithmetic: still the model's own forward."""
    report = compare(fleet.config_of(family), "mean", stored=torch.bfloat16)
    assert report.difference <= (TOLERANCE if family == "mixtral" else 0.0)


def test_the_check_knows_how_weights_are_stored(tmp_path: Path) -> None:
    for stored in (torch.float32, torch.bfloat16, torch.float16):
        fleet.save_stored_as(tmp_path / str(stored), "bert", stored)
        assert _stored_dtype(tmp_path / str(stored)) == stored
    (tmp_path / "none").mkdir()
    assert _stored_dtype(tmp_path / "none") == torch.float32


@pytest.mark.parametrize("family", ["bert", "llama", "mixtral", "gpt2"])
def test_shards_with_an_index_stream_like_a_single_file(family: str, tmp_path: Path) -> None:
    model = fleet.save_model(tmp_path, family, shard_size="100KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    batch = fleet.batch()
    hidden = fleet.stream(_open(tmp_path), batch, {})
    own = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    backbone = _open(tmp_path)
    found = backbone.after_layers(hidden, batch, {}).last_hidden_state
    assert (found - own.last_hidden_state)[batch.attention_mask.bool()].abs().max() <= TOLERANCE


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", ["bert", "llama", "gemma3", "mamba"])
def test_ragged_storage_changes_no_real_token(family: str, side: str, tmp_path: Path) -> None:
    model = fleet.save_model(tmp_path, family)
    chosen = fleet.settings(encoding={"padding_side": side}, numerics={"micro_batch": 3})
    loaded = fleet.open_model(tmp_path, chosen)
    texts = EncodedTexts.encode(fleet.examples(fleet.texts(7)), loaded.encoder, 3)
    with HiddenStates(texts.lengths, 64, torch.float32, scratch=tmp_path, in_memory_limit_bytes=0) as hidden:
        run_prefix(loaded.backbone, texts, hidden, UNTUNED, stop=DEPTH)
        for indices in texts.chunks():
            batch = texts.batch(indices)
            expected = _layer_outputs(model, batch)[-1]
            found = hidden.gather(indices, texts.layout(indices))
            real = batch.attention_mask.bool()
            # Padding holds zeros here and leftovers there; a masked key may still move the last bit of a sum.
            assert (found - expected)[real].abs().max() <= 1e-5


def test_hidden_states_are_the_same_in_memory_and_in_a_file(tmp_path: Path) -> None:
    lengths, batch = [3, 5, 1], torch.randn(3, 5, 4)
    for side in ("left", "right"):
        gathered = []
        for limit in (0, 2**20):
            with HiddenStates(lengths, 4, torch.float32, scratch=tmp_path, in_memory_limit_bytes=limit) as hidden:
                hidden.scatter([0, 1, 2], batch, Layout.padded(lengths, side))
                gathered.append(hidden.gather([2, 0, 1], Layout.padded([1, 3, 5], side)))
        assert torch.equal(*gathered)
    assert list(tmp_path.iterdir()) == []


def test_a_fresh_chain_is_the_pre_trained_model(tiny_bert: Path) -> None:
    backbone, batch = _open(tiny_bert), fleet.batch()
    fresh = adapters_from_tensors(fresh_adapters(range(DEPTH), hidden_size=64, bottleneck=8, seed=1), "relu")
    assert torch.equal(fleet.stream(backbone, batch, fresh), fleet.stream(backbone, batch, {}))


@pytest.mark.parametrize("family", ["bert", "llama", "mixtral", "mamba"])
@pytest.mark.parametrize("weight", [0.0, 0.7])
@pytest.mark.parametrize("window", fleet.windows(DEPTH), ids=str)
def test_window_gradients_equal_autograd_on_the_resident_model(
    family: str, weight: float, window: Window, tmp_path: Path
) -> None:
    model = fleet.save_model(tmp_path, family)
    backbone, batch, targets = _open(tmp_path), fleet.batch(), torch.tensor([0, 1, 1])
    adapters = fleet.random_adapters()
    arriving = fleet.stream(backbone, batch, adapters, stop=window.start) if window.start else backbone.embed(batch)
    weights = load_layers(backbone, window.layers)
    loss = _objective(backbone, window, adapters, weight).accumulate(weights, arriving, batch, targets, count=3)
    found = {layer: [value.grad for value in adapters[layer].parameters()] for layer in range(DEPTH)}
    expected_loss, expected = _resident_gradients(model, backbone, batch, targets, window, weight)
    assert loss.total == pytest.approx(expected_loss, abs=1e-6)
    for layer in window.layers:
        for ours, theirs in zip(found[layer], expected[layer], strict=True):
            assert ours is not None
            assert theirs is not None
            assert torch.allclose(ours, theirs, atol=1e-6, rtol=1e-4)
    for layer in set(range(window.start)):
        assert found[layer] == [None] * 4


def test_the_global_branch_runs_no_frozen_layer_and_carries_gradient(tiny_bert: Path) -> None:
    backbone, batch, targets = _open(tiny_bert), fleet.batch(), torch.tensor([0, 1, 1])
    window, adapters = Window(start=0, stop=1), fleet.random_adapters()
    ran: list[int] = []
    for index, layer in enumerate(backbone.skeleton.layers):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    weights = load_layers(backbone, window.layers)
    objective = _objective(backbone, window, adapters, 1.0)
    loss = objective.accumulate(weights, backbone.embed(batch), batch, targets, count=3)
    assert ran == [0]
    assert loss.downstream is not None
    assert adapters[0].up_DR.grad is not None
    assert float(adapters[0].up_DR.grad.abs().max()) > 0


def test_the_last_window_has_the_end_to_end_loss_alone(tiny_bert: Path) -> None:
    backbone, batch, targets = _open(tiny_bert), fleet.batch(), torch.tensor([0, 1, 1])
    window, adapters = Window(start=1, stop=3), fleet.random_adapters()
    arriving = fleet.stream(backbone, batch, adapters, stop=1)
    weights = load_layers(backbone, window.layers)
    loss = _objective(backbone, window, adapters, 5.0).accumulate(weights, arriving, batch, targets, count=3)
    assert loss.downstream is None
    assert loss.total == loss.local


def test_micro_batches_accumulate_the_gradient_of_the_batch(tiny_bert: Path) -> None:
    backbone, batch, targets = _open(tiny_bert), fleet.batch(), torch.tensor([0, 1, 1])
    window, weights = Window(start=0, stop=2), load_layers(backbone, [0, 1])
    gradients = []
    for rows in ([[0, 1, 2]], [[0], [1, 2]]):
        adapters = fleet.random_adapters()
        for part in rows:
            piece = Batch(batch.input_ids[part], batch.attention_mask[part])
            arriving = backbone.embed(piece)
            objective = _objective(backbone, window, adapters, 0.5)
            objective.accumulate(weights, arriving, piece, targets[part], count=3)
        gradients.append([value.grad for layer in window.layers for value in adapters[layer].parameters()])
    for whole, summed in zip(*gradients, strict=True):
        assert whole is not None
        assert summed is not None
        assert torch.allclose(whole, summed, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "llama", "gpt2", "opt"])
def test_the_head_that_trains_is_what_the_checkpoint_lacks(family: str, tmp_path: Path) -> None:
    fleet.save_model(tmp_path, family)
    backbone = _open(tmp_path, form="transformers")
    base = {name for name, _ in AutoModel.from_config(fleet.config_of(family)).named_parameters()}
    whole = AutoModelForSequenceClassification.from_config(fleet.config_of(family))
    prefix = f"{whole.base_model_prefix}."
    expected = {name for name, _ in whole.named_parameters() if name.removeprefix(prefix) not in base}
    assert set(backbone.initial_head) == expected


def test_a_changed_weight_is_named_by_its_layer(tmp_path: Path) -> None:
    fleet.save_model(tmp_path, "bert")
    fingerprint = _open(tmp_path).reader.fingerprint()
    fleet.flip_weight(tmp_path, "encoder.layer.1.output.dense.weight")
    backbone = fleet.open_backbone(tmp_path, expected=fingerprint)
    with pytest.raises(NotTrusted, match="layer 1") as caught:
        list(stream_layers(backbone, range(DEPTH)))
    assert fingerprint.layers[1] in str(caught.value)


@pytest.mark.parametrize("part", ["config.json", "tokenizer.json"])
def test_a_changed_entry_beside_the_weights_is_named(part: str, tmp_path: Path) -> None:
    fleet.save_model(tmp_path, "bert")
    fingerprint = _open(tmp_path).reader.fingerprint()
    path = tmp_path / part
    path.write_text(path.read_text() + "\n")
    with pytest.raises(NotTrusted, match=part):
        fleet.open_backbone(tmp_path, expected=fingerprint)


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    fleet.save_model(tmp_path, "bert")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(BadInput, match=r"model\.safetensors"):
        _open(tmp_path)


def test_an_architecture_without_a_classification_head_is_checked_with_the_mean(tmp_path: Path) -> None:
    fleet.save_model(tmp_path, "mamba")
    assert check_model(tmp_path).head_form == "mean"
    with pytest.raises(BadInput, match="no sequence classification head") as caught:
        check_architecture(tmp_path, "transformers")
    assert 'form = "mean"' in caught.value.hint


@pytest.mark.parametrize("family", ["Deberta", "DebertaV2"])
def test_a_pooler_with_a_width_of_its_own_is_made_small_too(family: str, tmp_path: Path) -> None:
    relative = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_relative_positions": -1}
    config = getattr(transformers, f"{family}Config")(hidden_size=96, vocab_size=96, type_vocab_size=0, **relative)
    config.save_pretrained(tmp_path)
    assert config.pooler_hidden_size == 96
    assert check_model(tmp_path).head_form == "transformers"


@pytest.mark.parametrize("family", ["MegatronBert", "RoFormer"])
def test_a_layer_that_adds_to_a_tuple_returns_one(family: str, tmp_path: Path) -> None:
    getattr(transformers, f"{family}Config")(hidden_size=64, vocab_size=96).save_pretrained(tmp_path)
    assert check_model(tmp_path).difference == 0


def test_an_architecture_without_a_layer_list_is_refused(tmp_path: Path) -> None:
    from transformers import AlbertConfig

    AlbertConfig(vocab_size=96).save_pretrained(tmp_path)
    with pytest.raises(BadInput):
        check_model(tmp_path)


def _open(directory: Path, form: str = "mean") -> Backbone:
    return fleet.open_backbone(directory, fleet.settings(head={"form": form}))


def _objective(backbone: Backbone, window: Window, adapters: dict[int, Adapter], weight: float) -> Objective:
    head = {name: value.clone().requires_grad_() for name, value in backbone.initial_head.items()}
    return Objective(
        backbone,
        window,
        BottleneckTuning(adapters, head),
        LossWeights(downstream=weight),
        ClassCriterion(backbone, head),
    )


def _layer_outputs(model: nn.Module, batch: Batch) -> list[Tensor]:
    outputs: list[Tensor] = []
    handles = [
        layer.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
        for layer in find_layers(model)[1]
    ]
    with torch.no_grad():
        model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    for handle in handles:
        handle.remove()
    return outputs


def _resident_gradients(
    model: nn.Module, backbone: Backbone, batch: Batch, targets: Tensor, window: Window, weight: float
) -> tuple[float, dict[int, list[Tensor | None]]]:
    """Eq. 2 the slow way: the whole model in memory, its layers replaced by copies of what the branch allows."""
    adapters = fleet.random_adapters()
    local = _resident_loss(model, backbone, batch, targets, adapters, stop=window.stop, extra=())
    total = local
    if window.stop < DEPTH and weight:
        extra = tuple(range(window.stop, DEPTH))
        total = local + weight * _resident_loss(
            model, backbone, batch, targets, adapters, stop=window.stop, extra=extra
        )
    total.backward()
    return total.item(), {layer: [value.grad for value in adapters[layer].parameters()] for layer in range(DEPTH)}


def _resident_loss(
    model: nn.Module,
    backbone: Backbone,
    batch: Batch,
    targets: Tensor,
    adapters: dict[int, Adapter],
    *,
    stop: int,
    extra: tuple[int, ...],
) -> Tensor:
    """Hooks on the resident model: layers before `stop` with their adapters, later layers undone or adapters alone."""

    def hook(index: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def replace(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if index < stop:
                return adapters[index](output)
            return adapters[index](inputs[0]) if index in extra else inputs[0]

        return replace

    layers = find_layers(model)[1]
    handles = [layer.register_forward_hook(hook(index)) for index, layer in enumerate(layers)]
    last = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
    for handle in handles:
        handle.remove()
    mask = batch.attention_mask.unsqueeze(-1).float()
    pooled = (last * mask).sum(1) / mask.sum(1)
    head = backbone.initial_head
    logits = pooled @ head["classifier.weight"].T + head["classifier.bias"]
    return nn.functional.cross_entropy(logits, targets)
