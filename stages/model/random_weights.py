"""Models of known sizes with random weights, to measure memory and time, not accuracy.

They are written tensor by tensor in constant memory, so that a machine can write a model that it could not hold.
Matrices are N(0, 0.02²), biases zero, and norms the identity.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel

from schemas.errors import UsageProblem
from stages.model.architecture import parameters_on_meta
from stages.process import intent, seeds
from stages.process.progress import Progress, silent
from stages.store.files import complete_directory
from stages.store.output import check_output
from stages.weights.files import FLOAT_DTYPES
from stages.weights.writer import SHARD_BYTES, Entry, group, shard_name, write_index, write_shard

STD = 0.02
BLOCK = 1_048_573  # values drawn for a tensor, then repeated; a prime, so that no two rows are equal


@dataclass(frozen=True)
class ModelPreset:
    """The architecture and sizes of a published model."""

    config: str  # class in transformers
    values: Mapping[str, Any]
    dtype: str
    language_model: bool


def _llama(dtype: str = "bfloat16", **values: Any) -> ModelPreset:
    return ModelPreset("LlamaConfig", {"max_position_embeddings": 4096, **values}, dtype, language_model=True)


LIKE: dict[str, ModelPreset] = {
    "roberta-large": ModelPreset(
        "RobertaConfig",
        {
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
            "vocab_size": 50265,
            "max_position_embeddings": 514,
            "type_vocab_size": 1,
        },
        "float32",
        language_model=False,
    ),
    "bert-base": ModelPreset("BertConfig", {}, "float32", language_model=False),
    "smollm2-135m": _llama(
        hidden_size=576,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
        vocab_size=49152,
        tie_word_embeddings=True,
    ),
    "tinyllama-1.1b": _llama(
        hidden_size=2048,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
        intermediate_size=5632,
        vocab_size=32000,
    ),
    "llama-2-7b": _llama(
        hidden_size=4096,
        num_hidden_layers=32,
        num_attention_heads=32,
        intermediate_size=11008,
        vocab_size=32000,
    ),
    "llama-3.1-8b": _llama(
        hidden_size=4096,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        intermediate_size=14336,
        vocab_size=128256,
    ),
    "qwen3-8b": ModelPreset(
        "Qwen3Config",
        {
            "hidden_size": 4096,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "intermediate_size": 12288,
            "vocab_size": 151936,
        },
        "bfloat16",
        language_model=True,
    ),
    "gemma-3-4b": ModelPreset(
        "Gemma3TextConfig",
        {
            "hidden_size": 2560,
            "num_hidden_layers": 34,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "intermediate_size": 10240,
            "vocab_size": 262208,
        },
        "bfloat16",
        language_model=True,
    ),
}


def write_random_model(
    like: str,
    out: Path,
    *,
    seed: int = 0,
    dtype: str | None = None,
    layers: int | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> int:
    """Write a model directory; the size of its weights in bytes.  Raises `UsageProblem`."""
    preset = LIKE.get(like)
    if preset is None:
        raise UsageProblem("there is no such model", values={"expected": ", ".join(LIKE), "found": like})
    depth = {} if layers is None else {"num_hidden_layers": layers}
    config = getattr(transformers, preset.config)(**{**preset.values, **depth})  # it lists the types of its layers
    stored = FLOAT_DTYPES[dtype or preset.dtype]
    config.dtype = stored
    factory = AutoModelForCausalLM if preset.language_model else AutoModel
    with parameters_on_meta():
        model = factory.from_config(config)
    model.tie_weights()
    config.architectures = [type(model).__name__]
    entries = [
        Entry(name, stored, shape, partial(_values, name, shape, config.model_type, stored, seed))
        for name, shape in _parameters(model)
    ]
    total = sum(entry.size for entry in entries)
    check_output(out, force=force, needed_bytes=total, or_holding="config.json")
    intent.will_write(out, total)
    with complete_directory(out, force=force, or_same=True) as directory:
        config.save_pretrained(directory)
        save_word_tokenizer(directory, config.vocab_size)
        shards = group(entries, limit_bytes=SHARD_BYTES)
        for index, shard in enumerate(shards):
            progress("shards", index, len(shards))
            write_shard(directory / shard_name(index, len(shards)), shard)
        places = {entry.name: shard_name(index, len(shards)) for index, shard in enumerate(shards) for entry in shard}
        write_index(directory, places, total)
        return total


def save_word_tokenizer(directory: Path, vocabulary: int) -> None:
    """Write a tokenizer whose words are `w0`, `w1`, …; `w1` is the padding token."""
    words = {f"w{index}": index for index in range(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w3"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"pad_token": "w1"}) + "\n")


def _parameters(model: PreTrainedModel) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the stored parameters, tied ones once."""
    return [(name, tuple(parameter.shape)) for name, parameter in model.named_parameters()]


def _values(name: str, shape: tuple[int, ...], model_type: str, dtype: torch.dtype, seed: int) -> Iterator[Tensor]:
    """The values of one tensor, a block at a time."""
    count = int(np.prod(shape))
    if len(shape) > 1:
        generator = seeds.generator("random", name, seed)
        block = generator.standard_normal(min(count, BLOCK), dtype=np.float32) * np.float32(STD)
    else:
        identity = 0.0 if name.endswith("bias") or model_type.startswith("gemma") else 1.0
        block = np.full(min(count, BLOCK), identity, np.float32)
    values = torch.from_numpy(block).to(dtype)
    for start in range(0, count, len(values)):
        yield values[: count - start]
