"""What a simulation writes of itself: read back strictly, and true where updates were refused."""

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import BadInput, UsageProblem
from schemas.measured import Cost
from schemas.plan import PlanManifest
from schemas.recipe import with_method
from schemas.run import MOST_ROUNDS, FederationManifest, RoundLine, SimulationSummary
from schemas.state import StateManifest
from schemas.update import UpdateManifest
from stages import profile, status
from stages.federation import simulate
from stages.federation.prepare import Federation
from stages.methods.registry import server_method
from stages.model.backbone import Backbone
from stages.store.artifact import open_artifact, read_manifest, read_tensors
from stages.store.lineage import history
from tests import fleet


def federation(folder: Path, model: Path, **options: Any) -> Federation:
    """Three devices, two rounds; the learning rate of the second is 0, so all devices send the state's tensors."""
    optimizer = {"schedule": "cosine", "schedule_rounds": 1, "final_learning_rate": 0.0}
    parts: dict[str, Any] = {
        "model_dir": model,
        "data": fleet.save_texts(folder / "train.jsonl", fleet.texts(30)),
        "test": fleet.save_texts(folder / "test.jsonl", fleet.texts(10, seed=9)),
        "settings": fleet.settings(optimizer=optimizer),
        "devices": 3,
        "rounds": 2,
        "alpha": None,
    }
    return Federation(**(parts | options))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> tuple[Path, SimulationSummary, list[RoundLine]]:
    folder = tmp_path_factory.mktemp("simulated")
    lines: list[RoundLine] = []
    summary = simulate.run(federation(folder, tiny_bert), out=folder / "run", on_round=lines.append)
    return folder, summary, lines


def norms(run: Path) -> list[float]:
    """Of what the updates of round 0 add to the state, in ascending order."""
    before = read_tensors(open_artifact(run / "states" / "0000", StateManifest))
    updates = [open_artifact(path, UpdateManifest) for path in (run / "updates" / "0000").iterdir()]
    squares = [
        sum(float(((values - before[name]) ** 2).sum()) for name, values in read_tensors(one).items())
        for one in updates
    ]
    return sorted(math.sqrt(square) for square in squares)


def test_refused_updates_are_reported_and_the_run_goes_on(
    run: tuple[Path, SimulationSummary, list[RoundLine]], tmp_path: Path, tiny_bert: Path
) -> None:
    smallest, second, _ = norms(run[0] / "run")
    again = federation(tmp_path, tiny_bert, rounds=1)
    capped = again.settings.federation.model_copy(update={"max_update_norm": (smallest + second) / 2})
    again = replace(again, settings=again.settings.model_copy(update={"federation": capped}))
    lines: list[RoundLine] = []
    summary = simulate.run(again, out=tmp_path / "run", on_round=lines.append)
    assert [line.refused for line in lines] == [{"norm": 2}]
    assert "2 refused: norm" in lines[0].line()
    assert lines[0].bytes_up > 0.9 * run[2][0].bytes_up  # what was refused has travelled too
    assert lines[0].devices == 3
    assert len(list((tmp_path / "run" / "updates" / "0000" / ".refused").glob("*.json"))) == 2
    assert list(summary.rounds) == lines


def test_devices_that_send_the_same_have_taken_part(run: tuple[Path, SimulationSummary, list[RoundLine]]) -> None:
    _, summary, lines = run
    assert [line.refused for line in lines] == [{}, {}]
    assert lines[1].devices == 3
    assert "refused" not in lines[1].line()
    assert list(summary.rounds) == lines


def test_costs_are_counted_in_each_update_and_summed(run: tuple[Path, SimulationSummary, list[RoundLine]]) -> None:
    """Update, state, round, summary, `log` and `status` tell of the same passes and bytes."""
    folder, summary, lines = run
    updates = [open_artifact(path, UpdateManifest) for path in sorted((folder / "run" / "updates" / "0000").iterdir())]
    measured = [found for update in updates if (found := update.measured())]
    assert len(measured) == 3
    assert all(
        one.passes.visits == update.manifest.example_count for one, update in zip(measured, updates, strict=True)
    )
    assert lines[0].passes == sum(one.passes.total for one in measured) > 0
    assert lines[0].bytes_up == sum(path.stat().st_size for one in updates for path in one.path.iterdir())
    first, second = (open_artifact(folder / "run" / "states" / name, StateManifest) for name in ("0001", "0002"))
    costs = [found.updates for one in (first, second) if (found := one.measured()) and found.updates]
    assert [cost.updates for cost in costs] == [3, 3]  # what equal updates cost was spent
    assert (costs[0].passes, costs[0].bytes_up, costs[0].bytes_down) == (
        lines[0].passes,
        lines[0].bytes_up,
        lines[0].bytes_down,
    )
    assert (summary.passes, summary.bytes_read) == (sum(line.passes for line in lines), summary.cost.bytes_read)
    assert [line.cost for line in history(second.path, []).lines] == [costs[1], costs[0], None]
    assert status.run(folder / "run").cost == Cost.sum(costs)


def test_what_a_run_is_made_of_and_what_came_of_it_are_manifests(
    run: tuple[Path, SimulationSummary, list[RoundLine]], tiny_bert: Path
) -> None:
    folder, summary, _ = run
    assert read_manifest(folder / "run" / "summary.json", SimulationSummary) == summary
    described = federation(folder, tiny_bert).describe()
    assert read_manifest(folder / "run" / "federation.json", FederationManifest) == described


@pytest.mark.parametrize("name", ["federation.json", "summary.json"])
@pytest.mark.parametrize("kind", ["altered", "truncated", "another document"])
def test_an_altered_document_of_a_run_is_refused(
    name: str, kind: str, run: tuple[Path, SimulationSummary, list[RoundLine]], tiny_bert: Path
) -> None:
    folder, _, _ = run
    path = folder / "run" / name
    whole = path.read_bytes()
    others = {
        "altered": whole.replace(b'"version": 1', b'"version": 1,\n  "zzz": 1'),
        "truncated": whole[:-20],
        "another document": b"{}\n",
    }
    path.write_bytes(others[kind])
    try:
        with pytest.raises(BadInput, match=name):
            simulate.run(federation(folder, tiny_bert), out=folder / "run")
        assert path.read_bytes() == others[kind]
    finally:
        path.write_bytes(whole)


def test_a_run_of_something_else_says_what_differs(
    run: tuple[Path, SimulationSummary, list[RoundLine]], tiny_bert: Path
) -> None:
    folder, _, _ = run
    with pytest.raises(UsageProblem, match="alpha differs"):
        simulate.run(federation(folder, tiny_bert, alpha=1.0), out=folder / "run")


def test_more_rounds_than_a_summary_holds_are_refused_before_any_work(tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match="too many rounds") as caught:
        simulate.run(federation(tmp_path, tiny_bert, rounds=MOST_ROUNDS + 1), out=tmp_path / "run")
    assert caught.value.values == {"at most": MOST_ROUNDS, "given": MOST_ROUNDS + 1}
    assert not (tmp_path / "run").exists()


def test_the_run_of_another_method_borrows_shards_profiles_and_hidden_states(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = fleet.settings()
    probing = federation(tmp_path, tiny_bert, settings=with_method(chosen, "linear-probe"))
    alone = simulate.run(probing, out=tmp_path / "alone")
    simulate.run(federation(tmp_path, tiny_bert, settings=chosen), out=tmp_path / "chain")
    monkeypatch.setattr(profile, "measure", lambda *_, **__: 1 / 0)
    borrowing = simulate.run(probing, out=tmp_path / "borrowing", like=tmp_path / "chain")
    assert borrowing.final_state == alone.final_state
    assert borrowing.accuracy_after == alone.accuracy_after
    assert not (tmp_path / "borrowing" / "cache").exists()
    other = federation(tmp_path, tiny_bert, devices=2, settings=with_method(chosen, "linear-probe"))
    with pytest.raises(UsageProblem, match="another federation"):
        simulate.run(other, out=tmp_path / "other", like=tmp_path / "chain")


def test_a_simulation_runs_frozen_layers_once_per_text(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chain of one window from layer 1: layer 0 is run by the profiles and for the test texts, then no more."""
    passed: Counter[int] = Counter()
    inner = Backbone.run_layers

    def count(self: Backbone, weights: Any, hidden: Any, batch: Any, *others: Any) -> Any:
        for layer in weights:
            passed[layer] += 0 if hidden.is_meta else len(batch.input_ids)  # not where memory is predicted
        return inner(self, weights, hidden, batch, *others)

    monkeypatch.setattr(Backbone, "run_layers", count)
    chosen = fleet.settings(chain={"start": 1, "window_size": 2})
    simulate.run(federation(tmp_path, tiny_bert, settings=chosen), out=tmp_path / "run")
    assert passed[0] == 30 + 10
    # Layer 1, before its adapter: profiles, once for the test texts, and two rounds of steps.
    assert passed[1] == 30 + 10 + 2 * 30
    assert passed[2] == 30 + 3 * 10 + 2 * 30


@pytest.mark.parametrize(("rounds", "assignments", "expected"), [(12, 4, 12), (12, 5, 10), (3, 4, 4), (7, 1, 7)])
def test_whole_cycles_end_with_the_last_window(rounds: int, assignments: int, expected: int, tmp_path: Path) -> None:
    chosen = federation(tmp_path, tmp_path, rounds=rounds, whole_cycles=True)
    assert chosen.rounds_of(assignments) == expected
    assert federation(tmp_path, tmp_path, rounds=rounds).rounds_of(assignments) == rounds


def state_tensors(run: Path, number: int) -> dict[str, bytes]:
    state = open_artifact(run / "states" / f"{number:04d}", StateManifest)
    return {name: value.tobytes() for name, value in read_tensors(state).items()}


def test_the_default_is_full_adapters_to_the_bit(tmp_path: Path, tiny_bert: Path) -> None:
    """A window of all layers with the true gradient, and the reference of that name."""
    settings = fleet.settings(chain={"foresight": "auto", "start": "auto", "window_size": "auto"})
    for name, chosen in (("chain", settings), ("full-adapters", with_method(settings, "full-adapters"))):
        simulate.run(federation(tmp_path, tiny_bert, settings=chosen), out=tmp_path / name)
    assert state_tensors(tmp_path / "chain", 2) == state_tensors(tmp_path / "full-adapters", 2)


def test_where_a_round_may_send_little_windows_go_down_from_the_last_layer(tmp_path: Path, tiny_bert: Path) -> None:
    chain = {"foresight": "auto", "start": "auto", "window_size": "auto"}
    settings = fleet.settings(chain=chain, federation={"round_bytes": 6_000})
    summary = simulate.run(federation(tmp_path, tiny_bert, settings=settings, rounds=4), out=tmp_path / "run")
    assert [line.trained for line in summary.rounds] == ["2-2", "1-1", "0-0", "2-2"]
    plan = open_artifact(tmp_path / "run" / "plan", PlanManifest).manifest
    costs = [server_method("chain").costs(plan, entry.assignment) for entry in plan.memory]
    assert all(cost.bytes_up <= 6_000 for cost in costs)
    foretold = [cost.forward_passes + cost.backward_passes for cost in costs]
    assert foretold == [3, 4, 5]
    counted = [line.passes / line.visits for line in summary.rounds[:3]]
    assert counted == [2, 3, 5]  # the profile has cached the output of layer 0
