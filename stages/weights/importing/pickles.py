"""PyTorch's older files of weights (`pytorch_model.bin`), which are pickles, read as weights and nothing else.

torch's own restricted unpickler makes tensors and refuses whatever else a pickle asks for, so no foreign code runs.
A pickle is a program all the same, which may ask for any amount of memory: a child with limits reads it first.  Files
are mapped, not loaded; those from before torch 1.6 cannot be mapped and are loaded one at a time.
"""

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from schemas.errors import BadInput, NotTrusted
from stages.process.confined import Limits, OverLimitError, run_confined
from stages.store.regular import file_size
from stages.weights.files import files_of_index, incomplete
from stages.weights.writer import STORED_AS, Entry, entry_of

INDEX = "pytorch_model.bin.index.json"
SINGLE = "pytorch_model.bin"
HINT = "get the model as safetensors; never unpickle what you do not trust"
READING = Limits()  # and for each byte of the file:
BYTES_PER_SECOND = 50 * 2**20
MOST_SHARING = 8  # names of one value: an embedding that is tied, and layers that share theirs


def pickle_files(model_dir: Path) -> list[Path]:
    """The files of weights, in order of name; empty where there are none.  Raises `BadInput` where one is missing."""
    index = model_dir / INDEX
    if not index.exists():
        return [model_dir / SINGLE] if (model_dir / SINGLE).exists() else []
    return files_of_index(index)


def read_pickle(file: Path) -> dict[str, Entry]:
    """The tensors of one file by name.

    Raises `NotTrusted` for a pickle that asks for more than weights, `BadInput` for other files that are not weights.
    """
    size = file_size(file, follow_links=True)
    limits = Limits(READING.seconds + size // BYTES_PER_SECOND, READING.extra_bytes + 2 * size)
    try:
        run_confined(lambda: _check(file, _load(file), size), limits)
    except OverLimitError as error:
        raise NotTrusted(
            f"{file.name} is a pickle that takes more than weights of its size can, so it is not read",
            values={"limits": limits, "reached": error.resource, "file has": f"{size} bytes"},
            hint=HINT,
        ) from None
    return {name: entry_of(name, value) for name, value in _load(file).items()}


def _check(file: Path, content: Any, size: int) -> None:
    """Tensors by name, whose values the file holds.  Raises `BadInput`."""
    if not isinstance(content, dict):
        raise _no_weights(file, f"a {type(content).__name__}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or value.is_sparse:
            raise _no_weights(file, f"a {type(value).__name__} named {ascii(name)[:80]}")
        if value.dtype not in STORED_AS:
            raise _no_weights(file, f"{value.dtype} in {ascii(name)[:80]}")
        if value.nbytes > value.untyped_storage().nbytes():
            raise _no_weights(file, f"one value repeated to {value.nbytes} bytes in {ascii(name)[:80]}")
    total = sum(value.nbytes for value in content.values())
    if total > MOST_SHARING * size:
        raise _no_weights(file, f"tensors that share memory: {total} bytes in a file of {size}")


def _load(file: Path) -> Any:
    mapped = zipfile.is_zipfile(file)  # what torch writes since 1.6
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        raise NotTrusted(
            f"{file.name} is a pickle that asks for more than weights, so it is not read",
            values={"expected": "tensors by name", "found": asked[1] if asked else "a damaged or unknown pickle"},
            hint=HINT,
        ) from None
    except MemoryError:
        raise
    except Exception as error:
        if "not enough memory" in str(error):  # torch's own allocator
            raise MemoryError from None
        raise incomplete(file, "PyTorch file of weights", type(error).__name__) from None


def _no_weights(file: Path, found: str) -> BadInput:
    return BadInput(
        f"{file.name} does not hold weights alone",
        values={"expected": "a dictionary of dense tensors by name", "found": found},
        hint="save the model's state_dict, or save it with save_pretrained(), which writes safetensors",
    )
