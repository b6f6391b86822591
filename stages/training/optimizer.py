"""AdamW and SGD through torch's fused kernels.

`torch.optim` imports a compiler (70 MiB resident); its kernels can be called without it.  Optimiser state starts at
zero in every `train-window`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from schemas.settings import OptimizerSettings
from stages.store.tensors import LazyTensors
from stages.training.pages import Pages

ADAM_BETAS = (0.9, 0.999)
ADAM_EPSILON = 1e-8


HEAD = -1  # the group of the head's parameters; those of layers have the layer's index


class Optimizer:
    """Updates parameters in place from their `.grad`, as `torch.optim.AdamW` or `torch.optim.SGD` would.

    Parameters come in groups, each with its own steps; `pages` may put a group away, with its moments.  The learning
    rate is fixed for the round (`OptimizerSettings.rate`).
    """

    def __init__(self, settings: OptimizerSettings, *, round_number: int = 0, pages: Pages | None = None) -> None:
        self.settings = settings
        self.learning_rate = settings.rate(round_number)
        self.pages = pages or Pages(None)
        self._groups: dict[int, range] = {}
        self._parameters: list[Tensor] = []
        self._moments: list[list[Tensor]] = [[] for _ in range(settings.moments)]
        self._step_counts: list[Tensor] = []

    def add(self, group: int, parameters: Sequence[Tensor]) -> None:
        """Train float32 leaves as a group of its own; they are put away if `pages` puts anything away."""
        first = len(self._parameters)
        self._groups[group] = range(first, first + len(parameters))
        self._parameters += parameters
        for moments in self._moments:
            moments += [torch.zeros_like(parameter) for parameter in parameters]
        self._step_counts += [torch.zeros(()) for _ in parameters]
        if group != HEAD:
            moments_of = [kind[index] for kind in self._moments for index in self._groups[group]]
            self.pages.add(group, [*parameters, *moments_of])

    @torch.no_grad()
    def step(self, *groups: int) -> None:
        """Update groups in hand, by default all, and clear their gradients; each parameter must have one.

        An update is of each value alone, so groups one by one give what all at once give.  A group that does not train
        is passed over.
        """
        for group in groups or tuple(self._groups):
            chosen = self._groups.get(group, range(0))
            if not chosen:
                continue
            for index in chosen:
                assert self._parameters[index].grad is not None, "a trained parameter has no gradient"
                self._step_counts[index] += 1
            if self.settings.name == "adamw":
                self._adamw(chosen)
            else:
                self._sgd(chosen)
            for index in chosen:
                self._parameters[index].grad = None
            self.pages.changed(group)

    def tensors(self) -> LazyTensors:
        """Everything that `step` changes, float32: parameters and moments, as `parameter.0`, `moment0.0`, …"""
        named = self._named()

        def values(name: str) -> np.ndarray:
            group, tensor = named[name]
            with self.pages.holding(group):
                return np.array(tensor.detach().numpy())

        return LazyTensors({name: tuple(tensor.shape) for name, (_, tensor) in named.items()}, values)

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, np.ndarray], *, steps: int) -> None:
        """Resume after `steps` steps, from the `tensors` that they left."""
        for name, (group, tensor) in self._named().items():
            with self.pages.holding(group):
                tensor.copy_(torch.from_numpy(np.array(tensors[name])))
                self.pages.changed(group)
        for count in self._step_counts:
            count.fill_(steps)

    def _named(self) -> dict[str, tuple[int, Tensor]]:
        """Every tensor that `step` changes, by name, with its group."""
        group_of = [group for group, indices in self._groups.items() for _ in indices]
        kinds = {"parameter": self._parameters}
        kinds |= {f"moment{number}": moments for number, moments in enumerate(self._moments)}
        return {
            f"{kind}.{index}": (group_of[index], tensor)
            for kind, tensors in kinds.items()
            for index, tensor in enumerate(tensors)
        }

    def _adamw(self, chosen: Sequence[int]) -> None:
        parameters, gradients, means, squares = self._lists(chosen)
        torch._fused_adamw_(
            parameters,
            gradients,
            means,
            squares,
            [],
            [self._step_counts[index] for index in chosen],
            lr=self.learning_rate,
            beta1=ADAM_BETAS[0],
            beta2=ADAM_BETAS[1],
            weight_decay=self.settings.weight_decay,
            eps=ADAM_EPSILON,
            amsgrad=False,
            maximize=False,
        )

    def _sgd(self, chosen: Sequence[int]) -> None:
        parameters, gradients, *moments = self._lists(chosen)
        torch._fused_sgd_(
            parameters,
            gradients,
            moments[0] if moments else [],
            weight_decay=self.settings.weight_decay,
            momentum=self.settings.momentum,
            lr=self.learning_rate,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=all(int(self._step_counts[index]) == 1 for index in chosen),
        )

    def _lists(self, chosen: Sequence[int]) -> list[list[Tensor]]:
        """Parameters, gradients, and each kind of moment."""
        parameters = [self._parameters[index] for index in chosen]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        return [parameters, gradients, *([moments[index] for index in chosen] for moments in self._moments)]
