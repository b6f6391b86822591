"""Rounds over a bad network: updates that come late, twice, broken or never.

`CHAINCTL_TEST_ROUNDS` rounds (`just faults`: 50) of four devices whose training is a function of state and device, so
that whoever accepted the same updates must have the same state, to the digest.
"""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from schemas.errors import TooFewUpdates
from schemas.ledger import Accepted, Closed
from schemas.state import StateManifest
from stages.federated.delivery import RefusedUpdate
from stages.store.artifact import Artifact, open_artifact
from stages.store.ledger import Ledger
from tests import fleet
from tests.fleet import combine, flip, make_update, make_world

ROUNDS = int(os.environ.get("CHAINCTL_TEST_ROUNDS", "12"))
DEVICES = ("a", "b", "c", "d")
Deliver = Callable[[Path, list[Path], random.Random], list[list[Path]]]


def trained(folder: Path, state: Artifact[StateManifest], device: str) -> Path:
    """What `device` makes of `state`, always the same."""
    seed = random.Random(f"{state.digest} {device}").randrange(2**32)
    draw = np.random.default_rng(seed)
    tensors = {
        name: values + 0.01 * draw.standard_normal(values.shape).astype(np.float32)
        for name, values in fleet.trained_tensors(state).items()
    }
    return make_update(folder, state, device, seed=seed % 97, count=1 + seed % 8, tensors=tensors)


def federation(folder: Path, quorum: int | str, deliver: Deliver, seed: int) -> list[str]:
    """Digests of all states.  `deliver` says in which portions a round's updates arrive in the inbox."""
    _, state = make_world(folder, devices=DEVICES, federation={"quorum": quorum})
    draw, digests = random.Random(seed), [state.digest]
    for number in range(ROUNDS):
        sent = [trained(folder / "sent" / f"{number}-{device}", state, device) for device in DEVICES]
        inbox, out = folder / "inbox", folder / "states" / f"{number:04d}"
        inbox.mkdir(exist_ok=True)
        for portion in deliver(folder, sent, draw):
            for path in portion:
                target = inbox / f"{path.name}-{draw.randrange(10**9)}"
                shutil.copytree(path, target)
                if path.parent.name == "broken":
                    flip(target / draw.choice(["tensors.safetensors", "manifest.json"]), -draw.randrange(2, 60))
            try:
                state = combine(folder, [inbox], out, state.path)
            except TooFewUpdates:
                assert not out.exists()
                continue
            break
        assert out.exists(), "the round never closed"
        digests.append(state.digest)
    return digests


def undisturbed(_folder: Path, sent: list[Path], _draw: random.Random) -> list[list[Path]]:
    return [sent]


def disturbed(folder: Path, sent: list[Path], draw: random.Random) -> list[list[Path]]:
    """Everything arrives in the end: in any order, in portions, some twice, with old and broken copies among them."""
    broken = folder / "broken"
    portions: list[list[Path]] = [[] for _ in range(draw.randrange(1, 5))]
    for path in sent:
        for _ in range(draw.choice([1, 1, 2])):
            draw.choice(portions).append(path)
        if draw.random() < 0.3:
            if not (broken / path.name).exists():
                shutil.copytree(path, broken / path.name)
            draw.choice(portions).append(broken / path.name)
    older = [path for path in (folder / "sent").iterdir() if path not in sent]
    if older and draw.random() < 0.5:
        portions[0].append(draw.choice(older))
    for portion in portions:
        draw.shuffle(portion)
    return [*portions, sent]


@pytest.mark.parametrize("seed", [0, 1])
def test_what_comes_late_twice_or_broken_changes_nothing(seed: int, tmp_path: Path) -> None:
    quiet = federation(tmp_path / "quiet", "all", undisturbed, seed)
    assert federation(tmp_path / "loud", "all", disturbed, seed) == quiet
    events = list(Ledger(tmp_path / "loud" / "ledger.jsonl").events())
    assert sum(isinstance(event, Closed) for event in events) == ROUNDS
    assert sum(isinstance(event, Accepted) for event in events) == ROUNDS * len(DEVICES)


def test_what_never_comes_is_not_counted_and_what_was_accepted_is_never_lost(tmp_path: Path) -> None:
    """Drops, with a quorum of two; then the undisturbed run of exactly what was accepted."""
    accepted: list[list[str]] = []

    def dropping(folder: Path, sent: list[Path], draw: random.Random) -> list[list[Path]]:
        portions = disturbed(folder, [path for path in sent if draw.random() < 0.6], draw)
        return [*portions[:-1], sent]

    lossy = federation(tmp_path / "lossy", 2, dropping, 5)
    for number in range(ROUNDS):
        made = open_artifact(tmp_path / "lossy" / "states" / f"{number:04d}", StateManifest)
        accepted.append(fleet.accepted_devices(made))
        assert made.manifest.accepted_count >= 2
    assert any(len(names) < len(DEVICES) for names in accepted)
    rounds = iter(accepted)

    def chosen(_folder: Path, sent: list[Path], _draw: random.Random) -> list[list[Path]]:
        names = next(rounds)
        return [[path for path in sent if path.name.split("-")[1] in names]]

    assert federation(tmp_path / "again", 2, chosen, 5) == lossy
    ledgers = [Ledger(tmp_path / name / "ledger.jsonl") for name in ("lossy", "again")]
    counted = [[event.update for event in ledger.events() if isinstance(event, Accepted)] for ledger in ledgers]
    assert counted[0] == counted[1]


def test_the_refused_are_all_kept(tmp_path: Path) -> None:
    _, state = make_world(tmp_path, devices=DEVICES)
    inbox = tmp_path / "inbox"
    for device in DEVICES:
        shutil.copytree(trained(tmp_path / "sent" / device, state, device), inbox / device)
    for device in DEVICES[1:]:
        flip(inbox / device / "tensors.safetensors", -5)
    seen: list[RefusedUpdate] = []
    combine(tmp_path, [inbox], on_refusal=lambda refused, place: seen.append(refused))
    kept = [path for path in (inbox / ".refused").iterdir() if path.is_dir()]
    assert len(kept) == len(seen) == 3
    assert len(list((inbox / ".refused").glob("*.json"))) == 3
