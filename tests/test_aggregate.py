"""FedAvg: its laws, in float32 to the bit; what is refused, and that a round closes without it."""

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as fast
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from schemas.assignment import Assignment
from schemas.base import canonical_json
from schemas.errors import TooFewUpdates, UsageProblem
from schemas.methods import ChainProgress, default_settings
from schemas.plan import PlanManifest
from schemas.refusal import RefusalManifest
from schemas.settings import OptimizerSettings
from schemas.state import StateManifest
from schemas.update import TrainingLoss, UpdateManifest
from stages.federated import intake
from stages.federated.delivery import RefusedUpdate
from stages.federated.intake import Intake
from stages.federated.sampling import sample_devices
from stages.federated.weighted_mean import weighted_mean
from stages.methods.chain.server import advance
from stages.methods.registry import server_method
from stages.methods.server import trains
from stages.store.artifact import Artifact, open_artifact, read_tensors, verify_artifact
from stages.store.devices import accepted_updates
from stages.store.ledger import Ledger
from stages.store.lineage import history
from stages.tuning.tensors import adapter_names
from tests import fleet
from tests.fleet import DEVICES, ROOT, combine, flip, make_update, make_world


@fast(max_examples=200, deadline=None)
@given(
    values=arrays.arrays(np.float32, 8, elements=st.floats(-(2.0**127), 2.0**127, width=32)),
    weights=st.lists(st.integers(1, 10**6), min_size=1, max_size=20),
)
def test_the_mean_of_equal_updates_is_that_update_to_the_bit(values: np.ndarray, weights: list[int]) -> None:
    # Compared as bytes: array_equal takes -0.0 for 0.0, a digest does not.
    assert weighted_mean([values] * len(weights), weights).tobytes() == values.tobytes()


def test_weights_are_example_counts(tmp_path: Path) -> None:
    _, state = make_world(tmp_path)
    counts = {"a": 1, "b": 10, "c": 100}
    paths = [
        make_update(tmp_path / name, state, name, seed=seed, count=counts[name]) for seed, name in enumerate(DEVICES)
    ]
    found = read_tensors(combine(tmp_path, paths))
    updates = [open_artifact(path, UpdateManifest) for path in paths]
    before = read_tensors(state)
    layers = set(fleet.assigned(state).layers)
    for name in found:
        if trains(name, layers):
            parts = [
                read_tensors(update)[name].astype(np.float64) * update.manifest.example_count for update in updates
            ]
            assert np.allclose(found[name], sum(parts) / 111, rtol=1e-6)
        else:
            assert np.array_equal(found[name], before[name])


@fast(max_examples=50, deadline=None)
@given(
    values=arrays.arrays(np.float32, (5, 8), elements=st.floats(-(2.0**100), 2.0**100, width=32)),
    weights=st.lists(st.integers(1, 10**6), min_size=5, max_size=5),
)
def test_the_mean_is_the_float64_formula(values: np.ndarray, weights: list[int]) -> None:
    w_K = np.array(weights, np.float64)
    expected_E = (values.astype(np.float64) * w_K[:, None]).sum(axis=0) / w_K.sum()
    found_E = weighted_mean(list(values), weights)
    assert found_E.dtype == np.float32
    scale = np.abs(values.astype(np.float64)).max()
    assert np.allclose(found_E, expected_E, rtol=2.0**-23, atol=float(scale) * 1e-14 + 2.0**-149)


def test_equal_updates_and_untrained_tensors_come_back_by_digest_even_negative_zeros(tmp_path: Path) -> None:
    _, state = make_world(tmp_path)
    tensors = read_tensors(state)
    for values in tensors.values():
        values.setflags(write=True)
        values[0, 0] = -0.0
    fleet.rewrite(state, state.path, tensors, force=True)
    state = open_artifact(tmp_path / "state", StateManifest)
    layers = set(fleet.assigned(state).layers)
    trained = {name: values for name, values in tensors.items() if trains(name, layers)}
    paths = [make_update(tmp_path / name, state, name, seed=0, count=3, tensors=trained) for name in DEVICES]
    before = {reference.name: reference.sha256 for reference in state.manifest.tensors}
    after = {reference.name: reference.sha256 for reference in combine(tmp_path, paths).manifest.tensors}
    assert {name for name in before if before[name] != after[name]} == set()


def test_order_and_repetition_do_not_matter(tmp_path: Path) -> None:
    _, state = make_world(tmp_path)
    paths = [make_update(tmp_path / name, state, name, seed=seed) for seed, name in enumerate(DEVICES)]
    shutil.copytree(paths[0], tmp_path / "copy")
    orders = [paths, paths[::-1], [*paths, paths[1], tmp_path / "copy"]]
    digests = {combine(tmp_path, order, f"next-{index}").digest for index, order in enumerate(orders)}
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("changes", "reason", "says"),
    [
        ({"plan": "sha256:" + "1" * 64}, "another-plan", "another plan"),
        ({"state": "sha256:" + "1" * 64}, "another-state", "another state"),
        ({"round": 7}, "another-round", "another round"),
        ({"assignment": Assignment(layers=(1, 2))}, "another-assignment", "something else"),
        ({"assignment": Assignment(layers=(0,))}, "another-assignment", "something else"),
        ({"assignment": Assignment()}, "another-assignment", "something else"),
        ({"assignment": Assignment(layers=(0, 1), extra={"ranks": (1,)})}, "another-assignment", "something else"),
        ({"device": "stranger"}, "another-device", "does not take part"),
        ({"example_count": 1001}, "example-count", "more texts"),
        ({"steps": 2}, "step-count", "number of steps"),
        ({"numbers": {"score": 1.0}}, "numbers", "numbers"),
        ({"value": np.nan}, "not-finite", "head.classifier.weight"),
        ({"value": -np.inf}, "not-finite", "head.classifier.weight"),
        ({"value": 1e30}, "norm", "further from the state"),
    ],
)
def test_an_update_that_does_not_belong_is_refused_and_the_others_count(
    changes: dict[str, object], reason: str, says: str, tmp_path: Path
) -> None:
    _, state = make_world(tmp_path)
    inbox = tmp_path / "inbox"
    good = make_update(inbox / "a", state, "a", seed=0)
    make_update(inbox / "b", state, "b", seed=1, changes=changes)
    seen: list[tuple[RefusedUpdate, Path | None]] = []
    made = combine(tmp_path, [inbox], on_refusal=lambda refused, place: seen.append((refused, place)))
    assert fleet.accepted_devices(made) == ["a"]
    ((refused, place),) = seen
    assert (refused.reason, refused.path) == (reason, inbox / "b")
    assert says in refused.error.fact
    assert {"expected", "found"} <= set(refused.error.values) or reason in ("norm", "example-count")
    assert place is not None
    assert place.parent == inbox / ".refused"
    assert verify_artifact(place).manifest.KIND == "update"
    why = RefusalManifest.from_bytes(place.with_name(f"{place.name}.json").read_bytes(), source="why")
    assert (why.reason, why.state) == (reason, state.digest)
    assert why.fact == refused.error.fact.replace(f"{inbox}/", "")
    events = list(Ledger(tmp_path / "ledger.jsonl").events())
    assert [event.event for event in events] == ["refused", "accepted", "closed"]
    assert sorted(path.name for path in inbox.iterdir()) == [".refused", "a"]
    again = combine(tmp_path, [good])  # the same command, the same state
    assert again.digest == made.digest
    assert list(Ledger(tmp_path / "ledger.jsonl").events()) == events


def test_two_different_updates_of_a_device_are_refused_and_wait_for_a_person(tmp_path: Path) -> None:
    _, state = make_world(tmp_path)
    paths = [make_update(tmp_path / "in" / str(seed), state, "a", seed=seed) for seed in (1, 2)]
    digests = [open_artifact(path, UpdateManifest).digest for path in paths]
    with pytest.raises(TooFewUpdates, match="2 different updates"):
        combine(tmp_path, paths)
    assert not (tmp_path / "next").exists()
    kept = {verify_artifact(path).digest: path for path in (tmp_path / "in" / ".refused").iterdir() if path.is_dir()}
    assert sorted(kept) == sorted(digests)
    assert [one.update for one in accepted_updates(combine(tmp_path, [kept[digests[0]]]))] == digests[:1]


@pytest.mark.parametrize("first", ["whole", "altered"])
def test_an_altered_copy_is_refused_whatever_the_order_and_the_whole_one_counts(first: str, tmp_path: Path) -> None:
    _, state = make_world(tmp_path)
    whole = make_update(tmp_path / "whole", state, "a", seed=0)
    altered = shutil.copytree(whole, tmp_path / "altered")
    flip(altered / "tensors.safetensors", -2)
    paths = sorted([whole, altered], key=lambda path: path.name != first)
    seen: list[str] = []
    made = combine(tmp_path, paths, on_refusal=lambda refused, place: seen.append(refused.reason))
    assert fleet.accepted_devices(made) == ["a"]
    assert seen == ["altered"]


def test_altered_tensors_alone_close_no_round(tmp_path: Path) -> None:
    _, state = make_world(tmp_path)
    path = make_update(tmp_path / "a", state, "a", seed=0)
    flip(path / "tensors.safetensors", -2)
    with pytest.raises(TooFewUpdates, match="altered") as caught:
        combine(tmp_path, [path])
    assert caught.value.exit_code == 6
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".refused", "ledger.jsonl", "plan", "state"]


def test_updates_all_of_another_federation_are_left_where_they_are(tmp_path: Path) -> None:
    """The wrong --plan or --state was given: that is nobody's attack."""
    make_world(tmp_path)
    _, other = make_world(tmp_path / "other", patience=9)
    path = make_update(tmp_path / "a", other, "a", seed=0)
    with pytest.raises(TooFewUpdates, match="another plan"):
        combine(tmp_path, [path])
    assert verify_artifact(path)


def test_what_counted_in_a_round_before_is_passed_over(tmp_path: Path) -> None:
    _, state = make_world(tmp_path)
    old = [make_update(tmp_path / "in" / name, state, name, seed=seed) for seed, name in enumerate(DEVICES)]
    following = combine(tmp_path, [tmp_path / "in"])
    new = make_update(tmp_path / "in" / "new-a", following, "a", seed=7)
    made = combine(tmp_path, [tmp_path / "in"], "third", "next")
    assert [update.update for update in accepted_updates(made)] == [open_artifact(new, UpdateManifest).digest]
    assert all(path.exists() for path in old)


def test_a_closed_round_is_not_closed_again_with_other_updates(tmp_path: Path) -> None:
    _, state = make_world(tmp_path)
    paths = [make_update(tmp_path / name, state, name, seed=seed) for seed, name in enumerate(DEVICES)]
    combine(tmp_path, paths[:2])
    with pytest.raises(UsageProblem, match="closed already"):
        combine(tmp_path, paths, "late")
    assert not (tmp_path / "late").exists()


def test_a_quorum_decides_whether_a_round_closes(tmp_path: Path) -> None:
    _, state = make_world(tmp_path, federation={"quorum": 2})
    paths = [make_update(tmp_path / name, state, name, seed=seed) for seed, name in enumerate(DEVICES)]
    with pytest.raises(TooFewUpdates) as caught:
        combine(tmp_path, paths[:1])
    assert caught.value.exit_code == 6
    assert caught.value.values["missing"] == "b, c"
    assert not (tmp_path / "next").exists()
    with pytest.raises(TooFewUpdates):
        combine(tmp_path, paths[:2], quorum=3)
    made = combine(tmp_path, paths[:2])
    assert made.manifest.accepted_count == 2
    assert [(one.layer, one.devices, one.example_count) for one in made.manifest.coverage] == [(0, 2, 10), (1, 2, 10)]


def test_no_updates_do_not_close_a_round(tmp_path: Path) -> None:
    make_world(tmp_path)
    with pytest.raises(TooFewUpdates, match="a, b, c") as caught:
        combine(tmp_path, [])
    assert caught.value.exit_code == 6


def test_junk_among_the_updates_is_passed_over(tmp_path: Path) -> None:
    _, state = make_world(tmp_path)
    inbox = tmp_path / "inbox"
    make_update(inbox / "a", state, "a", seed=0)
    for number in range(10_000):
        (inbox / f"junk-{number}").mkdir()
    (inbox / "note.txt").write_text("hello")
    for number, kind in enumerate(("[]", '{"a": 1}', "null", '"update"', "7")):
        (inbox / f"odd-{number}").mkdir()
        (inbox / f"odd-{number}" / "manifest.json").write_text(f'{{"kind": {kind}, "version": [1]}}')
    os.mkfifo(inbox / "pipe")
    assert combine(tmp_path, [inbox]).manifest.accepted_count == 1
    assert len(list(inbox.iterdir())) == 10_004  # the odd ones are set aside


@pytest.mark.parametrize("optimizer", [{"name": "adamw", "weight_decay": 0.1}, {"name": "adamw"}])
def test_the_automatic_cap_is_above_what_adamw_can_do(optimizer: dict[str, Any], tmp_path: Path) -> None:
    """Worst case for Adam: gradients that are nothing for long, and then not; and constant ones."""
    import torch

    from stages.training.optimizer import Optimizer

    chosen = OptimizerSettings(learning_rate=1e-2, **optimizer)
    plan, state = make_world(tmp_path)
    settings = plan.manifest.settings.model_copy(update={"optimizer": chosen})
    plan = Artifact(plan.path, plan.manifest.model_copy(update={"settings": settings}), plan.digest)
    intake = Intake(plan, state, {}, server_method("chain"))
    before = read_tensors(state)
    names = [name for name in before if trains(name, set(fleet.assigned(state).layers))]
    update = fleet.update_manifest(device="a", assignment=state.manifest.assignment, tensors=(), files=())
    for pattern in ("late", "constant", "growing"):
        parameters = [torch.from_numpy(before[name].copy()).requires_grad_() for name in names]
        learner = Optimizer(chosen)
        learner.add(0, parameters)
        for step in range(1, 1001):
            size = {"late": float(step > 900), "constant": 1.0, "growing": 1.2**step if step < 400 else 1.2**400}[
                pattern
            ]
            for parameter in parameters:
                parameter.grad = torch.full_like(parameter, size)
            learner.step()
            cap = intake.norm_cap(Artifact(tmp_path, update.model_copy(update={"steps": step}), fleet.ZERO))
            assert cap is not None
            moved = sum(
                float(((parameter.detach().double() - torch.from_numpy(before[name]).double()) ** 2).sum())
                for name, parameter in zip(names, parameters, strict=True)
            )
            assert moved**0.5 <= cap


def rounds(folder: Path, **federation: object) -> list[dict[str, np.ndarray]]:
    """Two rounds of three honest devices and one that sends ten times the opposite; tensors of each state."""
    devices = ("a", "b", "c", "d", "e", "liar")
    _, state = make_world(folder, devices=devices, federation={"max_update_norm": "none", **federation})
    states = [read_tensors(state)]
    for number in range(2):
        draw = np.random.default_rng(number)
        trained = fleet.trained_tensors(state)
        goal = {name: draw.standard_normal(values.shape).astype(np.float32) for name, values in trained.items()}
        for index, device in enumerate(devices):
            noise = np.random.default_rng(10 * number + index)
            sent = {
                name: values
                + (-10.0 if device == "liar" else 1.0) * goal[name]
                + 0.01 * noise.standard_normal(values.shape).astype(np.float32)
                for name, values in trained.items()
            }
            make_update(folder / f"in-{number}" / device, state, device, seed=index, count=1 + index, tensors=sent)
        before = "state" if number == 0 else f"next-{number - 1}"
        state = combine(folder, [folder / f"in-{number}"], f"next-{number}", before)
        states.append(read_tensors(state) | {"goal " + name: values for name, values in goal.items()})
    return states


@pytest.mark.parametrize(
    ("federation", "survives"),
    [
        ({}, False),
        ({"strategy": "coordinate-median"}, True),
        ({"strategy": "trimmed-mean"}, True),
        ({"strategy": "krum", "assumed_malicious": 1}, True),
        ({"strategy": "multi-krum", "assumed_malicious": 1}, True),
    ],
)
def test_one_liar_turns_the_mean_and_no_robust_strategy(
    federation: dict[str, object], survives: bool, tmp_path: Path
) -> None:
    states = rounds(tmp_path, **federation)
    goals = [name for name in states[1] if name.startswith("goal ")]
    moved = {name: states[1][name.removeprefix("goal ")] - states[0][name.removeprefix("goal ")] for name in goals}
    close = all(np.abs(moved[name] - states[1][name]).max() < 0.1 for name in goals)
    assert close == survives


def test_krum_with_too_few_updates_closes_no_round(tmp_path: Path) -> None:
    with pytest.raises(TooFewUpdates, match="Krum") as caught:
        rounds(tmp_path, strategy="krum", assumed_malicious=2)
    assert caught.value.values == {"needed": 7, "found": 6}
    assert not (tmp_path / "next-0").exists()


@pytest.mark.parametrize("name", ["fedavgm", "fedadam", "fedyogi"])
def test_moments_rest_while_a_tensor_is_out_of_the_window(name: str, tmp_path: Path) -> None:
    states = rounds(tmp_path, server_optimizer=name, strategy="coordinate-median")
    first, second = (open_artifact(tmp_path / f"next-{number}", StateManifest).manifest for number in (0, 1))
    steps = [{entry.tensor: entry.steps for entry in state.server_steps} for state in (first, second)]
    assert steps[1]["head.classifier.weight"] == 2
    only_first = [name for name in adapter_names(0) if name in steps[0]]
    assert only_first
    for tensor in only_first:
        assert steps[1][tensor] == 1
        assert np.array_equal(states[1][f"server.first.{tensor}"], states[2][f"server.first.{tensor}"])
        assert np.array_equal(states[1][tensor], states[2][tensor])
    assert ("server.second.head.classifier.weight" in states[1]) == (name != "fedavgm")
    settings = open_artifact(tmp_path / "plan", PlanManifest).manifest.settings.federation
    before, after = states[0]["head.classifier.weight"], states[1]["head.classifier.weight"]
    moment = states[1]["server.first.head.classifier.weight"]
    if name == "fedavgm":
        assert np.allclose(after, before + settings.server_learning_rate * moment, rtol=1e-6)


def test_devices_with_narrower_windows_are_averaged_by_layer(tmp_path: Path) -> None:
    """`b` could hold the second layer of the window only: the first is the mean of `a` and `c`."""
    _, state = make_world(tmp_path)
    whole = fleet.assigned(state)
    wide, shared = whole.layers
    paths = []
    for seed, name in enumerate(DEVICES):
        assignment = Assignment(layers=(shared,)) if name == "b" else whole
        tensors = {
            tensor: values + np.float32(0.01 * (seed + 1))
            for tensor, values in read_tensors(state).items()
            if trains(tensor, set(assignment.layers))
        }
        changes: dict[str, object] = {"assignment": assignment}
        paths.append(make_update(tmp_path / name, state, name, seed=seed, tensors=tensors, changes=changes))
    made = combine(tmp_path, paths)
    before, after = read_tensors(state), read_tensors(made)
    for tensor in after:
        expected = 0.0
        if tensor in adapter_names(wide):
            expected = 0.02  # (0.01 + 0.03) / 2
        elif tensor in adapter_names(shared) or tensor.startswith("head."):
            expected = 0.02  # (0.01 + 0.02 + 0.03) / 3
        assert np.allclose(after[tensor], before[tensor] + expected, atol=1e-6)
    coverage = [(entry.layer, entry.devices, entry.example_count) for entry in made.manifest.coverage]
    assert coverage == [(wide, 2, 10), (shared, 3, 15)]


def test_the_window_slides_every_round_and_cycles(tmp_path: Path) -> None:
    plan, _ = make_world(tmp_path)
    progress, seen = ChainProgress(), []
    for _ in range(2 * len(fleet.windows_of(plan.manifest))):
        seen.append(progress.window_index)
        progress = advance(plan.manifest, progress, 1.0)
    assert seen == [0, 1, 2, 3, 4] * 2


def test_the_plain_chain_waits_for_convergence(tmp_path: Path) -> None:
    plan, _ = make_world(tmp_path, advance="on-convergence", patience=2, window_size=1)
    progress, seen = ChainProgress(), []
    for loss in (1.0, 0.5, 0.5, 0.4, 0.4, 0.4, 2.0):
        progress = advance(plan.manifest, progress, loss)
        seen.append(progress.window_index)
    assert seen == [0, 0, 0, 0, 0, 1, 1]


@fast(max_examples=100, deadline=None)
@given(
    losses=st.lists(st.integers(0, 6).map(lambda quarters: quarters / 4), max_size=30),
    patience=st.integers(1, 4),
    floor=st.sampled_from([0.0, 0.25, 0.5]),
)
def test_a_window_is_left_when_patience_rounds_brought_too_little(
    losses: list[float], patience: int, floor: float
) -> None:
    """Oracle: the whole record of losses since the window began, looked through afresh each round."""
    with tempfile.TemporaryDirectory() as folder:
        plan, _ = make_world(Path(folder), advance="on-convergence", patience=patience, min_improvement=floor)
    progress = ChainProgress()
    expected, since = 0, list[float]()
    for loss in losses:
        progress = advance(plan.manifest, progress, loss)
        since.append(loss)
        best, stale = since[0], 0
        for value in since[1:]:
            best, stale = (value, 0) if value < best - floor else (best, stale + 1)
        if stale == patience:
            expected, since = (expected + 1) % len(fleet.windows_of(plan.manifest)), []
        assert progress.window_index == expected


@fast(max_examples=50, deadline=None)
@given(devices=st.sets(st.sampled_from("abcdefghij"), min_size=1), count=st.integers(1, 12), number=st.integers(0, 99))
def test_sampling_is_a_function_of_seed_and_round(devices: set[str], count: int, number: int) -> None:
    drawn = sample_devices(7, number, sorted(devices), count)
    assert drawn == sample_devices(7, number, sorted(devices, reverse=True), count)
    assert list(drawn) == sorted(set(drawn))
    assert len(drawn) == min(count, len(devices))


def test_memory_does_not_grow_with_the_number_of_updates(tmp_path: Path) -> None:
    """Measured in fresh processes: 2 updates of 4 MB against 16; a generous bound, so that this is no timing test."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path; from stages import aggregate; from stages.process.measure import peak_bytes\n"
        "folder = Path(sys.argv[2]); updates = sorted(folder.glob('update-*'))[: int(sys.argv[3])]\n"
        "out = folder / sys.argv[3] / 'next'\n"
        "aggregate.run(updates, plan=folder / 'plan', state=folder / 'state', out=out, force=True)\n"
        "print(peak_bytes())\n"
    )
    names = tuple(f"d{index:02d}" for index in range(16))
    _, state = make_world(tmp_path, width=50_000, devices=names)
    for seed, name in enumerate(names):
        make_update(tmp_path / f"update-{name}", state, name, seed=seed)
    peaks = []
    for count in (2, 16):
        command = [sys.executable, "-c", script, str(ROOT), str(tmp_path), str(count)]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    assert abs(peaks[1] - peaks[0]) < 12 * 2**20


def test_the_history_goes_back_to_round_zero_and_names_a_parent_that_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "federation"
    plan, state = make_world(folder)
    following = combine(
        folder, [make_update(folder / name, state, name, seed=seed) for seed, name in enumerate(DEVICES)]
    )
    lines = history(folder / "next", []).lines
    assert [(line.round, line.state, line.devices, line.texts) for line in lines] == [
        (1, following.digest, 3, 15),
        (0, state.digest, 0, 0),
    ]
    assert lines[0].trained == str(fleet.windows_of(plan.manifest)[0])
    assert [line.profiles for line in lines] == [plan.manifest.device_count] * 2
    shutil.rmtree(folder / "state")
    assert [line.missing_parent for line in history(folder / "next", []).lines] == [state.digest]


def test_a_loss_too_large_for_a_mean_is_refused_and_the_others_count(tmp_path: Path) -> None:
    """Two finite losses of 1e308 have no finite mean: nothing that one device says may stop a round."""
    _, state = make_world(tmp_path)
    huge = TrainingLoss.model_construct(first=1.0, last=1.0, mean=1e308, mean_local=1.0, mean_global=None)
    updates = [make_update(tmp_path / name, state, name, seed=number) for number, name in enumerate("ab")]
    bad = make_update(tmp_path / "c", state, "c", seed=7)
    manifest = json.loads((bad / "manifest.json").read_bytes())
    manifest["loss"] = huge.model_dump()
    (bad / "manifest.json").write_bytes(canonical_json(manifest))
    refused: list[RefusedUpdate] = []
    following = combine(tmp_path, [*updates, bad], on_refusal=lambda one, _: refused.append(one))
    assert [one.reason for one in refused] == ["unreadable"]
    assert following.manifest.accepted_count == 2


def test_an_update_that_the_system_cannot_read_is_refused_and_the_others_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, state = make_world(tmp_path)
    updates = [make_update(tmp_path / name, state, name, seed=number) for number, name in enumerate("abc")]
    read = open_artifact

    def broken(path: Path, kind: type[UpdateManifest]) -> Artifact[UpdateManifest]:
        if path.name == "b":
            raise OSError(errno.EIO, "Input/output error")
        return read(path, kind)

    monkeypatch.setattr(intake, "open_artifact", broken)
    refused: list[RefusedUpdate] = []
    following = combine(tmp_path, updates, on_refusal=lambda one, _: refused.append(one))
    assert [(one.reason, one.error.values["reason"]) for one in refused] == [("unreadable", "Input/output error")]
    assert following.manifest.accepted_count == 2


def test_a_plan_that_trains_nothing_has_no_rounds_whatever_is_sent(tmp_path: Path, tiny_bert: Path) -> None:
    chosen = fleet.settings().model_copy(update={"chain": default_settings("no-ft")})
    _, state = fleet.begin(tmp_path, tiny_bert, fleet.save_texts(tmp_path / "data.jsonl", fleet.texts(8)), chosen)
    tensors = {name: values + 1 for name, values in read_tensors(state, "head.").items()}
    fleet.make_update(tmp_path / "in" / "one", state, "one", seed=1, tensors=tensors)
    with pytest.raises(UsageProblem, match="trains nothing") as caught:
        fleet.run_aggregate([tmp_path / "in"], tmp_path / "plan", tmp_path / "state", tmp_path / "next")
    assert caught.value.values == {"chain.method": "no-ft"}
    assert not (tmp_path / "next").exists()
    assert (tmp_path / "in" / "one").is_dir()
