"""The fused kernels against torch.optim, step for step."""

import pytest
import torch

from schemas.settings import OptimizerSettings
from stages.training.optimizer import Optimizer


@pytest.mark.parametrize(
    "settings",
    [
        OptimizerSettings(name="adamw", learning_rate=1e-2),
        OptimizerSettings(name="adamw", learning_rate=1e-2, weight_decay=0.1),
        OptimizerSettings(name="sgd", learning_rate=1e-1),
        OptimizerSettings(name="sgd", learning_rate=1e-1, momentum=0.9, weight_decay=0.01),
        OptimizerSettings(name="adamw", learning_rate=1e-2, max_gradient_norm=0.5),
        OptimizerSettings(name="sgd", learning_rate=1e-1, max_gradient_norm=4.0),
    ],
    ids=str,
)
def test_steps_equal_those_of_torch_optim(settings: OptimizerSettings) -> None:
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in ((4, 3), (5,))]
    ours = [value.clone().requires_grad_() for value in start]
    theirs = [value.clone().requires_grad_() for value in start]
    optimizer = Optimizer(settings)
    optimizer.add(0, ours[:1])
    optimizer.add(1, ours[1:])
    oracle: torch.optim.Optimizer
    if settings.name == "adamw":
        oracle = torch.optim.AdamW(theirs, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    else:
        oracle = torch.optim.SGD(
            theirs, lr=settings.learning_rate, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
    for _ in range(5):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        if settings.max_gradient_norm != "none":
            torch.nn.utils.clip_grad_norm_(theirs, settings.max_gradient_norm)
        optimizer.complete(1)
        optimizer.step()
        oracle.step()
        oracle.zero_grad()
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
        assert a.grad is None
