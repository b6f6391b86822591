"""Everything that trains or has been trained, with one owner: adapters after the layers, and the head.

A tuning changes a layer's weights (`inside`) and its output (`after`), and holds the parameters of the head.  It is
the whole difference between the base model and a federation's model.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from schemas.plan import PlanManifest
from stages.tuning.adapters import Adapter, adapters_from_tensors
from stages.tuning.tensors import adapter_names
from stages.weights.reader import Weights


class Tuning(Protocol):
    """What a federation changes in a frozen model."""

    @property
    def head(self) -> Mapping[str, Tensor]:
        """Parameters of the head by name, float32; empty if the model's own head is used, frozen."""
        ...

    @property
    def changes_layers(self) -> bool:
        """Whether `inside` ever changes weights."""
        ...

    def inside(self, layer: int, weights: Weights) -> Weights:
        """The weights that a layer computes with, given its frozen ones."""
        ...

    def after(self, layer: int, hidden: Tensor) -> Tensor:
        """The tuned output (…, D) of a layer, given its own."""
        ...

    def of_layer(self, layer: int) -> Iterator[tuple[str, Tensor]]:
        """Every trained tensor that changes what a layer makes of its input, by name, in a fixed order."""
        ...

    def trains(self, layers: Iterable[int]) -> bool:
        """Whether anything in these layers trains."""
        ...


@dataclass(frozen=True)
class Untuned:
    """The base model without changes."""

    head: Mapping[str, Tensor] = field(default_factory=dict)
    changes_layers = False

    def inside(self, layer: int, weights: Weights) -> Weights:
        """The frozen weights."""
        return weights

    def after(self, layer: int, hidden: Tensor) -> Tensor:
        """The layer's output, unchanged."""
        return hidden

    def of_layer(self, layer: int) -> Iterator[tuple[str, Tensor]]:
        """No tensors."""
        yield from ()

    def trains(self, layers: Iterable[int]) -> bool:
        """Nothing does."""
        return False


UNTUNED = Untuned()


@dataclass(frozen=True)
class BottleneckTuning:
    """An adapter (Eq. 1) after each layer that has one, and the head."""

    adapters: Mapping[int, Adapter]
    head: Mapping[str, Tensor]
    changes_layers = False

    @classmethod
    def of(cls, plan: PlanManifest, tensors: Mapping[str, Any], dtype: torch.dtype) -> "BottleneckTuning":
        """A frozen tuning from the tensors of a state: adapters compute in `dtype`, the head is float32."""
        stored = adapters_from_tensors(tensors, plan.settings.adapter.activation)
        head = {one.name: torch.from_numpy(tensors[f"head.{one.name}"].copy()) for one in plan.head_parameters}
        return cls({layer: adapter.frozen(dtype) for layer, adapter in stored.items()}, head)

    def inside(self, layer: int, weights: Weights) -> Weights:
        """The frozen weights."""
        return weights

    def after(self, layer: int, hidden: Tensor) -> Tensor:
        """The output of the layer's adapter, or the layer's own if it has none."""
        return self.adapters[layer](hidden) if layer in self.adapters else hidden

    def of_layer(self, layer: int) -> Iterator[tuple[str, Tensor]]:
        """The layer's adapter, if it has one."""
        if layer in self.adapters:
            yield from zip(adapter_names(layer), self.adapters[layer].parameters(), strict=True)

    def trains(self, layers: Iterable[int]) -> bool:
        """Whether an adapter of these layers does."""
        found = (self.adapters[layer] for layer in layers if layer in self.adapters)
        return any(value.requires_grad for adapter in found for value in adapter.parameters())

    def trainable(self) -> dict[str, Tensor]:
        """The trainable leaves by their names in updates: adapters by layer, then the head."""
        named = [
            (name, value)
            for layer in sorted(self.adapters)
            for name, value in zip(adapter_names(layer), self.adapters[layer].parameters(), strict=True)
        ]
        named += [(f"head.{name}", value) for name, value in self.head.items()]
        return {name: value for name, value in named if value.requires_grad}
