"""What a stage cost, as the operating system reports it."""

import importlib.metadata
import os
import platform
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from schemas.measured import Measured

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
    layer_seconds: tuple[float, ...] = ()

    def to_measured(self, artifact: str) -> Measured:
        """The document for the artifact with that digest.  Never names the host."""
        return Measured(
            artifact=artifact,
            seconds=self.seconds,
            predicted_peak_bytes=self.predicted_peak_bytes,
            peak_bytes=self.peak_bytes,
            bytes_streamed=self.bytes_streamed,
            layer_seconds=self.layer_seconds,
            machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
            versions=_versions(),
        )


class Stopwatch:
    """Seconds and peak memory of a block.  The peak is that of the process while the block ran."""

    seconds: float = 0.0
    peak_bytes: int | None = None

    def __enter__(self) -> Self:
        reset_peak()
        self._began = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds = time.perf_counter() - self._began
        self.peak_bytes = peak_bytes()


def reset_peak() -> None:
    """Start the high-water mark anew, where the system lets a process do that."""
    try:
        CLEAR_REFS.write_text(RESET_PEAK)
    except OSError:
        pass  # the peak then covers the whole life of the process


def peak_bytes() -> int | None:
    """Resident high-water mark of this process (`VmHWM`; elsewhere what getrusage has)."""
    if STATUS.exists():
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _versions() -> dict[str, str]:
    """Versions of what took part: only what is loaded already."""
    found = {"python": platform.python_version()}
    for name in ("numpy", "torch", "transformers"):
        if name in sys.modules:
            found[name] = str(sys.modules[name].__version__)
    try:
        found["chainctl"] = importlib.metadata.version("chainctl")
    except importlib.metadata.PackageNotFoundError:
        pass  # run from a source tree
    return found
