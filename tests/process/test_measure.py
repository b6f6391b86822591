"""What a stage may use, what it does use, and what happens when that is more."""

import gc
import time
from pathlib import Path

import numpy as np
import pytest

from schemas.errors import DoesNotFit
from stages.process import measure
from stages.process.measure import Stopwatch, device_memory_bytes, mebibytes, resident_bytes

MIB = 2**20


def test_a_stage_that_outgrows_its_budget_stops_at_its_next_step() -> None:
    gc.collect()  # what other tests left must not go while this one looks
    with Stopwatch((resident_bytes() or 0) + 20 * MIB) as watch:
        calls: list[str] = []
        progress = watch.over(lambda phase, done, total: calls.append(phase))
        progress("first", 0, 2)
        ballast = np.ones(400 * MIB, np.uint8)
        deadline = time.monotonic() + 10
        while watch._highest <= (watch.budget_bytes or 0) and time.monotonic() < deadline:
            time.sleep(0.01)
        del ballast
        with pytest.raises(DoesNotFit, match="more memory than its budget") as caught:
            progress("second", 1, 2)
    assert calls == ["first"]
    assert caught.value.exit_code == 5
    assert mebibytes(watch.budget_bytes or 0) in str(caught.value)


def test_a_stage_within_its_budget_is_left_alone() -> None:
    with Stopwatch((resident_bytes() or 0) + 500 * MIB) as watch:
        watch.over(lambda *_: None)("phase", 0, 1)
    assert watch.peak_bytes
    assert watch.seconds >= 0


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/user/job\n", {"user/job/memory.max": "max\n", "user/memory.max": "104857600\n"}, 100 * MIB),
        ("0::/\n", {"memory.max": "52428800\n"}, 50 * MIB),
        ("4:memory:/job\n0::/\n", {"memory/job/memory.limit_in_bytes": "73400320\n"}, 70 * MIB),
        ("3:cpuset:/job\n", {"memory/job/memory.limit_in_bytes": "73400320\n"}, None),
        ("0::/\n", {}, None),
    ],
)
def test_a_control_group_has_less_than_the_machine(
    groups: str, files: dict[str, str], expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "CONTROL_GROUPS", tmp_path / "absent")
    machine = device_memory_bytes()
    (tmp_path / "cgroup").write_text(groups)
    for name, text in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(text)
    monkeypatch.setattr(measure, "CONTROL_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(measure, "CONTROL_GROUP_FILES", tmp_path / "fs")
    assert device_memory_bytes() == (expected or machine)


@pytest.mark.parametrize(("count", "text"), [(0, "0 MiB"), (1, "1 MiB"), (MIB, "1 MiB"), (MIB + 1, "2 MiB")])
def test_a_budget_that_was_named_is_enough(count: int, text: str) -> None:
    assert mebibytes(count) == text
