"""Any Hugging Face model as embed | layers | head, with its layers on disk until they are needed.

backbone = Backbone.open(model_dir, settings)
hidden = backbone.embed(batch)                                      # h_0 (B, S, D)
hidden = backbone.run_layers({3: weights}, hidden, batch, UNTUNED)  # f_3, with the model's own arguments
logits = backbone.head(hidden, batch, tuning.head)                  # (B, labels)
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own convention
from torch import Tensor
from torch.utils._pytree import tree_leaves

from schemas.errors import BadInput
from schemas.head import HeadParameter, HeadStart
from schemas.refs import ModelFingerprint
from schemas.settings import Settings
from stages.model.architecture import blamed_on_config, load_config
from stages.model.label_rows import labels_by_row, row_order, rows_in_order
from stages.model.positions import check_length
from stages.model.skeleton import Batch, LayerArguments, Skeleton, build_skeleton
from stages.model.slots import pass_on
from stages.process.seeds import normal
from stages.store.cache_directory import CacheDirectory
from stages.weights.files import FLOAT_DTYPES, WeightFiles
from stages.weights.names import lacking, missing_parameters, resolve
from stages.weights.reader import Reader, Verify, Weights


class LayerTuning(Protocol):
    """What a tuning does to layers; see `stages.tuning.tuning`."""

    def inside(self, layer: int, weights: Weights) -> Weights:
        """The weights that a layer computes with."""
        ...

    def after(self, layer: int, hidden: Tensor) -> Tensor:
        """A layer's output (B, S, D), changed or not."""
        ...


@dataclass
class Backbone:
    """A frozen model.

    `initial_head` are the initial values of the parameters of the head that train, float32, and not the model's own:
    the logits depend on them, and the files lack them or they have a row for each label (`head_starts` says which).
    Those that train are held by a tuning.
    """

    skeleton: Skeleton
    reader: Reader
    initial_head: dict[str, Tensor] = field(default_factory=dict)
    head_starts: dict[str, HeadStart] = field(default_factory=dict)
    stored_labels: tuple[str, ...] = ()  # of the head that the files hold, by row

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
        """Read configuration, headers and everything outside the layers.

        `pad_id` is the padding token, `expected` the fingerprint that every part must have, checked as often as
        `verify` says.  Raises `BadInput` and `NotTrusted`.
        """
        config = load_config(model_dir)
        stored_labels = labels_by_row(config)
        config.num_labels = max(len(settings.task.labels), 2)
        config.pad_token_id = pad_id  # decoders' heads use it to find the last real token
        numerics = settings.numerics
        dtype = FLOAT_DTYPES[numerics.computes_in]
        with blamed_on_config(model_dir / "config.json"):
            skeleton = build_skeleton(config, settings.head_form, dtype=dtype, threads=numerics.threads)
            check_length(settings.encoding, config, lambda: skeleton.position_limit)
        checkpoint = WeightFiles.open(model_dir)
        where = {"layer_prefix": skeleton.layer_prefix, "embedding": skeleton.embedding_name}
        names = resolve(skeleton.model, checkpoint, **where, any_shape=skeleton.label_names)
        skeleton.open_slots()
        reader = Reader(model_dir, checkpoint, names, skeleton, expected, verify, cache)
        reader.check_small_parts()
        backbone = cls(skeleton, reader)
        backbone._complete(stored_labels, settings.task.labels, seed=settings.seed)
        return backbone

    @property
    def num_layers(self) -> int:
        """Number of layers, L."""
        return len(self.skeleton.layers)

    @property
    def hidden_size(self) -> int:
        """D, the width of the hidden states."""
        return int(self.skeleton.config.hidden_size)

    @property
    def position_limit(self) -> int | None:
        """How many tokens a text can have; None where no table of positions limits it."""
        return self.skeleton.position_limit

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of hidden states, and of all frozen weights but the matrices, which stay as stored."""
        return self.skeleton.dtype

    @property
    def head_parameters(self) -> tuple[HeadParameter, ...]:
        """The parameters of the head that train, and where each begins."""
        return tuple(
            HeadParameter(name=name, shape=tuple(value.shape), start=self.head_starts[name])
            for name, value in self.initial_head.items()
        )

    @torch.no_grad()
    def embed(self, batch: Batch) -> Tensor:
        """h_0 (B, S, D), the input of the first layer.  Reads only the rows of the tokens in the batch."""
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
        tuning: LayerTuning,
        arguments: LayerArguments | None = None,
    ) -> Tensor:
        """Run consecutive layers s to e, tuned: h_s (B, S, D) to h_{e+1} (B, S, D).

        With `arguments`, what the model hands its layers for the batch, its forward does not run around them.
        """
        first, last = min(weights), max(weights)
        if arguments is not None:
            self.skeleton.passes.texts = batch.texts
            for index in range(first, last + 1):
                slot, (args, kwargs) = self.skeleton.slots[index], arguments.of_each[index]
                hidden = tuning.after(index, slot.compute(hidden, tuning.inside(index, weights[index]), args, kwargs))
            return hidden

        def visit(index: int, arriving: Tensor, apply: Callable[[Tensor, Weights], Tensor]) -> Tensor:
            if index < first:
                return arriving
            computing = tuning.inside(index, weights[index])
            return tuning.after(index, apply(hidden if index == first else arriving, computing))

        return self.skeleton.run_until(batch, visit, last)

    def head(self, hidden: Tensor, batch: Batch, parameters: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, labels) in float32: final norm, pooler and classifier, on the output of any layer.

        `parameters` are the trained parameters of the head, float32.
        """
        if self.skeleton.head_form == "mean":
            last = self.after_layers(hidden, batch, {}).last_hidden_state.float()
            mask = batch.attention_mask.unsqueeze(-1).float()
            mean = (last * mask).sum(1) / mask.sum(1)
            return F.linear(mean, parameters["classifier.weight"], parameters["classifier.bias"])
        logits: Tensor = self.after_layers(hidden, batch, parameters).logits
        return logits.float()

    def after_layers(self, hidden: Tensor, batch: Batch, parameters: Mapping[str, Tensor]) -> Any:
        """transformers' own output object for `hidden` (B, S, D) as the output of the last layer."""
        last = self.num_layers - 1

        def visit(index: int, arriving: Tensor, apply: object) -> Tensor:  # noqa: ARG001
            return hidden if index == last else arriving

        return self.skeleton.run(batch, visit, {name: value.to(self.dtype) for name, value in parameters.items()})

    def _complete(self, stored_labels: tuple[str, ...], labels: tuple[str, ...], *, seed: int) -> None:
        """Fill in everything outside the layers, and find the trainable head: what logits use, absent or by label.

        `stored_labels`: of the checkpoint's configuration, by row; `labels`: of the plan.  Raises `BadInput`.
        """
        skeleton = self.skeleton
        loaded = self.reader.rest(skeleton.label_names)
        rows = {name: loaded.pop(name) for name in sorted(skeleton.label_names & loaded.keys())}
        inner = f"{skeleton.layer_prefix}."
        outside = [
            name
            for name in skeleton.state_names
            if not name.startswith(inner) and name not in (skeleton.embedding_name, *skeleton.output_names)
        ]
        absent = {name: skeleton.shape(name) for name in outside if name not in loaded}
        if skeleton.head_form == "mean":
            count = skeleton.config.num_labels
            absent |= {"classifier.weight": (count, self.hidden_size), "classifier.bias": (count,)}
        initial = {name: _fresh(name, shape, seed) for name, shape in sorted(absent.items())}
        order = row_order(stored_labels, labels)
        if order is not None:
            initial |= {name: rows_in_order(name, stored, order, absent[name]) for name, stored in rows.items()}
        skeleton.fill(loaded | {name: value.to(self.dtype) for name, value in initial.items() if name in outside})
        self.initial_head = self._reached_by_the_head(initial)
        of_rows: HeadStart = "other-labels" if order is None else "checkpoint"
        self.head_starts = {name: of_rows if name in rows else "fresh" for name in self.initial_head}
        self.stored_labels = stored_labels if rows else ()

    def _reached_by_the_head(self, absent: dict[str, Tensor]) -> dict[str, Tensor]:
        """Those of `absent` that logits depend on, which train.

        Raises `BadInput` where the model needs an absent one that would not train: before its layers, for example.
        """
        if self.skeleton.head_form == "language-model":  # the pre-trained head, which does not train
            missing = missing_parameters(self.skeleton, self.reader.names)
            if missing:
                raise lacking(self.skeleton, missing)
            return {}
        ids = torch.zeros(1, 2, dtype=torch.int64)
        batch = Batch(ids, torch.ones_like(ids))
        hidden = torch.ones(1, 2, self.hidden_size, dtype=self.dtype)
        leaves = {name: value.clone().requires_grad_() for name, value in absent.items()}
        with torch.enable_grad():
            reached = _reached([self.head(hidden, batch, leaves)], leaves)
            _refuse_hole(sorted(_reached(self._outputs(batch, leaves), leaves) - reached))
        return {name: value for name, value in absent.items() if name in reached}

    def _outputs(self, batch: Batch, parameters: Mapping[str, Tensor]) -> list[Tensor]:
        """What the model makes of a batch with nothing in its layers, and what it hands to them."""
        skeleton = self.skeleton
        own = {name: value.to(self.dtype) for name, value in parameters.items() if name in skeleton.state_names}
        handed: list[tuple[Sequence[Any], Mapping[str, Any]]] = []
        skeleton.recorded = handed
        try:
            output = skeleton.run(batch, pass_on, own)
        finally:
            skeleton.recorded = None
        last = output.last_hidden_state if skeleton.head_form == "mean" else output.logits
        return [last, *(leaf for leaf in tree_leaves(handed) if isinstance(leaf, Tensor))]


def _reached(outputs: Iterable[Tensor], leaves: Mapping[str, Tensor]) -> set[str]:
    """Names of the leaves that any of the outputs depends on."""
    dependent = [output.sum() for output in outputs if output.requires_grad]
    if not dependent or not leaves:
        return set()
    gradients = torch.autograd.grad(dependent, tuple(leaves.values()), allow_unused=True)
    return {name for name, gradient in zip(leaves, gradients, strict=True) if gradient is not None}


def _refuse_hole(names: list[str]) -> None:
    """Refuse a checkpoint that lacks parameters which nothing will train.  Raises `BadInput`."""
    if names:
        raise BadInput(
            f"the checkpoint lacks {names[0]}, which is not trained either",
            values={"parameters missing": len(names)},
            hint="the weights are incomplete: save the pre-trained model again",
        )


def _fresh(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Initial values of an absent parameter, float32: matrices N(0, 0.02²), scales of norms one, biases zero."""
    if len(shape) > 1:
        return torch.from_numpy(normal(f"head.{name}", seed, shape))
    return torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
