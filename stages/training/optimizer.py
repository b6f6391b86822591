"""AdamW and SGD through torch's fused kernels.

`torch.optim` imports a compiler (70 MiB resident); its kernels can be called without it.  Optimiser state starts at
zero in every `train-window`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from schemas.settings import OptimizerSettings

ADAM_BETAS = (0.9, 0.999)
ADAM_EPSILON = 1e-8


class Optimizer:
    """Updates `parameters` in place from their `.grad`, as `torch.optim.AdamW` or `torch.optim.SGD` would.

    The learning rate is fixed for the round (`OptimizerSettings.rate`).
    """

    def __init__(self, parameters: Sequence[Tensor], settings: OptimizerSettings, *, round_number: int = 0) -> None:
        self.parameters = list(parameters)
        self.settings = settings
        self.learning_rate = settings.rate(round_number)
        self.steps = 0
        moments = {"adamw": 2, "sgd": 1 if settings.momentum else 0}[settings.name]
        self._moments = [[torch.zeros_like(parameter) for parameter in self.parameters] for _ in range(moments)]
        self._step_counts = [torch.zeros(()) for _ in self.parameters]

    @torch.no_grad()
    def step(self) -> None:
        """Update all parameters and clear their gradients.  Every parameter must have a gradient."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        assert len(gradients) == len(self.parameters), "a trained parameter has no gradient"
        self.steps += 1
        if self.settings.name == "adamw":
            self._adamw(gradients)
        else:
            self._sgd(gradients)
        for parameter in self.parameters:
            parameter.grad = None

    def tensors(self) -> dict[str, np.ndarray]:
        """Parameters and moments, float32, as `parameter.0`, `moment0.0`, …: everything that `step` changes."""
        groups = {"parameter": self.parameters}
        groups |= {f"moment{number}": moments for number, moments in enumerate(self._moments)}
        return {
            f"{group}.{index}": tensor.detach().numpy()
            for group, tensors in groups.items()
            for index, tensor in enumerate(tensors)
        }

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, np.ndarray], *, steps: int) -> None:
        """Resume after `steps` steps, from the `tensors` that they left."""
        for name, here in self.tensors().items():
            here[...] = tensors[name]  # shares the tensor's memory
        self.steps = steps
        for count in self._step_counts:
            count.fill_(steps)

    def _adamw(self, gradients: list[Tensor]) -> None:
        for count in self._step_counts:
            count += 1
        torch._fused_adamw_(
            self.parameters,
            gradients,
            self._moments[0],
            self._moments[1],
            [],
            self._step_counts,
            lr=self.learning_rate,
            beta1=ADAM_BETAS[0],
            beta2=ADAM_BETAS[1],
            weight_decay=self.settings.weight_decay,
            eps=ADAM_EPSILON,
            amsgrad=False,
            maximize=False,
        )

    def _sgd(self, gradients: list[Tensor]) -> None:
        torch._fused_sgd_(
            self.parameters,
            gradients,
            self._moments[0] if self._moments else [],
            weight_decay=self.settings.weight_decay,
            momentum=self.settings.momentum,
            lr=self.learning_rate,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=self.steps == 1,
        )
