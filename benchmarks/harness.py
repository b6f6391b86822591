"""Fresh processes, measured from outside: VmHWM as the system reports it, RssAnon and RssFile sampled every 20 ms."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PINNED = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_ARENA_MAX": "1"}
SAMPLE_SECONDS = 0.02


@dataclass
class Run:
    """One arm.  Sizes in MiB; `samples` are (seconds since the start, RssAnon, RssFile)."""

    name: str
    peak: int
    anonymous: int
    seconds: float
    answer: dict[str, Any]
    samples: list[tuple[float, int, int]] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """For the results file."""
        return {"arm": self.name, "peak_mib": self.peak, "anonymous_mib": self.anonymous, "seconds": self.seconds}


def run_arm(name: str, command: Sequence[str], *, pinned: bool = True, keep_samples: bool = False) -> Run:
    """Run a command in a fresh process.  Its last line on stdout, where that is JSON, is its answer."""
    environment = os.environ | (PINNED if pinned else {}) | {"PYTHONPATH": str(ROOT)}
    began = time.perf_counter()
    peak = anonymous = 0
    samples: list[tuple[float, int, int]] = []
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, cwd=ROOT)
        while process.poll() is None:
            status = read_status(process.pid)
            peak = max(peak, status.get("VmHWM", 0))
            anonymous = max(anonymous, status.get("RssAnon", 0))
            if keep_samples and "RssAnon" in status:
                samples.append((time.perf_counter() - began, status["RssAnon"], status["RssFile"]))
            time.sleep(SAMPLE_SECONDS)
        seconds = round(time.perf_counter() - began, 1)
        output.seek(0)
        lines = output.read().strip().splitlines()
    if process.returncode:
        sys.exit(f"{name} failed with exit code {process.returncode}")
    answer = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    return Run(name, peak, anonymous, seconds, answer, samples)


def read_status(pid: int) -> dict[str, int]:
    """Sizes of a process, in MiB."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {
        name: int(value.split()[0]) // 1024
        for name, _, value in (line.partition(":") for line in lines)
        if "kB" in value
    }


def chainctl(*arguments: object) -> list[str]:
    """The command line of this repository, in this environment."""
    return [sys.executable, "-m", "chainctl", *map(str, arguments)]


def call(*arguments: object) -> None:
    """Run a command of ours that is not measured."""
    subprocess.run([*chainctl(*arguments), "--quiet"], check=True, cwd=ROOT)


def random_model(like: str, folder: Path, *, layers: int | None = None) -> Path:
    """A model of random weights in `folder`, made once."""
    path = folder / (like if layers is None else f"{like}-{layers}")
    if not path.exists():
        call("model", "random", "--like", like, "--out", path, *(("--layers", layers) if layers else ()))
    return path


def write_texts(path: Path, *, count: int, length: int, vocabulary: int) -> Path:
    """Texts of more words than `length`, of two labels."""
    rows = [
        {
            "text": " ".join(f"w{4 + (index * 7919 + place * 31) % (vocabulary - 10)}" for place in range(length + 2)),
            "label": "ab"[index % 2],
        }
        for index in range(count)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def markdown(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def save(name: str, content: object) -> None:
    """Write `benchmarks/results/<name>.json`."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
