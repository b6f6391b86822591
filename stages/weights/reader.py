"""Parts of a base model, read and checked: a layer, some embedding rows, everything outside the layers.

Each part's bytes are hashed as they are read and compared with the fingerprint in the plan, so a changed weight or a
bad disk leads to an error that names the part, never to different results.  `Verify` says how
often: `always` when it is read, `once` while its file does not change (by inode, size and times), `never`.
"""

import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from schemas.errors import BadInput, NotTrusted
from schemas.refs import ModelFingerprint
from stages.store.cache_directory import CacheDirectory
from stages.weights.files import PartHasher, StoredTensor, WeightFiles, config_digest
from stages.weights.names import Architecture, Load, Names, stored

Weights = Mapping[str, Tensor]  # a layer's parameters by their names inside the layer
Verify = Literal["always", "once", "never"]
ALIGNMENT = 64  # bytes: what vector loads like, and a multiple of every dtype


@dataclass(frozen=True)
class Reader:
    """Reads the parts of one model.

    `expected` is the fingerprint they must have; None where there is no plan yet.  What was verified `once` is
    remembered in `cache`, or in the process where there is none.
    """

    model_dir: Path
    files: WeightFiles
    names: Names
    skeleton: Architecture
    expected: ModelFingerprint | None
    verify: Verify = "always"
    cache: CacheDirectory | None = None
    verified: set[str] = field(default_factory=set)

    def fingerprint(self) -> ModelFingerprint:
        """Hash the whole model, in constant memory."""
        config = self.skeleton.config
        return ModelFingerprint(
            model_type=config.model_type,
            num_layers=len(self.names.layers),
            hidden_size=config.hidden_size,
            config=config_digest(self.model_dir / "config.json"),
            tokenizer=config_digest(self.model_dir / "tokenizer.json"),
            embeddings=self.files.digest(stored([self.names.embeddings])),
            layers=tuple(self.files.digest(self.names.stored_layer(layer)) for layer in range(len(self.names.layers))),
            rest=self.files.digest(self.names.stored_rest()),
        )

    def check_small_parts(self) -> None:
        """Compare everything outside the layers with the expected fingerprint.  Raises `NotTrusted`."""
        if self.expected is None:
            return
        expected, model = self.expected, self.model_dir
        self._check("config.json", expected.config, config_digest(model / "config.json"))
        self._check("tokenizer.json", expected.tokenizer, config_digest(model / "tokenizer.json"))
        for part, wanted, tensors in (
            ("the token embedding table", expected.embeddings, stored([self.names.embeddings])),
            ("the part outside the layers", expected.rest, self.names.stored_rest()),
        ):
            if self._is_to_be_checked(wanted, tensors):
                self._check(part, wanted, self.files.digest(tensors))
                self._remember(wanted, tensors)

    def check_same(self, expected: ModelFingerprint, found: ModelFingerprint) -> None:
        """Compare two fingerprints part by part.  Raises `NotTrusted` for the first part that differs."""
        for part in ("model_type", "num_layers", "hidden_size", "config", "tokenizer", "embeddings", "rest"):
            self._check(part, str(getattr(expected, part)), str(getattr(found, part)))
        for layer, (there, here) in enumerate(zip(expected.layers, found.layers, strict=True)):
            self._check(f"layer {layer}", there, here)

    def layer_bytes(self, layer: int) -> int:
        """Bytes of arena that `layer` needs."""
        return sum(_aligned(tensor.size) for tensor in self.names.stored_layer(layer))

    def layer(self, layer: int, arena: mmap.mmap) -> Weights:
        """A layer's weights: matrices of linear layers as stored, in `arena`, the rest in the dtype that computes.

        Raises `NotTrusted`.
        """
        raw: dict[str, Tensor] = {}
        tensors = sorted(self.names.stored_layer(layer), key=lambda tensor: tensor.name)
        wanted = self.expected.layers[layer] if self.expected is not None else ""
        checking = self.expected is not None and self._is_to_be_checked(wanted, tensors)
        hasher = PartHasher()
        offset = 0
        for tensor in tensors:
            view = memoryview(arena)[offset : offset + tensor.size]
            self.files.read_into(tensor, view)
            if checking:
                hasher.begin(tensor)
                hasher.add(view)
            raw[tensor.name] = _as_tensor(arena, tensor, offset)
            offset += _aligned(tensor.size)
        if checking:
            self._check(f"layer {layer}", wanted, hasher.digest())
            self._remember(wanted, tensors)
        prefix = f"{self.skeleton.layer_prefix}.{layer}."
        stored_names = frozenset(prefix + name for name in self.skeleton.stay_stored(layer))
        converted = self._convert(self.names.layers[layer], raw, stored_names)
        return {name.removeprefix(prefix): value for name, value in converted.items()}

    def rest(self, stored_names: frozenset[str] = frozenset()) -> dict[str, Tensor]:
        """Everything but the layers, the token embedding table and the language head, by parameter name.

        In the dtype that computes, except for `stored_names`, which are as stored.
        """
        loads = tuple(load for load in self.names.rest if load.target not in self.skeleton.output_names)
        return self._whole(loads, stored_names)

    def output_rows(self) -> StoredTensor:
        """Where the rows (V, D) of the language head are stored: its own, or those of the embedding it is tied to.

        Raises `BadInput` where they are not one table.
        """
        own = [load for load in self.names.rest if load.target in self.skeleton.output_names]
        loads = [load for load in own if load.target.endswith("weight")] or [self.names.embeddings]
        if loads[0].converter is not None or len(own) > 1:
            raise BadInput(
                "the language head is not one table of rows",
                values={"parameters": ", ".join(load.target for load in own)},
                hint="this architecture can be tuned for text-classification only",
            )
        return loads[0].sources[0][0]

    def rows(self, table: StoredTensor, first: int, last: int, arena: mmap.mmap) -> Tensor:
        """Rows `first` to `last` (exclusive) of a stored table, in its dtype, in `arena`."""
        row_bytes = table.size // table.shape[0]
        size = row_bytes * (last - first)
        self.files.read_into(table, memoryview(arena)[:size], start=first * row_bytes)
        count = size // table.dtype.itemsize
        return torch.frombuffer(arena, dtype=table.dtype, count=count).view(last - first, -1)

    def embedding_rows(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Sorted token ids (U,) and rows (U, D): only those of `ids` (U,), read one by one.  Raises `BadInput`."""
        load = self.names.embeddings
        source = load.sources[0][0]
        if load.converter is not None:
            table = self._whole((load,))[load.target]
            return torch.arange(table.shape[0]), table
        if int(ids[-1]) >= source.shape[0]:
            raise BadInput(
                "the tokenizer has more tokens than the model",
                values={"rows in the model": source.shape[0], "token": int(ids[-1])},
                hint="tokenizer.json and the weights must come from the same model",
            )
        row_bytes = source.size // source.shape[0]
        table_bytes = bytearray(row_bytes * len(ids))
        view = memoryview(table_bytes)
        for position, token in enumerate(ids.tolist()):
            target = view[position * row_bytes : (position + 1) * row_bytes]
            self.files.read_into(source, target, start=token * row_bytes)
        rows = torch.frombuffer(table_bytes, dtype=source.dtype).view(len(ids), source.shape[1])
        return ids, rows.to(self.skeleton.dtype)

    def _whole(self, loads: tuple[Load, ...], stored_names: frozenset[str] = frozenset()) -> dict[str, Tensor]:
        raw: dict[str, Tensor] = {}
        for tensor in stored(loads):
            data = bytearray(tensor.size)
            self.files.read_into(tensor, memoryview(data))
            raw[tensor.name] = torch.frombuffer(data, dtype=tensor.dtype).view(tensor.shape)
        return self._convert(loads, raw, stored_names)

    def _convert(
        self, loads: tuple[Load, ...], raw: Mapping[str, Tensor], stored_names: frozenset[str] = frozenset()
    ) -> dict[str, Tensor]:
        """Parameters by name, in the dtype that computes except for `stored_names`."""
        converted: dict[str, Tensor] = {}
        for load in loads:  # one by one: what is merged has another copy until it is converted
            for name, value in load.convert(raw, self.skeleton.model).items():
                changes = value.is_floating_point() and name not in stored_names
                converted[name] = value.to(self.skeleton.dtype) if changes else value
        return converted

    def _is_to_be_checked(self, wanted: str, tensors: Sequence[StoredTensor]) -> bool:
        if self.verify == "once":
            fact = self._fact(wanted, tensors)
            return str(fact) not in self.verified and not (self.cache is not None and self.cache.knows(fact))
        return self.verify == "always"

    def _remember(self, wanted: str, tensors: Sequence[StoredTensor]) -> None:
        fact = self._fact(wanted, tensors)
        self.verified.add(str(fact))
        if self.verify == "once" and self.cache is not None:
            self.cache.note(fact)

    def _fact(self, wanted: str, tensors: Sequence[StoredTensor]) -> list[object]:
        """A part and the files it was read from, as they are now."""
        return [wanted, self.files.identities({tensor.file for tensor in tensors})]

    def _check(self, part: str, expected: str, found: str) -> None:
        if expected != found:
            raise NotTrusted(
                f"{part} of the base model is not the one in the plan",
                values={"plan says": expected, "model has": found, "model": self.model_dir},
                hint="get the same base model as everyone else, or make a new plan for this one",
            )


def new_arena(size: int) -> mmap.mmap:
    """Private anonymous memory of at least `size` bytes, returned to the system when the last tensor in it is gone."""
    return mmap.mmap(-1, max(size, mmap.PAGESIZE), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _as_tensor(arena: mmap.mmap, tensor: StoredTensor, offset: int) -> Tensor:
    count = tensor.size // tensor.dtype.itemsize
    return torch.frombuffer(arena, dtype=tensor.dtype, count=count, offset=offset).view(tensor.shape)
