"""Whatever windows devices train and whatever malicious ones send: a tensor moves as honest ones say, or stays.

On real artifacts, against each strategy's definition, tensor by tensor.
"""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as fast
from hypothesis import strategies as st

from schemas.assignment import Assignment
from schemas.errors import TooFewUpdates
from schemas.settings import FederationSettings
from schemas.state import StateManifest
from schemas.update import UpdateManifest
from stages.federated import aggregation
from stages.federated.aggregation import CHUNK_ELEMENTS, Aggregation, chunk_size, split_moment
from stages.methods.server import trains
from stages.store.artifact import Artifact, open_artifact, read_tensors, tensor_file
from stages.tuning.tensors import adapter_names
from tests import fleet

State = Artifact[StateManifest]
Sent = dict[str, np.ndarray]
ROBUST = ("coordinate-median", "trimmed-mean", "krum", "multi-krum")
BOTH, LAST = Assignment(layers=(0, 1)), Assignment(layers=(1,))


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> State:
    return fleet.make_world(tmp_path_factory.mktemp("world"))[1]


@dataclass(frozen=True)
class Round:
    """What each device sent of layers 0 to 2 and the head, as differences, and which devices are malicious."""

    settings: FederationSettings
    sent: Sequence[Sent]
    liars: frozenset[int]

    def holders(self, name: str) -> list[int]:
        return [index for index, differences in enumerate(self.sent) if name in differences]


@st.composite
def rounds(draw: st.DrawFn, strategies: Sequence[str] = ROBUST) -> Round:
    """Three to nine devices, as many malicious among them as the strategy is to withstand.

    Everybody trains any layers; malicious devices send large values, nothing, or what an honest one sends.
    """
    strategy: Any = draw(st.sampled_from(strategies))
    malicious = draw(st.integers(0, 2))
    count = draw(st.integers(2 * malicious + 3, 9))
    options: dict[str, Any] = {"assumed_malicious": malicious}
    if strategy == "trimmed-mean":
        options = {"trim_fraction": malicious / count}
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    liars = frozenset(random.permutation(count)[:malicious].tolist())
    wide = draw(st.floats(0, 1))  # the share of devices that train all
    sent: list[Sent] = []
    for index in range(count):
        layers = {0, 1, 2} if random.random() < wide else set(random.choice(3, random.integers(1, 4)).tolist())
        names = [name for layer in layers for name in adapter_names(layer)] + ["head.classifier.weight"]
        scale = 1.0
        if index in liars:
            scale = draw(st.sampled_from([0.0, -1.0, 50.0, -1e6, 1e15]))
        sent.append({name: scale * random.standard_normal((2, 4)) for name in names})
    return Round(FederationSettings(strategy=strategy, **options), sent, liars)


def moved(folder: Path, parent: State, a_round: Round) -> Sent:
    """How far each tensor of the parent moves, (2, 4) float64."""
    before = read_tensors(parent)
    updates = []
    for index, differences in enumerate(a_round.sent):
        tensors = {
            name: (before[name].astype(np.float64) + values).astype(np.float32) for name, values in differences.items()
        }
        path = fleet.make_update(folder / str(index), parent, f"d{index}", seed=index, count=1 + index, tensors=tensors)
        updates.append(open_artifact(path, UpdateManifest))
    found = Aggregation(parent, updates, a_round.settings)
    with ExitStack() as stack:
        sources: list[Artifact[Any]] = [parent, *updates]
        files = [stack.enter_context(tensor_file(source)) for source in sources]
        found.settle(files)
        after = {name: np.concatenate(list(found.chunks(name, files))) for name in found.shapes()}
    return {name: values.astype(np.float64).reshape(2, 4) - before[name] for name, values in after.items()}


@fast(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_tensor_moves_as_honest_devices_say_or_not_at_all(
    parent: State, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    a_round = data.draw(rounds())
    try:
        found = moved(tmp_path_factory.mktemp("sent"), parent, a_round)
    except TooFewUpdates:
        assert all(len(a_round.holders(name)) < 3 for name in a_round.sent[0]) or a_round.settings.assumed_malicious
        return
    for group in {tuple(a_round.holders(name)) for name in found}:
        names = [name for name in found if tuple(a_round.holders(name)) == group]
        honest = [index for index in group if index not in a_round.liars]
        if a_round.settings.strategy.endswith("krum"):
            assert_near_the_honest(a_round, names, group, honest, found)
        else:
            assert_between_the_honest(a_round, names, honest, found)


def assert_between_the_honest(a_round: Round, names: list[str], honest: list[int], found: Sent) -> None:
    for name in names:
        if found[name].any():
            values = np.array([a_round.sent[index][name] for index in honest])
            assert (found[name] >= values.min(axis=0) - 1e-5).all()
            assert (found[name] <= values.max(axis=0) + 1e-5).all()


def assert_near_the_honest(
    a_round: Round, names: list[str], group: tuple[int, ...], honest: list[int], found: Sent
) -> None:
    """What is kept has a score of at most (n − f − 2) D², D the largest distance of two honest ones.

    At least one of its n − f − 2 neighbours is honest: it is at most √(n − f − 2) D away from one, and D further from
    any other.
    """
    together = np.concatenate([found[name].ravel() for name in names])
    count, malicious = len(group), a_round.settings.assumed_malicious
    if count < 2 * malicious + 3:
        assert not together.any()
        return
    honest_KE = [np.concatenate([a_round.sent[index][name].ravel() for name in names]) for index in honest]
    widest = max((float(np.linalg.norm(one - other)) for one, other in combinations(honest_KE, 2)), default=0.0)
    for one in honest_KE:
        assert np.linalg.norm(together - one) <= ((count - malicious - 2) ** 0.5 + 1) * widest + 1e-4


def textbook(settings: FederationSettings, values_KE: np.ndarray, counts: list[int]) -> np.ndarray:
    """The definitions, one value after the other."""
    count, malicious = len(values_KE), settings.assumed_malicious
    if settings.clip_norm != "none":
        norms = [sum(value**2 for value in row) ** 0.5 for row in values_KE.tolist()]
        bound = np.median(norms) if settings.clip_norm == "median" else settings.clip_norm
        values_KE = np.array([row * min(1.0, bound / norm) for row, norm in zip(values_KE, norms, strict=True)])
    if settings.strategy == "weighted-mean":
        return np.asarray(np.average(values_KE, axis=0, weights=counts))
    if settings.strategy == "coordinate-median":
        return np.asarray(np.median(values_KE, axis=0))
    if settings.strategy == "trimmed-mean":
        cut = max(1, int(settings.trim_fraction * count + 1e-9))
        return np.array([np.mean(sorted(column)[cut : count - cut]) for column in values_KE.T.tolist()])
    scores = []
    for one in values_KE:
        near = sorted(float(((one - other) ** 2).sum()) for other in values_KE)[1:]  # the first is oneself
        scores.append(sum(near[: count - malicious - 2]))
    keep = 1 if settings.strategy == "krum" else count - malicious
    return np.asarray(values_KE[np.argsort(scores)[:keep]].mean(axis=0))


@pytest.mark.parametrize("clip", ["none", "median", 3.0, 0.5])
@pytest.mark.parametrize("strategy", ["weighted-mean", *ROBUST])
def test_where_all_hold_all_it_is_the_textbooks_formula(
    strategy: Any, clip: Any, parent: State, tmp_path: Path
) -> None:
    clip_norm: Any = "none" if strategy.endswith("krum") else clip  # which of them clipping would leave is not defined
    settings = FederationSettings(strategy=strategy, assumed_malicious=1, clip_norm=clip_norm)
    random = np.random.default_rng(7)
    sent = [{name: random.standard_normal((2, 4)) for name in fleet.trained_tensors(parent)} for _ in range(7)]
    found = moved(tmp_path, parent, Round(settings, sent, frozenset()))
    names = list(sent[0])
    values_KE = np.array([np.concatenate([one[name].ravel() for name in names]) for one in sent])
    together = np.concatenate([found[name].ravel() for name in names])
    assert np.allclose(together, textbook(settings, values_KE, [*range(1, 8)]), atol=1e-6)
    assert not any(values.any() for name, values in found.items() if name not in names)


def close(folder: Path, narrow: int, *, shuffle: int = 0, **federation: Any) -> State:
    """Five devices: some honest ones train layer 1 only, one adds 50 to layer 0.  `shuffle` orders them otherwise."""
    _, state = fleet.make_world(folder, devices=tuple("abcde"), federation={"max_update_norm": "none", **federation})
    before, paths = read_tensors(state), []
    for index, device in enumerate("abcde"):
        assignment = LAST if index < narrow else BOTH
        random = np.random.default_rng(index)
        tensors = {
            name: values + 0.05 * random.standard_normal(values.shape).astype(np.float32)
            for name, values in before.items()
            if trains(name, set(assignment.layers))
        }
        if device == "e":
            tensors |= {name: before[name] + np.float32(50) for name in adapter_names(0)}
        changes: dict[str, object] = {"assignment": assignment}
        paths.append(
            fleet.make_update(folder / "in" / device, state, device, seed=index, tensors=tensors, changes=changes)
        )
    order = np.random.default_rng(shuffle).permutation(5)
    return fleet.combine(folder, [paths[index] for index in order])


def distance(folder: Path, made: State, layer: int) -> float:
    before, after = (read_tensors(one) for one in (open_artifact(folder / "state", StateManifest), made))
    return float(np.linalg.norm([np.linalg.norm(after[name] - before[name]) for name in adapter_names(layer)]))


STRATEGIES: list[dict[str, Any]] = [
    {"strategy": "krum", "assumed_malicious": 1},
    {"strategy": "multi-krum", "assumed_malicious": 1},
    {"strategy": "coordinate-median"},
    {"strategy": "trimmed-mean", "trim_fraction": 0.2},
    {"clip_norm": "median"},
]


@pytest.mark.parametrize("narrow", range(5))
@pytest.mark.parametrize("federation", STRATEGIES)
def test_honest_devices_with_narrow_windows_do_not_blind_a_strategy(
    federation: dict[str, Any], narrow: int, tmp_path: Path
) -> None:
    """50 was added to each value of layer 0; what an honest device moves is about 0.3."""
    made = close(tmp_path, narrow, **federation)
    assert distance(tmp_path, made, 0) < 0.5
    assert distance(tmp_path, made, 1) < 0.5
    needed = {"krum": 5, "multi-krum": 5, "coordinate-median": 3, "trimmed-mean": 3}.get(
        federation.get("strategy", ""), 1
    )
    kept = {one.layer: one.kept for one in made.manifest.coverage}
    assert kept == {0: "too-few-devices" if 5 - narrow < needed else "", 1: ""}
    assert (distance(tmp_path, made, 0) == 0) == (5 - narrow < needed)


@pytest.mark.parametrize("federation", STRATEGIES)
def test_the_order_of_updates_with_other_windows_changes_no_bit(federation: dict[str, Any], tmp_path: Path) -> None:
    made = {close(tmp_path / str(seed), 2, shuffle=seed, **federation).digest for seed in range(3)}
    assert len(made) == 1


def test_coverage_says_how_many_a_layer_withstands(tmp_path: Path) -> None:
    made = close(tmp_path, 1, strategy="coordinate-median")
    assert [(one.layer, one.devices, one.tolerates) for one in made.manifest.coverage] == [(0, 4, 1), (1, 5, 2)]
    made = close(tmp_path / "mean", 1)
    assert [(one.devices, one.tolerates, one.kept) for one in made.manifest.coverage] == [(4, 0, ""), (5, 0, "")]


@pytest.mark.parametrize("optimizer", ["fedavgm", "fedadam", "fedyogi"])
def test_the_server_optimiser_does_not_step_what_is_kept(optimizer: str, tmp_path: Path) -> None:
    made = close(tmp_path, 1, strategy="krum", assumed_malicious=1, server_optimizer=optimizer)
    stepped = {one.tensor for one in made.manifest.server_steps}
    assert stepped == {*adapter_names(1), "head.classifier.weight"}
    moments = {one.name.split(".", 2)[2] for one in made.manifest.tensors if one.name.startswith("server.")}
    assert moments == stepped
    assert distance(tmp_path, made, 0) == 0


def test_moments_of_what_is_kept_stay_as_they_were(tmp_path: Path) -> None:
    """A tensor that moved in the round before is held by too few: values, moments and steps stay, to the bit."""
    federation = {"strategy": "krum", "assumed_malicious": 1, "server_optimizer": "fedadam", "max_update_norm": "none"}
    _, state = fleet.make_world(tmp_path, devices=tuple("abcde"), federation=federation)
    made = []
    for number, narrow in enumerate((0, 1)):
        paths = []
        for index, device in enumerate("abcde"):
            layers = fleet.assigned(state).layers[int(index < narrow) :]
            tensors = {
                name: values + np.float32(0.01) * (index + 1)
                for name, values in read_tensors(state).items()
                if trains(name, set(layers))
            }
            path = tmp_path / f"in-{number}" / device
            changes: dict[str, object] = {"assignment": Assignment(layers=layers)}
            paths.append(fleet.make_update(path, state, device, seed=index, tensors=tensors, changes=changes))
        state = fleet.combine(tmp_path, paths, f"next-{number}", "state" if number == 0 else f"next-{number - 1}")
        made.append(state)
    first, second = (read_tensors(one) for one in made)
    steps = {one.tensor: one.steps for one in made[1].manifest.server_steps}
    for name in adapter_names(1):  # in the windows of both rounds
        assert steps[name] == 1
        for kept in (name, f"server.first.{name}", f"server.second.{name}"):
            assert first[kept].tobytes() == second[kept].tobytes()
    head = "head.classifier.weight"
    assert steps[head] == 2
    sent = np.array([0.01, 0.02, 0.03, 0.04, 0.05])  # one of which Krum has chosen: m ← β₁ m + (1 − β₁) Δ
    difference = (second[f"server.first.{head}"] - 0.9 * first[f"server.first.{head}"]) / (1 - 0.9)
    assert np.abs(difference[0, 0] - sent).min() < 1e-4
    assert np.allclose(difference, difference[0, 0], atol=1e-4)


def test_a_round_in_which_no_tensor_has_enough_holders_does_not_close(tmp_path: Path) -> None:
    with pytest.raises(TooFewUpdates, match="Multi-Krum") as caught:
        close(tmp_path, 1, strategy="multi-krum", assumed_malicious=2)
    assert caught.value.values == {"needed": 7, "found": 5}
    assert not (tmp_path / "next").exists()


def test_a_number_clips_the_whole_update_whatever_its_window(parent: State, tmp_path: Path) -> None:
    """Nobody's difference is longer than the bound, over all its tensors together."""
    wide = {name: np.full((2, 4), 10.0) for name in fleet.trained_tensors(parent)}
    narrow = {name: wide[name] for name in adapter_names(1)}
    for index, sent in enumerate((wide, narrow)):
        settings = FederationSettings(clip_norm=0.5)
        found = moved(tmp_path / str(index), parent, Round(settings, [sent], frozenset()))
        assert sum(float((values**2).sum()) for values in found.values()) ** 0.5 == pytest.approx(0.5, rel=1e-4)


def test_the_median_norm_is_of_those_that_train_the_same(parent: State, tmp_path: Path) -> None:
    """All that an honest device moves in three tensors is no bound for what may be done to one of them."""
    name, *others = sorted(fleet.trained_tensors(parent))
    honest = {name: np.full((2, 4), 0.01)} | {other: np.full((2, 4), 1.0) for other in others}
    sent = [honest, honest, honest, {name: np.full((2, 4), 1.0)}, {other: honest[other] for other in others}]
    found = moved(tmp_path, parent, Round(FederationSettings(clip_norm="median"), sent, frozenset({3})))
    assert np.allclose(found[name], 0.01, atol=1e-6)


@pytest.mark.parametrize(("count", "elements"), [(1, 2**18), (15, 2**15), (20, 24_966), (511, 1024), (10_000, 1024)])
def test_chunks_that_are_read_side_by_side_are_small_together(count: int, elements: int) -> None:
    """2 MiB of float32, the parent's included, down to 4 KiB of each; one after the other, 256 KiB."""
    assert chunk_size(count) == elements
    assert 4 * CHUNK_ELEMENTS == 256 * 2**10


def test_what_all_agree_on_comes_out_though_the_parent_is_far_from_it(parent: State, tmp_path: Path) -> None:
    """1e-8 − 1 is no float32."""
    before = {name: values.astype(np.float64) for name, values in fleet.trained_tensors(parent).items()}
    sent = [{name: 1e-8 - values for name, values in before.items()}] * 3
    found = moved(tmp_path, parent, Round(FederationSettings(strategy="coordinate-median"), sent, frozenset()))
    for name, values in before.items():
        assert np.allclose(values + found[name], 1e-8, rtol=1e-3, atol=0)


@pytest.mark.parametrize("size", [1, 3, 7, 8, 9])
@pytest.mark.parametrize("federation", [{}, {"strategy": "trimmed-mean", "server_optimizer": "fedyogi"}])
def test_chunks_of_any_size_give_the_same_state(
    federation: dict[str, Any], size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors have eight elements: chunks that end with them, and just before."""
    whole = close(tmp_path / "whole", 1, **federation)
    monkeypatch.setattr(aggregation, "CHUNK_ELEMENTS", size)
    monkeypatch.setattr(aggregation, "chunk_size", lambda count: size)
    assert close(tmp_path / "parts", 1, **federation).digest == whole.digest


def test_a_moment_s_name_has_its_tensor_s_in_it() -> None:
    assert split_moment("server.first.adapters.0.up.bias") == ("first", "adapters.0.up.bias")
    assert split_moment("head.server.weight") == ("", "head.server.weight")


def test_commands_say_which_layers_were_kept_and_why(tmp_path: Path) -> None:
    close(tmp_path, 1, strategy="krum", assumed_malicious=1)
    round_of = ("--plan", tmp_path / "plan", "--state", tmp_path / "state", "--out", tmp_path / "next")
    done = fleet.chainctl("aggregate", tmp_path / "in", *round_of)
    said = "layer 0: trained by 4 devices, too few for the plan's strategy: it stays as it was"
    assert done.stderr.splitlines() == [said]
    told = json.loads(fleet.chainctl("aggregate", tmp_path / "in", *round_of, "--json").stdout)
    assert [(one["layer"], one["kept"]) for one in told["coverage"]] == [(0, "too-few-devices"), (1, "")]
    inspected = fleet.chainctl("inspect", tmp_path / "next").stdout
    assert said in inspected
    assert "layer 1: trained by 5 devices, of which 1 may be malicious" in inspected
    assert "0-1 without 0 " in fleet.chainctl("log", tmp_path / "next").stdout
    logged = json.loads(fleet.chainctl("log", tmp_path / "next", "--json").stdout)
    assert [line["kept"] for line in logged["history"]] == [[0], []]
