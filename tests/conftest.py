"""Fixtures that many tests share: one tiny BERT on disk."""

from pathlib import Path

import pytest

from tests import fleet


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny-bert")
    fleet.save_model(directory, "bert", random_norms=False)  # one that can learn
    return directory
