"""Work on a stranger's bytes in a forked child, with processor time and memory that the system limits.

A chat template is a program, a pickle is another, and a configuration decides what a library builds: no reading of
them says beforehand how long that takes.  So it is done in a child first, which the system stops at a limit.  Many
items share one child: a fork costs ten milliseconds.

Where forking is unsafe (not Linux), the function runs in this process, without limits.
"""

import gc
import math
import os
import pickle
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn, TypeVar

STATUS = Path("/proc/self/status")
WAITING = 30  # seconds of the clock for each of processor time: for what waits without working
REACHED: dict[int, str] = {
    signal.SIGXCPU: "processor time",
    signal.SIGALRM: "time",
}  # anything else that ends a child: memory

T = TypeVar("T")
A = TypeVar("A")


@dataclass(frozen=True)
class Limits:
    """What a child may use: processor time, more of it for each further item, and memory beyond what this process has.

    So one item may take long, and not every one.
    """

    seconds: int = 3
    extra_bytes: int = 160 * 2**20
    seconds_each: float = 0.25

    def __str__(self) -> str:
        return f"{self.seconds} s of processor time and {self.extra_bytes / 2**20:.0f} MiB of memory"


LIMITS = Limits()


class OverLimitError(Exception):
    """The child reached a limit: of `resource` ("processor time", "time", "memory"), at the item of that index."""

    def __init__(self, resource: str, index: int) -> None:
        super().__init__(resource, index)
        self.resource = resource
        self.index = index


def run_confined(function: Callable[[], T], limits: Limits = LIMITS) -> T:
    """The result of `function`, which must be picklable.

    Raises what it raises (without its traceback), and `OverLimitError`.
    """
    return map_confined(lambda _: function(), (None,), limits)[0]


def map_confined(function: Callable[[A], T], items: Sequence[A], limits: Limits = LIMITS) -> list[T]:
    """The result of `function` for each item, all in one child.

    Raises as `run_confined` does, at the first item that fails.
    """
    if sys.platform != "linux":
        return [function(item) for item in items]
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receiving)
        _work(function, items, sending, limits)
    os.close(sending)
    results: list[T] = []
    with os.fdopen(receiving, "rb") as pipe:
        try:
            while len(results) < len(items) and (outcome := _receive(pipe)) is not None:
                succeeded, result = outcome
                if not succeeded:
                    raise result
                results.append(result)
        except BaseException:
            os.kill(child, signal.SIGKILL)
            raise
        finally:
            _, status = os.waitpid(child, 0)
    if len(results) < len(items):
        reached = REACHED.get(os.WTERMSIG(status), "memory") if os.WIFSIGNALED(status) else "memory"
        raise OverLimitError(reached, len(results))
    return results


@contextmanager
def limited_memory(extra_bytes: int = LIMITS.extra_bytes) -> Iterator[None]:
    """This process takes at most so much more memory in the block; what asks for more gets a `MemoryError`.

    For libraries that bear that.  Nothing is limited where the system does not say what the process has.
    """
    before = resource.getrlimit(resource.RLIMIT_DATA)
    _limit_memory(extra_bytes)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _receive(pipe: IO[bytes]) -> tuple[bool, Any] | None:
    """Whether an item succeeded, and its result or exception; None where the child was stopped."""
    try:
        outcome: tuple[bool, Any] = pickle.load(pipe)  # from our own child
    except (EOFError, pickle.UnpicklingError):
        return None
    return outcome


def _work(function: Callable[[A], object], items: Sequence[A], sending: int, limits: Limits) -> NoReturn:
    """The child: one thread (the pool is not copied), no output, no clean-up of what belongs to the parent."""
    try:
        _prepare(limits)
        with os.fdopen(sending, "wb") as pipe:
            for index, item in enumerate(items):
                _limit_time(math.ceil(limits.seconds + index * limits.seconds_each))
                data, succeeded = _outcome(function, item, index)
                pipe.write(data)
                pipe.flush()
                if not succeeded:
                    break
    finally:
        os._exit(0)


def _prepare(limits: Limits) -> None:
    gc.freeze()  # what the parent has is not collected here: that takes time, and copies its pages
    for number in (signal.SIGINT, *REACHED):
        signal.signal(number, signal.SIG_DFL)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # libraries in other languages say what stops them
        os.dup2(nowhere, stream)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit_memory(limits.extra_bytes)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def _outcome(function: Callable[[A], object], item: A, index: int) -> tuple[bytes, bool]:
    """What goes through the pipe, and whether the item succeeded."""
    try:
        return pickle.dumps((True, function(item))), True
    except MemoryError:
        error: Exception = OverLimitError("memory", index)
    except Exception as raised:
        error = raised
    try:
        data = pickle.dumps((False, error))
        pickle.loads(data)  # some exceptions can be written and not read
    except Exception:
        data = pickle.dumps((False, RuntimeError(type(error).__name__)))
    return data, False


def _limit_time(seconds: int) -> None:
    """Of this process since it began; the system counts in whole seconds."""
    _lower(resource.RLIMIT_CPU, seconds)
    signal.alarm(WAITING * seconds)


def _limit_memory(extra_bytes: int) -> None:
    """From now on.  Counted are writable pages of this process alone, whether they are resident or not."""
    data = data_bytes()
    if data is not None:
        _lower(resource.RLIMIT_DATA, data + extra_bytes)


def _lower(limit: int, value: int) -> None:
    """Set a soft limit, within the hard one."""
    _, hard = resource.getrlimit(limit)
    resource.setrlimit(limit, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def data_bytes() -> int | None:
    """Writable memory of this process, as the system counts it against `RLIMIT_DATA`; None where it does not say."""
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("VmData:")]
    return int(found[0]) * 1024 if found else None
