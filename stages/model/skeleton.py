"""transformers' own model, without its weights: its forward pass is never rewritten here.

The model is built on the meta device and each layer is replaced by a `Slot`.  The caller decides what happens in the
slots; everything around them (embeddings, masks, rotary angles, final norm, pooler, choice of the last real token,
classifier) is the model's own code, for any family.  Slots before the layer of interest return their input; so one
forward gives layer l exactly the arguments that it gets in the whole model.
"""

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.initialization import no_init_weights
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)
from transformers.utils import logging

from schemas.errors import BadInput
from schemas.settings import HeadForm
from stages.model.held import Places

logging.set_verbosity(logging.CRITICAL)  # what is wrong with a model is said in our own errors
logging.disable_progress_bar()

# What happens in a slot: (layer index, hidden states (B, S, D), the layer as a function) -> hidden states.
Visit = Callable[[int, Tensor, Callable[[Tensor, Mapping[str, Tensor]], Tensor]], Tensor]


KEPT_TYPES = (Tensor, bool, int, float, str)


class Slot(nn.Module):
    """Takes a layer's place, has its attributes, and calls the visitor."""

    def __init__(self, index: int, layer: nn.Module, host: "Skeleton") -> None:
        super().__init__()
        # Bypasses nn.Module's registry, so that the layer's parameters are no longer the model's.
        self.__dict__.update(index=index, layer=layer, host=host, returns_tuple=returns_tuple(layer))
        self.__dict__["places"] = Places(layer)

    def __getattr__(self, name: str) -> Any:
        """Attributes that a model reads from its layers (such as `attention_type`) are those of the layer."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["layer"], name)

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, None]:
        """What the visitor returns for the hidden states (B, S, D), in the form that the model expects."""

        def apply(hidden: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
            # Masks and angles move to the hidden states' device (meta, when memory is predicted).
            own_args, own_kwargs = tree_map_only(Tensor, lambda value: value.to(hidden.device), (args, kwargs))
            computed: Tensor = self.compute(hidden, weights, own_args, own_kwargs)
            return computed

        if self.host.recorded is not None:
            self.host.recorded.append((args, kwargs))
        visit: Visit = self.host.visit
        output = visit(self.index, hidden, apply)
        return (output, None) if self.returns_tuple else output

    def compute(
        self, hidden: Tensor, weights: Mapping[str, Tensor], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Tensor:
        """The layer itself, (B, S, D) to (B, S, D), with `weights` for its own."""
        with self.places.holding(weights):
            output = self.layer(hidden, *args, **kwargs)
        first: Tensor = output[0] if isinstance(output, tuple) else output
        return first


class GatheredEmbedding(nn.Module):
    """The token embedding without its table: rows come from disk, or are zero where they are not used."""

    inner: Any  # bypasses nn.Module's registry, as in a slot
    places: Places

    def __init__(self, inner: nn.Module, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.__dict__.update(inner=inner, places=Places(inner))
        self.width, self.dtype = width, dtype
        self.rows: tuple[Tensor, Tensor] | None = None  # (sorted token ids (U,), their rows (U, D))

    def forward(self, ids: Tensor) -> Tensor:
        """Rows of `ids` (B, S) as (B, S, D)."""
        if self.rows is None:
            return torch.zeros(*ids.shape, self.width, dtype=self.dtype)
        known, table = self.rows
        with self.places.holding({"weight": table}):
            embedded: Tensor = self.inner(torch.searchsorted(known, ids))
        return embedded


class VocabularySlot(nn.Module):
    """Takes the place of the language head, whose (B, S, V) logits would be the largest tensor of all.

    Without an answer the forward ends here; with one, the model continues as if these were the logits.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.__dict__.update(inner=inner, answer=None)

    def __getattr__(self, name: str) -> Any:
        """Attributes that a model reads from its head (such as its weight's dtype) are those of the head."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["inner"], name)

    def forward(self, hidden: Tensor) -> Tensor:
        """End the forward with the head's input (B, S, D), or return the answer as logits."""
        answer: Tensor | None = self.__dict__["answer"]
        if answer is None:
            raise _Stop(hidden)
        return answer


class _Stop(Exception):
    """Not an error: ends the model's forward early."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


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

    def __init__(self, model: PreTrainedModel, head_form: HeadForm) -> None:
        self.model = model
        self.head_form = head_form
        self.config: PretrainedConfig = model.config
        self.dtype: torch.dtype = model.dtype
        self.layer_prefix, layers = find_layers(model)
        self.layers: list[nn.Module] = list(layers)
        self.embedding_name = _embedding_parameter(model)
        self.state_names = list(model.state_dict())
        self.visit: Visit = _pass_on
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

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a parameter or buffer, real or not."""
        return tuple(self.model.get_parameter_or_buffer(name).shape)

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
            self.visit = _pass_on

    def run(self, batch: Batch, visit: Visit, parameters: Mapping[str, Tensor] | None = None) -> Any:
        """The model's own forward with `visit` in the slots, and `parameters` in place of its own; its output."""
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
                raise _Stop(result)
            return result

        try:
            self.run(batch, visit_and_stop)
        except _Stop as stopped:
            return stopped.hidden
        raise AssertionError(f"the model's forward never reached layer {stop}")

    def layer_arguments(self, batch: Batch) -> LayerArguments | None:
        """What each layer gets beside the hidden states, from one forward that passes on.

        None where it may not be kept: whoever hands a layer more than tensors and plain values (a cache, say) may
        want something of it back.
        """
        self.recorded = []
        try:
            self.run_until(batch, _pass_on, len(self.layers) - 1)
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
        except _Stop as stopped:
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


def _pass_on(index: int, hidden: Tensor, apply: Any) -> Tensor:  # noqa: ARG001
    return hidden


def load_config(model_dir: Path) -> PretrainedConfig:
    """The model's configuration.  Never runs code of the model's own.  Raises `BadInput`."""
    if not (model_dir / "config.json").is_file():
        raise BadInput(
            f"{model_dir} is not a model directory",
            values={"expected": "config.json, tokenizer.json and safetensors weights"},
            hint="'chainctl assets get minilm' fetches a small one",
        )
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(model_dir, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, OSError) as error:
        raise BadInput(
            f"{model_dir / 'config.json'} names an architecture that the installed transformers does not have",
            values={"reason": type(error).__name__},
            hint="upgrade transformers; architectures with code of their own are not run",
        ) from None
    return config


def is_decoder(config: PretrainedConfig) -> bool:
    """Whether the architecture is causal: transformers has a causal-LM form of it and no masked-LM form."""
    kind = config.model_type
    causal = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return causal or bool(getattr(config, "is_decoder", False))


def has_classification_head(config: PretrainedConfig) -> bool:
    """Whether transformers has a …ForSequenceClassification of the architecture."""
    return config.model_type in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES


def check_head(config: PretrainedConfig, form: HeadForm) -> None:
    """Refuse a head that the architecture does not have.  Raises `BadInput`."""
    if form == "transformers" and not has_classification_head(config):
        raise BadInput(
            f"transformers has no sequence classification head for {config.model_type}",
            values={"head.form": form},
            hint='set form = "mean" in the [head] section of the recipe',
        )
    if form == "language-model" and not is_decoder(config):
        raise BadInput(
            f"transformers has no causal language model of the architecture {config.model_type}",
            values={"task.kind": "causal-lm"},
            hint="use a decoder, or the task text-classification",
        )


FACTORIES = {
    "transformers": AutoModelForSequenceClassification,
    "mean": AutoModel,
    "language-model": AutoModelForCausalLM,
}


def build_skeleton(config: PretrainedConfig, form: HeadForm, *, dtype: torch.dtype) -> Skeleton:
    """The model of `config` on the meta device, buffers real, in eval mode.  Takes milliseconds at any size."""
    check_head(config, form)
    config.use_cache = False
    factory = FACTORIES[form]
    # Parameters only: buffers that no checkpoint holds (rotary frequencies, position ids) are real from the start.
    with parameters_on_meta(), no_init_weights():
        model = factory.from_config(config, dtype=dtype)
    model.tie_weights()
    return Skeleton(model.eval().requires_grad_(False), form)


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Modules that are created meanwhile have parameters without memory; their buffers are real."""
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, parameter)
        if parameter is not None:
            module._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def find_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Path and modules of the layer list: the shallowest `ModuleList` with `num_hidden_layers` entries."""
    count = model.config.num_hidden_layers
    found = [
        (name.count("."), name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if not found:
        raise BadInput(
            f"{type(model).__name__} has no list of {count} layers",
            hint="this architecture cannot be streamed layer by layer",
        )
    _, name, layers = min(found, key=lambda entry: entry[:2])
    return name, layers


def returns_tuple(layer: nn.Module) -> bool:
    """Whether a layer's forward returns a tuple, according to its source; `check.py` detects where this is wrong."""
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(type(layer).forward)))
    returned = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Return) and node.value]
    return bool(returned) and (isinstance(returned[-1], ast.Tuple) or ast.unparse(returned[-1]) == "outputs")


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
