"""An ONNX export runs in onnxruntime at lengths it was not traced with, and one that would not agree is not written."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from schemas.errors import BadInput
from stages.export import onnx
from stages.export.export import run
from tests import fleet
from tests.export.federation import LANGUAGE, Federation


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_it_gives_the_streamed_values_at_any_length(family: str, tmp_path: Path) -> None:
    chosen = fleet.settings(**(LANGUAGE if family == "llama" else {}))
    federation = Federation(tmp_path, family, chosen)
    done = run(**federation.inputs(), out=tmp_path / "out", format="onnx")
    assert "agrees with the model at other lengths" in done.notes[0]
    assert sorted(path.name for path in (tmp_path / "out").iterdir())[:2] == ["README.md", "model.onnx"]
    batch, expected = federation.answers()
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"), providers=["CPUExecutionProvider"])
    inputs = {"input_ids": batch.input_ids.numpy(), "attention_mask": batch.attention_mask.numpy()}
    (found,) = session.run(["logits"], inputs)
    real = batch.attention_mask.numpy().astype(bool) if family == "llama" else slice(None)
    assert np.abs(found - expected.numpy())[real].max() <= 1e-4


def test_a_file_that_does_not_agree_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = Federation(tmp_path, "bert", fleet.settings())
    monkeypatch.setattr(onnx, "export", lambda model, path: path.write_bytes(b""))
    monkeypatch.setattr(onnx, "agreement", lambda model, path, shape: 0.5)
    with pytest.raises(BadInput, match="does not agree"):
        run(**federation.inputs(), out=tmp_path / "out", format="onnx")
    assert not (tmp_path / "out").exists()
