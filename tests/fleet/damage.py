"""Files with one bit altered."""

from __future__ import annotations

import json
from pathlib import Path


def flip(file: Path, offset: int) -> None:
    """Alter one bit of the byte at `offset`, counted from the end where it is negative."""
    data = bytearray(file.read_bytes())
    data[offset] ^= 1
    file.write_bytes(bytes(data))


def flip_weight(model_dir: Path, name: str) -> None:
    """Alter the last byte of one tensor of a model in a single file."""
    path = model_dir / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    end = json.loads(data[8 : 8 + length])[name]["data_offsets"][1]
    flip(path, 8 + length + end - 1)
