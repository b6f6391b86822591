"""One thread for each test process, sums in one order, and fixtures that tests share: a tiny BERT, a chainctl home.

Tests run side by side, one process for each core; each computes with one thread, and so do the commands it starts.
Numbers are read when a library is loaded, so they are set before anything else is imported.
"""

# ruff: noqa: E402
import os

for _library in ("OMP", "MKL", "OPENBLAS"):
    os.environ[f"{_library}_NUM_THREADS"] = "1"

from stages.process.footprint import add_in_one_order

add_in_one_order()

from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests import fleet

# An example that waits for a processor is not a slow example.
settings.register_profile("side by side", deadline=None)
settings.load_profile("side by side")

LONGEST = (
    "test_budget.py",
    "test_stream.py",
    "test_onnx.py",
    "test_huggingface.py",
    "test_federation.py",
    "test_killed.py",
    "test_trust.py",
    "test_resume.py",
    "test_bundle.py",
    "test_benchmark.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files begin first, so that no process waits for one at the end."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keys and trust of this test alone."""
    directory = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("CHAINCTL_HOME", str(directory))
    return directory


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Whatever the test before set."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny-bert")
    fleet.save_model(directory, "bert", random_norms=False)  # one that can learn
    return directory
