"""What a stage cost, as the operating system reports it."""

import importlib.metadata
import os
import platform
import resource
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from schemas.errors import DoesNotFit
from schemas.measured import Cost, LayerPasses, Measured, TextCounts
from stages.process.progress import Progress

CONTROL_GROUPS = Path("/proc/self/cgroup")
CONTROL_GROUP_FILES = Path("/sys/fs/cgroup")
SAMPLE_SECONDS = 0.02
STATM = Path("/proc/self/statm")
STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # proc(5): resets the resident high-water mark


@dataclass(frozen=True)
class MeasuredFacts:
    """What goes into `measured.json` beside the machine and the versions."""

    seconds: float
    predicted_peak_bytes: int | None = None
    peak_bytes: int | None = None
    bytes_streamed: int = 0
    bytes_written: int = 0
    passes: LayerPasses = field(default_factory=LayerPasses)
    updates: Cost | None = None
    texts: TextCounts | None = None
    layer_seconds: tuple[float, ...] = ()

    def to_measured(self, artifact: str) -> Measured:
        """The document for the artifact with that digest.  It never names the host."""
        return Measured(
            artifact=artifact,
            seconds=self.seconds,
            predicted_peak_bytes=self.predicted_peak_bytes,
            peak_bytes=self.peak_bytes,
            bytes_streamed=self.bytes_streamed,
            bytes_written=self.bytes_written,
            passes=self.passes,
            updates=self.updates,
            texts=self.texts,
            layer_seconds=self.layer_seconds,
            machine=machine_name(),
            versions=_versions(),
        )


def machine_name() -> str:
    """What kind of machine this is; never which."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors"


class Stopwatch:
    """Seconds and peak memory of a block.  The peak is that of the process while the block ran, in bytes.

    With a budget, a thread samples the resident size, and the first progress report after it exceeded the budget raises
    `DoesNotFit`.
    """

    seconds: float = 0.0
    peak_bytes: int | None = None

    def __init__(self, budget_bytes: int | None = None) -> None:
        self.budget_bytes = budget_bytes
        self._highest = 0
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        reset_peak()
        self._began = time.perf_counter()
        if self.budget_bytes is not None and resident_bytes() is not None:
            self._thread = threading.Thread(target=self._sample, name="memory watch", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()
        self.seconds = time.perf_counter() - self._began
        self.peak_bytes = peak_bytes()

    def over(self, progress: Progress) -> Progress:
        """`progress` that also checks the budget."""

        def watched(phase: str, done: int, total: int) -> None:
            self.check()
            progress(phase, done, total)

        return watched

    def check(self) -> None:
        """Raise `DoesNotFit` if the process has exceeded its budget."""
        if self.budget_bytes is not None and self._highest > self.budget_bytes:
            raise DoesNotFit(
                "the stage needs more memory than its budget, and more than was predicted",
                values={
                    "budget": mebibytes(self.budget_bytes),
                    "in use": mebibytes(self._highest),
                },
                hint="give a larger --memory-budget; nothing was written",
            )

    def _sample(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            self._highest = max(self._highest, resident_bytes() or 0)


def reset_peak() -> None:
    """Reset the resident high-water mark, where the system allows it."""
    try:
        CLEAR_REFS.write_text(RESET_PEAK)
    except OSError:
        pass  # the peak then covers the whole life of the process


def device_memory_bytes() -> int:
    """Bytes that this process may use: the machine's memory, or less if its container or control group has less."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in _control_group_limits():
        try:
            text = path.read_text().strip()
        except OSError:
            continue
        if text.isdigit():  # else "max"
            limits.append(int(text))
    return min(limits)


def _control_group_limits() -> Iterator[Path]:
    """Files that may limit this process: of its own group and of every enclosing one (cgroup v2, then v1)."""
    try:
        lines = CONTROL_GROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        home, name = CONTROL_GROUP_FILES, "memory.max"
        if controllers:
            home, name = CONTROL_GROUP_FILES / "memory", "memory.limit_in_bytes"
        if controllers in ("", "memory"):
            place = home / group.lstrip("/")
            yield from (folder / name for folder in (place, *place.parents) if folder.is_relative_to(home))


def resident_bytes() -> int | None:
    """Resident size of this process now; None where the system does not report it."""
    try:
        return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def peak_bytes() -> int | None:
    """Resident high-water mark of this process in bytes (`VmHWM`; elsewhere getrusage's)."""
    if STATUS.exists():
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def mebibytes(count: int) -> str:
    """`438 MiB`, rounded up, so that a budget of that size is enough."""
    return f"{-(-count // 2**20)} MiB"


def _versions() -> dict[str, str]:
    """Versions of the libraries that are loaded already."""
    found = {"python": platform.python_version()}
    for name in ("numpy", "torch", "transformers"):
        if name in sys.modules:
            found[name] = str(sys.modules[name].__version__)
    try:
        found["chainctl"] = importlib.metadata.version("chainctl")
    except importlib.metadata.PackageNotFoundError:
        pass  # run from a source tree
    return found
