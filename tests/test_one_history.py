"""A device follows one chain of states, and a round closes once: attacked with real commands on a signed federation.

The coordinator and each device are folders with a home of their own; what a device sees of the world are the files
that a test carries to it.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from schemas.plan import PlanManifest
from schemas.state import StateManifest
from schemas.trust import NewestState
from stages.store.artifact import Artifact, open_artifact
from stages.store.newest import remember
from stages.store.signing import SIGNATURE_FILE, KeyRing
from tests import fleet
from tests.fleet.lacking import chainctl_lacking, compile_library

DEVICES = ("device-00", "device-01")
OFFICE = "office"


class World:
    """A signed federation of two devices after `plan`; the coordinator's files are in `folder` itself."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model = folder, model

    def path(self, name: str) -> Path:
        return self.folder / name

    def home(self, who: str) -> Path:
        return self.path(f"homes/{who}")

    def run(self, who: str, *arguments: object, check: bool = True) -> fleet.Done:
        return fleet.chainctl(*arguments, check=check, home=self.home(who))

    def move_office(self, machine: str) -> None:
        """The office goes on at another machine, which has its key and what a person pins there."""
        shutil.copytree(self.home(OFFICE) / "keys", self.home(machine) / "keys")
        self.run(machine, "trust", "add", OFFICE, self.home(OFFICE) / "keys" / f"{OFFICE}.pub")

    def train(self, device: str, state: Path | str, out: str, *, check: bool = True) -> fleet.Done:
        return self.run(device, *self.training(device, state, out), check=check)

    def training(self, device: str, state: Path | str, out: str) -> tuple[object, ...]:
        return (
            *("train-window", "--model", self.model, "--plan", self.path("plan"), "--state", self.path(str(state))),
            *("--data", self.path(f"{device}.jsonl"), "--device", device, "--key", device, "--out", self.path(out)),
        )

    def aggregating(self, *updates: str, state: str, out: str) -> tuple[object, ...]:
        return (
            *("aggregate", *map(self.path, updates), "--plan", self.path("plan"), "--state", self.path(state)),
            *("--out", self.path(out), "--key", OFFICE, "--quorum", "1"),
        )

    def aggregate(
        self, *updates: str, state: str, out: str, more: tuple[str, ...] = (), check: bool = True
    ) -> fleet.Done:
        return self.run(OFFICE, *self.aggregating(*updates, state=state, out=out), *more, check=check)

    def close(self, number: int, device: str = "device-01") -> None:
        """One round that `device` alone trains."""
        state = f"states/{number:04d}"
        self.train(device, state, f"updates/{number:04d}/{device}")
        self.aggregate(f"updates/{number:04d}", state=state, out=f"states/{number + 1:04d}")

    def deliver(self, number: int, device: str, states: str = "states") -> Path:
        """The state of a round as a bundle, unpacked at the device; its path."""
        bundle = self.path(f"{device}-{states}-{number}.tar")
        self.run(OFFICE, "bundle", "pack", self.path(f"{states}/{number:04d}"), "--out", bundle)
        self.run(device, "bundle", "unpack", bundle, "--into", self.path(f"at-{device}"))
        return self.path(f"at-{device}/{number:04d}")

    def plan(self) -> Artifact[PlanManifest]:
        return open_artifact(self.path("plan"), PlanManifest)

    def state(self, name: str) -> Artifact[StateManifest]:
        return open_artifact(self.path(name), StateManifest)

    def newest(self, device: str) -> NewestState:
        (path,) = (self.home(device) / "trust" / "newest").iterdir()
        return NewestState.model_validate_json(path.read_bytes())

    def closings(self, ledger: str = "states/ledger.jsonl") -> list[str]:
        lines = map(json.loads, self.path(ledger).read_text().splitlines())
        return [line["state"] for line in lines if line["event"] == "closed"]


def build(world: World) -> None:
    recipe = fleet.write_recipe(world.path("recipe.toml"), fleet.settings())
    roster = ""
    office = world.run(OFFICE, "keys", "new", OFFICE).stdout.strip()
    for seed, device in enumerate(DEVICES):
        key = world.run(device, "keys", "new", device).stdout.strip()
        world.run(device, "trust", "add", OFFICE, office)
        data = fleet.save_texts(world.path(f"{device}.jsonl"), fleet.texts(8, seed=seed))
        arguments = ("--model", world.model, "--data", data, "--device", device, "--recipe", recipe, "--key", device)
        world.run(device, "profile", *arguments, "--memory-budget", "8GiB", "--out", world.path(f"profiles/{device}"))
        roster += f'[{device}]\nkey = "{key}"\nmax_examples = 20\n'
    world.path("roster.toml").write_text(roster)
    world.run(
        OFFICE,
        *("plan", *(world.path(f"profiles/{device}") for device in DEVICES), "--model", world.model),
        *("--recipe", recipe, "--roster", world.path("roster.toml"), "--key", OFFICE),
        *("--out", world.path("plan"), "--state", world.path("states/0000")),
    )


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> World:
    """Both devices have trained on state 0, in their own homes; no round has closed."""
    world = World(tmp_path_factory.mktemp("begun"), tiny_bert)
    build(world)
    for device in DEVICES:
        world.train(device, "states/0000", f"updates/0000/{device}")
    return world


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory, begun: World) -> World:
    """Seven rounds: device-00 trained in round 0 alone, device-01 in all.  A fork of round 1 in `fork/`, up to 3."""
    world = copy_of(begun, tmp_path_factory.mktemp("long") / "world")
    world.aggregate("updates/0000", state="states/0000", out="states/0001")
    for number in range(1, 7):
        world.close(number)
    world.aggregate("updates/0000/device-01", state="states/0000", out="fork/0001", more=("--force",))
    for number in (1, 2):
        shutil.rmtree(world.home("device-01") / "trust" / "newest")  # one device for both histories
        world.train("device-01", f"fork/000{number}", f"fork-updates/{number}")
        world.aggregate(f"fork-updates/{number}", state=f"fork/000{number}", out=f"fork/000{number + 1}")
    return world


def copy_of(world: World, folder: Path) -> World:
    shutil.copytree(world.folder, folder)
    return World(folder, world.model)


@pytest.fixture
def world(begun: World, tmp_path: Path) -> World:
    return copy_of(begun, tmp_path / "world")


@pytest.fixture
def rounds(long: World, tmp_path: Path) -> World:
    return copy_of(long, tmp_path / "world")


def refused(done: fleet.Done, *said: str) -> None:
    assert done.returncode == 4, done.stderr
    for text in said:
        assert text in done.stderr
    assert "Traceback" not in done.stderr


# A device and its chain of states.


def test_a_device_that_takes_part_in_some_rounds_is_brought_the_history_by_bundles(rounds: World) -> None:
    for number in (3, 7):
        state = rounds.deliver(number, "device-00")
        assert not (rounds.path("at-device-00") / f"{number - 1:04d}").exists()
        rounds.train("device-00", state, f"mine/{number}")
        assert rounds.newest("device-00").state == rounds.state(f"states/{number:04d}").digest
    assert len(list(rounds.path("at-device-00/history").iterdir())) == 7
    again = rounds.run(
        "device-00", "bundle", "unpack", rounds.path("device-00-states-7.tar"), "--into", rounds.path("at-device-00")
    )
    assert "existed already" in again.stdout


def test_the_child_of_a_second_history_is_refused(rounds: World) -> None:
    rounds.train("device-00", rounds.deliver(1, "device-00"), "mine/1")
    child = rounds.path("fork/0002")
    refused(
        rounds.train("device-00", child, "mine/2", check=False), "does not come from", rounds.state("fork/0002").digest
    )
    assert rounds.newest("device-00").round == 1
    assert not rounds.path("mine/2").exists()


def test_a_second_history_is_refused_however_far_ahead(rounds: World) -> None:
    rounds.train("device-00", rounds.deliver(1, "device-00"), "mine/1")
    bundle = rounds.path("fork.tar")
    rounds.run(OFFICE, "bundle", "pack", rounds.path("fork/0003"), "--out", bundle)
    rounds.run("device-00", "bundle", "unpack", bundle, "--into", rounds.path("at-fork"))
    said = rounds.train("device-00", "at-fork/0003", "mine/3", check=False)
    refused(said, "two histories", rounds.state("states/0001").digest, rounds.state("fork/0001").digest)


def test_a_gap_without_its_manifests_is_refused_and_folders_beside_the_state_bridge_it(rounds: World) -> None:
    place = rounds.path("stick")
    shutil.copytree(rounds.path("states/0003"), place / "0003")
    said = rounds.train("device-00", "stick/0003", "mine/3", check=False)
    refused(said, rounds.state("states/0000").digest, rounds.state("states/0003").digest, "trust accept")
    assert rounds.state("states/0002").digest in said.stderr  # what is missing
    shutil.copytree(rounds.path("states/0001"), place / "0001")
    (place / "0002").mkdir()  # two files are enough
    for name in ("manifest.json", SIGNATURE_FILE):
        shutil.copy(rounds.path("states/0002") / name, place / "0002")
    rounds.train("device-00", "stick/0003", "mine/3")


@pytest.mark.parametrize("attack", ["unsigned", "device", "altered", "other", "junk", "huge", "link", "fifo", "folder"])
def test_only_what_the_coordinator_signed_bridges_a_gap(attack: str, rounds: World) -> None:
    state = rounds.deliver(3, "device-00")
    link = (
        rounds.path("at-device-00/history") / f"{rounds.state('states/0002').digest.removeprefix('sha256:')}.dsse.json"
    )
    good = link.read_bytes()
    link.unlink()
    if attack == "device":
        manifest = (rounds.path("states/0002") / "manifest.json").read_bytes()
        link.write_bytes(KeyRing(rounds.home("device-01")).open("device-01").envelope(manifest))
    elif attack == "altered":
        link.write_bytes(good.replace(b"A", b"B", 1))
    elif attack == "other":
        shutil.copy(rounds.path("states/0001") / SIGNATURE_FILE, link)
    elif attack == "junk":
        link.write_bytes(b"{}")
    elif attack == "huge":
        with link.open("wb") as file:
            file.truncate(2**40)
    elif attack == "link":
        link.symlink_to("/dev/zero")
    elif attack == "fifo":
        os.mkfifo(link)
    elif attack == "folder":
        link.mkdir()
    refused(rounds.train("device-00", state, "mine/3", check=False), rounds.state("states/0002").digest)


def test_a_person_accepts_a_gap_or_another_history(rounds: World) -> None:
    rounds.train("device-00", rounds.deliver(1, "device-00"), "mine/1")
    given = rounds.state("fork/0002").digest
    refused(rounds.train("device-00", "fork/0002", "mine/2", check=False))
    accept = ("trust", "accept", "--plan", rounds.path("plan"), "--state", rounds.path("fork/0002"))
    said = rounds.run("device-00", *accept)
    assert given in said.stdout
    assert rounds.state("states/0001").digest in said.stdout
    rounds.train("device-00", "fork/0002", "mine/2")
    refused(rounds.train("device-00", "states/0002", "mine/2a", check=False), "two histories")


def test_a_person_accepts_only_what_is_signed(rounds: World) -> None:
    (rounds.path("states/0003") / SIGNATURE_FILE).unlink()
    accept = ("trust", "accept", "--plan", rounds.path("plan"), "--state", rounds.path("states/0003"))
    refused(rounds.run("device-00", *accept, check=False), "not signed")
    assert rounds.newest("device-00").round == 0


def test_a_device_that_has_never_trained_accepts_any_signed_state(rounds: World) -> None:
    shutil.rmtree(rounds.home("device-00") / "trust" / "newest")
    rounds.train("device-00", "states/0005", "mine/5")
    refused(rounds.train("device-00", "states/0004", "mine/4", check=False), "not newer")


def test_what_is_remembered_never_goes_backwards(rounds: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two commands checked their states before either remembered its own: the older one is refused."""
    monkeypatch.setenv("CHAINCTL_HOME", str(rounds.home("device-00")))
    script = (
        "import sys; from pathlib import Path\n"
        "from schemas.errors import ChainError\n"
        "from schemas.plan import PlanManifest\n"
        "from schemas.state import StateManifest\n"
        "from stages.store.artifact import open_artifact\n"
        "from stages.store.newest import remember\n"
        "plan = open_artifact(Path(sys.argv[1]), PlanManifest)\n"
        "state = open_artifact(Path(sys.argv[2]), StateManifest)\n"
        "try: remember(plan, state)\n"
        "except ChainError as error: sys.exit(error.exit_code)\n"
    )
    shutil.rmtree(rounds.home("device-00") / "trust" / "newest")
    commands = [
        subprocess.Popen(
            [sys.executable, "-c", script, rounds.path("plan"), rounds.path(f"states/{number:04d}")], cwd=fleet.ROOT
        )
        for number in (1, 7, 0, 4)
    ]
    codes = [command.wait() for command in commands]
    assert codes[1] == 0
    assert set(codes) <= {0, 4}
    assert rounds.newest("device-00").round == 7
    remember(rounds.plan(), rounds.state("states/0007"))


def test_whoever_is_killed_after_signing_has_not_forgotten(world: World) -> None:
    """The state is remembered before the update is made, and where one that is there is signed."""
    shutil.rmtree(world.home("device-00") / "trust" / "newest")
    world.train("device-00", "states/0000", "updates/0000/device-00")  # found, not made
    assert world.newest("device-00").state == world.state("states/0000").digest


def test_a_bundle_whose_history_is_not_what_its_name_says_is_refused(rounds: World) -> None:
    states = rounds.path("states")
    history = states / "history"
    history.mkdir()
    name = f"{rounds.state('states/0002').digest.removeprefix('sha256:')}.dsse.json"
    shutil.copy(states / "0001" / SIGNATURE_FILE, history / name)  # junk by that name: the folder beside it counts
    bundle = rounds.path("x.tar")
    done = rounds.run(OFFICE, "bundle", "pack", states / "0003", "--out", bundle, "--json")
    assert json.loads(done.stdout)["earlier_states"] == 3
    from schemas.bundle import EarlierState
    from stages.store import bundle as module
    from stages.store.regular import file_digest

    index, sources, _ = module._index({"0003": states / "0003"}, None)
    forged = history / name
    wrong = tuple(
        EarlierState(state=one.state, size_bytes=forged.stat().st_size, sha256=file_digest(forged))
        if name.startswith(one.state.removeprefix("sha256:"))
        else one
        for one in index.history
    )
    module._write(
        index.model_copy(update={"history": wrong}), sources | {f"history/{name}": forged}, [rounds.path("forged.tar")]
    )
    into = rounds.path("into")
    done = rounds.run("device-00", "bundle", "unpack", rounds.path("forged.tar"), "--into", into, check=False)
    refused(done, name)
    assert not into.exists() or not list(into.iterdir())


@pytest.mark.parametrize("given", ["link", "inside"])
def test_the_history_is_found_where_a_link_leads_and_from_within_the_state(
    given: str, rounds: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = rounds.deliver(3, "device-00")
    if given == "link":
        rounds.path("latest").symlink_to(state)
        rounds.train("device-00", "latest", "mine/3")
    else:
        monkeypatch.chdir(state)
        rounds.run("device-00", *[Path() if one == state else one for one in rounds.training("device-00", state, "o")])


def test_what_an_unpacking_left_among_the_history_is_gone_after_the_next(rounds: World) -> None:
    rounds.deliver(3, "device-00")
    left = rounds.path("at-device-00/history/.bundle.0a1b2c3d.partial")
    left.mkdir()
    rounds.deliver(3, "device-00")
    assert not left.exists()


def test_a_planted_signature_beside_the_states_does_not_travel_in_the_bundle(rounds: World) -> None:
    """It holds the right manifest, so its digest is right; the signature is another's."""
    states = rounds.path("states")
    (states / "history").mkdir()
    name = f"{rounds.state('states/0002').digest.removeprefix('sha256:')}.dsse.json"
    stranger = KeyRing(rounds.home("device-01")).open("device-01")
    (states / "history" / name).write_bytes(stranger.envelope((states / "0002" / "manifest.json").read_bytes()))
    rounds.train("device-00", rounds.deliver(3, "device-00"), "mine/3")


def test_a_bundle_without_the_states_before_says_so(rounds: World) -> None:
    shutil.copytree(rounds.path("states/0003"), rounds.path("alone/0003"))
    pack = ("bundle", "pack", rounds.path("alone/0003"), "--out", rounds.path("alone.tar"))
    said = rounds.run(OFFICE, *pack).stdout
    assert "3 of the states before are not beside it" in said
    refused(rounds.train("device-00", "alone/0003", "mine/3", check=False), "beside")
    said = rounds.run(OFFICE, "bundle", "pack", rounds.path("states/0003"), "--out", rounds.path("x.tar")).stdout
    assert "not beside it" not in said


def test_a_history_that_is_there_is_not_written_over(rounds: World) -> None:
    bundle = rounds.path("x.tar")
    rounds.run(OFFICE, "bundle", "pack", rounds.path("states/0003"), "--out", bundle)
    into = rounds.path("into")
    name = f"{rounds.state('states/0002').digest.removeprefix('sha256:')}.dsse.json"
    (into / "history").mkdir(parents=True)
    (into / "history" / name).write_text("mine")
    unpack = ("bundle", "unpack", bundle, "--into", into)
    done = rounds.run("device-00", *unpack, check=False)
    assert done.returncode == 2, done.stderr
    assert (into / "history" / name).read_text() == "mine"
    assert not (into / "0003").exists()
    rounds.run("device-00", *unpack, "--force")
    assert (into / "history" / name).read_bytes() == (rounds.path("states/0002") / SIGNATURE_FILE).read_bytes()
    outside = rounds.path("outside")
    shutil.move(into / "history", outside)
    (into / "history").symlink_to(outside)
    shutil.rmtree(into / "0003")
    assert rounds.run("device-00", *unpack, check=False).returncode == 2


# A round closes once.


def test_a_round_is_not_closed_again_from_elsewhere(world: World) -> None:
    world.aggregate("updates/0000/device-00", state="states/0000", out="states/0001")
    again = world.aggregate("updates/0000/device-01", state="states/0000", out="elsewhere/0001", check=False)
    assert again.returncode == 2
    assert "closed already" in again.stderr
    assert not world.path("elsewhere").exists()
    shutil.copytree(world.path("states/0000"), world.path("copied/0000"))
    again = world.aggregate("updates/0000/device-01", state="copied/0000", out="copied/0001", check=False)
    assert again.returncode == 2, again.stderr
    world.path("current").symlink_to(world.path("states/0000"))
    again = world.aggregate("updates/0000/device-01", state="current", out="linked/0001", check=False)
    assert again.returncode == 2, again.stderr
    same = world.aggregate("updates/0000/device-00", state="states/0000", out="elsewhere/0001")
    assert world.state("states/0001").digest[:19] in same.stdout
    assert len(world.closings()) == 1


def test_a_state_that_went_elsewhere_goes_on_in_the_same_ledger(world: World) -> None:
    world.aggregate("updates/0000", state="states/0000", out="elsewhere/0001")
    world.train("device-00", "elsewhere/0001", "updates/0001/device-00")
    world.aggregate("updates/0001", state="elsewhere/0001", out="states/0002")
    assert len(world.closings()) == 2
    assert not world.path("elsewhere/ledger.jsonl").exists()


def test_a_federation_that_was_moved_goes_on(world: World) -> None:
    world.aggregate("updates/0000", state="states/0000", out="states/0001")
    moved = World(world.folder.with_name("moved"), world.model)
    world.folder.rename(moved.folder)
    moved.train("device-00", "states/0001", "updates/0001/device-00")
    moved.aggregate("updates/0001", state="states/0001", out="states/0002")
    assert len(moved.closings()) == 2


def test_force_closes_anew_and_says_so_in_the_ledger(world: World) -> None:
    world.aggregate("updates/0000/device-00", state="states/0000", out="states/0001")
    world.aggregate("updates/0000/device-01", state="states/0000", out="fork/0001", more=("--force",))
    assert world.closings() == [world.state("states/0001").digest, world.state("fork/0001").digest]
    for device, out in (("device-00", "states/0001"), ("device-01", "fork/0001")):  # the same commands, without force
        world.aggregate(f"updates/0000/{device}", state="states/0000", out=out)
    assert len(world.closings()) == 2
    both = world.aggregate("updates/0000", state="states/0000", out="third/0001", check=False)
    assert both.returncode == 2


def test_two_at_once_make_one_state_or_one_is_refused(world: World) -> None:
    commands = [
        world.aggregating(updates, state="states/0000", out=out)
        for updates, out in (("updates/0000/device-00", "a/0001"), ("updates/0000/device-01", "b/0001"))
    ]
    environment = {**os.environ, "CHAINCTL_HOME": str(world.home(OFFICE))}
    begun = [fleet_process(command, environment) for command in commands]
    ended = [(*process.communicate(), process.returncode) for process in begun]
    assert sorted(code for _, _, code in ended) == [0, 2], ended
    assert len(world.closings()) == 1
    assert world.path("a/0001").exists() != world.path("b/0001").exists()
    winner = "a" if world.path("a/0001").exists() else "b"
    same = [fleet_process(commands["ab".index(winner)], environment) for _ in range(3)]
    assert [process.wait() for process in same] == [0, 0, 0]
    assert len(world.closings()) == 1


def fleet_process(arguments: tuple[object, ...], environment: dict[str, str]) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "chainctl", *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=fleet.ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.parametrize("attack", ["last line", "last lines", "all", "older", "gone", "other", "folder"])
def test_a_ledger_that_lacks_what_it_said_is_not_trusted(attack: str, world: World) -> None:
    ledger = world.path("states/ledger.jsonl")
    older = ledger.read_bytes()
    world.aggregate("updates/0000/device-00", state="states/0000", out="states/0001")
    whole = ledger.read_bytes()
    lines = whole.splitlines(keepends=True)
    ledger.unlink()
    if attack == "last line":
        ledger.write_bytes(b"".join(lines[:-1]))
    elif attack == "last lines":
        ledger.write_bytes(lines[0])
    elif attack == "all":
        ledger.touch()
    elif attack == "older":
        ledger.write_bytes(older)
    elif attack == "other":  # the same federation closed otherwise, on another machine
        ledger.write_bytes(older)
        world.move_office("other")
        world.run("other", *world.aggregating("updates/0000/device-01", state="states/0000", out="x/0001"))
    elif attack == "folder":
        ledger.mkdir()
    again = world.aggregate("updates/0000/device-01", state="states/0000", out="b/0001", check=False)
    if attack != "folder":
        refused(again, "remembered", str(ledger))
        status = world.run(OFFICE, "status", world.folder, check=False)
        assert status.returncode == (3 if attack in ("gone", "all") else 4), status.stderr
    assert again.returncode
    assert not world.path("b").exists()
    ledger.rmdir() if attack == "folder" else ledger.unlink(missing_ok=True)
    ledger.write_bytes(whole)  # the way out: restored
    world.aggregate("updates/0000/device-00", state="states/0000", out="states/0001")


def test_the_hint_of_a_lost_ledger_helps(world: World) -> None:
    world.aggregate("updates/0000", state="states/0000", out="states/0001")
    world.path("states/ledger.jsonl").unlink()
    world.train("device-00", "states/0001", "updates/0001/device-00")
    again = world.aggregate("updates/0001", state="states/0001", out="states/0002", check=False)
    (remembered,) = (world.home(OFFICE) / "trust" / "ledgers").glob("*.dsse.json")
    refused(again, f"removing {remembered}")
    remembered.unlink()
    world.aggregate("updates/0001", state="states/0001", out="states/0002")


def test_a_power_cut_before_the_head_is_remembered_stops_nothing(world: World) -> None:
    (remembered,) = (world.home(OFFICE) / "trust" / "ledgers").glob("*.dsse.json")
    before = remembered.read_bytes()
    world.aggregate("updates/0000/device-00", state="states/0000", out="states/0001")
    remembered.write_bytes(before)  # the ledger is ahead
    again = world.aggregate("updates/0000/device-01", state="states/0000", out="b/0001", check=False)
    assert again.returncode == 2, again.stderr
    world.train("device-00", "states/0001", "updates/0001/device-00")
    world.aggregate("updates/0001", state="states/0001", out="states/0002")
    assert remembered.read_bytes() != before


def test_whoever_was_killed_before_the_head_was_remembered_remembers_it_by_the_same_command(world: World) -> None:
    (remembered,) = (world.home(OFFICE) / "trust" / "ledgers").glob("*.dsse.json")
    before = remembered.read_bytes()
    world.aggregate("updates/0000/device-00", state="states/0000", out="states/0001")
    after = remembered.read_bytes()
    remembered.write_bytes(before)
    left = remembered.with_name(f".{remembered.name}.0a1b2c3d.partial")
    left.touch()
    world.aggregate("updates/0000/device-00", state="states/0000", out="states/0001")
    assert remembered.read_bytes() == after
    assert not left.exists()
    ledger = world.path("states/ledger.jsonl")
    ledger.write_bytes(b"".join(ledger.read_bytes().splitlines(keepends=True)[:-1]))
    refused(world.aggregate("updates/0000/device-01", state="states/0000", out="b/0001", check=False), "remembered")


def test_a_machine_that_remembers_nothing_takes_the_ledger_as_it_is(world: World) -> None:
    world.aggregate("updates/0000", state="states/0000", out="states/0001")
    world.train("device-00", "states/0001", "updates/0001/device-00")
    world.move_office("runner")
    world.run("runner", *world.aggregating("updates/0001", state="states/0001", out="states/0002"))
    assert len(world.closings()) == 2
    world.path("states/ledger.jsonl").rename(world.path("kept"))
    job = world.path("job/0002")  # a job that has the state and no ledger
    shutil.copytree(world.path("states/0002"), job)
    world.train("device-00", "job/0002", "updates/0002/device-00")
    world.move_office("fresh")
    world.run("fresh", *world.aggregating("updates/0002", state="job/0002", out="job/0003"))


@pytest.mark.parametrize("attack", ["altered", "other key", "other plan"])
def test_what_is_remembered_is_signed(attack: str, world: World) -> None:
    (remembered,) = (world.home(OFFICE) / "trust" / "ledgers").glob("*.dsse.json")
    data = remembered.read_bytes()
    if attack == "altered":
        remembered.write_bytes(data.replace(b'"payload": "e', b'"payload": "f', 1))
    else:
        import base64

        from schemas.base import canonical_json
        from stages.store.heads import PAYLOAD_TYPE

        who = OFFICE if attack == "other plan" else "device-00"
        payload = json.loads(base64.b64decode(json.loads(data)["payload"])) | (
            {"plan": fleet.ZERO} if attack == "other plan" else {}
        )
        remembered.write_bytes(KeyRing(world.home(who)).open(who).envelope(canonical_json(payload), PAYLOAD_TYPE))
    assert remembered.read_bytes() != data
    said = world.aggregate("updates/0000", state="states/0000", out="states/0001", check=False)
    refused(said, f"removing {remembered}")
    assert not world.path("states/0001").exists()


def test_without_file_locks_the_lock_says_who_holds_it(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = compile_library(tmp_path)
    command = world.aggregating("updates/0000", state="states/0000", out="states/0001")
    monkeypatch.setenv("CHAINCTL_HOME", str(world.home(OFFICE)))
    lock = world.path("states/.ledger.jsonl.lock")
    lock.write_text("process 7 on \x1b]0;box, since 2026-01-01T00:00:00Z")
    held = chainctl_lacking(library, "flock=38", *command)
    assert held.returncode == 2
    assert "process 7 on \\x1b]0;box, since 2026-01-01" in held.stderr
    assert f"remove {lock}" in held.stderr
    assert lock.exists()  # never taken from its owner
    lock.unlink()
    assert chainctl_lacking(library, "flock=38", *command).returncode == 0
    assert len(world.closings()) == 1
    assert not list(world.folder.rglob("*.lock.lock"))
