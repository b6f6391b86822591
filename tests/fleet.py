"""Small real things to test with: models of many architectures, tokenizers, labelled texts, devices with folders.

A device here is a folder; what it sees of the world are the files carried to it.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import AutoModel

from schemas.refs import Window
from schemas.settings import Settings
from stages.data.encode import Encoder
from stages.data.load import Example
from stages.model.skeleton import find_layers
from stages.streaming.check import VOCABULARY, tiny_config
from stages.tuning.adapters import Adapter

LABELS = ("tide", "root")
WORDS = {
    "tide": ["wave", "salt", "moon", "harbour", "gull", "current", "sand", "foam"],
    "root": ["soil", "leaf", "seed", "bark", "forest", "moss", "branch", "rain"],
}
FILLER = ["the", "a", "of", "and", "slow", "grey", "old", "near", "under", "again"]
SPECIAL = ["[PAD]", "[CLS]", "[UNK]"]

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
CONFIGS = FAMILIES | {"gemma2": "Gemma2Config", "granite": "GraniteConfig", "cohere": "CohereConfig"}


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


def save_tokenizer(directory: Path) -> None:
    """A word tokenizer over the vocabulary of `texts`, padding with id 0."""
    words = [*SPECIAL, *FILLER, *(word for group in WORDS.values() for word in group)]
    assert len(words) < VOCABULARY
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 1)])
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"pad_token": "[PAD]"}))


def texts(count: int, *, seed: int = 0) -> list[dict[str, str]]:
    """Labelled texts whose words give the label away."""
    draw = random.Random(seed)
    rows = []
    for index in range(count):
        label = LABELS[index % len(LABELS)]
        words = [draw.choice(WORDS[label] if draw.random() < 0.6 else FILLER) for _ in range(draw.randint(4, 12))]
        rows.append({"text": " ".join(words), "label": label})
    return rows


def examples(rows: list[dict[str, str]]) -> list[Example]:
    """Rows as the stages read them, without their labels."""
    return [Example(row["text"], None) for row in rows]


def token_ids(encoder: Encoder, texts: Sequence[str]) -> list[np.ndarray]:
    """Plain texts as the stages encode them."""
    return [one.ids for one in encoder.encode_examples([Example(text, None) for text in texts])]


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


def save_texts(path: Path, rows: list[dict[str, str]]) -> Path:
    """Write JSONL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings(**sections: dict[str, Any]) -> Settings:
    """Settings for the tiny models, with sections changed key by key."""
    base: dict[str, dict[str, Any]] = {
        "task": {"labels": LABELS},
        "encoding": {"max_length": 16},
        "head": {"form": "mean"},
        "similarity": {"min_examples": 5, "max_examples": 16},
        "chain": {"start": 0, "window_size": 2},
        "adapter": {"reduction_factor": 8},
        "optimizer": {"learning_rate": 1e-2},
        "numerics": {"threads": 1, "micro_batch": 4},
    }
    for name, section in sections.items():
        base.setdefault(name, {}).update(section)
    return Settings.model_validate(base)


def write_recipe(path: Path, chosen: Settings) -> Path:
    """The settings as a recipe file."""
    from stages.report.recipe import write_recipe as render

    path.write_text(render(chosen))
    return path


def chainctl(*arguments: object, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "chainctl", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=check, **options)


def windows(depth: int) -> list[Window]:
    """All windows of two layers."""
    return [Window(start=start, stop=start + 2) for start in range(depth - 1)]
