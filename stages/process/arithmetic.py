"""Which dtypes this processor multiplies in hardware, and how fast: measured.

Flags of the processor are not enough: the libraries that multiply may be bounded to older instructions, and a dtype
that is emulated is up to forty times slower than float32.
"""

import time
from functools import lru_cache
from itertools import count
from pathlib import Path

import torch

from schemas.refs import Dtype
from stages.process.fork import run_in_fork

TOKENS, WIDTH = 64, 1024  # of the products that are timed: a few tokens through a frozen matrix, and back
FLOPS = 2 * 2 * TOKENS * WIDTH * WIDTH
GLANCE_SECONDS = 0.05
CPU_FLAGS = Path("/proc/cpuinfo")
# A processor whose flags hold none of these does not have the instructions, so nothing needs to be measured.
INSTRUCTIONS: dict[Dtype, tuple[str, ...]] = {"bfloat16": ("bf16",), "float16": ("fp16", "fphp", "asimdhp")}


def gigaflops(seconds: float) -> dict[Dtype, float]:
    """10⁹ floating-point operations per second of matrix products by dtype, each measured for that long."""
    return {dtype: FLOPS / _fastest(dtype, seconds) / 1e9 for dtype in ("float32", *INSTRUCTIONS)}


@lru_cache(maxsize=1)
def native_dtypes() -> tuple[Dtype, ...]:
    """The dtypes that are not slower than float32 on this processor, float32 first."""
    candidates = [dtype for dtype in INSTRUCTIONS if _may_multiply(dtype)]
    if not candidates:
        return ("float32",)
    times = run_in_fork(lambda: [_fastest(dtype, GLANCE_SECONDS) for dtype in ("float32", *candidates)])
    return ("float32", *(dtype for dtype, one in zip(candidates, times[1:], strict=True) if one <= times[0]))


def price(dtype: Dtype) -> str:
    """What computing in a dtype costs on this processor, in a sentence; empty where it is native."""
    if dtype in native_dtypes():
        return ""
    single, emulated = run_in_fork(lambda: [_fastest(one, GLANCE_SECONDS) for one in ("float32", dtype)])
    return (
        f"this processor emulates {dtype}: products take {emulated / single:.0f} times as long as in float32 "
        '(numerics.compute = "auto" avoids it)'
    )


def _may_multiply(dtype: Dtype) -> bool:
    """Whether the flags of the processor allow for it; yes where the system does not show them."""
    try:
        flags = CPU_FLAGS.read_text()
    except OSError:
        return True
    return any(name in flags for name in INSTRUCTIONS[dtype])


def _fastest(dtype: Dtype, seconds: float) -> float:
    """Seconds of the fastest pair of products within `seconds`, after one that is not counted.

    Emulation can be slow one way only: on AVX2, bfloat16 backwards is a forty-fifth of float32, forwards a third.
    """
    x_TK = torch.ones(TOKENS, WIDTH, dtype=getattr(torch, dtype))
    weight_NK = torch.ones(WIDTH, WIDTH, dtype=x_TK.dtype)
    best, until = float("inf"), time.perf_counter() + seconds
    for attempt in count():
        began = time.perf_counter()
        torch.nn.functional.linear(x_TK, weight_NK) @ weight_NK
        if attempt:
            best = min(best, time.perf_counter() - began)
            if time.perf_counter() >= until:
                break
    return best
