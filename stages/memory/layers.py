"""A layer's weights as they will be in memory: their sizes, and tensors of their shapes without memory."""

import torch

from stages.model.backbone import Backbone
from stages.weights.names import Load
from stages.weights.reader import Weights


def layer_bytes(backbone: Backbone, layer: int) -> int:
    """Bytes of a layer in memory: as stored, and copies of what is merged or converted when it is read.

    What is merged and converted is there in its stored dtype too, one parameter at a time.
    """
    weights, copied, passing = meta_weights(backbone, layer), 0, 0
    for name, load in _loads(backbone, layer).items():
        if name not in weights:
            continue
        value, merged = weights[name], load.converter is not None
        if merged or load.dtype != value.dtype:
            copied += value.nbytes
        if merged and load.dtype != value.dtype:
            passing = max(passing, value.numel() * load.dtype.itemsize)
    return backbone.reader.layer_bytes(layer) + copied + passing


def meta_weights(backbone: Backbone, layer: int) -> Weights:
    """A layer's weights on the meta device: matrices of linear layers in the dtype that they are stored in."""
    skeleton, loads = backbone.skeleton, _loads(backbone, layer)
    stored = {name: loads[name].dtype for name in skeleton.stay_stored(layer) if name in loads}
    return {
        name: torch.empty(value.shape, dtype=stored.get(name, value.dtype), device="meta")
        for name, value in skeleton.layers[layer].state_dict().items()
    }


def _loads(backbone: Backbone, layer: int) -> dict[str, Load]:
    """Where each weight of a layer comes from, by its name there."""
    prefix = f"{backbone.skeleton.layer_prefix}.{layer}."
    loads = backbone.reader.names.layers[layer]
    return {target.removeprefix(prefix): load for load in loads for target in load.targets()}
