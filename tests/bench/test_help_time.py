"""What a first look costs: CPU time of `chainctl --version` and `--help`, beside that of importing what they build on.

The bar is 1.5 times `import typer, pydantic`; importing torch is what every command that computes pays anyway.
"""

import resource
import subprocess
import sys
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

ROOT = Path(__file__).parents[2]


def children_cpu_seconds() -> float:
    """User and system time of the subprocesses that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


@pytest.mark.benchmark(group="start", timer=children_cpu_seconds)
@pytest.mark.parametrize(
    "arguments",
    [
        ("-c", "import typer, pydantic"),
        ("-m", "chainctl", "--version"),
        ("-m", "chainctl", "--help"),
        ("-m", "chainctl", "train-window", "--help"),
        ("-c", "import torch"),
    ],
    ids=["import typer, pydantic", "chainctl --version", "chainctl --help", "train-window --help", "import torch"],
)
def test_cpu_time_of_a_start(benchmark: BenchmarkFixture, arguments: tuple[str, ...]) -> None:
    benchmark.pedantic(run, args=arguments, rounds=5, iterations=1, warmup_rounds=1)
