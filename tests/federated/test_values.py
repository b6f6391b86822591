"""The values of an update against numpy on whole tensors: how far they went, and what is not a number."""

import math
import warnings
from pathlib import Path

import numpy as np
import pytest

from schemas.errors import BadInput
from schemas.state import StateManifest
from schemas.update import UpdateManifest
from stages.federated import values
from stages.federated.values import LARGEST_NORM, Values, norm
from stages.store.artifact import Artifact, open_artifact, read_tensors
from tests.fleet import make_update, make_world, write_update


@pytest.fixture
def state(tmp_path: Path) -> Artifact[StateManifest]:
    return make_world(tmp_path, width=5)[1]


def moved(state: Artifact[StateManifest], folder: Path, tensors: dict[str, np.ndarray]) -> Values:
    """An update with these tensors, looked through."""
    path = make_update(folder, state, "a", seed=0, tensors=tensors)
    found = Values(open_artifact(path, UpdateManifest), state)
    found.read()
    return found


@pytest.mark.parametrize("chunk", [1, 3, 2**16])
def test_the_distance_is_that_of_whole_tensors(
    state: Artifact[StateManifest], tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a tensor that the state has not, or has in another shape, it is the tensor's own norm."""
    monkeypatch.setattr(values, "CHUNK_ELEMENTS", chunk)
    draw = np.random.default_rng(1)
    before = read_tensors(state)
    same, other = sorted(before)[:2]
    tensors = {
        same: before[same] + draw.standard_normal(before[same].shape).astype(np.float32),
        other: draw.standard_normal((3, 7)).astype(np.float32),
        "made.up": draw.standard_normal((2, 2)).astype(np.float32),
    }
    whole = [tensors[same].astype(np.float64) - before[same], tensors[other], tensors["made.up"]]
    expected = sum(float(np.sum(np.square(one, dtype=np.float64))) for one in whole)
    found = moved(state, tmp_path / "a", tensors)
    assert math.isclose(found.squared_norm, expected, rel_tol=1e-12)
    assert not found.not_finite


@pytest.mark.parametrize("chunk", [1, 4, 2**16])
def test_what_is_not_a_number_is_counted_and_warns_nobody(
    state: Artifact[StateManifest], tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(values, "CHUNK_ELEMENTS", chunk)
    before = read_tensors(state)
    name = min(before)
    broken = before[name].copy()
    broken.flat[[0, 1, 9]] = [np.nan, np.inf, -np.inf]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = moved(state, tmp_path / "a", {name: broken, "head.classifier.weight": before["head.classifier.weight"]})
    assert found.not_finite == {name: 3}
    with pytest.raises(BadInput, match=name) as caught:
        found.check_finite()
    assert caught.value.values["found"] == "3 NaN or infinite"


def test_a_cap_is_kept_to_the_last_digit(state: Artifact[StateManifest], tmp_path: Path) -> None:
    update = write_update(tmp_path / "a", {"x": np.ones(1, np.float32)}, measured=False)
    for cap, norm_, passes in (
        (3.0, 3.0, True),
        (3.0, math.nextafter(3.0, 4), False),
        (None, 2.0**63, True),
        (None, 2.0**63 * 1.001, False),
        (2.0**64, 2.0**63 * 1.001, False),
    ):
        found = Values(update, state, squared_norm=norm_**2)
        if passes:
            found.check_norm(cap)
        else:
            with pytest.raises(BadInput, match="further from the state") as caught:
                found.check_norm(cap)
            assert caught.value.values["found"] == f"{norm_:.6g}"
            assert caught.value.values["largest norm of the difference"] == f"{min(cap or math.inf, LARGEST_NORM):.6g}"


def test_the_norm_of_some_tensors_of_a_state(state: Artifact[StateManifest]) -> None:
    tensors = read_tensors(state)
    some = sorted(tensors)[:3]
    whole = np.concatenate([tensors[name].ravel() for name in some]).astype(np.float64)
    assert math.isclose(norm(state, some), float(np.linalg.norm(whole)), rel_tol=1e-12)
