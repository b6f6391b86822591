"""Time of the parts of a stage, on a model of a few BERT-base-sized layers.  `just bench`; never a test."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own convention
from pytest_benchmark.fixture import BenchmarkFixture

from schemas.methods.chain import LossWeights
from schemas.refs import Window
from stages.data.layout import Layout
from stages.memory.predict import MemoryModel
from stages.model.backbone import Backbone
from stages.model.language_head import LanguageHead
from stages.model.random_weights import write_random_model
from stages.model.skeleton import Batch
from stages.streaming.hidden_states import HiddenStates
from stages.streaming.placement import SMALLEST
from stages.streaming.stream import load_layers
from stages.training.criterion import ClassCriterion
from stages.training.objective import Objective
from stages.tuning.adapters import Adapter, adapters_from_tensors
from stages.tuning.tensors import fresh_adapters
from stages.tuning.tuning import UNTUNED, BottleneckTuning
from stages.weights.reader import Verify, new_arena
from tests import fleet

ROWS, LENGTH = 4, 128


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert") / "model"
    write_random_model("bert-base", folder, layers=4)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama") / "model"
    write_random_model("smollm2-135m", folder, layers=2, dtype="float32")
    return folder


def opened(folder: Path, **options: Any) -> Backbone:
    return fleet.open_backbone(folder, fleet.settings(encoding={"max_length": LENGTH}), pad_id=1, **options)


def batch() -> Batch:
    ids = torch.arange(4, 4 + ROWS * LENGTH).view(ROWS, LENGTH)
    return Batch(ids, torch.ones_like(ids))


@pytest.mark.benchmark(group="read a layer")
@pytest.mark.parametrize("verify", ["never", "always"])
def test_reading_a_layer(benchmark: BenchmarkFixture, bert: Path, verify: Verify) -> None:
    fingerprint = opened(bert).reader.fingerprint()
    backbone = opened(bert, expected=fingerprint, verify=verify)
    arena = new_arena(backbone.reader.layer_bytes(1))
    benchmark(lambda: backbone.reader.layer(1, arena))


@pytest.mark.benchmark(group="embed")
def test_gathering_embedding_rows(benchmark: BenchmarkFixture, bert: Path) -> None:
    backbone = opened(bert)
    benchmark(lambda: backbone.embed(batch()))


@pytest.mark.benchmark(group="layer")
@pytest.mark.parametrize("way", ["through the model's forward", "the layer alone"])
def test_one_layer(benchmark: BenchmarkFixture, bert: Path, way: str) -> None:
    """What it costs that the model's own forward runs around the layer."""
    backbone, texts = opened(bert), batch()
    weights = load_layers(backbone, [1])
    hidden = backbone.embed(texts)

    def around() -> Any:
        return backbone.run_layers(weights, hidden, texts, UNTUNED)

    def alone() -> Any:
        return torch.func.functional_call(backbone.skeleton.layers[1], dict(weights[1]), (hidden,))

    with torch.no_grad():
        benchmark(around if way.startswith("through") else alone)


@pytest.mark.benchmark(group="window step")
def test_a_window_step(benchmark: BenchmarkFixture, bert: Path) -> None:
    backbone, texts = opened(bert), batch()
    tensors = fresh_adapters(range(4), hidden_size=768, bottleneck=48, seed=0)
    adapters = adapters_from_tensors(tensors, "relu")
    trained = {
        layer: Adapter.of((value.requires_grad_() for value in adapters[layer].parameters()), "relu")
        for layer in (1, 2)
    }
    head = {name: value.clone().requires_grad_() for name, value in backbone.initial_head.items()}
    tuning, criterion = BottleneckTuning(adapters | trained, head), ClassCriterion(backbone, head)
    objective = Objective(backbone, Window(start=1, stop=3), tuning, LossWeights(downstream=0.2), criterion)
    weights, hidden, targets = load_layers(backbone, [1, 2]), backbone.embed(texts), torch.zeros(ROWS).long()
    benchmark(lambda: objective.accumulate(weights, hidden, texts, targets, count=ROWS))


@pytest.mark.benchmark(group="vocabulary of 49,152")
@pytest.mark.parametrize("way", ["in chunks from disk", "in chunks from memory", "whole logits, autograd"])
def test_the_loss_of_a_language_model(benchmark: BenchmarkFixture, llama: Path, way: str) -> None:
    chosen = fleet.settings(**fleet.LANGUAGE)
    backbone = fleet.open_backbone(llama, chosen, pad_id=1)
    head = LanguageHead.of(backbone, resident=way != "in chunks from disk")
    rows, targets = torch.randn(512, 576), torch.arange(512)

    def whole() -> None:
        leaf = rows.clone().requires_grad_()
        assert head.resident is not None
        F.cross_entropy(F.linear(leaf, head.resident), targets).backward()

    benchmark(whole if way.startswith("whole") else lambda: head.cross_entropy(rows, targets, gradient=True))


@pytest.mark.benchmark(group="hidden states")
@pytest.mark.parametrize("limit", [2**30, 0], ids=["in memory", "on disk"])
def test_hidden_states_of_64_texts(benchmark: BenchmarkFixture, tmp_path: Path, limit: int) -> None:
    states = torch.randn(ROWS, LENGTH, 768)
    with HiddenStates([LENGTH] * 64, 768, torch.float32, scratch=tmp_path, in_memory_limit_bytes=limit) as hidden:
        layout = Layout.padded([LENGTH] * ROWS, "right")

        def through() -> None:
            for first in range(0, 64, ROWS):
                indices = range(first, first + ROWS)
                hidden.scatter(indices, states, layout)
                hidden.gather(indices, layout)

        benchmark(through)


@pytest.mark.benchmark(group="predict")
def test_predicting_a_window(benchmark: BenchmarkFixture, bert: Path) -> None:
    chosen = fleet.settings(encoding={"max_length": LENGTH}, adapter={"activation": "relu"})
    memory = MemoryModel(opened(bert), chosen, 48, 64 * LENGTH)
    benchmark(lambda: memory.train_layers(Window(start=1, stop=3), SMALLEST, trained=2, first_layer=1, foresight=True))
