"""What `plan --explain` says of each way to train: passes, bytes, budgets, and what a step reads."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModel, AutoModelForCausalLM

from schemas.methods import default_settings
from stages.memory import predict
from stages.methods.options import options, read_per_step
from stages.methods.registry import server_method
from stages.report.explain import explain_options
from stages.streaming.placement import SMALLEST
from tests import fleet

DEPTH = 3
FAMILIES = [("bert", {}), ("llama", fleet.LANGUAGE)]


def prepared(folder: Path, family: str, chain: dict[str, Any], **sections: dict[str, Any]) -> Any:
    """A plan of a tiny model, its backbone, and a file of texts."""
    fleet.save_model(folder / "model", family, factory=AutoModelForCausalLM if sections.get("task") else AutoModel)
    data = fleet.save_texts(folder / "data.jsonl", fleet.texts(12))
    chosen = fleet.settings(chain=chain, **{"optimizer": {"batch_size": 4}} | sections)
    plan, _ = fleet.begin(folder, folder / "model", data, chosen)
    return plan.manifest, fleet.open_backbone(folder / "model", plan.manifest.settings), data


@pytest.mark.parametrize(("family", "sections"), FAMILIES)
@pytest.mark.parametrize("chain", [{"foresight": "layers"}, {}, {"foresight": "layers", "start": 1}])
def test_the_plan_is_among_its_options_with_its_own_costs(
    family: str, sections: dict[str, Any], chain: dict[str, Any], tmp_path: Path
) -> None:
    plan, backbone, _ = prepared(tmp_path, family, chain, **sections)
    found = options(plan, backbone)
    (own,) = [one for one in found if one.planned]
    costs = [server_method("chain").costs(plan, entry.assignment) for entry in plan.memory]
    passes = [one.forward_passes + one.backward_passes for one in costs]
    assert own.passes == (min(passes), max(passes))
    assert own.sent[plan.bottleneck] == max(one.bytes_up for one in costs)
    full = [one for one in found if one.name == "full adapters"]
    assert [one.window_size for one in full] == [DEPTH]
    assert full[0].passes == (2 * DEPTH - 1, 2 * DEPTH - 1)
    assert len({(one.name, one.window_size) for one in found}) == len(found)
    assert "(this plan)" in "".join(explain_options(found))


def test_memory_does_not_limit_the_window_of_the_true_gradient(tmp_path: Path) -> None:
    plan, backbone, _ = prepared(tmp_path, "bert", {"foresight": "layers", "start": 0})
    budgets = {one.window_size: one.smallest_budget for one in options(plan, backbone) if "paper" not in one.name}
    assert set(budgets) == {1, 2, 3}
    assert max(budgets.values()) - min(budgets.values()) < 2**16


def test_other_methods_have_a_plan_of_their_own_among_them(tmp_path: Path) -> None:
    plan, backbone, _ = prepared(tmp_path, "bert", {})
    whole = plan.model_copy(
        update={"settings": plan.settings.model_copy(update={"chain": default_settings("full-adapters")})}
    )
    assert [one.name for one in options(whole, backbone) if one.planned] == ["full adapters"]


@pytest.mark.parametrize(("family", "sections"), FAMILIES)
@pytest.mark.parametrize(
    "chain",
    [
        {"foresight": "layers"},
        {"foresight": "layers", "local_weight": 0.5},
        {"foresight": "layers", "local_weight": 0.5, "order": "upwards"},
        {},
        {"start": 2, "window_size": 1},
    ],
)
def test_a_step_reads_what_was_said(
    family: str, sections: dict[str, Any], chain: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted: bytes read in six steps less those in three, with one layer in memory at a time."""
    monkeypatch.setattr(predict, "PLACEMENTS", (SMALLEST,))
    read: list[int] = []
    for steps in (3, 6):  # three see all texts, so both read the same embeddings
        folder = tmp_path / str(steps)
        changed = {"numerics": {"micro_batch": 2}, "optimizer": {"batch_size": 4, "steps": steps}}
        plan, backbone, data = prepared(folder, family, chain, **sections | changed)
        update = fleet.run_train(folder, folder / "model", data, folder / "update", memory_budget_bytes=2**33)
        measured = update.measured()
        assert measured is not None
        assert measured.bytes_written > 0  # hidden states and adapters wait in temporary files
        read.append(measured.bytes_streamed)
    assert read[1] - read[0] == 3 * read_per_step(backbone, plan.settings, plan.memory[0].assignment)
