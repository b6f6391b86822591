"""More labels than a confusion matrix is kept for: all stages work, and metrics are those of the texts."""

import json
from pathlib import Path

import numpy as np

from schemas.evaluation import MOST_LABELS, EvaluationManifest
from stages.inference.metrics import accuracy_with_interval, confusion_matrix, macro_f1, macro_f1_with_interval
from tests import fleet

LABELS = tuple(f"class {number:03}" for number in range(MOST_LABELS + 25))


def test_a_state_of_many_labels_is_evaluated(tmp_path: Path, tiny_bert: Path) -> None:
    rows = [row | {"label": label} for row, label in zip(fleet.texts(len(LABELS)), LABELS, strict=True)]
    data = fleet.save_texts(tmp_path / "data.jsonl", rows)
    fleet.begin(tmp_path, tiny_bert, data, fleet.settings(task={"labels": LABELS}))
    places = ["--model", tiny_bert, "--plan", tmp_path / "plan", "--state", tmp_path / "state", "--data", data]
    said = fleet.chainctl("eval", *places, "--out", tmp_path / "said").stdout
    assert "of so many labels no confusion matrix is kept" in said
    found = fleet.run_eval(tmp_path, tiny_bert, data, tmp_path / "said").manifest
    assert isinstance(found, EvaluationManifest)
    assert (found.labels, found.confusion, found.example_count) == (LABELS, (), len(rows))
    shown = json.loads(fleet.chainctl("eval", *places, "--out", tmp_path / "said", "--json").stdout)
    assert shown["accuracy"]["value"] == found.accuracy.value


def test_metrics_of_thousands_of_labels_are_those_of_a_dense_matrix() -> None:
    draw, classes = np.random.default_rng(0), 1500
    truth = draw.integers(0, classes, 3000)
    predicted = np.where(draw.random(3000) < 0.7, truth, draw.integers(0, classes, 3000))
    confusion = confusion_matrix(truth, predicted, classes)
    assert accuracy_with_interval(confusion).value == float((truth == predicted).mean())
    estimate = macro_f1_with_interval(confusion)
    assert estimate.value == float(macro_f1(confusion))
    assert estimate.low < estimate.value <= estimate.high
