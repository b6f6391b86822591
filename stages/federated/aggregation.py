"""Compute the next state's tensors from the parent's and the accepted updates, streamed.

Every byte that is used is hashed while it is read, and checked at the end of its tensor.  Memory depends neither on
the number of updates nor on the size of their tensors: with more updates, chunks are smaller.

Shapes: K updates, E elements of a chunk.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from schemas.settings import FederationSettings
from schemas.state import StateManifest
from stages.federated.assumptions import Assumptions, Support
from stages.federated.combine import Shares, chooses, clip, combine, is_plain, weigh
from stages.federated.geometry import Geometry
from stages.federated.holders import Group, groups_of
from stages.federated.rules import Update
from stages.federated.server_optimizer import MOMENTS, server_step
from stages.federated.weighted_mean import weighted_mean
from stages.store.artifact import Artifact
from stages.store.tensors import TensorFile, elements

CHUNK_ELEMENTS = 2**16  # 256 KiB of float32, if updates are read one after the other
SHARED_ELEMENTS = 2**19  # 2 MiB of float32 in total, if all are read side by side


@dataclass
class Aggregation:
    """Combines `accepted`, in canonical order, into the next state.  `files`: the parent's tensor file, then theirs.

    Tensors that the same updates hold are a group.  What the strategy assumes has to hold in each of them: Krum
    chooses within a group by distances over the group's tensors, and a group with too few holders keeps its values and
    moments.  Raises `TooFewUpdates` where that is all of them.
    """

    parent: Artifact[StateManifest]
    accepted: Sequence[Update]
    settings: FederationSettings
    assumptions: Assumptions = field(init=False)
    groups: list[Group] = field(init=False)
    shares: dict[Group, Shares] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.assumptions = Assumptions(self.settings, len(self.accepted))
        self.groups = groups_of([[tensor.name for tensor in update.manifest.tensors] for update in self.accepted])
        self.assumptions.check(len(group.holders) for group in self.groups)

    @cached_property
    def combined(self) -> Mapping[str, Group]:
        """The group of each tensor that is combined."""
        enough = [group for group in self.groups if self.assumptions.support(len(group.holders)).suffices]
        return {name: group for group in enough for name in group.tensors}

    def support(self) -> Mapping[str, Support]:
        """What the holders of each tensor allow."""
        supports = [self.assumptions.support(len(group.holders)) for group in self.groups]
        return {name: one for group, one in zip(self.groups, supports, strict=True) for name in group.tensors}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the next state's tensors: the parent's, and moments of tensors that move for the first time."""
        shapes = {tensor.name: tensor.shape for tensor in self.parent.manifest.tensors}
        for moment in MOMENTS[self.settings.server_optimizer]:
            shapes |= {moment_name(moment, name): shapes[name] for name in self.combined}
        return shapes

    def settle(self, files: Sequence[TensorFile]) -> None:
        """Decide the updates' weights and factors in each group; reads them first if distances or norms are needed.

        Where the median clips, it bounds the norm over a group's tensors as well as that of the whole update: by the
        whole alone, an update that puts all of it into few tensors could move these further than any that trains all.
        """
        counts = [update.manifest.example_count for update in self.accepted]
        weights, norms, squares_K = [], [], np.zeros(len(counts))
        groups = list(dict.fromkeys(self.combined.values()))
        for group in groups:
            holders, geometry = list(group.holders), self._geometry(group, files)
            weights.append(weigh(self.settings, [counts[index] for index in holders], geometry.squared_distances_KK))
            norms.append(np.sqrt(geometry.squared_norms_K))
            squares_K[holders] += geometry.squared_norms_K
        counting = list({index for group in groups for index in group.holders})
        whole_K = np.ones(len(counts))
        whole_K[counting] = clip(self.settings, np.sqrt(squares_K[counting]))
        for group, weights_K, norms_K in zip(groups, weights, norms, strict=True):
            factors_K = np.minimum(whole_K[list(group.holders)], clip(self.settings, norms_K))
            self.shares[group] = Shares(weights_K, factors_K)

    def chunks(self, name: str, files: Sequence[TensorFile]) -> Iterator[np.ndarray]:
        """The tensor `name` of the next state, a chunk (E,) at a time."""
        moment, base = split_moment(name)
        group = self.combined.get(base)
        if group is None:
            yield from files[0].checked_chunks(name, CHUNK_ELEMENTS)
        elif is_plain(self.settings):
            yield from self._means(name, [files[1 + index] for index in group.holders], group.holders)
        else:
            yield from self._steps(base, moment, files, group)

    def _geometry(self, group: Group, files: Sequence[TensorFile]) -> Geometry:
        """Norms of the differences over a group's tensors, and distances, as far as the settings ask for them."""
        geometry = Geometry(len(group.holders), distances=chooses(self.settings))
        if chooses(self.settings) or self.settings.clip_norm != "none":
            for name in group.tensors:
                for _, values_KE in self._differences(name, files, group.holders):
                    geometry.add(values_KE)
        return geometry

    def _means(self, name: str, files: Sequence[TensorFile], holders: Sequence[int]) -> Iterator[np.ndarray]:
        """Weighted means (E,), one chunk in memory at a time, whatever K."""
        weights = [self.accepted[index].manifest.example_count for index in holders]
        readers = [file.checked_chunks(name, CHUNK_ELEMENTS) for file in files]
        for _ in range(0, elements(files[0].references[name].shape), CHUNK_ELEMENTS):
            yield weighted_mean((next(reader) for reader in readers), weights)
        for reader in readers:
            assert next(reader, None) is None  # the digest is checked at the end

    def _steps(self, base: str, moment: str, files: Sequence[TensorFile], group: Group) -> Iterator[np.ndarray]:
        """Chunks (E,) of the new values of `base`, or of one of its moments."""
        kinds = MOMENTS[self.settings.server_optimizer]
        moments = [self._moments(moment_name(kind, base), base, files[0], len(group.holders)) for kind in kinds]
        for parts in zip(self._differences(base, files, group.holders), *moments, strict=True):
            (before, values_KE), *resting = parts
            difference = combine(self.settings, values_KE, self.shares[group], self.assumptions.malicious)
            values, moved = server_step(self.settings, before, difference, tuple(resting))
            yield moved[kinds.index(moment)] if moment else values

    def _differences(
        self, name: str, files: Sequence[TensorFile], holders: Sequence[int]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The parent's values (E,) float32, and update − parent (K, E) float64 of the updates that hold the tensor."""
        size = chunk_size(len(holders))
        sources = [files[0], *(files[1 + index] for index in holders)]
        for before, *after in zip(*(source.checked_chunks(name, size) for source in sources), strict=True):
            yield before, np.subtract(np.stack(after), before, dtype=np.float64)

    def _moments(self, name: str, base: str, parent: TensorFile, holders: int) -> Iterator[np.ndarray]:
        """A moment's values (E,) in the parent; zeros if it has none yet."""
        size = chunk_size(holders)
        if name in parent.references:
            yield from parent.checked_chunks(name, size)
            return
        whole = elements(parent.references[base].shape)
        for start in range(0, whole, size):
            yield np.zeros(min(size, whole - start), np.float32)


def chunk_size(count: int) -> int:
    """Elements per chunk, if `count` tensors are read side by side."""
    return max(2**10, SHARED_ELEMENTS // (count + 1))


def moment_name(moment: str, tensor: str) -> str:
    """The name of a tensor's moment in a state."""
    return f"server.{moment}.{tensor}"


def split_moment(name: str) -> tuple[str, str]:
    """Split `server.first.head.x` into (`first`, `head.x`); other names give (``, name)."""
    if not name.startswith("server."):
        return "", name
    _, moment, tensor = name.split(".", 2)
    return moment, tensor
