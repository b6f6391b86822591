"""The devices of a federation, listed beside its manifests: found, checked against them, and sampled from."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as fast
from hypothesis import strategies as st

from schemas.base import canonical_json, sha256_digest
from schemas.errors import BadInput, NotTrusted, UsageProblem
from schemas.plan import PlanManifest
from schemas.profile import LayerSimilarity, ProfileManifest
from schemas.trust import EnrolledDevice, check_keys
from stages.federated.profiles import gather
from stages.federated.sampling import sample_participants
from stages.store.artifact import Artifact, new_artifact, open_artifact, verify_artifact
from stages.store.devices import (
    accepted_updates,
    find_device,
    names_with_texts,
    participants,
    planned_devices,
    takes_part,
)
from tests import fleet
from tests.fleet import combine, make_update, make_world

KEYS = tuple(f"ed25519:{number:064x}" for number in (2, 5, 7, 8))  # points of the curve


def profiles(*names: str) -> list[ProfileManifest]:
    return [fleet.profile_manifest(name, [0.9] * 6, texts=10 + number) for number, name in enumerate(names)]


def enrolled(*names: str) -> dict[str, EnrolledDevice]:
    return {
        name: EnrolledDevice(name=name, key=key, max_example_count=50)
        for name, key in zip(names, KEYS[1:], strict=False)
    }


def edit_lines(artifact: Path, file: str, edit: Callable[[list[Any]], object], **changes: object) -> None:
    """What whoever makes an artifact can make of it: lines changed, and a manifest that lists them."""
    lines = [json.loads(line) for line in (artifact / file).read_bytes().splitlines()]
    edit(lines)
    data = b"".join(json.dumps(one, sort_keys=True, separators=(",", ":")).encode() + b"\n" for one in lines)
    (artifact / file).write_bytes(data)
    manifest = json.loads((artifact / "manifest.json").read_bytes()) | changes
    reference = next(one for one in manifest["files"] if one["name"] == file)
    reference |= {"size_bytes": len(data), "sha256": sha256_digest(data)}
    (artifact / "manifest.json").write_bytes(canonical_json(manifest))
    (artifact / "measured.json").unlink(missing_ok=True)


# What is there.


def test_a_device_is_found_by_name_and_nobody_else_is(tmp_path: Path) -> None:
    plan = fleet.write_plan(tmp_path / "plan", profiles("b", "c", "a"), fleet.decided())
    assert [device.name for device in planned_devices(plan)] == ["a", "b", "c"]
    found = find_device(plan, "c")
    assert found is not None
    assert (found.example_count, found.max_example_count, found.key) == (11, 11, None)
    assert find_device(plan, "d") is None
    assert (plan.manifest.device_count, plan.manifest.example_count) == (3, 33)


def test_a_state_says_who_takes_part_and_whose_updates_went_in(tmp_path: Path) -> None:
    _, state = make_world(tmp_path)
    updates = [make_update(tmp_path / name, state, name, seed=seed, count=5 + seed) for seed, name in enumerate("ab")]
    made = combine(tmp_path, updates)
    assert participants(made) == ["a", "b", "c"]
    assert takes_part(made, "c")
    assert not takes_part(made, "d")
    assert [(one.name, one.example_count, one.train_loss) for one in accepted_updates(made)] == [
        ("a", 5, 0.0),
        ("b", 6, 1.0),
    ]
    assert (made.manifest.accepted_count, made.manifest.example_count) == (2, 11)


def test_the_roster_decides_how_many_texts_count_and_whose_key_it_is() -> None:
    gathered = gather(profiles("a", "b"), fleet.decided(), enrolled("a", "b"))
    found = [json.loads(line) for line in gathered.devices.data.splitlines()]
    assert [(one["key"], one["max_example_count"]) for one in found] == [(KEYS[1], 50), (KEYS[2], 50)]


def test_a_key_is_of_one_machine() -> None:
    twice = [EnrolledDevice(name=name, key=KEYS[1], max_example_count=5) for name in "ab"]
    with pytest.raises(BadInput, match="one key") as caught:
        check_keys(twice, KEYS[0])
    assert caught.value.values["of"] == "a and b"
    with pytest.raises(BadInput, match="one key") as caught:
        check_keys(twice[:1], KEYS[1])
    assert caught.value.values["of"] == "the coordinator and a"
    check_keys(enrolled("a", "b").values(), KEYS[0])


# What cannot be.


def set_of(key: str, value: object) -> Callable[[list[Any]], object]:
    return lambda lines: lines[0].update({key: value})


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda lines: lines.pop(), "3 devices, the lines have 2"),
        (lambda lines: lines.append(lines[-1] | {"name": "d", "example_count": 0}), "3 devices, the lines have 4"),
        (set_of("example_count", 9), "texts"),
        (set_of("memory_budget_bytes", 1), "smallest memory budget"),
        (set_of("key", KEYS[1]), "key for every device"),
        (lambda lines: lines.reverse(), "line 2 cannot be used"),
        (lambda lines: lines.insert(0, lines[0]), "line 2 cannot be used"),
        (set_of("name", "CON:"), "line 1 is not a planned-device"),
    ],
)
def test_devices_that_contradict_their_plan_are_refused(
    edit: Callable[[list[Any]], object], says: str, tmp_path: Path
) -> None:
    fleet.write_plan(tmp_path / "plan", profiles("a", "b", "c"), fleet.decided())
    edit_lines(tmp_path / "plan", "devices.jsonl", edit)
    plan = open_artifact(tmp_path / "plan", PlanManifest)
    for read in (verify_artifact, lambda _: find_device(plan, "a"), lambda _: names_with_texts(plan)):
        with pytest.raises(BadInput, match=says):
            read(tmp_path / "plan")


SIGNING = {"coordinator": KEYS[0], "expires": None, "signatures": "required"}


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ((KEYS[1], KEYS[2], None), "a key for every device"),
        ((KEYS[1], KEYS[2], KEYS[1]), "a key of its own"),
        ((KEYS[1], KEYS[0], KEYS[2]), "a key of its own"),
    ],
)
def test_a_plan_that_signs_has_a_key_for_each_device(keys: tuple[str | None, ...], says: str, tmp_path: Path) -> None:
    fleet.write_plan(tmp_path / "plan", profiles("a", "b", "c"), fleet.decided())

    def give(lines: list[Any]) -> None:
        for line, key in zip(lines, keys, strict=True):
            line["key"] = key

    edit_lines(tmp_path / "plan", "devices.jsonl", give, trust=SIGNING)
    with pytest.raises(BadInput, match=says):
        verify_artifact(tmp_path / "plan")


@pytest.mark.parametrize("file", ["accepted.jsonl", "participants.jsonl"])
def test_lines_that_contradict_their_state_are_refused(file: str, tmp_path: Path) -> None:
    _, state = make_world(tmp_path)
    combine(tmp_path, [make_update(tmp_path / "a", state, "a", seed=0)])
    edit_lines(tmp_path / "next", file, lambda lines: lines.append(lines[-1] | {"name": "z"}))
    with pytest.raises(BadInput, match="contradict each other"):
        verify_artifact(tmp_path / "next")


def test_texts_behind_a_state_are_those_of_its_lines(tmp_path: Path) -> None:
    _, state = make_world(tmp_path)
    combine(tmp_path, [make_update(tmp_path / "a", state, "a", seed=0)])
    edit_lines(tmp_path / "next", "accepted.jsonl", set_of("example_count", 999))
    with pytest.raises(BadInput, match="5 texts, the lines have 999"):
        verify_artifact(tmp_path / "next")


def test_altered_lines_are_not_trusted_by_whoever_asks(tmp_path: Path) -> None:
    plan, state = make_world(tmp_path)
    for artifact, file in ((plan, "devices.jsonl"), (state, "participants.jsonl")):
        path = artifact.path / file
        path.write_bytes(path.read_bytes().replace(b'"a"', b'"d"'))
    update = make_update(tmp_path / "a", state, "a", seed=0)
    asks: list[Callable[[], object]] = [
        lambda: find_device(plan, "b"),
        lambda: takes_part(state, "b"),
        lambda: sample_participants(plan, 1),
        lambda: combine(tmp_path, [update]),
        lambda: verify_artifact(plan.path),
        lambda: verify_artifact(state.path),
    ]
    for ask in asks:
        with pytest.raises(NotTrusted, match="altered"):
            ask()
    assert update.exists()  # what is wrong with plan or state is not an update's fault


def test_a_draft_whose_lines_contradict_its_manifest_is_never_put_in_place(tmp_path: Path) -> None:
    plan = fleet.write_plan(tmp_path / "plan", profiles("a", "b"), fleet.decided())
    gathered = gather(profiles("a", "b"), fleet.decided())

    def write(manifest: PlanManifest) -> None:
        with new_artifact(tmp_path / "out", force=False) as draft:
            draft.write_lines(gathered.devices)
            draft.finish(manifest, None)

    with pytest.raises(BadInput, match="contradict"):
        write(plan.manifest.model_copy(update={"device_count": 3}))
    with pytest.raises(BadInput, match="valid plan"):
        write(plan.manifest.model_copy(update={"files": ()}))
    assert [path.name for path in tmp_path.iterdir()] == ["plan"]
    write(plan.manifest)
    assert verify_artifact(tmp_path / "out").digest == plan.digest


# All profiles, read one after the other.


@fast(max_examples=40, deadline=None)
@given(data=st.data())
def test_profiles_in_any_order_give_the_same_plan(data: st.DataObject) -> None:
    many = [
        fleet.profile_manifest(
            name, data.draw(st.sampled_from([[], [0.9, 0.8, 0.7, 0.6, 0.5, 0.31], [0.3] * 6])), texts=7 + number
        )
        for number, name in enumerate("abcdef")
    ]
    first = gather(many, fleet.decided())
    second = gather(data.draw(st.permutations(many)), fleet.decided())
    assert (first.devices, first.curve, first.smallest_budget) == (second.devices, second.curve, second.smallest_budget)
    assert first.example_count == sum(profile.example_count for profile in many)
    assert first.most_examples == 12


@fast(max_examples=60, deadline=None)
@given(
    curves=st.lists(
        st.lists(st.tuples(st.floats(-1, 1), st.floats(0, 1), st.floats(0, 1)), min_size=6, max_size=6),
        min_size=1,
        max_size=8,
    ),
    data=st.data(),
)
def test_the_curve_is_the_mean_of_the_paper(
    curves: list[list[tuple[float, float, float]]], data: st.DataObject
) -> None:
    texts = data.draw(st.lists(st.integers(5, 10**6), min_size=len(curves), max_size=len(curves)))
    many = [
        fleet.profile_manifest(f"d{number}", [0.5] * 6, texts=count).model_copy(
            update={"layers": tuple(LayerSimilarity(cka=c, low=c - below, high=c + above) for c, below, above in curve)}
        )
        for number, (curve, count) in enumerate(zip(curves, texts, strict=True))
    ]
    values_NL3 = np.array(curves)
    shares_N = np.array(texts) / sum(texts)
    mean_L = (values_NL3[..., 0] * shares_N[:, None]).sum(0)
    width_L = np.sqrt(((values_NL3[..., 1:].max(-1) * shares_N[:, None]) ** 2).sum(0))
    found = gather(many, fleet.decided()).curve
    assert [layer.cka for layer in found] == pytest.approx(mean_L.tolist(), abs=1e-12)
    assert [layer.high - layer.cka for layer in found] == pytest.approx(width_L.tolist(), abs=1e-12)


def test_no_profile_makes_no_plan() -> None:
    with pytest.raises(UsageProblem, match="at least one profile"):
        gather([], fleet.decided())


# Who takes part.


def test_a_device_without_texts_never_takes_part(tmp_path: Path) -> None:
    many = [fleet.profile_manifest(name, [], texts=count) for name, count in (("a", 3), ("b", 0), ("c", 1))]
    plan = fleet.write_plan(tmp_path / "plan", many, fleet.decided())
    assert names_with_texts(plan) == ["a", "c"]
    assert sample_participants(plan, 0).data == b'{"name":"a"}\n{"name":"c"}\n'


def test_a_sample_is_drawn_from_seed_and_round_alone(tmp_path: Path) -> None:
    names = [f"d{number:03}" for number in range(50)]
    chosen = fleet.decided(fleet.settings(federation={"devices_per_round": 7}))

    def drawn(plan: Artifact[PlanManifest]) -> list[bytes]:
        return [sample_participants(plan, number).data for number in range(5)]

    plan = fleet.write_plan(tmp_path / "plan", profiles(*names), chosen)
    other = fleet.write_plan(tmp_path / "other", [*profiles(*names)][::-1], chosen, bottleneck=4)
    assert plan.digest != other.digest
    assert drawn(plan) == drawn(other)
    assert len(set(drawn(plan))) == 5
    assert {data.count(b"\n") for data in drawn(plan)} == {7}
