"""What a process keeps of what it no longer needs, measured in processes of their own."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stages.memory.live_bytes import LiveBytes

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
from stages.process.footprint import {prepare} as prepare
prepare()
import torch
from stages.process.measure import resident_bytes
torch.set_num_threads(1)
weight = torch.ones(1536, 576, dtype=torch.bfloat16)
def multiply(rows):
    torch.nn.functional.linear(torch.ones(rows, 576, dtype=torch.bfloat16), weight)
multiply(3)
before = resident_bytes()
for rows in range(4, 154):
    multiply(rows)
print(resident_bytes() - before)
"""


def growth(prepare: str) -> int:
    """Bytes that 150 products of distinct shapes leave behind."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(prepare=prepare)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return int(done.stdout)


def test_texts_of_many_lengths_leave_no_kernels_behind() -> None:
    """oneDNN writes a kernel for each shape in bfloat16; a thousand are kept where nobody says otherwise."""
    kept = growth("prepare_process")
    assert kept < 32 * 2**20
    assert kept < growth("return_freed_memory") / 2 or kept < 4 * 2**20  # a processor without such kernels keeps none


PRODUCT = """
from stages.process.footprint import prepare_process
prepare_process()
import torch
from stages.process.measure import resident_bytes
torch.set_num_threads(1)
x, weight, result = torch.ones(512, 1024), torch.ones({columns}, 1024), torch.ones(512, {columns})
torch.ones(64, 64) @ torch.ones(64, 64)
before = resident_bytes()
torch.mm(x, weight.T, out=result)
print(resident_bytes() - before)
"""


@pytest.mark.parametrize("columns", [1024, 4096, 16384])
def test_a_product_packs_no_more_than_is_predicted(columns: int) -> None:
    """The library's copies of the factors stay; 4 MiB for code pages and the other factor, which KERNELS_BYTES has."""
    done = subprocess.run(
        [sys.executable, "-c", PRODUCT.format(columns=columns)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    with LiveBytes() as live:
        torch.mm(torch.empty(512, 1024, device="meta"), torch.empty(1024, columns, device="meta"))
    assert int(done.stdout) <= live.now + 4 * 2**20
