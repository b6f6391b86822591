"""Artifacts are complete or absent, and what is altered in any way is refused, with both values."""

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as fast
from hypothesis import strategies as st
from safetensors.numpy import load_file

from schemas.errors import BadInput, ChainError, NotTrusted, UsageProblem
from schemas.update import UpdateManifest
from stages.process.measure import MeasuredFacts
from stages.store.artifact import existing, new_artifact, open_artifact, read_tensors, verify_artifact
from stages.store.signing import KeyRing
from stages.store.tensors import TensorFile, TensorWriter
from tests.fleet import ROOT, TENSORS, update_manifest
from tests.fleet import write_update as make


def test_what_is_written_is_read_and_the_library_reads_it_too(tmp_path: Path) -> None:
    artifact = make(tmp_path / "a")
    opened = verify_artifact(tmp_path / "a")
    assert opened.digest == artifact.digest
    for tensors in (read_tensors(opened), load_file(tmp_path / "a" / "tensors.safetensors")):
        assert set(tensors) == set(TENSORS)
        assert all(np.array_equal(tensors[name], TENSORS[name]) for name in TENSORS)


def test_the_name_is_what_sha256sum_prints(tmp_path: Path) -> None:
    artifact = make(tmp_path / "a")
    printed = subprocess.run(
        ["sha256sum", tmp_path / "a" / "manifest.json"], capture_output=True, text=True, check=True
    )
    assert artifact.digest == f"sha256:{printed.stdout.split()[0]}"


@fast(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    position=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
    name=st.sampled_from(["manifest.json", "tensors.safetensors"]),
)
def test_a_flipped_bit_anywhere_is_refused(tmp_path: Path, position: float, bit: int, name: str) -> None:
    folder = tmp_path / "a"
    if not folder.exists():
        make(folder)
    path = folder / name
    whole = path.read_bytes()
    digest = verify_artifact(folder).digest
    altered = bytearray(whole)
    altered[int(position * len(whole))] ^= 1 << bit
    path.write_bytes(bytes(altered))
    try:
        outcome = verified_digest(folder)
        # A changed manifest may be a valid manifest of another artifact: then it has another name.
        assert outcome != digest
        assert outcome == "refused" or name == "manifest.json"
    finally:
        path.write_bytes(whole)


def verified_digest(folder: Path) -> str:
    try:
        return verify_artifact(folder).digest
    except ChainError as error:
        return "refused" if error.exit_code in (3, 4) else f"exit {error.exit_code}"


def extra(folder: Path) -> None:
    (folder / "extra.txt").write_text("")


def missing(folder: Path) -> None:
    (folder / "tensors.safetensors").unlink()


def no_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def linked(folder: Path) -> None:
    (folder / "tensors.safetensors").rename(folder.parent / "elsewhere")
    (folder / "tensors.safetensors").symlink_to(folder.parent / "elsewhere")


def piped(folder: Path) -> None:
    (folder / "tensors.safetensors").unlink()
    os.mkfifo(folder / "tensors.safetensors")


def cut(folder: Path) -> None:
    path = folder / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def longer(folder: Path) -> None:
    path = folder / "tensors.safetensors"
    path.write_bytes(path.read_bytes() + b"\0")


def foreign_measure(folder: Path) -> None:
    other = make(folder.parent / "other", device="tablet")
    (folder / "measured.json").write_bytes((other.path / "measured.json").read_bytes())


def reformatted(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b"  ", b" "))


@pytest.mark.parametrize(
    "damage", [extra, missing, no_manifest, linked, piped, cut, longer, foreign_measure, reformatted]
)
def test_damage_is_refused(damage: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "a")
    damage(tmp_path / "a")
    with pytest.raises(ChainError) as caught:
        verify_artifact(tmp_path / "a")
    assert isinstance(caught.value, BadInput | NotTrusted)


def test_an_existing_output_is_kept_unless_force(tmp_path: Path) -> None:
    first = make(tmp_path / "a")
    with pytest.raises(UsageProblem, match="--force"):
        make(tmp_path / "a", device="tablet")
    assert verify_artifact(tmp_path / "a").digest == first.digest
    second = make(tmp_path / "a", device="tablet", force=True)
    assert verify_artifact(tmp_path / "a").digest == second.digest != first.digest
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_an_output_from_the_same_inputs_is_left_alone(tmp_path: Path) -> None:
    assert existing(tmp_path / "a", UpdateManifest, same=lambda there: True, force=False) is None
    made = make(tmp_path / "a")
    found = existing(tmp_path / "a", UpdateManifest, same=lambda there: there.device == "phone", force=False)
    assert found is not None
    assert found.digest == made.digest
    with pytest.raises(UsageProblem, match="other inputs"):
        existing(tmp_path / "a", UpdateManifest, same=lambda there: there.device == "tablet", force=False)


def test_a_failed_draft_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with new_artifact(tmp_path / "a", force=False) as draft:
            draft.write_tensors(TENSORS)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


def write_again_and_again(out: Path) -> None:
    for number in itertools.count():
        make(out, device=f"device-{number}", force=True)


def test_a_killed_writer_leaves_the_old_or_the_new_and_its_rest_is_swept(tmp_path: Path) -> None:
    for kill in range(10):
        process = multiprocessing.get_context("fork").Process(target=write_again_and_again, args=(tmp_path / "a",))
        process.start()
        while not (tmp_path / "a").exists() and process.is_alive():
            time.sleep(0.01)
        time.sleep(0.05 + 0.013 * kill)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        verify_artifact(tmp_path / "a")
    make(tmp_path / "a", force=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("name", ["a", "a[1]", "a*"])
def test_the_next_write_sweeps_what_killed_writers_left(name: str, tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "from stages.store.artifact import new_artifact\n"
        "with new_artifact(Path(sys.argv[2]), force=True) as draft:\n"
        "    (draft.path / 'half').write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    for _ in range(2):
        killed = subprocess.run([sys.executable, "-c", script, str(ROOT), str(tmp_path / name)], check=False)
        assert killed.returncode == -signal.SIGKILL
        left = list(tmp_path.iterdir())
        assert len(left) == 1
        assert left[0].name.endswith(".partial")
    make(tmp_path / name)
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["manifest.json", "measured.json", "manifest.dsse.json", "tensors.safetensors"])
def test_a_draft_writes_through_no_link_that_somebody_put_there(name: str, tmp_path: Path, home: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("kept")

    def linked() -> None:
        with new_artifact(tmp_path / "a", force=False, signer=KeyRing(home).new("phone")) as draft:
            (draft.path / name).symlink_to(kept)
            references, files = draft.write_tensors(TENSORS)
            draft.finish(update_manifest(tensors=references, files=files), MeasuredFacts(seconds=1.0))

    with pytest.raises(OSError):  # noqa: PT011 -- the system's own, ELOOP or EEXIST
        linked()
    assert kept.read_text() == "kept"
    assert [entry.name for entry in tmp_path.iterdir()] == ["kept"]


def test_a_living_writer_is_not_swept(tmp_path: Path) -> None:
    def overtaken() -> None:
        with new_artifact(tmp_path / "a", force=False) as slow:
            quick = make(tmp_path / "a")
            assert slow.path.is_dir()
            slow.write_tensors(TENSORS)
            slow.finish(quick.manifest, None)

    with pytest.raises(UsageProblem, match="exists already"):
        overtaken()
    assert verify_artifact(tmp_path / "a").manifest.device == "phone"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("linked", [False, True])
def test_force_over_something_that_is_no_directory_replaces_or_refuses_it_cleanly(linked: bool, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    if linked:
        (tmp_path / "a").symlink_to(tmp_path / "kept")
    else:
        (tmp_path / "a").write_text("a file")
    try:
        made = make(tmp_path / "a", force=True)
        assert verify_artifact(tmp_path / "a").digest == made.digest
    except UsageProblem:
        pass  # a refusal is as good
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a", "kept"]
    assert list((tmp_path / "kept").iterdir()) == []


def test_a_writer_wants_tensors_whole_and_in_order(tmp_path: Path) -> None:
    writer = TensorWriter(tmp_path / "t", {"b": (2,), "a": (3,)})
    with pytest.raises(ValueError, match="order"):
        writer.write("b", np.zeros(2, np.float32))
    writer.write("a", np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="not whole"):
        writer.finish()


def test_chunks_are_parts_of_the_tensor(tmp_path: Path) -> None:
    artifact = open_artifact(make(tmp_path / "a").path, UpdateManifest)
    with TensorFile.open(tmp_path / "a" / "tensors.safetensors", artifact.manifest.tensors) as file:
        assert np.array_equal(file.chunk("head.a", 2, 3), np.array([2, 3, 4], np.float32))
