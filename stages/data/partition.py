"""Splitting examples over devices, and holding some out.

Label skew follows Hsu, Qi & Brown (2019), "Measuring the effects of non-identical data distribution": each class is
spread over the devices in proportions drawn from Dirichlet(α).  α → ∞ is IID, α → 0 gives each class to one device.
Every draw is made by numpy's PCG64 with a seed derived by SHA-256, so a split is the same on every machine.
"""

import heapq
import math
from collections.abc import Sequence

import numpy as np

from schemas.errors import BadInput
from stages.data.load import Example
from stages.process import seeds


def partition(
    labels: Sequence[str], *, devices: int, alpha: float | None, seed: int, allow_empty: bool = False
) -> list[list[int]]:
    """Indices per device, sorted; every index is on exactly one device.  `alpha = None` is IID.

    No device stays empty unless `allow_empty`: the largest give one example each.  Raises `BadInput`
    where there are fewer examples than devices.
    """
    if devices < 1 or (alpha is not None and not 0 < alpha < math.inf):
        raise BadInput(
            "this split is not possible",
            values={"devices": devices, "alpha": alpha},
            hint="both must be positive and finite",
        )
    if len(labels) < devices and not allow_empty:
        raise BadInput(
            "there are fewer examples than devices",
            values={"examples": len(labels), "devices": devices},
            hint="use fewer devices, or --allow-empty",
        )
    random = _generator("partition", seed)
    if alpha is None:
        order = random.permutation(len(labels)).tolist()
        shares = [order[device::devices] for device in range(devices)]
    else:
        shares = _label_skew(labels, devices, alpha, random)
    if not allow_empty:
        _feed_the_empty(shares)
    return [sorted(share) for share in shares]


def holdout(labels: Sequence[str], *, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices to train on and to test on, each sorted: `fraction` of every class is held out, at least one."""
    if not 0 < fraction < 1:
        raise BadInput("the held-out fraction must be between 0 and 1", values={"found": fraction})
    random = _generator("holdout", seed)
    test: list[int] = []
    for label in sorted(set(labels)):
        members = [index for index, other in enumerate(labels) if other == label]
        count = min(max(1, round(fraction * len(members))), len(members) - 1)  # never a whole class
        test += random.permutation(members)[:count].tolist()
    held = set(test)
    return [index for index in range(len(labels)) if index not in held], sorted(test)


def drop_duplicates(examples: Sequence[Example]) -> list[Example]:
    """The first of equal texts, in order: a text that is trained on must not be in the test set."""
    first: dict[object, Example] = {}
    for example in examples:
        first.setdefault((example.text, example.turns), example)
    return list(first.values())


def device_names(count: int) -> list[str]:
    """`device-00`, `device-01`, …: as many digits as sorting needs."""
    digits = max(2, len(str(count - 1)))
    return [f"device-{index:0{digits}d}" for index in range(count)]


def _label_skew(labels: Sequence[str], devices: int, alpha: float, random: np.random.Generator) -> list[list[int]]:
    shares: list[list[int]] = [[] for _ in range(devices)]
    for label in sorted(set(labels)):
        members = random.permutation([index for index, other in enumerate(labels) if other == label])
        cuts = np.floor(np.cumsum(_dirichlet(alpha, devices, random)) * len(members) + 0.5).astype(int)[:-1]
        for share, part in zip(shares, np.split(members, np.minimum(cuts, len(members))), strict=True):
            share += part.tolist()
    return shares


def _dirichlet(alpha: float, devices: int, random: np.random.Generator) -> np.ndarray:
    """Dirichlet(α, …, α) that does not underflow for tiny α: log Gamma(α) = log Gamma(α+1) + log(U)/α."""
    logs = np.log(random.standard_gamma(alpha + 1.0, devices)) + np.log1p(-random.random(devices)) / alpha
    weights = np.exp(logs - logs.max())
    return np.asarray(weights / weights.sum())


def _feed_the_empty(shares: list[list[int]]) -> None:
    """Move one example to each empty device from the device that has most at that moment."""
    heap = [(-len(share), device) for device, share in enumerate(shares)]
    heapq.heapify(heap)
    for share in shares:
        if not share:
            _, richest = heap[0]
            share.append(shares[richest].pop())
            heapq.heapreplace(heap, (-len(shares[richest]), richest))


def _generator(purpose: str, seed: int) -> np.random.Generator:
    return seeds.generator(purpose, seed)
