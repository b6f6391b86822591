"""Whatever is written can be read: a draft keeps the bounds of its readers, and says so early where it can."""

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from pydantic import ValidationError

from schemas.base import LINE_LIMIT, Manifest
from schemas.checkpoint import MOST_STEPS, CheckpointManifest, FinishedStep
from schemas.errors import BadInput, UsageProblem
from schemas.evaluation import MOST_LABELS, Estimate, EvaluationManifest
from schemas.refs import FileReference, TensorReference
from schemas.refusal import Reason
from schemas.run import MOST_ROUNDS, RoundLine, SimulationSummary, totals
from stages.store.artifact import new_artifact, verify_artifact
from stages.store.tensors import HEADER_LIMIT_BYTES, TensorWriter
from stages.training.resume import TrainingCheckpoint
from tests import fleet
from tests.fleet import ZERO


def evaluation(labels: int) -> EvaluationManifest:
    """The largest manifest of that many labels, with a confusion matrix where one is kept."""
    most = labels if labels <= MOST_LABELS else 0
    one = Estimate(value=0.123456789012345678, low=0.0123456789012345678, high=0.98765432109876543)
    count = 10**7
    return EvaluationManifest(
        plan=ZERO,
        state=ZERO,
        round=10**6,
        data=ZERO,
        example_count=count * max(1, most) ** 2,
        labels=tuple(f"{number:0256}" for number in range(labels)),
        accuracy=one,
        macro_f1=one,
        loss=0.1234567890123456789,
        confusion=((count,) * most,) * most,
    )


def checkpoint(steps: int) -> CheckpointManifest:
    """The largest of that many steps, with the tensors of a hundred layers."""
    step = FinishedStep(
        total=0.1234567890123456, local=0.1234567890123456, downstream=0.1234567890123, target_count=10**9
    )
    references, files = [], (FileReference(name="tensors.safetensors", size_bytes=10**12, sha256=ZERO),)
    for layer in range(100):
        for part in ("down", "up"):
            for moment in ("", "first.", "second."):
                name = f"{moment}adapters.{layer}.{part}"
                references.append(TensorReference(name=name, dtype="F32", shape=(4096, 256), sha256=ZERO))
    return CheckpointManifest(
        plan=ZERO,
        state=ZERO,
        assignment=fleet.update_manifest(tensors=(), files=()).assignment,
        device="a" * 64,
        inputs=ZERO,
        steps=(step,) * steps,
        tensors=tuple(references[: (LINE_LIMIT - 6 * steps - 60) // 9]),
        files=files,
    )


def summary(rounds: int) -> SimulationSummary:
    """The largest of that many rounds."""
    line = RoundLine(
        round=1,
        trained="10-12",
        devices=100,
        refused=dict.fromkeys(get_args(Reason), 10),
        train_loss=0.1234567890123456,
        accuracy=0.1234567890123456,
        perplexity=None,
        seconds=12345.123456789,
        peak_bytes=10**10,
        predicted_peak_bytes=10**10,
        passes=10**12,
        visits=10**10,
        bytes_read=10**14,
        bytes_up=10**10,
        bytes_down=10**10,
    )
    lines = (line,) * rounds
    return SimulationSummary(
        plan=ZERO,
        final_state=ZERO,
        accuracy_before=0.1,
        accuracy_after=0.2,
        perplexity_before=None,
        perplexity_after=None,
        rounds=lines,
        first_layer=1,
        assignments=2,
        **totals(lines),
    )


@pytest.mark.parametrize(
    "largest",
    [evaluation(MOST_LABELS), evaluation(15_000), checkpoint(MOST_STEPS), summary(MOST_ROUNDS)],
    ids=["evaluation", "evaluation of many labels", "checkpoint", "summary"],
)
def test_the_largest_that_is_let_through_is_read_again(largest: Manifest) -> None:
    assert type(largest).from_bytes(largest.readable_bytes(), source="largest") == largest


@pytest.mark.parametrize("larger", [evaluation(LINE_LIMIT), checkpoint(MOST_STEPS + 500)], ids=lambda one: one.KIND)
def test_a_larger_one_is_refused_by_its_draft_and_nothing_is_left(larger: Manifest, tmp_path: Path) -> None:
    def write() -> None:
        with new_artifact(tmp_path / "out", force=False) as draft:
            draft.finish(larger, None)

    with pytest.raises(BadInput, match="too large to be read again") as caught:
        write()
    assert str(LINE_LIMIT) in str(caught.value.values["at most"])
    assert {"at most", "it has"} == set(caught.value.values)
    assert "at most" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", [{"confusion": ((1,),)}, {"labels": ("x",) * (MOST_LABELS + 1)}])
def test_of_many_labels_there_is_no_confusion_matrix_and_each_is_named_once(change: dict[str, Any]) -> None:
    document = evaluation(MOST_LABELS + 1).model_dump()
    with pytest.raises(ValidationError, match="no confusion matrix is kept"):
        EvaluationManifest.model_validate(document | change)


def test_too_many_steps_for_checkpoints_are_refused_before_the_first() -> None:
    assignment = fleet.update_manifest(tensors=(), files=()).assignment
    for every in (None, 100):
        kept = TrainingCheckpoint(Path("x"), every, ZERO, ZERO, assignment, "a", ZERO)
        kept.check_steps(MOST_STEPS)
        if every is None:
            kept.check_steps(MOST_STEPS + 1)
            continue
        with pytest.raises(UsageProblem, match="too many steps"):
            kept.check_steps(MOST_STEPS + 1)


def test_more_tensors_than_a_header_holds_are_refused_before_the_first_is_written(tmp_path: Path) -> None:
    shapes = {f"{number:0250}": (1,) for number in range(HEADER_LIMIT_BYTES // 250)}
    with pytest.raises(BadInput, match="too many tensors"):
        TensorWriter(tmp_path / "tensors.safetensors", shapes)
    assert list(tmp_path.iterdir()) == []


def test_a_draft_that_lists_files_that_are_not_there_is_refused(tmp_path: Path) -> None:
    manifest = fleet.update_manifest(tensors=(), files=(FileReference(name="x.bin", size_bytes=1, sha256=ZERO),))

    def write() -> None:
        with new_artifact(tmp_path / "out", force=False) as draft:
            draft.finish(manifest, None)

    with pytest.raises(BadInput):
        write()
    assert list(tmp_path.iterdir()) == []
    fleet.write_update(tmp_path / "whole", {"head.x": np.zeros(1, np.float32)})
    assert verify_artifact(tmp_path / "whole")
