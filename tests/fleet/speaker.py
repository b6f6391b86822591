"""A tiny language model that can be asked: a tokenizer of characters, a plan, a state whose adapters do something."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM

from schemas.state import StateManifest
from stages.store.artifact import open_artifact, read_tensors
from stages.tuning.adapters import adapters_from_tensors
from stages.tuning.tensors import LIVE_TENSORS
from tests import fleet

# All 96 tokens of the tiny models: four special ones and characters.
CHARACTERS = "\n !\"$%'()+,-.0123456789:;<=>?ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz{}éß&/@*~^"
WINDOW = 512


@dataclass(frozen=True)
class Speaker:
    """Folders of a federation of one, and the resident model."""

    folder: Path
    model: Any

    @property
    def places(self) -> dict[str, Any]:
        """What every stage takes."""
        return fleet.places(self.folder, self.folder / "model")

    @contextmanager
    def adapted(self) -> Iterator[Any]:
        """transformers' own model with the state's adapters as hooks on its layers."""
        tensors = read_tensors(open_artifact(self.folder / "state", StateManifest), *LIVE_TENSORS)
        adapters = adapters_from_tensors(tensors, "silu")
        with fleet.adapted(self.model, adapters), torch.no_grad():
            yield self.model


def make_speaker(folder: Path, *, family: str = "llama", scale: float = 2.0) -> Speaker:
    """A random model, and a state of it with random adapters.

    Weights are `scale` times as large as elsewhere, so that the model does not say the same whatever it is asked.
    """
    model = fleet.save_model(
        folder / "model", family, factory=AutoModelForCausalLM, max_position_embeddings=WINDOW, eos_token_id=2
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    model.save_pretrained(folder / "model")
    save_tokenizer(folder / "model")
    chosen = fleet.settings(**fleet.LANGUAGE, adapter={"activation": "silu"}, encoding={"max_length": 32})
    data = fleet.save_texts(folder / "texts.jsonl", fleet.texts(8))
    fleet.begin(folder, folder / "model", data, chosen, state="fresh")
    fresh = open_artifact(folder / "fresh", StateManifest)
    draw = np.random.default_rng(3)
    noisy = {
        name: (value + 0.05 * draw.standard_normal(value.shape)).astype(np.float32)
        for name, value in read_tensors(fresh).items()
    }
    fleet.rewrite(fresh, folder / "state", noisy)
    return Speaker(folder, model)


def save_tokenizer(directory: Path) -> None:
    """One token a character; a text begins with the token 1 and ends where token 2 is written."""
    special = ["[PAD]", "[CLS]", "[END]", "[UNK]"]
    tokens = [*special, *CHARACTERS]
    assert len(set(tokens)) == len(tokens) == 96
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.add_special_tokens(special)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 1)])
    tokenizer.save(str(directory / "tokenizer.json"))
    named = {"pad_token": "[PAD]", "bos_token": "[CLS]", "eos_token": "[END]", "unk_token": "[UNK]"}
    named["tokenizer_class"] = "PreTrainedTokenizerFast"
    (directory / "tokenizer_config.json").write_text(json.dumps(named))
