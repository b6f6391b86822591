"""A method that exists only here: proof that methods are a seam, and that it is wide enough.

It trains another set of layers on each device, end to end; sends one stacked tensor that no state has; reports a
number; leaves the model as it is in every second round; and applies its adapters at half strength under a state.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from schemas import methods as schemas
from schemas.assignment import Assignment
from schemas.evaluation import EvaluationManifest
from schemas.methods import MethodSettings
from schemas.methods.chain import LossWeights
from schemas.methods.registry import unregister as unregister_schema
from schemas.plan import PlanManifest
from schemas.refs import Window
from schemas.state import StateManifest
from schemas.update import UpdateManifest
from stages import aggregate
from stages.federated.delivery import RefusedUpdate
from stages.federated.rules import Expected, Update
from stages.federation.prepare import Federation
from stages.federation.simulate import run
from stages.methods import registry
from stages.methods.device import DeviceMethod, Work, layer_training
from stages.methods.server import Combination, Costs, ServerMethod, Unmoved
from stages.process import seeds
from stages.process.progress import Progress
from stages.report.explain import explain_plan
from stages.session import Machine
from stages.store.artifact import Artifact, open_artifact, read_tensors, verify_artifact
from stages.store.lineage import history
from stages.store.tensors import TensorFile
from stages.training.layers import LayerTraining
from stages.training.loop import Training
from stages.training.objective import StepLoss
from stages.tuning.tensors import adapter_names
from stages.tuning.tuning import BottleneckTuning, Tuning
from tests import fleet


class ScatteredSettings(MethodSettings):
    """How many layers each device trains."""

    method: Literal["scattered"] = "scattered"
    layers_per_device: int = 2


# --- the method -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scattered(ServerMethod):
    name = "scattered"

    def assignment(self, plan: PlanManifest, state: StateManifest, device: str) -> Assignment:
        count = plan.settings.chain.model_dump()["layers_per_device"]
        draw = seeds.generator(self.name, plan.settings.seed, state.round, device)
        layers = sorted(draw.choice(plan.model.num_layers, count, replace=False).tolist())
        return Assignment(layers=tuple(layers), extra={"round": (state.round,)})

    def first(self, plan: PlanManifest) -> Any:
        return replace(super().first(plan), assignment=None)

    def expected(self, plan: PlanManifest, state: StateManifest, assignment: Assignment) -> Expected:
        shape = (len(assignment.layers), plan.model.hidden_size, plan.bottleneck)
        return Expected({"stacked.up": shape}, frozenset({"last-loss"}))

    def combine(
        self, plan: PlanManifest, parent: Artifact[StateManifest], accepted: Sequence[Update]
    ) -> Combination | None:
        return None if parent.manifest.round % 2 else Unstacked(parent, accepted)

    def costs(self, plan: PlanManifest, assignment: Assignment) -> Costs:
        return replace(super().costs(plan, assignment), backward_passes=1000)


@dataclass(frozen=True)
class Unstacked(Unmoved):
    accepted: Sequence[Update]

    def chunks(self, name: str, files: Sequence[TensorFile]) -> Iterator[np.ndarray]:
        up = {adapter_names(layer)[2]: layer for layer in range(100)}.get(name)
        sent = [
            file.tensor("stacked.up")[update.manifest.assignment.layers.index(up)]
            for update, file in zip(self.accepted, files[1:], strict=True)
            if up in update.manifest.assignment.layers
        ]
        yield from [np.mean(sent, axis=0, dtype=np.float32).reshape(-1)] if sent else super().chunks(name, files)


@dataclass(frozen=True)
class ScatteredOnDevice(DeviceMethod):
    def span(self, chain: MethodSettings, num_layers: int, assignment: Assignment) -> Window:
        return Window(start=assignment.layers[0], stop=num_layers)

    def open(self, work: Work) -> Training:
        plan = work.plan.manifest
        span = self.span(plan.settings.chain, plan.model.num_layers, work.assignment)
        return StackedTraining(layer_training(work, span, loss_weights=LossWeights()), work.assignment.layers)

    def numbers(self, work: Work, training: Training) -> dict[str, float]:
        assert isinstance(training, StackedTraining)
        return {"last-loss": training.last_loss}

    def tuning(self, plan: PlanManifest, tensors: Mapping[str, np.ndarray], dtype: torch.dtype) -> Tuning:
        halved = {name: values * 0.5 if ".up." in name else values for name, values in tensors.items()}
        return BottleneckTuning.of(plan, halved, dtype)


@dataclass
class StackedTraining:
    inner: LayerTraining
    layers: tuple[int, ...]
    last_loss: float = 0.0

    @property
    def optimizer(self) -> Any:
        return self.inner.optimizer

    def opened(self, progress: Progress) -> AbstractContextManager[None]:
        return self.inner.opened(progress)

    def step(self, batch: list[int]) -> StepLoss:
        loss = self.inner.step(batch)
        self.last_loss = loss.total
        return loss

    def tensors(self) -> dict[str, np.ndarray]:
        trained = self.inner.tensors()
        return {"stacked.up": np.stack([trained[adapter_names(layer)[2]] for layer in self.layers])}


# --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Three rounds of four devices, simulated."""
    schemas.register(ScatteredSettings)
    registry.register(Scattered(), ScatteredOnDevice())
    folder = tmp_path_factory.mktemp("scattered")
    fleet.save_model(folder / "model", "bert", random_norms=False, num_hidden_layers=4)
    chosen = fleet.settings().model_copy(update={"chain": ScatteredSettings()})
    federation = Federation(
        model_dir=folder / "model",
        data=fleet.save_texts(folder / "train.jsonl", fleet.texts(48)),
        test=fleet.save_texts(folder / "test.jsonl", fleet.texts(8, seed=9)),
        settings=chosen,
        devices=4,
        rounds=3,
        alpha=None,
        memory_budgets=(fleet.ROOMY_BYTES,),
    )
    run(federation, out=folder / "run")
    yield folder
    unregister_schema("scattered")
    registry.unregister("scattered")


def states(folder: Path) -> list[Artifact[StateManifest]]:
    return [open_artifact(folder / "run" / "states" / f"{number:04d}", StateManifest) for number in range(4)]


def updates(folder: Path, round_number: int) -> list[Artifact[UpdateManifest]]:
    found = sorted((folder / "run" / "updates" / f"{round_number:04d}").iterdir())
    return [open_artifact(path, UpdateManifest) for path in found if not path.name.startswith(".")]


def test_devices_train_sets_of_layers_of_their_own(ran: Path) -> None:
    sets = [one.manifest.assignment.layers for number in range(3) for one in updates(ran, number)]
    assert all(len(layers) == 2 for layers in sets)
    assert len(set(sets)) > 2
    assert any(later - earlier > 1 for earlier, later in sets)  # with gaps
    assert {one.manifest.assignment.extra["round"] for one in updates(ran, 2)} == {(2,)}


def test_updates_hold_what_no_state_has_and_report_a_number(ran: Path) -> None:
    for update in updates(ran, 0):
        assert [(one.name, one.shape) for one in update.manifest.tensors] == [("stacked.up", (2, 64, 8))]
        assert update.manifest.numbers["last-loss"] == pytest.approx(update.manifest.loss.last)


def test_a_round_may_close_without_moving_the_model(ran: Path) -> None:
    found = states(ran)
    assert [state.manifest.moved for state in found] == [False, True, False, True]
    digests = [{one.name: one.sha256 for one in state.manifest.tensors} for state in found]
    assert digests[1] != digests[0]
    assert digests[2] == digests[1]
    assert digests[3] != digests[2]
    assert found[2].manifest.accepted_count == 4


def test_updates_are_combined_as_the_method_says(ran: Path) -> None:
    sent = {
        layer: [
            read_tensors(one)["stacked.up"][one.manifest.assignment.layers.index(layer)]
            for one in updates(ran, 0)
            if layer in one.manifest.assignment.layers
        ]
        for layer in range(4)
    }
    after, before = (read_tensors(state) for state in (states(ran)[1], states(ran)[0]))
    for layer, values in sent.items():
        name = adapter_names(layer)[2]
        expected = np.mean(values, axis=0, dtype=np.float32) if values else before[name]
        assert np.array_equal(after[name], expected)


def test_an_evaluation_applies_what_the_method_says(ran: Path) -> None:
    test = ran / "test.jsonl"
    own = fleet.run_eval(ran / "run", ran / "model", test, ran / "own", state="states/0003").manifest
    halved = {name: values * 0.5 if ".up." in name else values for name, values in read_tensors(states(ran)[3]).items()}
    fleet.rewrite(states(ran)[3], ran / "halved", halved)
    device = replace(ScatteredOnDevice())
    registry.register(Scattered(), DeviceMethod())  # the same adapters, applied as they are
    try:
        plain = fleet.run_eval(ran / "run", ran / "model", test, ran / "plain", state=ran / "halved").manifest
        whole = fleet.run_eval(ran / "run", ran / "model", test, ran / "whole", state="states/0003").manifest
    finally:
        registry.register(Scattered(), device)
    assert isinstance(own, EvaluationManifest)
    assert own.loss == plain.loss
    assert own.loss != whole.loss


def test_everything_verifies_and_the_log_goes_back_to_the_start(ran: Path) -> None:
    for manifest in (ran / "run").rglob("manifest.json"):
        verify_artifact(manifest.parent)
    lines = history(ran / "run" / "states" / "0003", [])
    assert [line.round for line in lines] == [3, 2, 1, 0]
    assert lines[0].trained == "by device"
    assert all(line.accuracy is not None for line in lines)


def test_the_plan_says_what_it_costs(ran: Path) -> None:
    plan = open_artifact(ran / "run" / "plan", PlanManifest).manifest
    assert json.loads(plan.canonical_bytes())["settings"]["chain"] == {"method": "scattered", "layers_per_device": 2}
    assert "1000 backward" in explain_plan(plan, registry.server_method("scattered"))


@pytest.mark.parametrize(
    ("changes", "tensors", "reason"),
    [
        ({"assignment": Assignment(layers=(0, 1, 2))}, None, "another-assignment"),
        ({"numbers": {}}, None, "numbers"),
        ({"numbers": {"last-loss": 1.0, "more": 2.0}}, None, "numbers"),
        ({}, {"stacked.up": np.zeros((1, 64, 8), np.float32)}, "tensors"),
        ({}, {"head.classifier.bias": np.zeros(2, np.float32)}, "tensors"),
        ({}, {"stacked.up": np.full((2, 64, 8), np.nan, np.float32)}, "not-finite"),
    ],
)
def test_the_intake_asks_for_what_the_method_expects(
    ran: Path, tmp_path: Path, changes: dict[str, Any], tensors: dict[str, np.ndarray] | None, reason: str
) -> None:
    honest, *_ = updates(ran, 0)
    bad = tmp_path / "bad"
    manifest = replace(honest, manifest=honest.manifest.model_copy(update=changes))
    fleet.rewrite(manifest, bad, tensors or read_tensors(honest))
    refused: list[RefusedUpdate] = []
    others = [one.path for one in updates(ran, 0)[1:]]
    state = shutil.copytree(ran / "run" / "states" / "0000", tmp_path / "states" / "0000")  # this round is open
    aggregate.run(
        [bad, *others],
        plan=ran / "run" / "plan",
        state=state,
        out=tmp_path / "states" / "0001",
        on_refusal=lambda one, place: refused.append(one),
    )
    assert [one.reason for one in refused] == [reason]


def test_a_machine_that_is_no_simulation_trains_the_same(ran: Path, tmp_path: Path) -> None:
    whole = updates(ran, 0)[0].manifest
    shard = ran / "run" / "shards" / f"{whole.device}.jsonl"
    alone = fleet.run_train(
        ran / "run", ran / "model", shard, tmp_path / "update", device=whole.device, state="states/0000"
    )
    assert not Machine(ran / "model").simulates
    assert alone.digest == whole.digest
