"""All profiles of a federation, read one after the other: what a plan needs of them, without holding them.

A profile names its device, its budget and one similarity per layer; ten thousand of them do not fit where one does.
What is kept of each is its line in the plan and three numbers per layer.
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

import numpy as np

from schemas.base import Record
from schemas.devices import DEVICES_FILE, PlannedDevice, SmallestBudget
from schemas.errors import BadInput, UsageProblem, some
from schemas.profile import FURTHEST_END, LayerSimilarity, ProfileManifest, TextLengths
from schemas.refs import Dtype
from schemas.settings import Settings
from schemas.trust import EnrolledDevice
from stages.data.lengths import PooledLengths
from stages.store.lines import Lines, check_device_count, join_lines

SHARED = ("model", "prompt", "encoding", "similarity", "numerics")  # what all profiles agree on
SHOWN_LENGTH = 80  # of a value in an error: a profile may say anything, at any length


@dataclass(frozen=True)
class Profiles:
    """What a plan needs of the profiles.  They agree with `first` on everything that is not of one device."""

    first: ProfileManifest
    devices: Lines
    example_count: int  # of all devices together
    most_examples: int  # of one device
    smallest_budget: SmallestBudget
    emulating: Mapping[Dtype, int]  # how many devices do not multiply it in hardware
    lengths: TextLengths | None  # of all devices' texts, at most; None where there are none
    curve: tuple[LayerSimilarity, ...]  # mean over the devices that have one
    capped: Mapping[str, tuple[int, int]]  # by device: the texts it says it has, and the fewer it may say

    def said(self) -> list[str]:
        """What a person should know of the profiles."""
        if not self.capped:
            return []
        claims = [f"{name} {found} of {most}" for name, (found, most) in self.capped.items()]
        return [
            f"Profiles claim more texts than the roster allows: {some(claims)}. No more than those count, and what "
            "such a profile measured is left out; raise max_examples in the roster if the claim is right."
        ]


@dataclass
class _Kept:
    """What is kept of the profiles so far, by device."""

    lines: dict[str, bytes] = field(default_factory=dict)
    curves: "dict[str, tuple[int, array[float]]]" = field(default_factory=dict)  # texts; CKA, low, high of each layer
    lengths: PooledLengths = field(default_factory=PooledLengths)
    capped: dict[str, tuple[int, int]] = field(default_factory=dict)
    native: Counter[Dtype] = field(default_factory=Counter)  # how many devices multiply a dtype in hardware


def gather(
    profiles: Iterable[ProfileManifest], settings: Settings, roster: Mapping[str, EnrolledDevice] | None = None
) -> Profiles:
    """Read the profiles once, in any order; the same profiles give the same result.

    `roster`: the enrolled devices by name where updates are to be signed.  Of a device that claims more texts than it
    is enrolled with only those count, and neither its curve nor its lengths do.  Raises `UsageProblem` where there is
    no profile, `BadInput` where they are too many, of one device, or disagree with each other or with the recipe.
    """
    kept, first, texts, most = _Kept(), None, 0, 0
    smallest: SmallestBudget | None = None
    for profile in profiles:
        if first is None:
            first = profile
            check_recipe(profile, settings)
        for name in SHARED:
            _check_same(name, first.device, getattr(first, name), profile.device, getattr(profile, name))
        count = _keep(kept, profile, roster)
        texts, most = texts + count, max(most, count)
        budget = SmallestBudget(device=profile.device, memory_budget_bytes=profile.memory_budget_bytes)
        smallest = budget if smallest is None else min(smallest, budget, key=_by_budget)
    if first is None or smallest is None:
        raise UsageProblem("a plan needs at least one profile", hint="run 'chainctl profile' on each device")
    names = sorted(kept.lines)
    emulating = {dtype: len(names) - kept.native[dtype] for dtype in get_args(Dtype)}
    return Profiles(
        first=first,
        devices=join_lines(DEVICES_FILE, ((name, kept.lines.pop(name)) for name in names)),
        example_count=texts,
        most_examples=most,
        smallest_budget=smallest,
        emulating=emulating,
        lengths=kept.lengths.percentiles(first.encoding.most_tokens),
        curve=mean_curve([kept.curves.pop(name) for name in names if name in kept.curves]),
        capped={name: kept.capped[name] for name in sorted(kept.capped)},
    )


def check_recipe(profile: ProfileManifest, settings: Settings) -> None:
    """A profile was made with the settings of the recipe.  Raises `BadInput`."""
    _check_same("encoding", "recipe", settings.encoding, profile.device, profile.encoding)
    prompt = settings.prompt
    if prompt.template == "auto":
        prompt = prompt.model_copy(update={"template": profile.prompt.template})
    _check_same("prompt", "recipe", prompt, profile.device, profile.prompt)
    numerics = settings.numerics.computing_in(profile.numerics.computes_in)  # a plan decides what it computes in
    if numerics.micro_batch == "auto":
        numerics = numerics.model_copy(update={"micro_batch": profile.numerics.micro_batch})
    _check_same("numerics", "recipe", numerics, profile.device, profile.numerics)
    wanted = settings.similarity
    if wanted.scale == "auto":
        wanted = wanted.model_copy(update={"scale": profile.similarity.scale})
    _check_same("similarity", "recipe", wanted, profile.device, profile.similarity)


def mean_curve(curves: "Sequence[tuple[int, array[float]]]") -> tuple[LayerSimilarity, ...]:
    """Mean CKA of each layer over the devices, weighted by their example counts (so are the interval's ends).

    `curves`: of each device its example count and CKA, low, high of each layer (3 L).
    """
    if not curves:
        return ()
    weights_N = np.array([count for count, _ in curves], dtype=np.float64)
    values_NL3 = np.frombuffer(b"".join(curve.tobytes() for _, curve in curves)).reshape(len(curves), -1, 3)
    return tuple(_mean(values_NL3[:, layer], weights_N) for layer in range(values_NL3.shape[1]))


def _mean(values_N3: np.ndarray, weights_N: np.ndarray) -> LayerSimilarity:
    cka = float(np.clip(np.average(values_N3[:, 0], weights=weights_N), -1.0, 1.0))  # beyond: rounding
    # Devices are independent, so the half-width of the mean is the root of the weighted squares.
    half_N = np.maximum(values_N3[:, 2] - values_N3[:, 0], values_N3[:, 0] - values_N3[:, 1])
    margin = float(np.sqrt((((weights_N / weights_N.sum()) * half_N) ** 2).sum()))
    low, high = np.clip((cka - margin, cka + margin), -FURTHEST_END, FURTHEST_END).tolist()
    return LayerSimilarity(cka=cka, low=low, high=high)


def _keep(kept: _Kept, profile: ProfileManifest, roster: Mapping[str, EnrolledDevice] | None) -> int:
    """Keep what a plan needs of a profile; how many of the device's texts count."""
    if profile.device in kept.lines:
        raise BadInput(
            f"two profiles are of one device, {profile.device}",
            values={"expected": "one profile for each device", "found": "two that name it"},
            hint="give every device a name of its own",
        )
    check_device_count(len(kept.lines) + 1)
    enrolled = None if roster is None else roster[profile.device]
    most = enrolled.max_example_count if enrolled else profile.example_count
    count, least = min(profile.example_count, most), profile.similarity.min_examples
    why = f"{count} texts are fewer than min_examples = {least}" if count < least else "too few of its texts differ"
    believed = profile.example_count <= most
    if not believed:
        kept.capped[profile.device] = (profile.example_count, most)
        why = f"it claims {profile.example_count} texts and is enrolled with {most}"
    line = PlannedDevice(
        name=profile.device,
        profile=profile.digest,
        example_count=count,
        max_example_count=most,
        memory_budget_bytes=profile.memory_budget_bytes,
        left_out="" if profile.layers and believed else why,
        key=enrolled.key if enrolled else None,
    )
    kept.lines[profile.device] = line.canonical_bytes()
    kept.native.update(profile.native_dtypes)
    if profile.lengths is not None and believed:
        kept.lengths.join(count, profile.lengths)
    if profile.layers and believed:
        values = (value for layer in profile.layers for value in (layer.cka, layer.low, layer.high))
        kept.curves[profile.device] = (count, array("d", values))
    return count


def _by_budget(budget: SmallestBudget) -> tuple[int, str]:
    return budget.memory_budget_bytes, budget.device


def _check_same(name: str, left_name: str, left: Record, right_name: str, right: Record) -> None:
    if left == right:
        return
    a, b = left.model_dump(), right.model_dump()
    key = next(key for key in a if a[key] != b[key])
    raise BadInput(
        f"profiles do not go together: {name}.{key} differs",
        values={name: str(values[key])[:SHOWN_LENGTH] for name, values in ((left_name, a), (right_name, b))},
        hint="profile again with the same model and recipe, or leave out the profile that differs",
    )
