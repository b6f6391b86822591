"""The plan takes the widest window that a device's round allows: by passes, by bytes sent, by both."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as fast
from hypothesis import strategies as st

from schemas.errors import BadInput, DoesNotFit
from schemas.methods import ChainSettings, default_settings
from schemas.plan import PlanManifest
from schemas.refs import Window
from schemas.settings import Settings, TaskSettings
from stages.federated.profiles import gather
from stages.methods.registry import server_method
from stages.plan import make_plan
from stages.report.explain import explain_plan
from tests import fleet

DEPTH, WIDTH = 6, 64
ADAPTER = {factor: 4 * (2 * WIDTH * max(1, WIDTH // factor) + max(1, WIDTH // factor) + WIDTH) for factor in (16, 64)}


def recipe(chain: dict[str, Any] | None = None, factor: int | str = "auto", **limits: Any) -> Settings:
    chosen = fleet.decided()
    return chosen.model_copy(
        update={
            "chain": ChainSettings(**(chain or {})),
            "adapter": chosen.adapter.model_copy(update={"reduction_factor": factor}),
            "federation": chosen.federation.model_copy(update=limits),
        }
    )


def planned(settings: Settings, curve: tuple[float, ...] = ()) -> PlanManifest:
    profiles = gather([fleet.profile_manifest("a", list(curve), budget=2**40)], settings)
    return make_plan(profiles, settings, head_parameters=(), predict_peak=fleet.peak)


def costs(plan: PlanManifest) -> list[tuple[int, int]]:
    """Passes per text and step, and bytes sent, of each window."""
    method = server_method(plan.settings.chain.method)
    found = [method.costs(plan, entry.assignment) for entry in plan.memory]
    return [(one.forward_passes + one.backward_passes, one.bytes_up) for one in found]


def test_without_limits_all_layers_train_at_once_with_the_true_gradient() -> None:
    plan = planned(recipe())
    chain = plan.settings.chain
    assert isinstance(chain, ChainSettings)
    assert fleet.windows_of(plan) == (Window(start=0, stop=DEPTH),)
    assert (chain.foresight, chain.start, chain.order, chain.stride) == ("layers", 0, "downwards", "window")
    assert (plan.settings.adapter.reduction_factor, plan.bottleneck) == (16, 4)
    assert "every layer, which is full adapters" in "\n".join(explain_plan(plan, server_method("chain")))
    whole = planned(recipe().model_copy(update={"chain": default_settings("full-adapters")}))
    assert costs(plan) == costs(whole)


@fast(deadline=None, max_examples=200)
@given(passes=st.integers(1, 3 * DEPTH), sent=st.integers(100, 20_000))
def test_no_round_costs_more_than_it_may_and_no_layer_is_left_out_that_it_allows(passes: int, sent: int) -> None:
    settings = recipe(round_passes=passes, round_bytes=sent)
    if passes < DEPTH or sent < ADAPTER[64]:
        with pytest.raises(DoesNotFit) as caught:
            planned(settings)
        assert str(passes if passes < DEPTH else sent) in str(caught.value)
        return
    plan = planned(settings)
    found, chain = costs(plan), plan.settings.chain
    assert isinstance(chain, ChainSettings)
    assert isinstance(chain.window_size, int)
    assert all(one <= passes and size <= sent for one, size in found)
    start, trained = plan.decisions.first_layer, DEPTH - plan.decisions.first_layer
    assert start == max(0, 2 * DEPTH - 1 - passes)
    wide = sent >= trained * ADAPTER[16]
    assert plan.bottleneck == (WIDTH // 16 if wide else 1)
    assert chain.window_size == min(trained, sent // ADAPTER[16 if wide else 64])
    assert len(plan.memory) == math.ceil(trained / chain.window_size)


def test_fixed_settings_are_kept_and_refused_where_they_cost_too_much() -> None:
    plan = planned(recipe({"start": 2, "window_size": 2}, factor=8))
    assert fleet.windows_of(plan) == (Window(start=4, stop=6), Window(start=2, stop=4))
    assert plan.bottleneck == 8
    for limits, unit in (({"round_passes": 8}, "passes"), ({"round_bytes": 1000}, "bytes")):
        with pytest.raises(DoesNotFit, match=f"more {unit} than a round may") as caught:
            planned(recipe({"start": 2, "window_size": 2}, factor=8, **limits))
        assert str(next(iter(limits.values()))) in str(caught.value)


@pytest.mark.parametrize("method", ["full-adapters", "linear-probe"])
def test_limits_hold_for_every_method(method: str) -> None:
    settings = recipe(round_passes=DEPTH).model_copy(update={"chain": default_settings(method)})
    if method == "linear-probe":
        assert costs(planned(settings)) == [(DEPTH, 0)]
    else:
        with pytest.raises(DoesNotFit, match="training 0-5 costs a device more passes"):
            planned(settings)


def test_full_adapters_are_as_wide_as_a_round_may_send() -> None:
    whole = recipe(round_bytes=DEPTH * ADAPTER[64]).model_copy(update={"chain": default_settings("full-adapters")})
    assert planned(whole).bottleneck == 1


def test_the_papers_chain_is_one_setting_away() -> None:
    plan = planned(recipe({"foresight": "adapters", "window_size": 2}), curve=(0.9, 0.7, 0.6, 0.5, 0.4, 0.3))
    chain = plan.settings.chain
    assert isinstance(chain, ChainSettings)
    assert (chain.start, chain.order, chain.stride, chain.local_weight) == ("foat", "upwards", 1, 1.0)
    assert [window.start for window in fleet.windows_of(plan)] == [1, 2, 3, 4]


def test_start_by_foat_or_at_the_last_window_with_the_true_gradient() -> None:
    curve = (0.9, 0.9, 0.6, 0.5, 0.4, 0.3)
    assert fleet.windows_of(planned(recipe({"start": "foat"}), curve)) == (Window(start=2, stop=6),)
    assert fleet.windows_of(planned(recipe({"start": "last", "window_size": 2}))) == (Window(start=4, stop=6),)
    with pytest.raises(BadInput, match="leaves no room"):
        planned(recipe({"start": 5, "window_size": 2}))
    with pytest.raises(BadInput, match="larger than the model"):
        planned(recipe({"window_size": 7}))


def test_a_plan_holds_no_auto() -> None:
    with pytest.raises(ValueError, match="decisions, not auto"):
        PlanManifest.model_validate(
            planned(recipe()).model_dump()
            | {"settings": planned(recipe()).settings.model_dump() | {"chain": ChainSettings().model_dump()}}
        )


def test_language_models_have_narrower_adapters() -> None:
    """What measured best: docs/experiments.md, What a round buys."""
    task = TaskSettings(kind="causal-lm")
    assert planned(recipe().model_copy(update={"task": task})).settings.adapter.reduction_factor == 64
    assert planned(recipe(factor=8).model_copy(update={"task": task})).settings.adapter.reduction_factor == 8


@pytest.mark.parametrize("start", [DEPTH, DEPTH + 3])
@pytest.mark.parametrize("foresight", ["layers", "adapters"])
def test_a_start_behind_the_last_layer_is_refused(start: int, foresight: str) -> None:
    with pytest.raises(BadInput, match="start") as caught:
        planned(recipe({"foresight": foresight, "start": start}))
    assert str(start) in str(caught.value)


@fast(deadline=None, max_examples=100)
@given(sent=st.integers(ADAPTER[64], 20_000))
def test_with_the_papers_foresight_too_a_round_sends_no_more_than_it_may(sent: int) -> None:
    plan = planned(recipe({"foresight": "adapters", "start": 0, "max_window": 4}, round_bytes=sent))
    chain = plan.settings.chain
    assert isinstance(chain, ChainSettings)
    assert chain.window_size == min(4, sent // ADAPTER[64])
    assert all(size <= sent for _, size in costs(plan))
    assert plan.bottleneck == (4 if sent >= min(4, sent // ADAPTER[64]) * ADAPTER[16] else 1)


def test_a_local_loss_is_not_called_the_true_gradient() -> None:
    plan = planned(recipe({"local_weight": 0.5, "window_size": 2}))
    assert "with a local loss" in "\n".join(explain_plan(plan, server_method("chain")))
