"""Run a function in a forked copy of this process, and keep only what it returns.

Prediction runs the model on the meta device, which imports 40 MiB of sympy that nothing else needs.  A forked child
sees the opened model without copying it, and its imports are gone when it exits.
"""

import os
import pickle
import sys
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


def run_in_fork(function: Callable[[], T]) -> T:
    """The result of `function`, which must be picklable.  Where forking is unsafe or the child fails, it runs here."""
    if sys.platform != "linux":  # elsewhere forking a process with threads is unsafe
        return function()
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        _work(function, receiving, sending)
    os.close(sending)
    with os.fdopen(receiving, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    if not data:
        return function()  # here it raises what it raised in the child, if it does
    result: T = pickle.loads(data)  # from ourselves
    return result


def _work(function: Callable[[], object], receiving: int, sending: int) -> None:
    """The child: one thread (the pool is not copied), and no clean-up of what belongs to the parent."""
    try:
        os.close(receiving)
        torch.set_num_threads(1)
        with os.fdopen(sending, "wb") as pipe:
            pipe.write(pickle.dumps(function()))
    finally:
        os._exit(0)
