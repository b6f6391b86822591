"""What a process weighs before it has done anything, and what it keeps of what it freed.  Called before torch loads.

Two measures, each with a switch, both for the command line only (a library does not change its host's process):

- The allocator gives memory back.  glibc keeps what is freed for later, so a stage that evicts layers stays as large
  as its largest moment of all: on RoBERTa-large 846 MiB instead of 566.  Above the threshold set here every block is
  a mapping of its own that is gone when freed.  `CHAINCTL_MALLOC=default` leaves the allocator alone.
- Imports stay lean.  Importing a transformers model class also imports torch's compiler, sympy and distributed
  tensors, none of which a stage uses: 343 MiB instead of 267.  `CHAINCTL_IMPORTS=default` imports them all.

The numbers are of `python benchmarks/imports.py` and `benchmarks/memory.py`.
"""

import ctypes
import importlib.util
import os
import sys
import types
from collections.abc import Callable
from typing import Any

THRESHOLD_BYTES = 128 * 2**10
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h
COMPILER = "torch._dynamo"
DECORATORS = ("allow_in_graph", "assume_constant_result", "disable", "forbid_in_graph")  # used while importing


def keep_small() -> None:
    """Do both.  Call it first, once, in a process of one's own."""
    return_freed_memory()
    import_lean()


def return_freed_memory() -> bool:
    """Set malloc's thresholds; whether that was done.  Elsewhere than glibc nothing happens."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or os.environ.get("CHAINCTL_MALLOC") == "default":
        return False
    for option, value in ((M_MMAP_THRESHOLD, THRESHOLD_BYTES), (M_TRIM_THRESHOLD, THRESHOLD_BYTES), (M_ARENA_MAX, 1)):
        mallopt(option, value)
    return True


def import_lean() -> bool:
    """Import torch and transformers without the compiler and without distributed tensors; whether that was done."""
    if COMPILER in sys.modules or os.environ.get("CHAINCTL_IMPORTS") == "default":
        return False
    import torch.distributed

    defer(COMPILER)
    available = torch.distributed.is_available
    torch.distributed.is_available = lambda: False  # transformers asks once and remembers
    try:
        import transformers.modeling_utils  # noqa: F401
    finally:
        torch.distributed.is_available = available
    return True


class Deferred(types.ModuleType):
    """A package that is there and not yet executed; the first attribute that is asked for executes it.

    Unlike `importlib.util.LazyLoader` its submodules can be imported meanwhile, and its decorators do nothing:
    nothing is compiled in this process.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self.__class__ = types.ModuleType  # type: ignore[assignment]
        assert self.__spec__ is not None
        assert self.__spec__.loader is not None
        self.__spec__.loader.exec_module(self)
        return getattr(self, name)


def defer(name: str) -> None:
    """Put a `Deferred` in the place of the package `name`."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__class__ = Deferred
    for decorator in DECORATORS:
        setattr(module, decorator, _unchanged)
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    setattr(sys.modules[parent], child, module)


def _unchanged(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Any:
    """A decorator, with or without arguments, that changes nothing."""
    return function if function is not None else _unchanged
