"""The one codec of safetensors headers: the library reads what it writes, and it reads what the library writes."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from stages.store.safetensors_header import ITEM_BYTES, TensorSpec, encode_header, has_header, read_header

SPECS = [TensorSpec("a.weight", "F32", (2, 3)), TensorSpec("b", "BF16", (5,)), TensorSpec("scalar", "I64", ())]


def write(path: Path, header: object, values: bytes = b"", *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + values)
    return path


def read(path: Path) -> list[tuple[TensorSpec, int]]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return [(place.spec, place.offset) for place in read_header(descriptor)]
    finally:
        os.close(descriptor)


names = st.text("abc.", min_size=1, max_size=8)
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@settings(max_examples=50, deadline=None)
@given(tensors=st.dictionaries(names, st.tuples(st.sampled_from(sorted(ITEM_BYTES)), shapes), max_size=5))
def test_what_is_encoded_is_read_back_in_order(
    tensors: dict[str, tuple[str, tuple[int, ...]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    specs = [TensorSpec(name, dtype, shape) for name, (dtype, shape) in tensors.items()]
    header = encode_header(specs, metadata={"format": "pt"})
    assert len(header) % 8 == 0
    path = tmp_path_factory.mktemp("header") / "x.safetensors"
    path.write_bytes(header + bytes(sum(spec.size_bytes for spec in specs)))
    found = read(path)
    assert [spec for spec, _ in found] == specs
    ends = [len(header), *(offset + spec.size_bytes for spec, offset in found)]
    assert [offset for _, offset in found] == ends[:-1]


def test_the_library_reads_what_is_encoded(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(encode_header(SPECS) + bytes(sum(spec.size_bytes for spec in SPECS)))
    with safe_open(path, framework="numpy") as file:
        assert set(file.keys()) == {spec.name for spec in SPECS}
        assert file.get_slice("a.weight").get_shape() == [2, 3]


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors: dict[str, np.ndarray] = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.ones(3, np.int16)}
    save_file(tensors, path, metadata={"format": "np"})
    data = path.read_bytes()
    for spec, offset in read(path):
        values = tensors[spec.name]
        assert spec.shape == values.shape
        assert data[offset : offset + spec.size_bytes] == values.tobytes()


def test_the_strict_reader_takes_one_layout_and_no_other(tmp_path: Path) -> None:
    expected = encode_header(SPECS)
    other = encode_header(SPECS, metadata={"format": "pt"})
    for data, same in ((expected, True), (other, False), (expected[:-1], False), (b"", False)):
        path = tmp_path / "x"
        path.write_bytes(data)
        descriptor = os.open(path, os.O_RDONLY)
        assert has_header(descriptor, expected) is same
        os.close(descriptor)


def tensor(**changes: Any) -> dict[str, Any]:
    return {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (b"", "cannot be read"),
        (b"[1, 2]", "cannot be read"),
        (b'{"w": ', "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        ({"w": 3}, "cannot be read"),
        ({"w": {"dtype": "F32"}}, "cannot be read"),
        (tensor(dtype="F4"), "w is stored as F4"),
        (tensor(dtype="f 4"), "cannot be read"),
        (tensor(dtype=["F32"]), "cannot be read"),
        (tensor(shape=[-2]), "cannot be read"),
        (tensor(shape=[-1, -2]), "cannot be read"),
        (tensor(shape=[2.0]), "cannot be read"),
        (tensor(shape=["2"]), "cannot be read"),
        (tensor(shape=[True, 2]), "cannot be read"),
        (tensor(shape=2), "cannot be read"),
        (tensor(data_offsets=[0]), "cannot be read"),
        (tensor(data_offsets=[0.0, 8]), "cannot be read"),
        (tensor(data_offsets=[-8, 0]), "cannot be read"),
        (tensor(data_offsets=[8, 0]), "w is not inside it"),
        (tensor(data_offsets=[0, 4]), "w is not inside it"),
        (tensor(data_offsets=[4, 12]), "w is not inside it"),
        (tensor(shape=[2**62, 2**62]), "w is not inside it"),
    ],
)
def test_a_header_that_contradicts_itself_or_its_file_is_refused(header: object, why: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=why):
        read(write(tmp_path / "x", header, bytes(8)))


@pytest.mark.parametrize("length", [9, 2**20, 2**63])
def test_a_header_longer_than_its_file_is_refused(length: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="longer than the file"):
        read(write(tmp_path / "x", b"{}", length=length))


def test_a_file_without_room_for_a_length_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\x02\0\0")
    with pytest.raises(ValueError, match="longer than the file"):
        read(tmp_path / "x")
