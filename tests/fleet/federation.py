"""A federation of one device whose state says something, to be taken home."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from schemas.settings import Settings
from schemas.state import StateManifest
from stages.export.export import Source
from stages.model.language_head import LanguageHead
from stages.model.skeleton import Batch
from stages.store.artifact import open_artifact
from stages.streaming.stream import stream_layers
from stages.streaming.texts import EncodedTexts
from tests import fleet

LANGUAGE: dict[str, dict[str, Any]] = fleet.LANGUAGE | {"head": {"form": "transformers"}}


class Federation:
    """One device's plan, and a state whose adapters say something."""

    def __init__(
        self, folder: Path, family: str, chosen: Settings, *, save: Any = fleet.save_model, **model: Any
    ) -> None:
        self.folder, self.model_dir, self.settings = folder, folder / "model", chosen
        language = chosen.task.kind == "causal-lm"
        save(self.model_dir, family, **({"factory": AutoModelForCausalLM} if language else {}), **model)
        self.data = fleet.save_texts(folder / "data.jsonl", fleet.texts(12))
        _, fresh = fleet.begin(folder, self.model_dir, self.data, chosen, state="fresh")
        draw = np.random.Generator(np.random.PCG64(1))
        tensors = {one.name: draw.normal(0, 0.2, one.shape).astype(np.float32) for one in fresh.manifest.tensors}
        self.state = folder / "state"
        fleet.rewrite(open_artifact(folder / "fresh", StateManifest), self.state, tensors)

    def inputs(self) -> dict[str, Any]:
        return {"model_dir": self.model_dir, "plan": self.folder / "plan", "state": self.folder / "state"}

    @torch.no_grad()
    def answers(self) -> tuple[Batch, Tensor]:
        """Logits of our own: streamed layers with their adapters, then the head."""
        source = Source.open(self.model_dir, self.folder / "plan", self.state, verify="always")
        backbone = source.backbone
        texts = EncodedTexts.encode(fleet.examples(fleet.texts(5)), source.encoder, 5)
        batch = texts.batch(range(5))
        hidden = backbone.embed(batch)
        for layer, weights in stream_layers(backbone, range(backbone.num_layers)):
            hidden = backbone.run_layers({layer: weights}, hidden, batch, source.tuning)
        if self.settings.task.kind == "causal-lm":
            return batch, LanguageHead.of(backbone).logits(hidden, batch, chunk=10**6)
        return batch, backbone.head(hidden, batch, source.tuning.head)
