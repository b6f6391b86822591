"""The frozen adapters of a state, read when they are used: one layer's in memory at a time."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from schemas.plan import PlanManifest
from stages.store.artifact import Artifact, read_tensors
from stages.tuning.adapters import Adapter, adapters_from_tensors


class StateAdapters(Mapping[int, Adapter]):
    """Adapters by layer, frozen, in `dtype`.  Reading one raises `NotTrusted` and `BadInput` as `read_tensors` does."""

    def __init__(self, plan: PlanManifest, state: Artifact[Any], dtype: torch.dtype) -> None:
        self._activation, self._state, self._dtype = plan.settings.adapter.activation, state, dtype
        self._layers = range(plan.decisions.first_layer, plan.model.num_layers)
        self._last: tuple[int, Adapter] | None = None

    def __getitem__(self, layer: int) -> Adapter:
        if layer not in self._layers:
            raise KeyError(layer)
        if self._last is None or self._last[0] != layer:
            self._last = None  # before the next is read
            stored = adapters_from_tensors(read_tensors(self._state, f"adapters.{layer}."), self._activation)
            self._last = layer, stored[layer].frozen(self._dtype)
        return self._last[1]

    def __contains__(self, layer: object) -> bool:
        return layer in self._layers

    def __iter__(self) -> Iterator[int]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)
