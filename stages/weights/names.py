"""From the names on disk to the parameters of the model, through transformers' own table of renames.

Between a checkpoint and a model are about a thousand renames and a few conversions (fused experts, for example).  A
loader that guesses them is silently wrong on some architecture; this one takes them from transformers and refuses
whatever is left over inside the layers.
"""

import copy
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import Protocol

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from schemas.errors import BadInput, some
from stages.weights.files import StoredTensor, WeightFiles, main_dtype
from stages.weights.quantized import refuse_quantized


class Architecture(Protocol):
    """What reading weights needs to know of a model: `stages.model.skeleton.Skeleton` is one."""

    model: PreTrainedModel
    config: PretrainedConfig
    dtype: torch.dtype  # of hidden states
    layer_prefix: str  # path of the list of layers
    output_names: list[str]  # parameters of the language head
    state_names: list[str]  # every parameter and buffer that checkpoints hold

    def stay_stored(self, layer: int) -> frozenset[str]:
        """Names, in a layer, of the parameters that are not converted to `dtype` when they are read."""
        ...


@dataclass(frozen=True)
class Load:
    """How one parameter (or several, with a converter) comes from stored tensors."""

    target: str
    sources: tuple[tuple[StoredTensor, str], ...]  # with the converter's pattern that matched each
    converter: WeightConverter | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that it is stored in; where parts of several are merged, the one that they are promoted to."""
        return reduce(torch.promote_types, (source.dtype for source, _ in self.sources))

    def targets(self) -> list[str]:
        """Names of the model parameters this fills."""
        if self.converter is None:
            return [self.target]
        first, *others = self.converter.target_patterns
        return [self.target, *(self.target.replace(first, other) for other in others)]

    def convert(self, tensors: Mapping[str, torch.Tensor], model: PreTrainedModel) -> dict[str, torch.Tensor]:
        """Parameters by name, from the stored tensors by name."""
        if self.converter is None:
            return {self.target: tensors[self.sources[0][0].name]}
        converter = copy.deepcopy(self.converter)
        for source, pattern in self.sources:
            converter.add_tensor(self.target, source.name, pattern, tensors[source.name])
        converted = converter.convert(self.target, model=model, config=model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in converted.items()}


@dataclass(frozen=True)
class Names:
    """Every load of a model, by part.  `unused` are stored tensors that no parameter uses."""

    layers: tuple[tuple[Load, ...], ...]
    embeddings: Load
    rest: tuple[Load, ...]
    unused: tuple[StoredTensor, ...]

    @property
    def dtype(self) -> torch.dtype:
        """The floating dtype that most bytes of the layers are stored in; float32 where there is none."""
        return main_dtype(stored(load for layer in self.layers for load in layer))

    def stored_layer(self, layer: int) -> list[StoredTensor]:
        """The stored tensors of a layer."""
        return stored(self.layers[layer])

    def stored_rest(self) -> list[StoredTensor]:
        """Every stored tensor outside the layers and the token embedding table."""
        return [*stored(self.rest), *self.unused]


def stored(loads: Iterable[Load]) -> list[StoredTensor]:
    """The stored tensors that `loads` read."""
    return [source for load in loads for source, _ in load.sources]


def missing_parameters(architecture: Architecture, names: Names) -> list[str]:
    """Parameters that nothing stored fills, and that are tied to nothing that is."""
    model = architecture.model
    loads = [load for layer in names.layers for load in layer] + [names.embeddings, *names.rest]
    filled = {target for load in loads for target in load.targets()}
    tied = model.all_tied_weights_keys
    filled |= {target for target, source in tied.items() if source in filled}
    filled |= {source for target, source in tied.items() if target in filled}
    ignored = list(model._keys_to_ignore_on_load_missing or ())
    wanted = [name for name in architecture.state_names if name not in filled]
    return sorted(name for name in wanted if not any(re.search(pattern, name) for pattern in ignored))


def lacking(architecture: Architecture, missing: list[str]) -> BadInput:
    """The error for weights that lack parameters which nothing will train."""
    head = missing[0] in architecture.output_names
    tied = ', or set "tie_word_embeddings": true in config.json where the embeddings are the head too' if head else ""
    return BadInput(
        f"the model's weights lack {missing[0]}",
        values={"architecture": type(architecture.model).__name__, "parameters missing": len(missing)},
        hint=f"the weights are incomplete: get every file of the model again{tied}",
    )


def resolve(
    model: PreTrainedModel,
    checkpoint: WeightFiles,
    *,
    layer_prefix: str,
    embedding: str,
    any_shape: Collection[str] = (),
) -> Names:
    """Sort every stored tensor into the part of `model` that it fills.

    `layer_prefix` is the path of the layer list (`model.layers`), `embedding` the token embedding's parameter;
    parameters in `any_shape` may be stored in another shape than the model's.  Only headers are read.
    Raises `BadInput` where the checkpoint is quantized, a layer or the embedding is not filled exactly, or a parameter
    has another shape.
    """
    refuse_quantized(model.config, checkpoint.tensors.values(), checkpoint.folder)
    loads, unused = _loads(model, checkpoint)
    _fill_from_tied(model, loads)
    depth = layer_prefix.count(".") + 1
    layers: dict[int, list[Load]] = {}
    for load in loads.values():
        if load.target.startswith(f"{layer_prefix}."):
            layers.setdefault(int(load.target.split(".")[depth]), []).append(load)
    wanted = model.state_dict().keys()
    inner = {name for name in wanted if name.startswith(f"{layer_prefix}.")} | {embedding}
    _check_filled(inner, loads, _surplus(model, unused, layer_prefix), layer_prefix=layer_prefix)
    _check_floating(model, loads.values())
    _check_shapes(model, [load for load in loads.values() if load.target not in any_shape])
    in_layers = {load.target for part in layers.values() for load in part}
    rest = tuple(load for name, load in sorted(loads.items()) if name not in in_layers and name != embedding)
    ordered = tuple(tuple(layers[index]) for index in sorted(layers))
    return Names(ordered, loads[embedding], rest, tuple(tensor for _, tensor in unused))


def _loads(model: PreTrainedModel, checkpoint: WeightFiles) -> tuple[dict[str, Load], list[tuple[str, StoredTensor]]]:
    transforms = get_model_conversion_mapping(model)
    renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in transforms if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    wanted = model.state_dict()
    collected: dict[str, list[tuple[StoredTensor, str]]] = {}
    unused: list[tuple[str, StoredTensor]] = []
    for key in sorted(checkpoint.tensors, key=_natural):
        name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, wanted)
        if name not in wanted and key in wanted:
            name, pattern = key, None
        tensor = checkpoint.tensors[key]
        if name in wanted:
            collected.setdefault(name, []).append((tensor, pattern or ""))
        else:
            unused.append((name, tensor))
    loads = {name: Load(name, tuple(sources), by_pattern.get(sources[0][1])) for name, sources in collected.items()}
    return loads, unused


def _fill_from_tied(model: PreTrainedModel, loads: dict[str, Load]) -> None:
    """Where only the other of two tied parameters is stored, it is both, as in transformers."""
    for target, source in model.all_tied_weights_keys.items():
        if source not in loads and target in loads:
            loads[source] = replace(loads.pop(target), target=source)


def _surplus(model: PreTrainedModel, unused: list[tuple[str, StoredTensor]], layer_prefix: str) -> list[str]:
    """Stored tensors inside the layers that no parameter uses, without those that transformers ignores too."""
    tail = layer_prefix.removeprefix(f"{model.base_model_prefix}.")  # checkpoints of base models have no prefix
    ignored = [r"rotary_emb\.inv_freq$", *(model._keys_to_ignore_on_load_unexpected or ())]
    inside = [name for name, tensor in unused if f".{tail}." in f".{name}" and not _is_causal_mask(tensor)]
    return sorted(name for name in inside if not any(re.search(pattern, name) for pattern in ignored))


def _is_causal_mask(tensor: StoredTensor) -> bool:
    """Whether it is a buffer of older GPTs, which the library now computes: a mask (1, 1, S, S), or what it masks with.

    Not every family lists them (`_keys_to_ignore_on_load_unexpected`), though published files have them.
    """
    shape = tuple(tensor.shape)
    mask = len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3]
    return tensor.name.endswith(".masked_bias") if shape == () else mask and tensor.name.endswith(".bias")


def _check_filled(inner: set[str], loads: Mapping[str, Load], surplus: list[str], *, layer_prefix: str) -> None:
    filled = {name for load in loads.values() for name in load.targets()}
    missing = sorted(inner - filled)
    doubled = sorted(load.target for load in loads.values() if load.converter is None and len(load.sources) > 1)
    for problem, names in (("lacks", missing), ("does not know", surplus), ("has twice", doubled)):
        if names:
            raise BadInput(
                f"the model's weights and its architecture disagree: it {problem} {names[0]}",
                values={"parameters concerned": len(names), "layers at": layer_prefix},
                hint="config.json and the weights must come from the same model",
            )


def _check_floating(model: PreTrainedModel, loads: Iterable[Load]) -> None:
    """Refuse integers where the model has numbers: they are quantised, and mean nothing without their scales."""
    wanted = model.state_dict()
    for load in loads:
        found = {source.dtype for source, _ in load.sources if not source.dtype.is_floating_point}
        if found and wanted[load.target].is_floating_point():
            raise BadInput(
                f"the weights are quantised: {load.target} is stored as integers",
                values={"expected": "float32, bfloat16 or float16", "found": str(found.pop()).removeprefix("torch.")},
                hint="use the model that it was made from, or import a GGUF file with 'chainctl model import'",
            )


def _check_shapes(model: PreTrainedModel, loads: Iterable[Load]) -> None:
    """Compare shapes as transformers does when it loads: after renaming and conversion, of everything that is used."""
    wanted = model.state_dict()
    for load in loads:
        for target, found in _shapes(load, model).items():
            if found != tuple(wanted[target].shape):
                raise _another_shape(model.config, load, target, tuple(wanted[target].shape), found)


def _shapes(load: Load, model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters that a load fills.  Raises `BadInput` where its parts do not fit together."""
    parts = {tensor.name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for tensor, _ in load.sources}
    try:
        return {target: tuple(value.shape) for target, value in load.convert(parts, model).items()}
    except (RuntimeError, ValueError, LookupError) as error:
        shapes = Counter(str(list(tensor.shape)) for tensor, _ in load.sources)
        raise BadInput(
            f"the parts of {load.target} do not fit together",
            values={
                "stored": some([f"{count} of shape {shape}" for shape, count in shapes.items()]),
                "reason": type(error).__name__,
            },
            hint="config.json and the weights must come from the same model: copy both again",
        ) from None


def _another_shape(
    config: PretrainedConfig, load: Load, target: str, wanted: tuple[int, ...], found: tuple[int, ...]
) -> BadInput:
    """The error for a parameter that is stored in another shape than the configuration gives it."""
    of_vocabulary = len(found) == len(wanted) > 1 and wanted[0] == config.vocab_size and found[1:] == wanted[1:]
    rows = f'"vocab_size": {found[0]} in config.json if the embeddings were resized; otherwise, '
    return BadInput(
        f"{target} is stored in another shape than config.json says",
        values={
            "config.json": list(wanted),
            "stored": list(found),
            "in": ", ".join(sorted({tensor.file.name for tensor, _ in load.sources})),
        },
        hint=f"{'set ' + rows if of_vocabulary else ''}copy config.json and the weights again from the same model",
    )


def _natural(key: str) -> list[tuple[int, int | str]]:
    """Sort key that puts expert 2 before expert 10, as transformers does."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in key.split(".")]
