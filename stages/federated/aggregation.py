"""Compute the next state's tensors from the parent's and the accepted updates, streamed.

Every byte that is used is hashed while it is read, and checked at the end of its tensor.  Memory depends neither on
the number of updates nor on the size of their tensors: with more updates, chunks are smaller.

Shapes: K updates, E elements of a chunk.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from schemas.settings import FederationSettings
from schemas.state import StateManifest
from stages.federated.combine import Shares, combine, is_plain, settle
from stages.federated.geometry import Geometry, squared_norms
from stages.federated.rules import Update
from stages.federated.server_optimizer import MOMENTS, server_step
from stages.federated.weighted_mean import weighted_mean
from stages.store.artifact import Artifact
from stages.store.tensors import TensorFile, elements

CHUNK_ELEMENTS = 2**16  # 256 KiB of float32, if updates are read one after the other
SHARED_ELEMENTS = 2**19  # 2 MiB of float32 in total, if all are read side by side


@dataclass
class Aggregation:
    """Combines `accepted`, in canonical order, into the next state.  `files`: the parent's tensor file, then theirs."""

    parent: Artifact[StateManifest]
    accepted: Sequence[Update]
    settings: FederationSettings
    shares: Shares = field(init=False)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the next state's tensors: the parent's, and moments of tensors that move for the first time."""
        shapes = {tensor.name: tensor.shape for tensor in self.parent.manifest.tensors}
        trained = {tensor.name for update in self.accepted for tensor in update.manifest.tensors}
        for moment in MOMENTS[self.settings.server_optimizer]:
            shapes |= {moment_name(moment, name): shapes[name] for name in sorted(trained)}
        return shapes

    def settle(self, files: Sequence[TensorFile]) -> None:
        """Decide each update's weight; reads all updates first if norms are needed.  Raises `TooFewUpdates`."""
        counts = [update.manifest.example_count for update in self.accepted]
        measures = self.settings.strategy in ("krum", "multi-krum") or self.settings.clip_norm != "none"
        geometry, squares_K = Geometry(len(counts)), np.zeros(len(counts))
        names = sorted({name for file in files[1:] for name in file.references}) if measures else []
        for name in names:
            holders = self._holders(name, files)
            for _, values_KE in self._differences(name, files, holders):
                squares_K[holders] += squared_norms(values_KE)
                if len(holders) == len(counts):  # only tensors that all updates hold can be compared
                    geometry.add(values_KE)
        self.shares = settle(self.settings, counts, np.sqrt(squares_K), geometry.squared_distances_KK)

    def chunks(self, name: str, files: Sequence[TensorFile]) -> Iterator[np.ndarray]:
        """The tensor `name` of the next state, a chunk (E,) at a time."""
        moment, base = split_moment(name)
        holders = self._holders(base, files)
        if not holders:
            yield from files[0].checked_chunks(name, CHUNK_ELEMENTS)
        elif is_plain(self.settings):
            yield from self._means(name, [files[1 + index] for index in holders], holders)
        else:
            yield from self._steps(base, moment, files, holders)

    def _means(self, name: str, files: Sequence[TensorFile], holders: list[int]) -> Iterator[np.ndarray]:
        """Weighted means (E,), one chunk in memory at a time, whatever K."""
        weights = [self.accepted[index].manifest.example_count for index in holders]
        readers = [file.checked_chunks(name, CHUNK_ELEMENTS) for file in files]
        for _ in range(0, elements(files[0].references[name].shape), CHUNK_ELEMENTS):
            yield weighted_mean((next(reader) for reader in readers), weights)
        for reader in readers:
            assert next(reader, None) is None  # the digest is checked at the end

    def _steps(self, base: str, moment: str, files: Sequence[TensorFile], holders: list[int]) -> Iterator[np.ndarray]:
        """Chunks (E,) of the new values of `base`, or of one of its moments."""
        kinds = MOMENTS[self.settings.server_optimizer]
        shares = Shares(self.shares.weights_K[holders], self.shares.factors_K[holders])
        moments = [self._moments(moment_name(kind, base), base, files[0], len(holders)) for kind in kinds]
        for parts in zip(self._differences(base, files, holders), *moments, strict=True):
            (before, values_KE), *resting = parts
            values, moved = server_step(
                self.settings, before, combine(self.settings, values_KE, shares), tuple(resting)
            )
            yield moved[kinds.index(moment)] if moment else values

    def _differences(
        self, name: str, files: Sequence[TensorFile], holders: list[int]
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

    def _holders(self, name: str, files: Sequence[TensorFile]) -> list[int]:
        """Indices of the updates that hold a tensor."""
        return [index for index, file in enumerate(files[1:]) if name in file.references]


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
