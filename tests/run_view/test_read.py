"""What a run folder says, read once: equal to what the commands said, and no more than its signatures carry."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import BadInput, NotTrusted
from schemas.ledger import Closed
from schemas.measured import Spent
from schemas.run import SimulationSummary
from schemas.update import UpdateManifest
from stages.run_view import devices
from stages.run_view.read import read_run
from stages.run_view.view import BY_THE_COORDINATOR, NOT_REMEMBERED, WITHOUT_SIGNATURES, RunView
from stages.store.artifact import artifact_bytes, open_artifact, read_manifest
from stages.store.ledger import Ledger
from tests import fleet
from tests.fleet.runs import HOSTILE_FOLDER, PHONES, SignedRun, simulate


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    return simulate(tmp_path_factory.mktemp("simulated"), tiny_bert)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> SignedRun:
    return SignedRun(tmp_path_factory.mktemp("signed"), tiny_bert).make()


@pytest.fixture
def signed(original: SignedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the coordinator's folder, on its machine."""
    shutil.copytree(original.home, tmp_path / "home")
    monkeypatch.setenv("CHAINCTL_HOME", str(tmp_path / "home"))
    shutil.copytree(original.run, tmp_path / "office")
    return tmp_path / "office"


def test_the_rounds_are_those_that_the_simulation_reported(simulated: Path) -> None:
    found, summary = read_run(simulated), read_manifest(simulated / "summary.json", SimulationSummary)
    assert found.federation is not None
    assert (found.before and found.before.value, found.state) == (summary.accuracy_before, summary.final_state)
    for line, said in zip(found.rounds, summary.rounds, strict=True):
        assert line.cost is not None
        assert line.score is not None
        assert line.score.low <= line.score.value <= line.score.high
        cost = {name: getattr(line.cost, name) for name in Spent.model_fields}
        assert cost == {name: getattr(said, name) for name in cost}
        assert (line.number, line.trained, len(line.accepted)) == (said.round, said.trained, said.devices)
        assert (line.train_loss, line.score.value) == (said.train_loss, said.accuracy)
        assert line.predicted_peak_bytes == said.predicted_peak_bytes
    assert list(found.notes()) == [WITHOUT_SIGNATURES]


def test_the_devices_share_the_costs_of_the_rounds(simulated: Path) -> None:
    found = read_run(simulated)
    total = found.cost
    assert [device.name for device in found.devices] == [f"device-0{number}" for number in range(4)]
    assert [device.measured for device in found.devices] == [device.accepted for device in found.devices]
    assert sum(device.asked for device in found.devices) == sum(line.asked for line in found.rounds) == total.updates
    for name in ("passes", "bytes_read", "bytes_up", "bytes_down"):
        assert sum(getattr(device, name) for device in found.devices) == getattr(total, name), name
    assert max(device.peak_bytes for device in found.devices) == total.peak_bytes
    assert all((device.train_loss is None) == (device.accepted == 0) for device in found.devices)


def test_of_very_many_updates_the_newest_are_measured(simulated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "MOST_MEASURED", 2)
    found = read_run(simulated)
    measured = {device.name: device.measured for device in found.devices if device.measured}
    assert measured == dict.fromkeys(found.rounds[-1].accepted, 1)


def test_without_devices_everything_else_is_the_same(simulated: Path) -> None:
    full, quick = read_run(simulated), read_run(simulated, by_device=False)
    assert quick.devices == ()
    assert [line.cost for line in quick.rounds] == [line.cost for line in full.rounds]
    assert (quick.scores, quick.open, quick.counted) == (full.scores, full.open, full.counted)


def test_a_refused_update_is_told_and_its_costs_are_not_counted(signed: Path) -> None:
    found = read_run(signed)
    (line,) = found.rounds
    assert (line.asked, line.accepted) == (2, (PHONES[0],))
    assert [(one.device, one.reason) for one in line.refused] == [(PHONES[1], "signature")]
    counted, refused = found.devices
    assert (counted.accepted, counted.measured, counted.refused) == (1, 1, ())
    assert (refused.accepted, refused.measured, refused.refused) == (0, 0, ("signature",))
    update = open_artifact(signed / "updates" / "0000" / PHONES[0], UpdateManifest)
    assert counted.bytes_up == artifact_bytes(update.path)
    assert counted.train_loss == update.manifest.loss.mean
    assert found.open.refused == ((HOSTILE_FOLDER, "unreadable"),)
    assert found.open.missing == PHONES
    assert list(found.notes()) == [BY_THE_COORDINATOR]


def test_what_devices_say_of_their_costs_is_bound_to_updates_that_counted(signed: Path) -> None:
    before = read_run(signed).devices
    other = signed / "updates" / "0000" / "somebody"
    shutil.copytree(signed / "updates" / "0000" / PHONES[0], other)
    measured = json.loads((other / "measured.json").read_bytes())
    measured["artifact"] = "sha256:" + "1" * 64
    (other / "measured.json").write_text(json.dumps(measured, indent=2, sort_keys=True) + "\n")
    (signed / "updates" / "0000" / "nobody").mkdir()
    (signed / "updates" / "0000" / "nobody" / "measured.json").write_text("{}")
    assert read_run(signed).devices == before


def test_a_score_that_the_coordinator_did_not_sign_is_left_out_and_said(signed: Path) -> None:
    (signed / "evals" / "0001" / "manifest.dsse.json").unlink()
    found = read_run(signed)
    assert [score.round for score in found.scores] == [0]
    assert found.rounds[0].score is None
    assert found.left_out == 1
    assert "1 evaluation beside it is not signed by the coordinator, and left out" in found.notes()


@pytest.mark.parametrize(("attack", "problem"), [("gone", "missing"), ("unsigned", "not trusted")])
def test_of_a_state_that_is_not_here_only_the_ledger_tells(
    attack: str, problem: str, signed: Path, original: SignedRun
) -> None:
    following = signed / "states" / "0002"
    begin = ("--plan", signed / "plan", "--state", signed / "states" / "0001")
    update = signed / "updates" / "0001" / PHONES[0]
    train(original, *begin, out=update)
    fleet.chainctl("aggregate", update, *begin, "--key", "office", "--out", following)
    if attack == "gone":
        shutil.rmtree(signed / "states" / "0001")
    else:
        (signed / "states" / "0001" / "manifest.dsse.json").unlink()
    first, second = read_run(signed).rounds
    assert (first.problem, first.train_loss, first.cost, first.accepted) == (problem, None, None, (PHONES[0],))
    assert (second.problem, second.trained, second.known) == ("", "", False)
    assert any(note.startswith("1 of 2 states are not") for note in read_run(signed).notes())


@pytest.mark.parametrize(("attack", "why"), [("gone", "is not here"), ("unsigned", "is not signed by the coordinator")])
def test_a_first_state_that_cannot_be_believed_is_marked(attack: str, why: str, signed: Path) -> None:
    if attack == "gone":
        shutil.rmtree(signed / "states" / "0000")
    else:
        (signed / "states" / "0000" / "manifest.dsse.json").unlink()
    assert f"the first state {why}" in read_run(signed).notes()


def test_a_ledger_that_this_machine_did_not_write_is_marked(
    signed: Path, original: SignedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(original.home, elsewhere)
    shutil.rmtree(elsewhere / "trust" / "ledgers")
    monkeypatch.setenv("CHAINCTL_HOME", str(elsewhere))
    assert list(read_run(signed).notes()) == [BY_THE_COORDINATOR, NOT_REMEMBERED]


def test_a_plan_by_a_coordinator_who_is_not_pinned_is_refused(
    signed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHAINCTL_HOME", str(tmp_path / "nobody"))
    with pytest.raises(NotTrusted, match="not pinned"):
        read_run(signed)


def test_a_folder_without_a_ledger_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds no federation"):
        read_run(tmp_path)


def test_states_that_another_took_the_place_of_are_counted(simulated: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(simulated, run)
    first = read_run(run).rounds[0]
    forked: dict[str, Any] = {"plan": read_run(run).plan_digest, "parent": first.parent, "round": 0}
    Ledger(run / "states" / "ledger.jsonl").append(
        lambda events: [lambda previous: Closed(previous=previous, state=first.state, participant_count=2, **forked)]
    )
    found: RunView = read_run(run)
    assert [line.number for line in found.rounds] == [1]
    assert found.abandoned == 3
    assert any("abandoned" in note for note in found.notes())


def train(original: SignedRun, *begin: object, out: Path) -> None:
    """The honest phone's next update."""
    given = ("--data", original.folder / "data.jsonl", "--device", PHONES[0], "--key", PHONES[0], "--out", out)
    fleet.chainctl("train-window", "--model", original.model, *begin, *given, "--memory-budget", "8GiB")
