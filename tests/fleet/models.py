"""Small real models of many architectures with a word tokenizer, opened as the stages open them; random adapters.

Shapes: `_N` texts, `_T` tokens, `_D` hidden size.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import AutoModel

from schemas.refs import Window
from schemas.settings import Settings
from stages.model.architecture import find_layers
from stages.model.backbone import Backbone
from stages.model.loading import LoadedModel
from stages.model.skeleton import Batch
from stages.streaming.check import VOCABULARY, tiny_config
from stages.streaming.stream import stream_layers
from stages.tuning.adapters import Adapter, adapters_from_tensors
from stages.tuning.tensors import fresh_adapters
from stages.tuning.tuning import BottleneckTuning
from tests.fleet.labelled_texts import FILLER, LABELS, SPECIAL, WORDS
from tests.fleet.recipes import settings

DEPTH, WIDTH, BOTTLENECK = 3, 64, 8  # of the tiny models and their adapters

LANGUAGE_MODELS = ("llama", "qwen2", "qwen3", "gemma3", "gpt2", "opt", "phi3", "mixtral", "mamba")
FINISHING = ("gemma2", "granite", "cohere")  # they cap or scale the logits of their head

FAMILIES: dict[str, str] = {
    "bert": "BertConfig",
    "roberta": "RobertaConfig",
    "distilbert": "DistilBertConfig",
    "modernbert": "ModernBertConfig",
    "llama": "LlamaConfig",
    "qwen2": "Qwen2Config",
    "qwen3": "Qwen3Config",
    "gemma3": "Gemma3TextConfig",
    "gpt2": "GPT2Config",
    "opt": "OPTConfig",
    "phi3": "Phi3Config",
    "mixtral": "MixtralConfig",
    "mamba": "MambaConfig",
}
CONFIGS = FAMILIES | {
    "gemma2": "Gemma2Config",
    "granite": "GraniteConfig",
    "cohere": "CohereConfig",
    "falcon": "FalconConfig",
}


def config_of(family: str) -> Any:
    """A tiny configuration of a family, as `chainctl model check` makes it."""
    return tiny_config(getattr(transformers, CONFIGS[family])())


def save_model(
    directory: Path,
    family: str,
    *,
    factory: Any = AutoModel,
    shard_size: str = "5GB",
    random_norms: bool = True,
    **changes: Any,
) -> Any:
    """Save a tiny random model with a word tokenizer; the model itself, in eval mode."""
    torch.manual_seed(0)
    config = config_of(family)
    config.num_labels = len(LABELS)
    for name, value in changes.items():
        setattr(config, name, value)
    model = factory.from_config(config, dtype=torch.float32).eval()
    for parameter in model.parameters():
        if random_norms or parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(directory, max_shard_size=shard_size)
    save_tokenizer(directory)
    return model


def save_stored_as(directory: Path, family: str, stored: torch.dtype, *, exact: bool = False, **options: Any) -> Any:
    """Save a tiny model whose values are those of `stored`, in that dtype or, where `exact`, in float32.

    The model itself in float32, in eval mode.  Its matrices are wide enough to be converted in several blocks.
    """
    wide: dict[str, Any] = {"mamba": {}, "gpt2": {"n_inner": 256}}.get(family, {"intermediate_size": 256})
    model = save_model(directory, family, **wide, **options)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(stored).float()
    (model if exact else copy.deepcopy(model).to(stored)).save_pretrained(directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))
    return model


def save_tokenizer(directory: Path) -> None:
    """A word tokenizer over the vocabulary of `texts`, padding with id 0."""
    words = [*SPECIAL, *FILLER, *(word for group in WORDS.values() for word in group)]
    assert len(words) < VOCABULARY
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 1)])
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"pad_token": "[PAD]"}))


def windows(depth: int) -> list[Window]:
    """All windows of two layers."""
    return [Window(start=start, stop=start + 2) for start in range(depth - 1)]


def open_backbone(directory: Path, chosen: Settings | None = None, *, pad_id: int = 0, **options: Any) -> Backbone:
    """A saved model as the stages stream it."""
    return Backbone.open(directory, chosen or settings(), pad_id=pad_id, **options)


def open_model(directory: Path, chosen: Settings | None = None, **options: Any) -> LoadedModel:
    """A saved model and its tokenizer."""
    return LoadedModel.open(directory, chosen or settings(), **options)


def batch(side: str = "right") -> Batch:
    """Three texts of five, three and four tokens, padded to five."""
    ids = torch.tensor([[1, 5, 6, 7, 8], [1, 9, 10, 0, 0], [1, 11, 12, 13, 0]])
    mask = (ids != 0).long()
    if side == "left":
        order = torch.tensor([[0, 1, 2, 3, 4], [3, 4, 0, 1, 2], [4, 0, 1, 2, 3]])
        ids, mask = ids.gather(1, order), mask.gather(1, order)
    return Batch(ids, mask)


def random_adapters(activation: str = "silu") -> dict[int, Adapter]:
    """Non-zero everywhere, so that gradients flow through those behind a window too."""
    draw = np.random.default_rng(3)
    tensors = fresh_adapters(range(DEPTH), hidden_size=WIDTH, bottleneck=BOTTLENECK, seed=1)
    noisy = {
        name: (value + 0.2 * draw.standard_normal(value.shape)).astype(np.float32) for name, value in tensors.items()
    }
    adapters = adapters_from_tensors(noisy, activation)
    for adapter in adapters.values():
        for value in adapter.parameters():
            value.requires_grad_()
    return adapters


@torch.no_grad()
def stream(backbone: Backbone, texts: Batch, adapters: Mapping[int, Adapter], stop: int = DEPTH) -> Tensor:
    """Hidden states (N, T, D) in front of layer `stop`, block by block from disk."""
    hidden = backbone.embed(texts)
    for layer, weights in stream_layers(backbone, range(stop)):
        hidden = backbone.run_layers({layer: weights}, hidden, texts, BottleneckTuning(adapters, {}))
    return hidden


@contextmanager
def adapted(model: Any, adapters: Mapping[int, Adapter]) -> Iterator[None]:
    """transformers' own resident model with adapters as hooks on its layers."""

    def through(adapter: Adapter) -> Any:
        def after(_module: Any, _arguments: Any, output: Any) -> Any:
            own = output[0] if isinstance(output, tuple) else output
            changed = adapter(own)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return after

    layers = find_layers(model)[1]
    handles = [layers[index].register_forward_hook(through(adapter)) for index, adapter in adapters.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
