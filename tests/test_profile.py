"""A profile where CKA is undefined, and one of a model whose weights are not finite."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from schemas.errors import BadInput
from schemas.settings import SimilaritySettings
from stages.profile import has_curve
from stages.similarity.cka import cka_with_interval, gram
from stages.streaming.texts import EncodedTexts
from tests import fleet

ALIKE = [{"text": "wave salt moon", "label": "tide"}] * 12
ONE_DIFFERS = [*ALIKE[1:], {"text": "soil leaf", "label": "root"}]


@pytest.mark.parametrize("rows", [ALIKE, ONE_DIFFERS])
def test_a_device_whose_texts_are_equal_takes_part_where_the_start_is_fixed(
    rows: list[dict[str, str]], tmp_path: Path
) -> None:
    fleet.save_model(tmp_path / "model", "bert")
    chosen = fleet.settings(chain={"start": 0})
    every = {"one": rows, "two": fleet.texts(12)}
    data = {name: fleet.save_texts(tmp_path / f"{name}.jsonl", texts) for name, texts in every.items()}
    paths = [tmp_path / "profiles" / name for name in every]
    profiles = [
        fleet.run_profile(tmp_path / "model", data[path.name], chosen, path, device=path.name).manifest
        for path in paths
    ]
    assert (profiles[0].layers, profiles[0].profiled_count) == ((), 0)
    assert profiles[1].layers
    plan, _ = fleet.run_plan(paths, tmp_path / "model", chosen, tmp_path / "plan", tmp_path / "state")
    assert [layer.cka for layer in plan.manifest.curve] == [layer.cka for layer in profiles[1].layers]
    said = [json.loads(line) for line in (tmp_path / "plan" / "devices.jsonl").read_text().splitlines()]
    assert [device["left_out"] for device in said] == ["too few of its texts differ", ""]
    updates = [tmp_path / "updates" / name for name in every]
    for path in updates:
        fleet.run_train(tmp_path, tmp_path / "model", data[path.name], path, device=path.name)
    closed = fleet.run_aggregate(updates, tmp_path / "plan", tmp_path / "state", tmp_path / "next")
    assert closed.manifest.round == 1


def test_where_no_device_has_a_curve_the_start_must_be_fixed_and_the_hint_works(tmp_path: Path) -> None:
    fleet.save_model(tmp_path / "model", "bert")
    data = fleet.save_texts(tmp_path / "one.jsonl", ALIKE)
    chosen = fleet.settings(chain={"start": "foat"})
    fleet.run_profile(tmp_path / "model", data, chosen, tmp_path / "profile")
    with pytest.raises(BadInput, match="texts that differ") as caught:
        fleet.run_plan([tmp_path / "profile"], tmp_path / "model", chosen, tmp_path / "plan", tmp_path / "state")
    assert "fix the start with chain.start" in caught.value.hint
    fixed = fleet.settings(chain={"start": 1})
    fleet.run_plan([tmp_path / "profile"], tmp_path / "model", fixed, tmp_path / "plan", tmp_path / "state")


A, B, C, D = [1, 2], [1, 3], [4], [5, 6]


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize(
    ("rows", "pooling", "needs"),
    [
        ([A] * 6, "mean", "nothing"),
        ([A] * 5 + [B], "mean", "nothing"),
        ([A] * 4 + [B] * 2, "mean", "biased"),
        ([A] * 4 + [B, C], "mean", "biased"),
        ([A] * 4 + [B] * 3, "mean", "either"),
        ([A] * 4 + [B, C, D], "mean", "either"),
        ([A] * 6, "tokens", "either"),
        ([C] * 6, "tokens", "nothing"),
    ],
)
def test_a_curve_is_taken_where_cka_and_its_interval_are_defined(
    rows: list[list[int]], pooling: str, needs: str, estimator: str
) -> None:
    encoded = EncodedTexts(tuple(map(np.array, rows)), 0, "right", 4)
    chosen = SimilaritySettings.model_validate({"pooling": pooling, "min_examples": 5, "estimator": estimator})
    assert has_curve(encoded, chosen) is (needs in ("either", estimator))
    embedding = np.random.default_rng(0).standard_normal((7, 8))
    units = [[token] for row in rows for token in row] if pooling == "tokens" else rows
    kernel = gram(np.array([embedding[unit].mean(0) for unit in units]), "linear")
    if needs in ("either", estimator):
        assert cka_with_interval(kernel, kernel, estimator)[0] == pytest.approx(1)
    else:
        with pytest.raises(BadInput):
            cka_with_interval(kernel, kernel, estimator)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["layers.1.mlp.up_proj.weight", "embed_tokens.weight"])
def test_weights_that_are_not_finite_are_named_with_their_file(name: str, value: float, tmp_path: Path) -> None:
    fleet.save_model(tmp_path / "model", "llama", factory=AutoModelForCausalLM, shard_size="60KB")
    path = damage(tmp_path / "model", f"model.{name}", value)
    data = fleet.save_texts(tmp_path / "one.jsonl", fleet.texts(12))
    with pytest.raises(BadInput, match="not finite numbers") as caught:
        fleet.run_profile(tmp_path / "model", data, fleet.settings(), tmp_path / "profile")
    assert f"model.{name}" in caught.value.fact
    assert caught.value.values["in"] == path
    assert str(caught.value.values["NaN or infinite"]).startswith("3 of ")


def test_they_are_named_by_training_too_where_the_profile_did_not_compute(tmp_path: Path) -> None:
    fleet.save_model(tmp_path / "model", "bert")
    damage(tmp_path / "model", "encoder.layer.0.output.dense.weight", float("nan"))
    data = fleet.save_texts(tmp_path / "one.jsonl", ALIKE)
    fleet.begin(tmp_path, tmp_path / "model", data, fleet.settings())
    with pytest.raises(BadInput, match=r"encoder\.layer\.0\.output\.dense\.weight"):
        fleet.run_train(tmp_path, tmp_path / "model", data, tmp_path / "update")


@pytest.mark.parametrize("kind", ["text-classification", "causal-lm"])
def test_they_are_named_where_answers_are_not_finite(kind: str, tmp_path: Path) -> None:
    fleet.save_model(tmp_path / "model", "llama", factory=AutoModelForCausalLM)
    chosen = fleet.settings(task={"kind": kind, "labels": fleet.LABELS if kind == "text-classification" else ()})
    data = fleet.save_texts(tmp_path / "one.jsonl", ALIKE)
    damage(tmp_path / "model", "model.norm.weight", float("nan"))
    fleet.begin(tmp_path, tmp_path / "model", data, chosen)
    with pytest.raises(BadInput, match=r"model\.norm\.weight"):
        fleet.run_eval(tmp_path, tmp_path / "model", data, tmp_path / "evaluation")


def test_weights_too_large_to_compute_with_are_told_from_those(tmp_path: Path) -> None:
    fleet.save_model(tmp_path / "model", "llama", factory=AutoModelForCausalLM)
    for name in ("up", "down"):
        damage(tmp_path / "model", f"model.layers.1.mlp.{name}_proj.weight", 1e30, count=10**6)
    data = fleet.save_texts(tmp_path / "one.jsonl", fleet.texts(12))
    chosen = fleet.settings(similarity={"scale": "none"})
    with pytest.raises(BadInput, match="though all weights are") as caught:
        fleet.run_profile(tmp_path / "model", data, chosen, tmp_path / "profile")
    assert caught.value.values["after"] == "layer 1"


def damage(folder: Path, name: str, value: float, *, count: int = 3) -> Path:
    """Change the first values of a tensor; the file that holds it."""
    for path in sorted(folder.glob("*.safetensors")):
        tensors: dict[str, Any] = load_file(path)
        if name in tensors:
            row = 5 * tensors[name].shape[1] if "embed" in name else 0  # a token that the texts have
            tensors[name].view(-1)[row : row + count] = torch.tensor(value)
            save_file(tensors, path, metadata={"format": "pt"})
            return path
    raise AssertionError(name)
