"""Every number of a document that travels has bounds, and what is made of the most extreme ones can be read again."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as fast
from hypothesis import strategies as st

from schemas.base import Manifest
from schemas.errors import BadInput
from schemas.kinds import DOCUMENTS, document_model
from schemas.measured import MOST_SECONDS, Cost, Measured
from schemas.plan import PlanManifest
from schemas.profile import FURTHEST_END, LayerSimilarity, ProfileManifest
from schemas.refs import LARGEST_INT, LARGEST_LOSS, LARGEST_TOTAL
from schemas.trust import EnrolledDevice
from schemas.update import LARGEST_REPORT, TrainingLoss, UpdateManifest
from stages.federated.profiles import gather
from stages.methods.chain.server import median_loss
from stages.process.measure import MeasuredFacts
from stages.store.signing import KeyRing
from tests import fleet

ENDS = st.sampled_from([-FURTHEST_END, -1.0, 0.0, 1.0, FURTHEST_END])
COUNTS = st.sampled_from([5, 40, LARGEST_INT])


def unbounded(schema: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Where a JSON Schema lets a number be of any size."""
    if isinstance(schema, list):
        for part in schema:
            yield from unbounded(part, path)
    elif isinstance(schema, dict):
        if schema.get("type") in ("integer", "number") and not {"const", "enum"} & schema.keys():
            ends = (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum"))
            if not all(schema.keys() & set(end) for end in ends):
                yield path
        for key, part in schema.items():
            yield from unbounded(part, (*path, key))


@pytest.mark.parametrize("kind", sorted(DOCUMENTS))
def test_every_number_of_a_document_has_bounds(kind: str) -> None:
    """But for floats of a recipe, which are its author's own."""
    found = {path for path in unbounded(document_model(kind).model_json_schema()) if "Settings" not in str(path)}
    assert found == set()


@pytest.mark.parametrize("number", ["9" * 400, "1e999", "-1e999", "1.7e308", "-1", "-0.5", "NaN", str(2**53 + 1)])
@pytest.mark.parametrize("kind", ["profile", "update"])
def test_a_number_beyond_its_bounds_is_refused_wherever_it_stands(kind: str, number: str) -> None:
    manifest: Manifest = fleet.update_manifest(tensors=(), files=())
    if kind == "profile":
        manifest = fleet.profile_manifest("a", [0.5] * 6)
    text = manifest.canonical_bytes().decode()
    name = {"profile": '"example_count": 10', "update": '"mean": 1.0'}[kind]
    assert text.count(name) == 1
    data = text.replace(name, f"{name.split(':')[0]}: {number}").encode()
    if (kind, number) == ("update", str(2**53 + 1)):
        return  # a loss may be as large, but is written as a float
    with pytest.raises(BadInput) as caught:
        type(manifest).from_bytes(data, source="manifest.json")
    assert len(str(caught.value)) < 1000


def test_a_field_of_any_name_makes_a_short_error_on_one_line() -> None:
    text = fleet.update_manifest(tensors=(), files=()).canonical_bytes().decode()
    data = text.replace('"device"', f'"a\\n\\u001b[31m{"x" * 50_000}": 1,\n  "device"').encode()
    with pytest.raises(BadInput) as caught:
        UpdateManifest.from_bytes(data, source="manifest.json")
    assert len(str(caught.value)) < 1000
    assert all(label.isprintable() for label in caught.value.values)


@st.composite
def extreme_profiles(draw: st.DrawFn) -> list[ProfileManifest]:
    """Profiles whose numbers are as large as they may be."""
    made = []
    for number in range(draw(st.integers(1, 6))):
        layers = []
        for _ in range(6):
            low, cka, high = draw(ENDS), draw(st.sampled_from([-1.0, 0.3, 1.0])), draw(ENDS)
            layers.append(LayerSimilarity(cka=cka, low=min(low, cka), high=max(high, cka)))
        profile = fleet.profile_manifest(
            f"d{number}", [0.5] * 6, texts=draw(COUNTS), budget=draw(st.sampled_from([2**30, LARGEST_INT]))
        )
        made.append(profile.model_copy(update={"layers": tuple(layers)}))
    return made


@fast(max_examples=60, deadline=None)
@given(profiles=extreme_profiles())
def test_the_plan_of_the_most_extreme_profiles_can_be_read_again(profiles: list[ProfileManifest]) -> None:
    for profile in profiles:
        assert ProfileManifest.from_bytes(profile.readable_bytes(), source="profile") == profile
    plan = fleet.plan_manifest(profiles, fleet.decided())
    assert PlanManifest.from_bytes(plan.readable_bytes(), source="plan") == plan


@fast(max_examples=60, deadline=None)
@given(claims=st.lists(st.tuples(COUNTS, st.floats(0, 1e12)), min_size=1, max_size=20), totals=st.integers(1, 3))
def test_a_sum_of_any_costs_can_be_read_again(claims: list[tuple[int, float]], totals: int) -> None:
    """What devices measured is not signed: no lie in it stops a round."""
    costs = [
        Cost(
            updates=1,
            seconds=seconds,
            **dict.fromkeys(("peak_bytes", "passes", "visits", "bytes_read", "bytes_up", "bytes_down"), count),
        )
        for count, seconds in claims
    ]
    most = dict.fromkeys(("passes", "visits", "bytes_read", "bytes_up", "bytes_down"), LARGEST_TOTAL)
    costs += [Cost(updates=1, seconds=MOST_SECONDS, peak_bytes=LARGEST_INT, **most)] * totals
    total = Cost.sum(costs)
    measured = MeasuredFacts(seconds=1.0, peak_bytes=1, updates=total).to_measured(fleet.ZERO)
    assert Measured.from_bytes(measured.readable_bytes(), source="measured").updates == total


def update(device: str, loss: float, count: int) -> UpdateManifest:
    losses = TrainingLoss(first=loss, last=loss, mean=loss, mean_local=loss, mean_global=None)
    return fleet.update_manifest(device=device, loss=losses, example_count=count, tensors=(), files=())


@fast(max_examples=100, deadline=None)
@given(
    honest=st.lists(st.tuples(st.floats(0.1, 5), st.integers(1, 10**6)), min_size=3, max_size=12),
    lies=st.lists(st.sampled_from([0.0, LARGEST_LOSS]), min_size=1, max_size=5),
)
def test_liars_with_fewer_texts_do_not_move_the_loss_that_windows_advance_by(
    honest: list[tuple[float, int]], lies: list[float]
) -> None:
    share = (sum(count for _, count in honest) - 1) // len(lies)
    updates = [update(f"h{index}", *one) for index, one in enumerate(honest)]
    updates += [update(f"l{index}", lie, share) for index, lie in enumerate(lies if share else [])]
    losses = [loss for loss, _ in honest]
    assert min(losses) <= median_loss(updates) <= max(losses)


@fast(max_examples=100, deadline=None)
@given(losses=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5)), min_size=1, max_size=8))
def test_the_median_loss_is_that_of_the_texts_written_out(losses: list[tuple[int, int]]) -> None:
    texts = sorted(float(loss) for loss, count in losses for _ in range(count))
    found = median_loss([update(f"d{index}", float(loss), count) for index, (loss, count) in enumerate(losses)])
    assert found == texts[(len(texts) - 1) // 2]
    assert found == np.quantile(texts, 0.5, method="inverted_cdf")


def test_numbers_that_a_method_asks_for_may_be_negative() -> None:
    for number in (-LARGEST_REPORT, LARGEST_REPORT):
        assert fleet.update_manifest(numbers={"score": number}, tensors=(), files=()).numbers == {"score": number}


@pytest.mark.parametrize("claim", [41, 10**15])
def test_a_profile_that_claims_more_texts_than_enrolled_weighs_no_more_and_moves_no_curve(
    claim: int, tmp_path: Path
) -> None:
    keys = KeyRing(tmp_path)
    keys.new("a")
    key = keys.open("a").public
    roster = {name: EnrolledDevice(name=name, key=key, max_example_count=40) for name in ("a", "b")}
    liar = fleet.profile_manifest("b", [1.0] * 6, texts=claim)
    found = gather([fleet.profile_manifest("a", [0.5] * 6, texts=12), liar], fleet.decided(), roster)
    assert (found.example_count, found.most_examples) == (52, 40)
    assert [layer.cka for layer in found.curve] == [0.5] * 6
    assert found.lengths == gather([fleet.profile_manifest("a", [0.5] * 6, texts=12)], fleet.decided(), roster).lengths
    assert cast("dict[str, tuple[int, int]]", found.capped) == {"b": (claim, 40)}
    assert f"b {claim} of 40" in found.said()[0]
    lines = found.devices.data.decode().splitlines()
    assert f"claims {claim} texts and is enrolled with 40" in lines[1]
    assert '"example_count":40,' in lines[1]
