"""AdamW and SGD through torch's fused kernels.

`torch.optim` imports a compiler (70 MiB resident); its kernels can be called without it.  Optimiser state starts at
zero in every `train-window`.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from schemas.settings import OptimizerSettings
from stages.store.tensors import LazyTensors
from stages.training.pages import Pages

ADAM_BETAS = (0.9, 0.999)
ADAM_EPSILON = 1e-8
CLIP_EPSILON = 1e-6  # as in torch.nn.utils.clip_grad_norm_


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
        self._complete: set[int] = set()
        self._squares: list[float] = []  # of the gradients that arrived in this step
        self._waiting: dict[int, Tensor] = {}  # gradients by parameter, where a group is put away until they are scaled

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
            if self.pages.puts_away and self.settings.clips:
                self._waiting |= {first + place: torch.zeros_like(value) for place, value in enumerate(parameters)}
            waiting = [self._waiting[index] for index in self._groups[group] if index in self._waiting]
            self.pages.add(group, [*parameters, *moments_of, *waiting])

    @torch.no_grad()
    def complete(self, group: int) -> None:
        """The gradients of a group in hand are complete, one for each parameter: update it, and clear them.

        An update is of each value alone, so groups one by one give what all at once give.  Where gradients are clipped,
        `step` needs the norm of all first: they wait with their group.  A group that does not train is passed over.
        """
        chosen = self._groups.get(group, range(0))
        gradients = [parameter.grad for parameter in (self._parameters[index] for index in chosen)]
        arrived = [gradient for gradient in gradients if gradient is not None]
        assert len(arrived) == len(chosen), "a trained parameter has no gradient"
        self._complete.add(group)
        if not self.settings.clips:
            self._update(group)
            return
        self._squares += [float(gradient.double().square().sum()) for gradient in arrived]
        for index, gradient in zip(chosen, arrived, strict=True):
            if index in self._waiting:
                self._waiting[index].copy_(gradient)
                self._parameters[index].grad = None
        self.pages.changed(group)

    @torch.no_grad()
    def step(self) -> None:
        """Update every group that was not updated yet; those that were not said to be complete must be in hand."""
        for group in self._groups.keys() - self._complete:
            self.complete(group)
        self._complete.clear()
        if self.settings.max_gradient_norm != "none":
            norm = math.sqrt(math.fsum(self._squares))  # fsum: whatever the order
            self._squares.clear()
            scale = min(1.0, self.settings.max_gradient_norm / (norm + CLIP_EPSILON))
            for group in self._groups:
                with self.pages.holding(group):
                    self._update(group, scale)

    def _update(self, group: int, scale: float = 1.0) -> None:
        chosen = self._groups.get(group, range(0))
        for index in chosen:
            parameter = self._parameters[index]
            if index in self._waiting:
                parameter.grad = self._waiting[index]
            if scale < 1.0 and parameter.grad is not None:
                parameter.grad.mul_(scale)
            self._step_counts[index] += 1
        if chosen and self.settings.name == "adamw":
            self._adamw(chosen)
        elif chosen:
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
