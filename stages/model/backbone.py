"""Any Hugging Face model as embed | layers | head, its layers on disk until asked for.

backbone = Backbone.open(model_dir, settings)
hidden = backbone.embed(batch)                                 # h_0 (B, S, D)
hidden = backbone.run_layers({3: weights}, hidden, batch, {})  # f_3, on the arguments the model itself gives it
logits = backbone.head(hidden, batch)                          # (B, labels)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own convention
from torch import Tensor

from schemas.errors import BadInput
from schemas.refs import ModelFingerprint
from schemas.settings import Settings
from stages.model.skeleton import Batch, Skeleton, build_skeleton, load_config
from stages.process.seeds import normal
from stages.store.cache_directory import CacheDirectory
from stages.weights.files import FLOAT_DTYPES, WeightFiles
from stages.weights.names import resolve
from stages.weights.reader import Reader, Verify, Weights


@dataclass
class Backbone:
    """A frozen model.  `head_parameters` are those that the checkpoint lacks: float32 leaves that may train."""

    skeleton: Skeleton
    reader: Reader
    head_parameters: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        model_dir: Path,
        settings: Settings,
        *,
        pad_id: int,
        expected: ModelFingerprint | None = None,
        verify: Verify = "always",
        cache: CacheDirectory | None = None,
    ) -> Self:
        """Read configuration, headers and everything that is no layer.

        `pad_id` is what texts are padded with, `expected` the fingerprint that every part must have, checked as
        `verify` says.  Raises `BadInput` and `NotTrusted`.
        """
        config = load_config(model_dir)
        config.num_labels = max(len(settings.task.labels), 2)
        config.pad_token_id = pad_id  # heads of decoders find the last real token by it
        skeleton = build_skeleton(config, settings.head_form, dtype=FLOAT_DTYPES[settings.numerics.dtype])
        checkpoint = WeightFiles.open(model_dir)
        where = {"layer_prefix": skeleton.layer_prefix, "embedding": skeleton.embedding_name}
        names = resolve(skeleton.model, checkpoint, **where)
        skeleton.open_slots()
        reader = Reader(model_dir, checkpoint, names, skeleton, expected, verify, cache)
        reader.check_small_parts()
        backbone = cls(skeleton, reader)
        backbone._complete(labels=config.num_labels, seed=settings.seed)
        return backbone

    @property
    def num_layers(self) -> int:
        """L."""
        return len(self.skeleton.layers)

    @property
    def hidden_size(self) -> int:
        """D, the width of what flows between layers."""
        return int(self.skeleton.config.hidden_size)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of frozen weights and hidden states."""
        return self.skeleton.dtype

    @torch.no_grad()
    def embed(self, batch: Batch) -> Tensor:
        """h_0 (B, S, D): what the first layer gets.  Reads only the rows of the tokens in the batch."""
        self.skeleton.gathered.rows = self.reader.embedding_rows(batch.input_ids.unique())
        try:
            return self.skeleton.run_until(batch, lambda index, hidden, apply: hidden, 0)
        finally:
            self.skeleton.gathered.rows = None

    def run_layers(
        self,
        weights: Mapping[int, Weights],
        hidden: Tensor,
        batch: Batch,
        adapters: Mapping[int, Callable[[Tensor], Tensor]],
    ) -> Tensor:
        """Consecutive layers, each with its adapter where it has one: h_s (B, S, D) to h_{e+1} (B, S, D)."""
        first, last = min(weights), max(weights)

        def visit(index: int, arriving: Tensor, apply: Callable[[Tensor, Weights], Tensor]) -> Tensor:
            if index < first:
                return arriving
            output = apply(hidden if index == first else arriving, weights[index])
            return adapters[index](output) if index in adapters else output

        return self.skeleton.run_until(batch, visit, last)

    def head(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Logits (B, labels) in float32: final norm, pooler and classifier, on the output of any layer."""
        if self.skeleton.head_form == "mean":
            return self._mean_head(self.after_layers(hidden, batch).last_hidden_state.float(), batch)
        logits: Tensor = self.after_layers(hidden, batch).logits
        return logits.float()

    def after_layers(self, hidden: Tensor, batch: Batch) -> Any:
        """transformers' own output object for `hidden` (B, S, D) as the output of the last layer."""
        last = self.num_layers - 1

        def visit(index: int, arriving: Tensor, apply: object) -> Tensor:  # noqa: ARG001
            return hidden if index == last else arriving

        own = self.head_parameters.items() if self.skeleton.head_form == "transformers" else ()
        return self.skeleton.run(batch, visit, {name: value.to(self.dtype) for name, value in own})

    def load_head(self, tensors: Mapping[str, Any]) -> None:
        """Take the head's parameters from the tensors of a state (numpy arrays named `head.<parameter>`)."""
        for name in self.head_parameters:
            value = torch.from_numpy(tensors[f"head.{name}"].copy())
            self.head_parameters[name] = value.requires_grad_()

    def _mean_head(self, hidden: Tensor, batch: Batch) -> Tensor:
        mask = batch.attention_mask.unsqueeze(-1).float()
        mean = (hidden * mask).sum(1) / mask.sum(1)
        return F.linear(mean, self.head_parameters["classifier.weight"], self.head_parameters["classifier.bias"])

    def _complete(self, *, labels: int, seed: int) -> None:
        """Fill in what is no layer, and find the head that trains: absent parameters that logits depend on."""
        skeleton = self.skeleton
        loaded = self.reader.rest()
        inner = f"{skeleton.layer_prefix}."
        outside = [
            name
            for name in skeleton.state_names
            if not name.startswith(inner) and name not in (skeleton.embedding_name, *skeleton.output_names)
        ]
        absent = {name: skeleton.shape(name) for name in outside if name not in loaded}
        if skeleton.head_form == "mean":
            absent |= {"classifier.weight": (labels, self.hidden_size), "classifier.bias": (labels,)}
        fresh = {name: _fresh(name, shape, seed) for name, shape in sorted(absent.items())}
        skeleton.fill(loaded | {name: value.to(self.dtype) for name, value in fresh.items() if name in outside})
        self.head_parameters = {name: value.requires_grad_() for name, value in fresh.items()}
        self._keep_what_the_head_reaches()

    def _keep_what_the_head_reaches(self) -> None:
        """Absent parameters train where logits depend on them.  One that stands before the layers is a hole."""
        if self.skeleton.head_form == "language-model":  # the pre-trained head, which does not train
            _refuse_hole(sorted(self.head_parameters))
            return
        ids = torch.zeros(1, 2, dtype=torch.int64)
        hidden = torch.ones(1, 2, self.hidden_size, dtype=self.dtype)
        names, values = list(self.head_parameters), list(self.head_parameters.values())
        with torch.enable_grad():
            logits = self.head(hidden, Batch(ids, torch.ones_like(ids)))
            gradients = torch.autograd.grad(logits.sum(), values, allow_unused=True) if values else ()
        unreached = {name for name, gradient in zip(names, gradients, strict=True) if gradient is None}
        _refuse_hole(sorted(name for name in unreached if "embed" in name))
        self.head_parameters = {name: self.head_parameters[name] for name in names if name not in unreached}


def _refuse_hole(names: list[str]) -> None:
    """Absent parameters that nothing will train are a hole in the checkpoint."""
    if names:
        raise BadInput(
            f"the checkpoint lacks {names[0]}, which no training fills",
            values={"parameters missing": len(names)},
            hint="the weights are incomplete: save the pre-trained model again",
        )


def _fresh(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """How an absent parameter starts: matrices N(0, 0.02²), scales of norms one, biases zero.  float32."""
    if len(shape) > 1:
        return torch.from_numpy(normal(f"head.{name}", seed, shape))
    return torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
