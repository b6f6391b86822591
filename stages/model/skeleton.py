"""transformers' own model, without its weights: its forward pass is never rewritten here.

The model is built on the meta device and each layer is replaced by a `Slot`.  The caller decides what happens in the
slots; everything around them (embeddings, masks, rotary angles, final norm, pooler, choice of the last real token,
classifier) is the model's own code, for any family.  Slots before the layer of interest return their input; so one
forward gives layer l exactly the arguments that it gets in the whole model.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from transformers import (
    PretrainedConfig,
    PreTrainedModel,
)

from schemas.errors import BadInput
from schemas.settings import HeadForm
from stages.model.architecture import FACTORIES, check_head, empty_model, find_layers, is_decoder
from stages.model.held import Places
from stages.model.label_rows import label_parameters
from stages.model.passes import PassCounter
from stages.model.positions import position_limit, possible_tables
from stages.model.slots import KEPT_TYPES, GatheredEmbedding, Slot, Stop, Visit, VocabularySlot, pass_on


@dataclass(frozen=True)
class Batch:
    """Token ids, attention mask and, where they differ from the column index, positions: (B, S) int64.

    `packed`: a row holds several texts, each with positions from 0 on, which do not attend to each other.
    `keys_and_values`: of the tokens before these (transformers' cache); the mask covers them too.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor | None = None
    packed: bool = False
    keys_and_values: Any = None

    @property
    def texts(self) -> int:
        """How many texts it holds: its rows or, where those hold several, the places where positions restart."""
        if not self.packed or self.position_ids is None:
            return len(self.input_ids)
        return int(((self.position_ids == 0) & (self.attention_mask == 1)).sum())


@dataclass(frozen=True)
class LayerArguments:
    """What the model's forward hands each of its layers beside the hidden states, for one batch: masks, angles."""

    of_each: tuple[tuple[Sequence[Any], Mapping[str, Any]], ...]

    @property
    def total_bytes(self) -> int:
        """Memory of the tensors, each storage once: layers mostly share theirs."""
        tensors = [leaf for leaf in tree_leaves(self.of_each) if isinstance(leaf, Tensor)]
        return sum({tensor.data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


class Skeleton:
    """A model on the meta device with slots for layers.  `rest` parameters are real once `fill` was called."""

    def __init__(self, model: PreTrainedModel, head_form: HeadForm, threads: int = 1) -> None:
        self.model = model
        self.threads = threads
        self.passes = PassCounter()
        self.head_form = head_form
        self.config: PretrainedConfig = model.config
        self.dtype: torch.dtype = model.dtype
        self.layer_prefix, layers = find_layers(model)
        self.layers: list[nn.Module] = list(layers)
        self.embedding_name = _embedding_parameter(model)
        self.state_names = list(model.state_dict())
        self.label_names = label_parameters(model) if head_form == "transformers" else frozenset()
        self.possible_tables = possible_tables(model)
        self.visit: Visit = pass_on
        self.recorded: list[tuple[Sequence[Any], Mapping[str, Any]]] | None = None
        # Encoders make their own (RoBERTa counts from 2); state space models have none.
        forward = signature(type(model).forward).parameters
        self.takes_positions = is_decoder(self.config) and "position_ids" in forward
        self.keeps_keys_and_values = "past_key_values" in forward
        self.gathered = self._replace_embedding()
        self.vocabulary = VocabularySlot(model.get_output_embeddings()) if head_form == "language-model" else None
        self.output_names = _parameter_names(model, model.get_output_embeddings()) if self.vocabulary else []
        self.slots = [Slot(index, layer, self) for index, layer in enumerate(self.layers)]

    def open_slots(self) -> None:
        """Replace the layers by slots.  Names must be resolved before, while the layers are in the model."""
        parent, _, name = self.layer_prefix.rpartition(".")
        setattr(self.model.get_submodule(parent), name, nn.ModuleList(self.slots))
        self.model.set_input_embeddings(self.gathered)
        if self.vocabulary is not None:
            self.model.set_output_embeddings(self.vocabulary)

    def fill(self, values: Mapping[str, Tensor]) -> None:
        """Make parameters outside the layers real."""
        self.__dict__.pop("_places", None)
        for path, value in values.items():
            parent, _, name = path.rpartition(".")
            module = self.model.get_submodule(parent)
            if name in module._buffers:
                module._buffers[name] = value
            else:
                module._parameters[name] = nn.Parameter(value, requires_grad=False)

    def stay_stored(self, layer: int) -> frozenset[str]:
        """Names, in a layer, of the matrices that compute in any dtype as they are stored."""
        names: frozenset[str] = self.slots[layer].matrices.names
        return names

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a parameter or buffer, real or not."""
        return tuple(self.model.get_parameter_or_buffer(name).shape)

    @cached_property
    def position_limit(self) -> int | None:
        """How many tokens a text can have; None where no table of positions limits it."""
        return position_limit(self.config, self.possible_tables, FACTORIES[self.head_form].from_config)

    @cached_property
    def _places(self) -> Places:
        """Places of everything outside the layers.  Use it after `fill`, which unties what it fills."""
        return Places(self.model)

    @contextmanager
    def visiting(self, visit: Visit) -> Iterator[None]:
        """Let `visit` decide what happens in the slots."""
        self.visit = visit
        try:
            yield
        finally:
            self.visit = pass_on

    def run(self, batch: Batch, visit: Visit, parameters: Mapping[str, Tensor] | None = None) -> Any:
        """The model's own forward with `visit` in the slots, and `parameters` in place of its own; its output."""
        self.passes.texts = batch.texts
        with self.visiting(visit):
            if not parameters:
                return self.model(**self._arguments(batch))
            with self._places.holding(parameters):
                return self.model(**self._arguments(batch))

    def _arguments(self, batch: Batch) -> dict[str, Any]:
        """Arguments of the model's forward.  Without a mask it separates texts where positions restart at 0."""
        arguments: dict[str, Any] = {"input_ids": batch.input_ids}
        if not batch.packed:
            arguments["attention_mask"] = batch.attention_mask
        if batch.position_ids is not None and self.takes_positions:
            arguments["position_ids"] = batch.position_ids
        if batch.keys_and_values is not None:
            arguments |= {"past_key_values": batch.keys_and_values, "use_cache": True}
        return arguments

    def run_until(self, batch: Batch, visit: Visit, stop: int) -> Tensor:
        """Like `run`, but ends after slot `stop`; the hidden states that `visit` returned there, (B, S, D)."""

        def visit_and_stop(index: int, hidden: Tensor, apply: Any) -> Tensor:
            result = visit(index, hidden, apply)
            if index == stop:
                raise Stop(result)
            return result

        try:
            self.run(batch, visit_and_stop)
        except Stop as stopped:
            return stopped.hidden
        raise AssertionError(f"the model's forward never reached layer {stop}")

    def layer_arguments(self, batch: Batch) -> LayerArguments | None:
        """What each layer gets beside the hidden states, from one forward that passes on.

        None where it may not be kept: whoever hands a layer more than tensors and plain values (a cache, say) may
        want something of it back.
        """
        self.recorded = []
        try:
            self.run_until(batch, pass_on, len(self.layers) - 1)
            found = LayerArguments(tuple(self.recorded))
        finally:
            self.recorded = None
        plain = all(leaf is None or isinstance(leaf, KEPT_TYPES) for leaf in tree_leaves(found.of_each))
        return found if plain else None

    def run_to_vocabulary(self, batch: Batch, visit: Visit) -> Tensor:
        """Like `run`, but ends at the language head; the head's input, (B, S, D).

        Where `batch` has keys and values of earlier tokens, its ids are the tokens that follow; theirs are appended.
        """
        try:
            self.run(batch, visit)
        except Stop as stopped:
            return stopped.hidden
        raise AssertionError("the model's forward never reached its language head")

    def run_from_vocabulary(self, logits: Tensor) -> Tensor:
        """The model's final logits, given `logits` (1, N, V') as its head's output: the same, or soft-capped."""
        assert self.vocabulary is not None
        ids = torch.zeros(logits.shape[:2], dtype=torch.int64)
        nothing = torch.zeros(*ids.shape, self.config.hidden_size, dtype=self.dtype)
        self.vocabulary.__dict__["answer"] = logits
        try:
            output: Tensor = self.run(Batch(ids, torch.ones_like(ids)), lambda *_: nothing).logits
        finally:
            self.vocabulary.__dict__["answer"] = None
        return output

    def _replace_embedding(self) -> GatheredEmbedding:
        inner = self.model.get_input_embeddings()
        inner.padding_idx = None  # it only affects gradients, and would have to be inside the table
        weight = self.model.get_parameter(self.embedding_name)
        return GatheredEmbedding(inner, weight.shape[1], weight.dtype)


def build_skeleton(config: PretrainedConfig, form: HeadForm, *, dtype: torch.dtype, threads: int = 1) -> Skeleton:
    """The model of `config` on the meta device, buffers real, in eval mode.  Takes milliseconds at any size.

    `threads`: how many its products will use.
    """
    check_head(config, form)
    config.use_cache = False
    model = empty_model(config, form, dtype)
    model.tie_weights()
    return Skeleton(model.eval().requires_grad_(False), form, threads)


def _parameter_names(model: PreTrainedModel, module: nn.Module) -> list[str]:
    """Paths of a module's own parameters, with every alias of tied ones."""
    own = {id(parameter) for parameter in module.parameters(recurse=False)}
    named = model.named_parameters(remove_duplicate=False)
    return [name for name, parameter in named if id(parameter) in own]


def _embedding_parameter(model: PreTrainedModel) -> str:
    names = [name for name in _parameter_names(model, model.get_input_embeddings()) if name.endswith("weight")]
    if not names:
        raise BadInput(
            f"{type(model).__name__} has no token embedding table", hint="this architecture is not supported"
        )
    return names[0]
