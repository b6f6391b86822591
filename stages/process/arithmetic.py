"""Which dtypes this processor multiplies in hardware, and how fast: measured.

Flags of the processor are not enough: the libraries that multiply may be bounded to older instructions, and a product
in a dtype that is emulated, on one thread, takes many times as long as in float32 (a whole step took 189 times as long:
docs/performance.md).
"""

import time
from functools import cache, lru_cache
from itertools import count
from pathlib import Path

import torch

from schemas.refs import Dtype
from stages.process.fork import run_in_fork

TOKENS, WIDTH = 64, 1024  # of the products that are timed: a few tokens through a frozen matrix, and back
FLOPS = 2 * 2 * TOKENS * WIDTH * WIDTH
GLANCE_SECONDS = 0.05
# An emulated product takes more than this many times float32's, one in hardware less: what a profile says must not hang
# on how busy a processor was.  Measured: 20 at least where emulated, 0.25 to 1.05 in hardware (AVX-512, AMX).
EMULATED = 4
CPU_FLAGS = Path("/proc/cpuinfo")
# A processor whose flags hold none of these does not have the instructions, so nothing needs to be measured.
INSTRUCTIONS: dict[Dtype, tuple[str, ...]] = {"bfloat16": ("bf16",), "float16": ("fp16", "fphp", "asimdhp")}


@cache
def product_seconds(dtype: Dtype) -> float:
    """Seconds of a pair of matrix products in a dtype, on one thread; measured once in a process, in a child of it."""
    return run_in_fork(lambda: _fastest(dtype, GLANCE_SECONDS))


def gigaflops() -> dict[Dtype, float]:
    """10⁹ floating-point operations per second of matrix products by dtype, on one thread."""
    return {dtype: FLOPS / product_seconds(dtype) / 1e9 for dtype in ("float32", *INSTRUCTIONS)}


@lru_cache(maxsize=1)
def native_dtypes() -> tuple[Dtype, ...]:
    """The dtypes that this processor multiplies in hardware, float32 first."""
    candidates = [dtype for dtype in INSTRUCTIONS if _may_multiply(dtype)]
    return (
        "float32",
        *(dtype for dtype in candidates if product_seconds(dtype) <= EMULATED * product_seconds("float32")),
    )


def price(dtype: Dtype) -> str:
    """The dtype and what computing in it costs on this processor, as a sentence ends; empty where it is native."""
    if dtype == "float32" or dtype in native_dtypes():  # the first needs no measuring
        return ""
    ratio = product_seconds(dtype) / product_seconds("float32")
    return f"{dtype}, which this processor emulates: products take {ratio:.0f} times as long as in float32"


def _may_multiply(dtype: Dtype) -> bool:
    """Whether the flags of the processor allow for it; yes where the system does not show them."""
    try:
        flags = CPU_FLAGS.read_text()
    except OSError:
        return True
    return any(name in flags for name in INSTRUCTIONS[dtype])


def _fastest(dtype: Dtype, seconds: float) -> float:
    """Seconds of the fastest pair of products within `seconds`, after one that is not counted: of this thread's time.

    A clock on the wall would count what other processes do meanwhile.
    Emulation can be slow one way only: on AVX2, bfloat16 backwards is a forty-fifth of float32, forwards a third.
    """
    x_TK = torch.ones(TOKENS, WIDTH, dtype=getattr(torch, dtype))
    weight_NK = torch.ones(WIDTH, WIDTH, dtype=x_TK.dtype)
    best, until = float("inf"), time.thread_time() + seconds
    for attempt in count():
        began = time.thread_time()
        torch.nn.functional.linear(x_TK, weight_NK) @ weight_NK
        if attempt:
            best = min(best, time.thread_time() - began)
            if time.thread_time() >= until:
                break
    return best
