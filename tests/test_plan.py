"""The plan's decisions: start layer, window size, windows, and what is refused.  Pure: no model, no file."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as fast
from hypothesis import strategies as st

from schemas.assignment import Assignment
from schemas.errors import BadInput, DoesNotFit
from schemas.methods import ChainDecisions, ChainSettings, default_settings
from schemas.plan import PlanManifest
from schemas.refs import Window
from schemas.settings import TaskSettings
from stages.federated.profiles import gather
from stages.methods.chain import server as chain
from stages.methods.registry import server_method
from stages.methods.server import Facts, Smallest
from stages.report.explain import explain_plan
from tests import fleet

DEPTH = 6


def explained(plan: PlanManifest) -> str:
    return "\n".join(explain_plan(plan, server_method(plan.settings.chain.method)))


@pytest.mark.parametrize(
    ("curve", "size", "start", "reason"),
    [
        ([0.9, 0.85, 0.7, 0.6, 0.5, 0.4], 2, 2, "below-threshold"),
        ([0.9, 0.9, 0.9, 0.9, 0.9, 0.4], 2, 4, "clamped"),
        ([0.9] * 6, 3, 3, "no-layer-below-threshold"),
        ([0.5] * 6, 2, 0, "below-threshold"),
        ([0.9, 0.7, 0.95, 0.6, 0.5, 0.4], 2, 1, "below-threshold"),
    ],
)
def test_the_chain_starts_at_the_first_layer_below_the_threshold(
    curve: list[float], size: int, start: int, reason: str
) -> None:
    similarities = gather([fleet.profile_manifest("a", curve)], fleet.decided()).curve
    found, why, (earliest, latest) = chain.choose_start(ChainSettings(start="foat"), DEPTH, similarities, size, 5)
    assert (found, why) == (start, reason)
    assert earliest <= found <= latest


@fast(max_examples=50, deadline=None)
@given(depth=st.integers(1, 40), data=st.data())
def test_windows_slide_by_one_and_end_at_the_last_layer(depth: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, depth))
    start = data.draw(st.integers(0, depth - size))
    model = fleet.profile_manifest("a", []).model
    model = model.model_copy(update={"num_layers": depth, "layers": (fleet.ZERO,) * depth})
    settings = fleet.decided(start=start, window_size=size)
    decided = chain.METHOD.decide(Facts(model, settings, (), Smallest("a", 2**60), fleet.peak))
    assert isinstance(decided.decisions, ChainDecisions)
    windows = decided.decisions.windows
    assert [window.start for window in windows] == list(range(start, depth - size + 1))
    assert {len(window.layers) for window in windows} == {size}
    assert windows[-1].stop == depth


def test_a_profile_with_another_date_is_refused() -> None:
    """A template may show it: the texts of the profile would not be those that are trained on."""
    recipe = fleet.decided()
    other = recipe.model_copy(update={"prompt": recipe.prompt.model_copy(update={"date": "2025-03-09"})})
    with pytest.raises(BadInput, match=r"prompt\.date differs") as caught:
        gather([fleet.profile_manifest("a", [0.9] * 6)], other)
    assert {"2025-03-09", "2024-07-26"} == set(caught.value.values.values())


def test_a_profile_that_says_something_long_is_named_and_not_repeated() -> None:
    mine, other = (fleet.profile_manifest(name, [0.9] * 6) for name in "ab")
    model = other.model.model_copy(update={"model_type": "x" * 900_000})
    with pytest.raises(BadInput, match="model_type differs") as caught:
        gather([mine, other.model_copy(update={"model": model})], fleet.decided())
    assert list(caught.value.values) == ["a", "b"]
    assert len(str(caught.value)) < 1000
    assert "leave out" in caught.value.hint


def test_the_curve_is_weighted_by_example_counts_and_leaves_out_who_has_none() -> None:
    curve = gather(
        [
            fleet.profile_manifest("a", [0.9] * 6, texts=30),
            fleet.profile_manifest("b", [0.5] * 6, texts=10),
            fleet.profile_manifest("c", [], texts=2),
        ],
        fleet.decided(),
    ).curve
    assert curve[0].cka == pytest.approx(0.8)


def test_the_window_is_the_largest_that_fits_the_smallest_budget() -> None:
    settings = fleet.decided(window_size="auto", max_window=4)
    for budget, expected in ((200, (4, None)), (120, (3, "small")), (80, (2, "small")), (50, (1, "small"))):
        profiles = [
            fleet.profile_manifest("large", [0.9] * 6, budget=500 * fleet.MIB),
            fleet.profile_manifest("small", [0.9] * 6, budget=budget * fleet.MIB),
        ]
        plan = fleet.plan_manifest(profiles, settings)
        assert isinstance(plan.settings.chain, ChainSettings)
        assert isinstance(plan.decisions, ChainDecisions)
        assert (plan.settings.chain.window_size, plan.decisions.limited_by) == expected
        assert f"Q = {expected[0]}:" in explained(plan)


def test_a_budget_below_one_layer_is_refused_with_what_would_do() -> None:
    settings = fleet.decided(window_size="auto")
    profiles = [fleet.profile_manifest("small", [0.9] * 6, budget=40 * fleet.MIB)]
    with pytest.raises(DoesNotFit, match="small") as caught:
        fleet.plan_manifest(profiles, settings)
    assert "40 MiB" in str(caught.value)
    assert "50 MiB" in str(caught.value)
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("method", ["full-adapters", "linear-probe", "no-ft"])
def test_references_have_one_assignment(method: str) -> None:
    settings = fleet.decided().model_copy(update={"chain": default_settings(method)})
    plan = fleet.plan_manifest([fleet.profile_manifest("a", [0.9] * 6, budget=400 * fleet.MIB)], settings)
    everything = method == "full-adapters"
    assert plan.decisions.first_layer == (0 if everything else 6)
    expected = Assignment(layers=tuple(range(6)) if everything else ())
    assert [entry.assignment for entry in plan.memory] == [expected]
    assert server_method(method).first(plan).assignment == expected
    assert f"Method {method}" in explained(plan)


def test_full_adapters_take_the_micro_batch_that_fits_the_smallest_budget_or_are_refused() -> None:
    def peak(assignment: Assignment, first_layer: int, micro_batch: int, **options: Any) -> int:
        assert (assignment.layers, first_layer) == (tuple(range(6)), 0)
        assert options.get("streamed", True)
        return (100 + 10 * micro_batch) * fleet.MIB

    chain = default_settings("full-adapters")
    numerics = fleet.decided().numerics.model_copy(update={"micro_batch": "auto"})
    settings = fleet.decided().model_copy(update={"chain": chain, "numerics": numerics})
    model = fleet.profile_manifest("a", []).model

    def decide(budget: int) -> int:
        smallest = Smallest("a", budget * fleet.MIB)
        facts = Facts(model=model, settings=settings, curve=(), smallest=smallest, predict_peak=peak)
        return server_method("full-adapters").decide(facts).micro_batch

    assert [decide(budget) for budget in (1000, 420, 419, 110)] == [32, 32, 16, 1]
    with pytest.raises(DoesNotFit, match="training 0-5 does not fit the memory budget of device a") as caught:
        decide(109)
    assert "110 MiB" in str(caught.value)


@pytest.mark.parametrize("size", [1, 2, 4, 6])
def test_last_is_the_last_window_alone(size: int) -> None:
    settings = fleet.decided(start="last", window_size=size)
    roomy = fleet.profile_manifest("a", [], budget=400 * fleet.MIB)
    plan = fleet.plan_manifest([roomy], settings)
    assert fleet.windows_of(plan) == (Window(start=DEPTH - size, stop=DEPTH),)
    assert isinstance(plan.decisions, ChainDecisions)
    assert plan.decisions.start_reason == "fixed"


def test_a_language_model_is_not_asked_for_words_too_early_without_a_word() -> None:
    task = TaskSettings(kind="causal-lm")
    for start, early in (("last", False), (0, True)):
        settings = fleet.decided(start=start).model_copy(update={"task": task})
        plan = fleet.plan_manifest([fleet.profile_manifest("a", [])], settings)
        assert bool(chain.METHOD.warnings(plan)) is early
        assert (chain.EARLY_WINDOWS in explained(plan)) is early


def test_foat_without_a_curve_says_how_to_go_on() -> None:
    with pytest.raises(BadInput, match="FOAT"):
        chain.choose_start(ChainSettings(start="foat"), DEPTH, (), 2, 5)


def test_a_window_larger_than_the_model_is_refused() -> None:
    settings = fleet.decided(window_size=7)
    with pytest.raises(BadInput, match="larger"):
        fleet.plan_manifest([fleet.profile_manifest("a", [0.9] * 6)], settings)


def test_two_profiles_of_one_device_are_refused() -> None:
    with pytest.raises(BadInput, match="one device"):
        gather([fleet.profile_manifest("a", []), fleet.profile_manifest("a", [], texts=3)], fleet.decided())
