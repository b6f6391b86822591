"""How much memory a stage will need, found by running it where tensors have shapes and no memory.

The window's forward and backward pass run once on the meta device, with the real architecture at the real batch
size; a dispatch mode adds up the bytes of every storage while it lives.  No formula per family: attention, experts
and state spaces are counted as they are.  Around that peak stand the parts that do not depend on the architecture:
the interpreter with torch and transformers, weights, adapters, optimiser moments, hidden states.
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from schemas.refs import Window
from schemas.settings import Settings
from stages.model.adapters import Adapter
from stages.model.backbone import Backbone
from stages.model.hidden import IN_MEMORY_LIMIT_BYTES
from stages.model.reader import Weights
from stages.model.skeleton import Batch

# Resident size of an interpreter that has imported what a stage imports.  Measured; see benchmarks/memory.py.
IMPORT_BASELINE_BYTES = 360 * 2**20
FLOAT32_BYTES = 4


class LiveBytes(TorchDispatchMode):
    """Bytes of all storages made while the mode is on and not yet freed: now, and at most."""

    def __init__(self, known: Sequence[Tensor] = ()) -> None:
        super().__init__()
        self.now: int = 0
        self.peak: int = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


@dataclass(frozen=True)
class MemoryModel:
    """Predicts peaks for one model under one set of settings.  `texts` is how many a device has at most."""

    backbone: Backbone
    settings: Settings
    bottleneck: int
    texts: int

    def train_window(self, window: Window, *, start_layer: int) -> int:
        """Predicted peak in bytes of `train-window`: the larger of its two phases, prefix and window."""
        backbone = self.backbone
        adapter = (2 * self.bottleneck + 1) * backbone.hidden_size * FLOAT32_BYTES + self.bottleneck * FLOAT32_BYTES
        head = sum(value.numel() for value in backbone.head_parameters.values()) * FLOAT32_BYTES
        resident = IMPORT_BASELINE_BYTES + self._rest_bytes() + self._hidden_bytes() + head
        resident += adapter * (backbone.num_layers - min(start_layer, window.start))
        moments = 2 if self.settings.optimizer.name == "adamw" else 1
        trained = (1 + moments) * (adapter * len(window.layers) + head)  # gradients and moments
        prefix = self._prefix_bytes() if window.start > 0 else 0
        weights = sum(self.weight_bytes(layer) for layer in window.layers)
        return resident + max(prefix, weights + trained + self._window_activations(window))

    def weight_bytes(self, layer: int) -> int:
        """Bytes of a layer's weights in memory, in the dtype of the plan."""
        parameters = self.backbone.skeleton.layers[layer].parameters()
        return sum(parameter.numel() * self.backbone.dtype.itemsize for parameter in parameters)

    def _prefix_bytes(self) -> int:
        """Two arenas for layers in flight, and one layer's forward."""
        largest = max(self.backbone.reader.layer_bytes(layer) for layer in range(self.backbone.num_layers))
        with torch.no_grad():
            return 2 * largest + self._peak_of(Window(start=0, stop=1), backward=False)

    def _window_activations(self, window: Window) -> int:
        """Forward and backward of one micro-batch through the window, the adapters behind it and the head."""
        heads = 2 if window.stop < self.backbone.num_layers and self.settings.chain.global_weight else 1
        with torch.enable_grad():
            inside = self._peak_of(window, backward=True) if window.layers else 0
            return inside + heads * self._head_activations()

    def _peak_of(self, window: Window, *, backward: bool) -> int:
        """Live bytes, at most, of one micro-batch through a window, less its weights."""
        batch = self._batch()
        weights: dict[int, Weights] = {layer: self._meta_weights(layer) for layer in window.layers}
        adapters = {layer: self._meta_adapter() for layer in window.layers}
        hidden = torch.empty(
            *batch.input_ids.shape, self.backbone.hidden_size, dtype=self.backbone.dtype, device="meta"
        )
        live = LiveBytes([tensor for layer in weights.values() for tensor in layer.values()])
        with live:
            output = self.backbone.run_layers(weights, hidden, batch, adapters)
            if backward:
                output.sum().backward()
        return live.peak

    def _head_activations(self) -> int:
        batch = self._batch()
        hidden = torch.zeros(*batch.input_ids.shape, self.backbone.hidden_size, dtype=self.backbone.dtype)
        live = LiveBytes()
        with torch.enable_grad(), live:
            self.backbone.head(hidden.requires_grad_(), batch).sum().backward()
        for parameter in self.backbone.head_parameters.values():
            parameter.grad = None
        return live.peak

    def _batch(self) -> Batch:
        rows = min(self.settings.numerics.micro_batch, self.settings.optimizer.batch_size, max(self.texts, 1))
        ids = torch.zeros(rows, self.settings.encoding.max_length, dtype=torch.int64)
        return Batch(ids, torch.ones_like(ids))

    def _meta_weights(self, layer: int) -> Weights:
        module = self.backbone.skeleton.layers[layer]
        return {name: torch.empty_like(value, device="meta") for name, value in module.state_dict().items()}

    def _meta_adapter(self) -> Adapter:
        r, d = self.bottleneck, self.backbone.hidden_size
        shapes = [(r, d), (r,), (d, r), (d,)]
        tensors = [torch.empty(shape, device="meta", requires_grad=True) for shape in shapes]
        return Adapter.of(tensors, self.settings.adapter.activation)

    def _hidden_bytes(self) -> int:
        tokens = self.texts * self.settings.encoding.max_length
        return min(tokens * self.backbone.hidden_size * self.backbone.dtype.itemsize, IN_MEMORY_LIMIT_BYTES)

    def _rest_bytes(self) -> int:
        names = self.backbone.reader.names.rest
        return sum(source.size for load in names for source, _ in load.sources)
