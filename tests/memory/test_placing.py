"""Temporary files take room: on the disk, or in the budget where their folder is in memory."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import pytest

from schemas.errors import DoesNotFit
from stages.memory.placing import fit_with_files
from stages.process.scratch import medium_of
from stages.streaming.placement import FASTEST, PLACEMENTS, SMALLEST, Placement
from tests import fleet

MIB = 2**20
SHARED = Path("/dev/shm")


def peak(placement: Placement) -> int:
    """10 MiB for the smallest placement, 20 for the one before, …"""
    return 10 * MIB * (len(PLACEMENTS) - PLACEMENTS.index(placement))


def files(placement: Placement) -> int:
    """40 MiB where anything is put away, but for the fastest."""
    return 0 if placement == FASTEST else 40 * MIB


@pytest.fixture
def in_memory() -> Iterator[Path]:
    if medium_of(SHARED) != "memory":
        pytest.skip("/dev/shm is not in memory here")
    with TemporaryDirectory(dir=SHARED) as folder:
        yield Path(folder)


def fit(scratch: Path, budget_mib: int) -> tuple[Placement, int]:
    return fit_with_files(peak, files, scratch=scratch, budget_bytes=budget_mib * MIB, what="the work")


def test_files_on_a_disk_are_not_in_the_peak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.memory.placing.medium_of", lambda folder: "disk")
    assert fit(tmp_path, 10) == (SMALLEST, 10 * MIB)
    with pytest.raises(DoesNotFit) as refused:
        fit(tmp_path, 9)
    assert "--scratch-dir" not in refused.value.hint


def test_files_in_memory_are_in_the_peak(in_memory: Path) -> None:
    for scratch in (in_memory, in_memory / "that" / "is not there yet"):
        assert fit(scratch, 50) == (SMALLEST, 50 * MIB)
        assert fit(scratch, 61) == (PLACEMENTS[-2], 60 * MIB)
        assert fit(scratch, 70) == (FASTEST, 70 * MIB)  # before a smaller one, which has files


def test_too_much_in_memory_is_refused_with_the_way_out(in_memory: Path) -> None:
    with pytest.raises(DoesNotFit, match=r"the work does not fit .* scratch folder is in memory \(tmpfs\)") as refused:
        fit(in_memory, 49)
    assert refused.value.values["smallest budget that fits"] == "54 MiB"
    assert refused.value.values["scratch folder"] == in_memory
    assert "--scratch-dir on a disk" in refused.value.hint


def test_a_disk_without_room_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.memory.placing.shutil.disk_usage", lambda folder: SimpleNamespace(free=MIB))
    monkeypatch.setattr("stages.memory.placing.medium_of", lambda folder: "disk")
    assert fit(tmp_path, 70)[0] == FASTEST
    with pytest.raises(DoesNotFit, match="temporary files of the work do not fit the disk"):
        fit(tmp_path / "not yet", 10)


def test_every_stage_counts_its_files_in_memory(tiny_bert: Path, tmp_path: Path, in_memory: Path) -> None:
    """A budget that nothing fits: the refusal says where the files would be, unless they would be on a disk."""
    data = fleet.save_texts(tmp_path / "texts.jsonl", fleet.texts(8))
    recipe = fleet.write_recipe(tmp_path / "recipe.toml", fleet.settings())
    fleet.begin(tmp_path, tiny_bert, data, fleet.settings())
    common = ["--model", tiny_bert, "--data", data, "--memory-budget", "1MiB", "--out", tmp_path / "out"]
    turn = ["--plan", tmp_path / "plan", "--state", tmp_path / "state"]
    for command in (
        ["profile", *common, "--device", "one", "--recipe", recipe],
        ["train-window", *common, *turn, "--device", "one"],
        ["eval", *common, *turn],
    ):
        refused = fleet.chainctl(*command, "--scratch-dir", in_memory, check=False)
        assert refused.returncode == 5
        assert "the scratch folder is in memory (tmpfs)" in refused.stderr
        assert "tmpfs" not in fleet.chainctl(*command, "--scratch-dir", tmp_path / "scratch", check=False).stderr


def test_the_doctor_says_where_temporary_files_would_go(tiny_bert: Path, tmp_path: Path, in_memory: Path) -> None:
    recipe = fleet.write_recipe(tmp_path / "recipe.toml", fleet.settings())
    flags = ["doctor", "--model", tiny_bert, "--recipe", recipe]
    said = fleet.chainctl(*flags, "--scratch-dir", in_memory).stdout
    assert f"scratch   {in_memory}: in memory (tmpfs), so temporary files count in the peaks below, " in said
    assert f"scratch   {Path.cwd()}: " in fleet.chainctl(*flags).stdout
