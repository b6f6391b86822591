"""A base model's weights on disk: found by name, read by `pread`, hashed as they are read.

A checkpoint is one or more safetensors files.  No file is ever loaded whole: a caller names the tensors that it needs
and where to put their bytes.  `WeightFiles` knows nothing of layers; `names.py` does.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from schemas.base import sha256_digest
from schemas.errors import BadInput, NotTrusted
from stages.data.model_folder import refuse_pointer, without_weights
from stages.store.foreign import read_json
from stages.store.regular import file_digest, open_regular
from stages.store.safetensors_header import Place, UnknownDtype, read_header

CHUNK_BYTES = 2**20
FLOAT_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}  # as settings name them
DTYPES = {  # as safetensors names them
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor is: `size` bytes at `offset` of `file`."""

    name: str
    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    size: int


def bytes_by_dtype(tensors: Iterable[StoredTensor]) -> Counter[torch.dtype]:
    """How many bytes are stored in each dtype."""
    sizes: Counter[torch.dtype] = Counter()
    for tensor in tensors:
        sizes[tensor.dtype] += tensor.size
    return sizes


def main_dtype(tensors: Iterable[StoredTensor]) -> torch.dtype:
    """The one of `FLOAT_DTYPES` that most bytes are stored in; float32 where there is none."""
    sizes = bytes_by_dtype(tensor for tensor in tensors if tensor.dtype in FLOAT_DTYPES.values())
    return sizes.most_common(1)[0][0] if sizes else torch.float32


class WeightFiles:
    """The safetensors files of a model directory, open for reading.  Closed by `close` or garbage collection."""

    def __init__(self, folder: Path, tensors: dict[str, StoredTensor], descriptors: dict[Path, int]) -> None:
        self.folder = folder
        self.tensors = tensors
        self._descriptors = descriptors
        self.bytes_read = 0

    @classmethod
    def open(cls, model_dir: Path) -> Self:
        """Read the headers of `model.safetensors`, or of the files its index names.  Raises `BadInput`."""
        tensors: dict[str, StoredTensor] = {}
        descriptors: dict[Path, int] = {}
        for file in checkpoint_files(model_dir):
            descriptors[file] = open_regular(file, follow_links=True)
            for tensor in stored_tensors(file, descriptors[file]):
                if tensor.name in tensors:
                    raise BadInput(
                        f"tensor {tensor.name} is in two files of the model",
                        values={"first": tensors[tensor.name].file.name, "second": file.name},
                    )
                tensors[tensor.name] = tensor
        return cls(model_dir, tensors, descriptors)

    def close(self) -> None:
        """Close every file."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __del__(self) -> None:
        self.close()

    def read_into(self, tensor: StoredTensor, target: memoryview, *, start: int = 0) -> None:
        """Fill `target` with the tensor's bytes from `start` on.  Raises `NotTrusted` where the file ends before."""
        filled = 0
        descriptor = self._descriptors[tensor.file]
        while filled < len(target):
            count = os.preadv(descriptor, [target[filled:]], tensor.offset + start + filled)
            if count <= 0:
                raise NotTrusted(
                    f"{tensor.file.name} ends inside tensor {tensor.name}",
                    values={"expected": f"{len(target)} bytes", "found": f"{filled} bytes"},
                    hint="the model was truncated: copy it again",
                )
            filled += count
        self.bytes_read += filled

    def identities(self, files: Iterable[Path]) -> list[list[object]]:
        """What changes when a file does: its name, device, inode, size and times."""
        stats = [(file.name, os.fstat(self._descriptors[file])) for file in sorted(files)]
        return [
            [name, stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns] for name, stat in stats
        ]

    def digest(self, tensors: Iterable[StoredTensor]) -> str:
        """SHA-256 of `tensors` in order of name, in constant memory."""
        hasher = PartHasher()
        buffer = memoryview(bytearray(CHUNK_BYTES))
        for tensor in sorted(tensors, key=lambda tensor: tensor.name):
            hasher.begin(tensor)
            for start in range(0, tensor.size, CHUNK_BYTES):
                chunk = buffer[: min(CHUNK_BYTES, tensor.size - start)]
                self.read_into(tensor, chunk, start=start)
                hasher.add(chunk)
        return hasher.digest()


class PartHasher:
    """SHA-256 over (name, dtype, shape, bytes) of tensors, fed in order of name."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def begin(self, tensor: StoredTensor) -> None:
        """Start a tensor."""
        self._hash.update(f"{tensor.name}\n{tensor.dtype}\n{list(tensor.shape)}\n".encode())

    def add(self, data: memoryview) -> None:
        """The next bytes of the tensor."""
        self._hash.update(data)

    def digest(self) -> str:
        """The digest of everything so far."""
        return f"sha256:{self._hash.hexdigest()}"


def has_weights(model_dir: Path) -> bool:
    """Whether a model directory holds safetensors weights, complete or not."""
    return any((model_dir / name).exists() for name in ("model.safetensors", "model.safetensors.index.json"))


def checkpoint_files(model_dir: Path) -> list[Path]:
    """The safetensors files of a model directory, in order of name.  Raises `BadInput`."""
    index = model_dir / "model.safetensors.index.json"
    single = model_dir / "model.safetensors"
    if not index.exists():
        if single.exists():
            return [single]
        raise without_weights(model_dir)
    return files_of_index(index)


def files_of_index(index: Path) -> list[Path]:
    """The files beside an index of weights that it names, in order of name.  Raises `BadInput` where one is missing."""
    model_dir = index.parent
    document = read_json(index)
    try:
        names = sorted({str(name) for name in document["weight_map"].values()})
    except (KeyError, AttributeError, TypeError):
        raise BadInput(f"{index} is not an index of weights", hint="copy the model again") from None
    missing = [name for name in names if Path(name).name != name or not (model_dir / name).is_file()]
    if missing:
        raise BadInput(
            f"{index.name} names a file that is not in {model_dir}",
            values={"expected": missing[0], "missing": f"{len(missing)} of {len(names)} files"},
            hint="copy the model again, with every shard",
        )
    return [model_dir / name for name in names]


def stored_tensors(file: Path, descriptor: int) -> list[StoredTensor]:
    """The tensors of one open safetensors file.  Raises `BadInput` where it is not a complete one."""
    try:
        return [_stored(file, place) for place in read_header(descriptor)]
    except UnknownDtype as error:
        raise BadInput(
            f"the weights in {file} are quantized: {error}",
            values={"expected": "float32, bfloat16 or float16"},
            hint="take the model that it was made from, or save it dequantized with the library that quantized it",
        ) from None
    except ValueError as error:
        raise incomplete(file, "safetensors file", str(error)) from None


def _stored(file: Path, place: Place) -> StoredTensor:
    spec = place.spec
    return StoredTensor(spec.name, file, DTYPES[spec.dtype], spec.shape, place.offset, spec.size_bytes)


def incomplete(file: Path, kind: str, reason: str) -> BadInput:
    """The error for a file of weights that is damaged or truncated.  Raises its own for a pointer of Git LFS."""
    if file.is_file():
        refuse_pointer(file)
    return BadInput(
        f"{file} is not a complete {kind}",
        values={"reason": reason, "file has": f"{file.stat().st_size if file.exists() else 0} bytes"},
        hint="the model was truncated or altered: copy it again",
    )


def config_digest(path: Path) -> str:
    """SHA-256 of a configuration or tokenizer file, which may be a link; of no bytes where there is no file."""
    return file_digest(path, follow_links=True) if path.is_file() else sha256_digest(b"")


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor, without a copy."""
    return tensor.detach().view(torch.uint8).numpy().data.cast("B")
