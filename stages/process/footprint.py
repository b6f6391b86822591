"""Prepare a process: what it takes before it does anything, what it keeps of what it freed, and how it adds up.

Called before torch is loaded.  Four measures, for the command line only (a library does not change its host):

- The allocator gives memory back.  glibc keeps what is freed for later, so a stage that evicts layers stays as large
  as its largest moment: on RoBERTa-large 846 MiB instead of 566.  Above the threshold set here every block
  is a mapping of its own that is unmapped when freed.  `CHAINCTL_MALLOC=default` leaves the allocator alone.
- Imports stay lean.  Importing a transformers model class also imports torch's compiler, sympy, distributed tensors
  and kernels for the meta device, none of which a stage computes with: 340 MiB instead of 250.  They are
  imported when they are used (`Deferred`).  `CHAINCTL_IMPORTS=default` imports them all.
- oneDNN caches less.  It compiles a kernel for each shape that it multiplies in bfloat16 and keeps a thousand of them,
  so texts of many lengths cost memory that is never freed: 200 shapes of SmolLM2's width 121 MiB, with sixteen kept 10
  (`tests/process/test_footprint.py`), in the same time.
- Sums are in one order.  On Intel's processors MKL orders the sums of a product by its width and number of threads,
  unless it is asked for strict reproducibility; then a product by blocks has the bits of the whole one
  (`tests/model/test_stored.py`).  On others it would take slower kernels, and has one order anyway (ADR 9).

Settings in the environment have precedence.

The numbers are from `python benchmarks/imports.py` and `benchmarks/memory.py`.
"""

import ctypes
import importlib
import importlib.machinery
import importlib.util
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

THRESHOLD_BYTES = 128 * 2**10
KERNELS_KEPT = 16  # shapes of one micro-batch: a layer has about eight
CPU_INFO = Path("/proc/cpuinfo")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h
COMPILER = "torch._dynamo"
META_KERNELS = "torch._meta_registrations"
DECORATORS = ("allow_in_graph", "assume_constant_result", "disable", "forbid_in_graph")  # used while importing


def prepare_process() -> None:
    """Do all four.  Call it once, before anything else, in a process that runs nothing else."""
    add_in_one_order()
    forget_kernels()
    return_freed_memory()
    import_lean()


def forget_kernels() -> None:
    """Bound oneDNN's caches (its own, and the one that torch keeps in front of it); read when the first is created."""
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(KERNELS_KEPT))


def add_in_one_order() -> None:
    """Ask MKL for strict reproducibility, on Intel's processors; read when it multiplies for the first time."""
    try:
        intel = "GenuineIntel" in CPU_INFO.read_text()
    except OSError:
        return  # not Linux
    if intel:
        os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")


def return_freed_memory() -> bool:
    """Set malloc's thresholds; whether that was done.  Only glibc has them."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or os.environ.get("CHAINCTL_MALLOC") == "default":
        return False
    for option, value in ((M_MMAP_THRESHOLD, THRESHOLD_BYTES), (M_TRIM_THRESHOLD, THRESHOLD_BYTES), (M_ARENA_MAX, 1)):
        mallopt(option, value)
    return True


def import_lean() -> bool:
    """Import torch and transformers, with some of their modules deferred; whether that was done."""
    if "torch" in sys.modules or os.environ.get("CHAINCTL_IMPORTS") == "default":
        return False
    for name in (COMPILER, META_KERNELS):
        defer(name)
    import torch.distributed

    available = torch.distributed.is_available
    torch.distributed.is_available = lambda: False  # transformers asks once and remembers
    try:
        import transformers.modeling_utils  # noqa: F401
    finally:
        torch.distributed.is_available = available
    return True


class Deferred(types.ModuleType):
    """A module that is imported but not yet executed; reading its first attribute executes it.

    Unlike with `importlib.util.LazyLoader` its submodules can be imported meanwhile, and its decorators do nothing:
    nothing is compiled in this process.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        execute(self)
        return getattr(self, name)


def defer(name: str) -> None:
    """Put a `Deferred` in the place of `name`, a module of a package that need not be imported yet."""
    parent, _, _ = name.rpartition(".")
    package = importlib.util.find_spec(parent)
    assert package is not None
    spec = importlib.machinery.PathFinder.find_spec(name, package.submodule_search_locations)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__class__ = Deferred
    for decorator in DECORATORS:
        setattr(module, decorator, _unchanged)
    sys.modules[name] = module


def execute(module: types.ModuleType) -> None:
    """Execute a deferred module; others are not changed."""
    if isinstance(module, Deferred):
        if module.__name__ == COMPILER:  # which cannot be imported before them
            execute_meta_kernels()
        module.__class__ = types.ModuleType  # type: ignore[assignment]
        assert module.__spec__ is not None
        assert module.__spec__.loader is not None
        module.__spec__.loader.exec_module(module)


def execute_meta_kernels() -> None:
    """Execute torch's kernels for the meta device, if they are deferred."""
    execute(importlib.import_module(META_KERNELS))


def _unchanged(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Any:
    """A decorator, with or without arguments, that changes nothing."""
    return function if function is not None else _unchanged
