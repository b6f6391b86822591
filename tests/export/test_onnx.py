"""An ONNX export runs in onnxruntime at lengths it was not traced with, and one that would not agree is not written."""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from schemas.errors import BadInput, UsageProblem
from stages.export import onnx
from stages.export.export import run
from tests import fleet
from tests.fleet.federation import LANGUAGE, Federation


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


@pytest.mark.parametrize("differences", [(0.5, 0.5, 0.5), (1e-7, float("nan"), 1e-7)])
def test_a_file_that_does_not_agree_is_not_written(
    differences: tuple[float, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter(differences)
    federation = Federation(tmp_path, "bert", fleet.settings())
    monkeypatch.setattr(onnx, "export", lambda model, path: path.write_bytes(b""))
    monkeypatch.setattr(onnx, "agreement", lambda model, path, shape: next(found))
    with pytest.raises(BadInput, match="does not agree"):
        run(**federation.inputs(), out=tmp_path / "out", format="onnx")
    assert not (tmp_path / "out").exists()


def test_another_process_gives_the_same_bytes_and_says_nothing_but_its_result(tmp_path: Path) -> None:
    federation = Federation(tmp_path, "bert", fleet.settings())
    run(**federation.inputs(), out=tmp_path / "a", format="onnx")
    inputs = [part for name in ("model", "plan", "state") for part in (f"--{name}", tmp_path / name)]
    done = fleet.chainctl_process("export", *inputs, "--format", "onnx", "--out", tmp_path / "b", "--json", "--quiet")
    assert done.stderr == ""
    assert json.loads(done.stdout)["format"] == "onnx"
    for file in sorted((tmp_path / "a").iterdir()):
        written = file.read_bytes()
        assert written == (tmp_path / "b" / file.name).read_bytes(), file.name
        for folder in (tmp_path, Path(tempfile.gettempdir()), Path.home(), Path(torch.__file__).parents[1]):
            assert bytes(folder) + b"/" not in written, (file.name, folder)


def test_it_says_in_which_numbers_it_computes_and_leaves_no_code_in_a_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", tmp_path / "cache")
    monkeypatch.setattr(onnx, "export", lambda model, path: path.write_bytes(b""))  # tracing takes long
    monkeypatch.setattr(onnx, "agreement", lambda model, path, shape: 0.0)
    federation = Federation(tmp_path, "bert", fleet.settings(numerics={"compute": "bfloat16"}))
    done = run(**federation.inputs(), out=tmp_path / "out", format="onnx")
    assert "computes in float32, the federation in bfloat16" in done.notes[1]
    assert done.notes[1] in (tmp_path / "out" / "README.md").read_text()
    assert not (tmp_path / "cache").exists()


def test_a_file_that_does_not_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporter takes Mamba, say, and fixes the length that it was traced with."""
    monkeypatch.setattr(onnx, "export", lambda model, path: path.write_bytes(b"no model"))
    federation = Federation(tmp_path, "bert", fleet.settings())
    with pytest.raises(BadInput, match="does not run at other lengths"):
        run(**federation.inputs(), out=tmp_path / "out", format="onnx")
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named_with_the_way_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = Federation(tmp_path, "bert", fleet.settings())
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UsageProblem, match=r"pip install 'chainctl\[export\]'"):
        run(**federation.inputs(), out=tmp_path / "out", format="onnx")
