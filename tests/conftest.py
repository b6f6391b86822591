"""Fixtures that many tests share: one tiny BERT on disk, and a chainctl home that is nobody's."""

from pathlib import Path

import pytest

from tests import fleet


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keys and trust of this test alone."""
    directory = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("CHAINCTL_HOME", str(directory))
    return directory


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny-bert")
    fleet.save_model(directory, "bert", random_norms=False)  # one that can learn
    return directory
