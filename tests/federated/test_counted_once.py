"""Updates with the same tensors count once, and neither device is refused: nobody can tell who copied whom."""

from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.errors import TooFewUpdates
from schemas.update import UpdateManifest
from stages.federated.delivery import RefusedUpdate
from stages.store.artifact import open_artifact, read_tensors
from stages.store.devices import accepted_updates
from stages.store.ledger import Ledger
from tests import fleet
from tests.fleet import combine, make_update, make_world

FIVE = ("a", "b", "c", "d", "e")


def no_refusal(refused: RefusedUpdate, _: Path | None) -> None:
    raise AssertionError(refused)


def test_both_are_named_and_the_larger_claim_counts_whatever_the_order(tmp_path: Path) -> None:
    _, state = make_world(tmp_path)
    counts = {"a": 5, "b": 7, "c": 3}
    paths = [make_update(tmp_path / name, state, name, seed=int(name == "c"), count=counts[name]) for name in counts]
    orders = [list(order) for order in permutations(paths)]
    made = [combine(tmp_path, order, f"next-{index}", on_refusal=no_refusal) for index, order in enumerate(orders)]
    assert len({one.digest for one in made}) == 1
    assert [(one.name, one.example_count) for one in accepted_updates(made[0])] == [("a", 0), ("b", 7), ("c", 3)]
    manifest = made[0].manifest
    assert (manifest.accepted_count, manifest.example_count) == (3, 10)
    assert {(one.devices, one.example_count) for one in manifest.coverage} == {(2, 10)}
    alone = combine(tmp_path, paths[1:], "elsewhere/next", force=True)
    assert alone.manifest.tensors == manifest.tensors


def test_of_equal_claims_the_first_by_name_counts(tmp_path: Path) -> None:
    _, state = make_world(tmp_path)
    paths = [make_update(tmp_path / name, state, name, seed=0) for name in ("b", "a", "c")]
    made = combine(tmp_path, paths, on_refusal=no_refusal)
    assert [(one.name, one.example_count) for one in accepted_updates(made)] == [("a", 5), ("b", 0), ("c", 0)]


def test_a_copier_does_not_help_to_a_quorum_and_nothing_is_moved(tmp_path: Path) -> None:
    _, state = make_world(tmp_path, federation={"quorum": 2})
    paths = [make_update(tmp_path / "in" / name, state, name, seed=0) for name in ("a", "b")]
    with pytest.raises(TooFewUpdates) as caught:
        combine(tmp_path, [tmp_path / "in"], on_refusal=no_refusal)
    assert caught.value.values == {
        "needed": "2 of 3",
        "accepted": 1,
        "missing": "c",
        "not counted twice": "b (same tensors)",
    }
    assert sorted((tmp_path / "in").iterdir()) == paths


def test_where_nobody_is_missing_a_smaller_quorum_is_the_way_out(tmp_path: Path) -> None:
    _, state = make_world(tmp_path, federation={"quorum": "all"}, devices=("a", "b"))
    paths = [make_update(tmp_path / name, state, name, seed=0) for name in ("a", "b")]
    with pytest.raises(TooFewUpdates) as caught:
        combine(tmp_path, paths, on_refusal=no_refusal)
    assert caught.value.values["missing"] == "none"
    assert caught.value.hint == "close with fewer by --quorum"
    assert combine(tmp_path, paths, quorum=1, on_refusal=no_refusal).manifest.example_count == 5


def test_where_a_strategy_has_too_few_what_does_not_count_is_said_and_moved(tmp_path: Path) -> None:
    federation = {"strategy": "krum", "assumed_malicious": 1, "quorum": 1}
    _, state = make_world(tmp_path, federation=federation, devices=(*FIVE, "f"))
    for seed, name in enumerate(FIVE):
        make_update(tmp_path / "in" / name, state, name, seed=seed % 4, count=5 if name != "b" else 10**6)
    refused: list[str] = []
    with pytest.raises(TooFewUpdates) as caught:
        combine(tmp_path, [tmp_path / "in"], on_refusal=lambda one, _: refused.append(one.reason))
    assert refused == ["example-count"]
    found = caught.value.values
    assert (found["needed"], found["found"], found["not counted twice"]) == (5, 3, "e (same tensors)")
    assert "more texts" in str(found["refused b"])
    assert not (tmp_path / "in" / "b").exists()
    assert [event.event for event in Ledger(tmp_path / "ledger.jsonl").events()] == ["refused"]


@pytest.mark.parametrize(
    "federation",
    [{"strategy": "coordinate-median"}, {"strategy": "trimmed-mean"}, {"strategy": "krum", "assumed_malicious": 0}],
)
def test_a_robust_strategy_sees_a_copy_once(federation: dict[str, Any], tmp_path: Path) -> None:
    _, state = make_world(tmp_path, federation=federation, devices=FIVE)
    paths = [
        make_update(tmp_path / name, state, name, seed=seed) for name, seed in zip(FIVE, (0, 1, 2, 2, 2), strict=True)
    ]
    copied = combine(tmp_path, paths, on_refusal=no_refusal)
    alone = combine(tmp_path, paths[:3], "elsewhere/next", force=True)
    assert copied.manifest.tensors == alone.manifest.tensors


def test_both_are_passed_over_in_the_next_round_and_closing_again_changes_nothing(tmp_path: Path) -> None:
    _, state = make_world(tmp_path)
    for name in ("a", "b"):
        make_update(tmp_path / "in" / name, state, name, seed=0)
    following = combine(tmp_path, [tmp_path / "in"])
    events = list(Ledger(tmp_path / "ledger.jsonl").events())
    assert [event.event for event in events] == ["accepted", "accepted", "closed"]
    assert combine(tmp_path, [tmp_path / "in"]).digest == following.digest
    assert list(Ledger(tmp_path / "ledger.jsonl").events()) == events
    make_update(tmp_path / "in" / "new", following, "c", seed=3)
    made = combine(tmp_path, [tmp_path / "in"], "third", "next", on_refusal=no_refusal)
    assert fleet.accepted_devices(made) == ["c"]


def test_the_order_in_which_a_copier_lists_the_tensors_makes_no_difference(tmp_path: Path) -> None:
    _, state = make_world(tmp_path)
    original = open_artifact(make_update(tmp_path / "a", state, "a", seed=0), UpdateManifest)
    copied = make_update(tmp_path / "b", state, "b", seed=0)
    manifest = open_artifact(copied, UpdateManifest).manifest
    turned = manifest.model_copy(update={"tensors": manifest.tensors[::-1]})
    (copied / "manifest.json").write_bytes(turned.canonical_bytes())
    made = combine(tmp_path, [original.path, copied])
    assert made.manifest.example_count == original.manifest.example_count


def test_one_other_value_makes_it_an_update_of_its_own(tmp_path: Path) -> None:
    _, state = make_world(tmp_path)
    path = make_update(tmp_path / "a", state, "a", seed=0)
    tensors = {name: values.copy() for name, values in read_tensors(open_artifact(path, UpdateManifest)).items()}
    weight = tensors["head.classifier.weight"]
    weight[0, 0] = np.nextafter(weight[0, 0], np.float32(np.inf))
    other = make_update(tmp_path / "b", state, "b", seed=0, tensors=tensors)
    made = combine(tmp_path, [path, other], on_refusal=no_refusal)
    assert [one.example_count for one in accepted_updates(made)] == [5, 5]
