"""Tensor files: the safetensors library reads exactly what was written, the same tensors are always the same bytes,
and a file that is not to the letter what the manifest implies is refused, with what was expected and what was found."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as fast
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors import safe_open
from safetensors.numpy import load, load_file

from schemas.base import sha256_digest
from schemas.errors import BadInput, NotTrusted
from schemas.refs import FileReference, TensorReference
from schemas.state import StateManifest
from schemas.update import UpdateManifest
from stages.store.artifact import open_artifact, verify_artifact
from stages.store.tensors import TENSORS_FILE, TensorFile, TensorWriter, header_bytes
from tests import fleet

NAMES = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.]{0,20}", fullmatch=True)
FLOATS = arrays.arrays(
    np.float32, arrays.array_shapes(min_dims=0, max_dims=3, max_side=4), elements=st.floats(width=32, allow_nan=True)
)
SHARED = [HealthCheck.function_scoped_fixture]
TENSORS = {"head.b": np.arange(3, dtype=np.float32), "head.a": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)}


def write(path: Path, tensors: dict[str, np.ndarray]) -> tuple[tuple[TensorReference, ...], FileReference]:
    writer = TensorWriter(path, {name: values.shape for name, values in tensors.items()})
    for name in sorted(tensors):
        writer.write(name, tensors[name])
    return writer.finish()


def make(folder: Path) -> UpdateManifest:
    return fleet.write_update(folder, TENSORS, measured=False).manifest


@fast(max_examples=60, deadline=None, suppress_health_check=SHARED)
@given(tensors=st.dictionaries(NAMES, FLOATS, min_size=1, max_size=6))
def test_the_library_reads_exactly_what_was_written(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    path = tmp_path / TENSORS_FILE
    references, file = write(path, tensors)
    found = load(path.read_bytes())
    assert {name: (values.shape, values.dtype, values.tobytes()) for name, values in found.items()} == {
        name: (values.shape, np.dtype(np.float32), values.tobytes()) for name, values in tensors.items()
    }
    with safe_open(path, framework="np") as opened:
        assert opened.metadata() is None
    assert path.stat().st_size == file.size_bytes
    with TensorFile.open(path, references) as mine:
        for name, values in tensors.items():
            assert mine.tensor(name).shape == values.shape
            assert mine.tensor(name).tobytes() == values.tobytes()


@fast(max_examples=25, deadline=None, suppress_health_check=SHARED)
@given(tensors=st.dictionaries(NAMES, FLOATS, min_size=1, max_size=6), cut=st.integers(1, 5))
def test_insertion_order_and_chunking_do_not_change_a_byte(
    tmp_path: Path, tensors: dict[str, np.ndarray], cut: int
) -> None:
    whole = write(tmp_path / "whole", tensors)[1]
    backwards = {name: tensors[name] for name in sorted(tensors, reverse=True)}
    writer = TensorWriter(tmp_path / "pieces", {name: values.shape for name, values in backwards.items()})
    for name in sorted(backwards):
        flat = backwards[name].reshape(-1)
        for start in range(0, flat.size, cut):
            writer.write(name, flat[start : start + cut])
    assert writer.finish()[1].sha256 == whole.sha256
    assert (tmp_path / "pieces").read_bytes() == (tmp_path / "whole").read_bytes()


def test_the_header_is_eight_byte_aligned_and_lists_names_in_order() -> None:
    data = header_bytes({name: values.shape for name, values in TENSORS.items()})
    assert int.from_bytes(data[:8], "little") == len(data) - 8
    assert len(data) % 8 == 0
    assert list(json.loads(data[8:])) == ["head.a", "head.b"]


@fast(max_examples=100, deadline=None, suppress_health_check=SHARED)
@given(position=st.integers(0, 10**6), change=st.integers(1, 255))
def test_a_changed_byte_anywhere_in_the_tensors_is_refused(tmp_path: Path, position: int, change: int) -> None:
    folder = tmp_path / "a"
    if not folder.exists():
        make(folder)
    path = folder / TENSORS_FILE
    whole = path.read_bytes()
    altered = bytearray(whole)
    altered[position % len(whole)] ^= change
    path.write_bytes(bytes(altered))
    try:
        with pytest.raises(NotTrusted) as caught:
            verify_artifact(folder)
        assert caught.value.exit_code == 4
        assert all(str(value) in str(caught.value) for value in caught.value.values.values())
        assert len(set(caught.value.values.values())) == 2
    finally:
        path.write_bytes(whole)


def other_names(data: bytes) -> bytes:
    """The same size, a header that the library would accept, other names."""
    altered = data.replace(b"head.", b"tail.")
    assert set(load(altered)) == {"tail.a", "tail.b"}
    return altered


@pytest.mark.parametrize(
    "alter",
    [lambda data: data[:-4], lambda data: data[:5], lambda data: b"", lambda data: data + bytes(4), other_names],
    ids=["cut", "header-cut", "empty", "extended", "other-names"],
)
def test_a_file_of_another_size_or_header_is_refused_on_opening(
    alter: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    manifest = make(tmp_path / "a")
    path = tmp_path / "a" / TENSORS_FILE
    path.write_bytes(alter(path.read_bytes()))
    with pytest.raises(NotTrusted) as caught:
        TensorFile.open(path, manifest.tensors)
    assert caught.value.exit_code == 4
    assert {"manifest says", "file has"} == set(caught.value.values)
    with pytest.raises(NotTrusted):
        verify_artifact(tmp_path / "a")


def renamed(folder: Path) -> None:
    (folder / TENSORS_FILE).rename(folder / "weights.safetensors")


def extra(folder: Path) -> None:
    (folder / "notes.txt").write_text("hello")


def missing(folder: Path) -> None:
    (folder / TENSORS_FILE).unlink()


def linked(folder: Path) -> None:
    (folder / TENSORS_FILE).rename(folder.parent / "elsewhere")
    (folder / TENSORS_FILE).symlink_to(folder.parent / "elsewhere")


def linked_manifest(folder: Path) -> None:
    (folder / "manifest.json").rename(folder.parent / "elsewhere")
    (folder / "manifest.json").symlink_to(folder.parent / "elsewhere")


def dangling_measured(folder: Path) -> None:
    (folder / "measured.json").symlink_to(folder.parent / "nowhere")


def edit_manifest(folder: Path, change: Callable[[bytes], bytes]) -> None:
    path = folder / "manifest.json"
    before = path.read_bytes()
    after = change(before)
    assert after != before, "the change must change something"
    path.write_bytes(after)


def reordered(folder: Path) -> None:
    def backwards(data: bytes) -> bytes:
        document = json.loads(data)
        return json.dumps({key: document[key] for key in reversed(list(document))}, indent=2).encode() + b"\n"

    edit_manifest(folder, backwards)


def respaced(folder: Path) -> None:
    edit_manifest(folder, lambda data: json.dumps(json.loads(data), sort_keys=True).encode() + b"\n")


def duplicated_key(folder: Path) -> None:
    edit_manifest(folder, lambda data: data.replace(b'"device": "phone"', b'"device": "phone",\n  "device": "phone"'))


def no_newline(folder: Path) -> None:
    edit_manifest(folder, lambda data: data.rstrip(b"\n"))


@pytest.mark.parametrize(
    ("damage", "exit_code"),
    [
        (renamed, 4),
        (extra, 4),
        (missing, 3),
        (linked, 3),
        (linked_manifest, 3),
        (dangling_measured, 3),
        (reordered, 3),
        (respaced, 3),
        (duplicated_key, 3),
        (no_newline, 3),
    ],
)
def test_damage_is_refused_with_both_values(damage: Callable[[Path], None], exit_code: int, tmp_path: Path) -> None:
    make(tmp_path / "a")
    damage(tmp_path / "a")
    with pytest.raises((BadInput, NotTrusted)) as caught:
        verify_artifact(tmp_path / "a")
    assert caught.value.exit_code == exit_code
    assert len(caught.value.values) == 2
    assert all(str(value) in str(caught.value) for value in caught.value.values.values())


def test_a_newer_version_says_upgrade_and_both_versions(tmp_path: Path) -> None:
    make(tmp_path / "a")
    edit_manifest(tmp_path / "a", lambda data: data.replace(b'"version": 1', b'"version": 2'))
    with pytest.raises(BadInput) as caught:
        verify_artifact(tmp_path / "a")
    assert caught.value.exit_code == 3
    assert all(said in str(caught.value) for said in ("upgrade", "update v1", "update v2"))


def test_another_kind_is_refused_with_both_kinds(tmp_path: Path) -> None:
    make(tmp_path / "a")
    with pytest.raises(BadInput) as caught:
        open_artifact(tmp_path / "a", StateManifest)
    assert caught.value.exit_code == 3
    assert "state v1" in str(caught.value)
    assert "update v1" in str(caught.value)


HEADERS = {
    "path": '{"../../../../etc/passwd":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
    "NUL": '{"head.\\u0000":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
    "metadata": '{"__metadata__":{"x":"y"},"head.weight":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
    "twice": '{"head.weight":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},'
    '"head.weight":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
    "empty tensors": '{"head.weight":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},'
    + ",".join(f'"e{n}":{{"dtype":"F32","shape":[0],"data_offsets":[16,16]}}' for n in range(20_000))
    + "}",
    "order": '{"head.weight":{"shape":[4],"dtype":"F32","data_offsets":[0,16]}}',
    "spaces": '{"head.weight": {"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
    "dtype": '{"head.weight":{"dtype":"I32","shape":[4],"data_offsets":[0,16]}}',
}


@pytest.mark.parametrize("trick", HEADERS)
def test_a_header_that_the_library_takes_is_refused(trick: str, tmp_path: Path) -> None:
    """Also where the manifest's size was made to fit: only one header follows from the manifest."""
    text = HEADERS[trick].encode()
    text += b" " * (-len(text) % 8)
    values = np.arange(4, dtype=np.float32)
    path = tmp_path / "t.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + values.tobytes())
    assert load_file(path)  # the library has no objection
    digest = sha256_digest(values.tobytes())
    reference = TensorReference(name="head.weight", dtype="F32", shape=(4,), sha256=digest)
    with pytest.raises(NotTrusted):
        TensorFile.open(path, [reference])
    path.write_bytes(header_bytes({"head.weight": (4,)}) + values.tobytes())
    with TensorFile.open(path, [reference]) as file:
        assert np.array_equal(file.tensor("head.weight"), values)


@pytest.mark.parametrize("shape", [(2**40, 2**40), (2**53, 2**11), (3, 2**53)])
def test_a_shape_that_claims_the_sky_is_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    path.write_bytes(header_bytes({"head.weight": shape}))
    reference = TensorReference(name="head.weight", dtype="F32", shape=shape, sha256=sha256_digest(b""))
    with pytest.raises(NotTrusted):
        TensorFile.open(path, [reference])
