"""A layer's weights as they will be in memory: their sizes, and tensors of their shapes without memory."""

import torch

from stages.model.backbone import Backbone
from stages.weights.names import Load
from stages.weights.reader import Weights


def layer_bytes(backbone: Backbone, layer: int) -> int:
    """Bytes of a layer in memory: as stored, and copies of what is merged or converted when it is read."""
    weights = meta_weights(backbone, layer)
    copied = [
        weights[name].nbytes
        for name, load in _loads(backbone, layer).items()
        if name in weights and (load.converter is not None or load.dtype != weights[name].dtype)
    ]
    return backbone.reader.layer_bytes(layer) + sum(copied)


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
