"""From the names on disk to the parameters of the model, through transformers' own table of renames.

Between a checkpoint and a model are about a thousand renames and a few conversions (fused experts, for example).  A
loader that guesses them is silently wrong on some architecture; this one takes them from transformers and refuses
whatever is left over inside the layers.
"""

import copy
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Protocol

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from schemas.errors import BadInput
from stages.weights.files import StoredTensor, WeightFiles, main_dtype


class Architecture(Protocol):
    """What reading weights needs to know of a model: `stages.model.skeleton.Skeleton` is one."""

    model: PreTrainedModel
    config: PretrainedConfig
    dtype: torch.dtype  # of hidden states
    layer_prefix: str  # path of the list of layers
    output_names: list[str]  # parameters of the language head

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


def resolve(model: PreTrainedModel, checkpoint: WeightFiles, *, layer_prefix: str, embedding: str) -> Names:
    """Sort every stored tensor into the part of `model` that it fills.

    `layer_prefix` is the path of the layer list (`model.layers`), `embedding` the token embedding's parameter.
    Raises `BadInput` where a layer or the embedding is not filled exactly.
    """
    loads, unused = _loads(model, checkpoint)
    depth = layer_prefix.count(".") + 1
    layers: dict[int, list[Load]] = {}
    for load in loads.values():
        if load.target.startswith(f"{layer_prefix}."):
            layers.setdefault(int(load.target.split(".")[depth]), []).append(load)
    wanted = model.state_dict().keys()
    inner = {name for name in wanted if name.startswith(f"{layer_prefix}.")} | {embedding}
    _check_filled(inner, loads, _surplus(model, unused, layer_prefix), layer_prefix=layer_prefix)
    _check_floating(model, loads.values())
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


def _surplus(model: PreTrainedModel, unused: list[tuple[str, StoredTensor]], layer_prefix: str) -> list[str]:
    """Stored tensors inside the layers that no parameter uses, without those that transformers ignores too."""
    tail = layer_prefix.removeprefix(f"{model.base_model_prefix}.")  # checkpoints of base models have no prefix
    ignored = [r"rotary_emb\.inv_freq$", *(model._keys_to_ignore_on_load_unexpected or ())]
    inside = [name for name, _ in unused if f".{tail}." in f".{name}"]
    return sorted(name for name in inside if not any(re.search(pattern, name) for pattern in ignored))


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


def _natural(key: str) -> list[tuple[int, int | str]]:
    """Sort key that puts expert 2 before expert 10, as transformers does."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in key.split(".")]
