"""Temporary files have no name, and what comes back from them is whole."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.streaming.hidden_states import HiddenStates
from stages.streaming.scratch_file import ScratchFile


def test_a_file_is_made_with_its_folder_at_the_first_write_and_has_no_name(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "yet"
    file = ScratchFile(folder)
    assert not folder.exists()
    file.write(torch.ones(3), 8)
    assert list(folder.iterdir()) == []
    assert file.read((3,), torch.float32, 8).tolist() == [1, 1, 1]
    file.close()


def test_what_is_written_is_counted_over_all_files(tmp_path: Path) -> None:
    before = ScratchFile.scratch_bytes_written
    for size in (3, 5):
        ScratchFile(tmp_path).write(torch.zeros(size, dtype=torch.bfloat16), 0)
    assert ScratchFile.scratch_bytes_written == before + 16
    with HiddenStates([2, 3], 4, torch.float32, scratch=tmp_path, in_memory_limit_bytes=0) as hidden:
        for buffer in hidden.buffers():
            buffer[:] = bytes(len(buffer))
    assert ScratchFile.scratch_bytes_written == before + 16 + 5 * 4 * 4


def test_a_disk_that_gives_and_takes_seven_bytes_at_a_time_loses_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, writes = os.preadv, os.pwrite

    def read_some(descriptor: int, buffers: Any, offset: int) -> int:
        return reads(descriptor, [buffers[0][:7]], offset)

    def write_some(descriptor: int, data: Any, offset: int) -> int:
        return writes(descriptor, data[:7], offset)

    monkeypatch.setattr(os, "preadv", read_some)
    monkeypatch.setattr(os, "pwrite", write_some)
    texts = [torch.randn(length, 5) for length in (4, 1, 6)]
    with HiddenStates([4, 1, 6], 5, torch.float32, scratch=tmp_path, in_memory_limit_bytes=0) as hidden:
        for text, buffer in zip(texts, hidden.buffers(), strict=True):
            buffer[:] = text.numpy().tobytes()
        assert all(torch.equal(hidden.text(index), text) for index, text in enumerate(texts))


def test_a_file_that_ends_early_is_noticed(tmp_path: Path) -> None:
    file = ScratchFile(tmp_path)
    file.write(torch.ones(3), 0)
    with pytest.raises(AssertionError, match="ends early"):
        file.read((4,), torch.float32, 0)
