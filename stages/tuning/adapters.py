"""Bottleneck adapters, Eq. 1 of the paper: A(h) = h + W_up σ(W_down h + b_down) + b_up.

One adapter follows each layer from the plan's start layer on and takes the layer's output (AdapterHub's sequential
bottleneck without a layer norm).  W_down ~ N(0, 0.02²), the rest zero: a fresh chain equals the pre-trained model to
the bit.  Adapters are kept in float32 and compute in the dtype of the hidden states.

Shapes: D hidden size, R bottleneck.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own convention
from torch import Tensor

from stages.tuning.tensors import adapter_names

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "silu": F.silu, "gelu": F.gelu}


@dataclass(frozen=True)
class Adapter:
    """Weights of one adapter: `down_RD`, `down_bias_R`, `up_DR`, `up_bias_D`; float32 unless `frozen`."""

    down_RD: Tensor
    down_bias_R: Tensor
    up_DR: Tensor
    up_bias_D: Tensor
    activation: str

    def __call__(self, hidden: Tensor) -> Tensor:
        """A(h) of hidden states (…, D): same shape and dtype."""
        dtype = hidden.dtype
        inner = F.linear(hidden, self.down_RD.to(dtype), self.down_bias_R.to(dtype))
        return hidden + F.linear(ACTIVATIONS[self.activation](inner), self.up_DR.to(dtype), self.up_bias_D.to(dtype))

    @classmethod
    def of(cls, parameters: Iterable[Tensor], activation: str) -> "Adapter":
        """An adapter from its four tensors, in the order of `parameters`."""
        down, down_bias, up, up_bias = parameters
        return cls(down, down_bias, up, up_bias, activation)

    def frozen(self, dtype: torch.dtype) -> "Adapter":
        """The same adapter without gradients, converted to the dtype of the hidden states."""
        return Adapter.of((value.detach().to(dtype) for value in self.parameters()), self.activation)

    def trainable(self) -> "Adapter":
        """A copy whose tensors are leaves that train, float32."""
        return Adapter.of((value.detach().clone().requires_grad_() for value in self.parameters()), self.activation)

    def parameters(self) -> list[Tensor]:
        """The four tensors, in a fixed order."""
        return [self.down_RD, self.down_bias_R, self.up_DR, self.up_bias_D]


def adapters_from_tensors(tensors: Mapping[str, np.ndarray], activation: str) -> dict[int, Adapter]:
    """Adapters by layer, from the float32 tensors of a state, whose memory they share."""
    layers = sorted({int(name.split(".")[1]) for name in tensors if name.startswith("adapters.")})
    return {
        layer: Adapter.of((torch.from_numpy(tensors[name]) for name in adapter_names(layer)), activation)
        for layer in layers
    }
