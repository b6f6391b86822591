"""Signatures, pins and expiry: what a hostile stick may carry, and what each machine makes of it.

One signed federation of the tiny BERT by real commands; every test attacks a copy of it.  docs/threats.md names these
tests.
"""

import base64
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from securesystemslib.dsse import Envelope
from securesystemslib.signer import SSlibKey

from schemas.base import canonical_json, sha256_digest
from schemas.errors import ChainError, NotTrusted, TooFewUpdates, UsageProblem
from schemas.plan import PlanManifest
from schemas.state import StateManifest
from schemas.update import UpdateManifest
from stages.store.artifact import open_artifact, read_tensors, verify_artifact
from stages.store.devices import planned_devices
from stages.store.signing import SIGNATURE_FILE, KeyRing, key_id
from stages.store.trust import Trust
from tests import fleet

DEVICES = ("device-00", "device-01")
COORDINATOR = "office"
DEVICES_OF_FILES = ("device device-00", "device device-01", "device device-00")


class World:
    """A signed federation after its first round of training: folders of a coordinator and of two devices."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model = folder, model
        self.keys = KeyRing(folder / "home")
        for name in (COORDINATOR, *DEVICES, "stranger"):
            self.keys.new(name)

    def path(self, name: str) -> Path:
        return self.folder / name

    def public(self, name: str) -> str:
        return self.keys.open(name).public

    def chainctl(self, *arguments: object, check: bool = True, home: str = "home") -> fleet.Done:
        return fleet.chainctl(*arguments, check=check, home=self.folder / home)

    def train(self, device: str, out: str, **options: object) -> UpdateManifest:
        signer = self.keys.open(str(options.pop("key", device)))
        state = str(options.pop("state", "states/0000"))
        data = self.path(f"{device}.jsonl")
        made = fleet.run_train(self.folder, self.model, data, self.path(out), device=device, state=state, signer=signer)
        return made.manifest

    def aggregate(
        self, *updates: Path, out: str = "states/0001", state: str = "states/0000", **options: Any
    ) -> StateManifest:
        signer = self.keys.open(COORDINATOR)
        return fleet.combine(self.folder, updates, out, state, signer=signer, **options).manifest

    def refusal(self, *updates: Path) -> list[str]:
        """Reasons for which a round with these updates does not close."""
        reasons: list[str] = []
        with pytest.raises(TooFewUpdates):
            fleet.combine(
                *(self.folder, updates, "states/0001", "states/0000"),
                quorum=2,
                signer=self.keys.open(COORDINATOR),
                on_refusal=lambda refused, place: reasons.append(refused.reason),
            )
        assert not self.path("states/0001").exists()
        return reasons


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> World:
    world = World(tmp_path_factory.mktemp("trust"), tiny_bert)
    recipe = fleet.write_recipe(world.path("recipe.toml"), fleet.settings(federation={"max_update_norm": "auto"}))
    roster = ""
    for seed, device in enumerate(DEVICES):
        data = fleet.save_texts(world.path(f"{device}.jsonl"), fleet.texts(12, seed=seed))
        arguments = ("--model", tiny_bert, "--data", data, "--device", device, "--recipe", recipe, "--key", device)
        world.chainctl("profile", *arguments, "--memory-budget", "8GiB", "--out", world.path(f"profiles/{device}"))
        roster += f'[{device}]\nkey = "{world.public(device)}"\nmax_examples = 20\n'
    world.path("roster.toml").write_text(roster)
    world.chainctl(
        *("plan", *(world.path(f"profiles/{device}") for device in DEVICES), "--model", tiny_bert),
        *("--recipe", recipe, "--roster", world.path("roster.toml"), "--key", COORDINATOR, "--expires", "2090-01-01"),
        *("--out", world.path("plan"), "--state", world.path("states/0000")),
    )
    for device in DEVICES:
        world.chainctl(
            *("train-window", "--model", tiny_bert, "--plan", world.path("plan"), "--state", world.path("states/0000")),
            *("--data", world.path(f"{device}.jsonl"), "--device", device, "--key", device),
            *("--memory-budget", "8GiB", "--out", world.path(f"updates/{device}")),
        )
    return world


@pytest.fixture
def world(original: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    folder = tmp_path / "world"
    shutil.copytree(original.folder, folder)
    copied = World.__new__(World)
    copied.folder, copied.model, copied.keys = folder, original.model, KeyRing(folder / "home")
    monkeypatch.setenv("CHAINCTL_HOME", str(folder / "home"))
    return copied


def resign(artifact: Path, world: World, key: str, **changes: object) -> None:
    """What somebody with `key` can make of an artifact."""
    manifest = json.loads((artifact / "manifest.json").read_bytes()) | changes
    data = canonical_json(manifest)
    (artifact / "manifest.json").write_bytes(data)
    (artifact / SIGNATURE_FILE).write_bytes(world.keys.open(key).envelope(data))
    (artifact / "measured.json").unlink(missing_ok=True)


# What a signature is.


def test_a_third_party_can_check_an_envelope(world: World) -> None:
    data = (world.path("updates/device-00") / "manifest.json").read_bytes()
    envelope = Envelope.from_dict(json.loads((world.path("updates/device-00") / SIGNATURE_FILE).read_bytes()))
    public = world.public("device-00")
    fields = {"keyval": {"public": public.removeprefix("ed25519:")}, "scheme": "ed25519", "keytype": "ed25519"}
    key = SSlibKey.from_dict(key_id(public), fields)
    assert list(envelope.verify([key], 1)) == [key_id(public)]
    assert envelope.payload == data
    envelope.payload = data.replace(b'"round": 0', b'"round": 1')
    with pytest.raises(Exception, match=r"(?i)verif|threshold|signature"):
        envelope.verify([key], 1)


def test_private_keys_are_the_owners_alone_and_never_written_over(world: World) -> None:
    path = world.path("home/keys/office.pem")
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(UsageProblem, match="already"):
        world.keys.new(COORDINATOR)
    path.chmod(0o644)
    with pytest.raises(UsageProblem, match="others can read"):
        world.keys.open(COORDINATOR)


def test_keys_and_trust_by_command(world: World) -> None:
    shown = world.chainctl("keys", "new", "laptop", home="other").stdout.strip()
    assert world.chainctl("keys", "show", "laptop", home="other").stdout.strip() == shown
    listed = json.loads(world.chainctl("keys", "list", "--json", home="other").stdout)
    assert listed == {"keys": [{"name": "laptop", "key": shown}]}
    world.chainctl("trust", "add", "office", world.public(COORDINATOR), home="other")
    other = world.chainctl("trust", "add", "office", shown, home="other", check=False)
    assert other.returncode == 2
    assert world.public(COORDINATOR) in other.stderr
    assert shown in other.stderr
    assert "office" in world.chainctl("trust", "list", home="other").stdout
    world.chainctl("trust", "remove", "office", home="other")
    assert Trust(world.path("other")).pins() == ()
    assert world.chainctl("keys", "new", "../x", home="other", check=False).returncode == 2


# The undisturbed federation.


def test_a_signed_round_closes_and_its_state_is_signed(world: World) -> None:
    ready = world.chainctl("status", world.folder, "--json")  # exit 0: everybody has delivered
    assert json.loads(ready.stdout)["delivered"] == list(DEVICES)
    made = world.aggregate(world.path("updates"))
    assert made.accepted_count == len(DEVICES)
    assert fleet.accepted_devices(open_artifact(world.path("states/0001"), StateManifest)) == list(DEVICES)
    envelope = json.loads((world.path("states/0001") / SIGNATURE_FILE).read_bytes())
    assert envelope["signatures"][0]["keyid"] == key_id(world.public(COORDINATOR))
    status = world.chainctl("status", world.folder, "--json", check=False)
    assert status.returncode == 7
    assert json.loads(status.stdout)["missing"] == list(DEVICES)


def test_the_same_command_again_changes_nothing(world: World) -> None:
    before = {path: path.read_bytes() for path in world.path("updates").rglob("*") if path.is_file()}
    world.train("device-00", "updates/device-00")
    assert {path: path.read_bytes() for path in world.path("updates").rglob("*") if path.is_file()} == before


def test_verify_of_all_that_is_beside_states_checks_the_ledger_too(world: World) -> None:
    states = sorted(world.path("states").iterdir())
    ledger = world.path("states/ledger.jsonl")
    assert ledger in states
    done = world.chainctl("verify", *states)
    assert "whole  ledger" in done.stdout
    assert "each names the one before" in done.stdout
    assert done.stdout.count("whole  ") == len(states)
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join([*lines, lines[0]]))
    altered = world.chainctl("verify", *states, check=False)
    assert altered.returncode == 4
    assert "does not follow the line before it" in altered.stderr
    assert altered.stdout.count("whole  ") == len(states) - 1


def test_verify_says_who_signed_and_refuses_who_should_not_have(world: World) -> None:
    everything = ("plan", "states/0000", "updates/device-00", "updates/device-01", "profiles/device-00")
    paths = [world.path(name) for name in everything]
    done = world.chainctl("verify", *paths, "--plan", world.path("plan"), "--json")
    signers = [entry["signer"] for entry in json.loads(done.stdout)["artifacts"]]
    assert signers == [f"signed by {who}" for who in ("the coordinator", "the coordinator", *DEVICES_OF_FILES)]
    resign(paths[2], world, "device-01")
    again = world.chainctl("verify", *paths, "--plan", world.path("plan"), check=False)
    assert again.returncode == 4
    assert "another key" in again.stderr
    assert world.chainctl("verify", paths[2]).returncode == 0  # without a plan it is only whole
    nobody = world.chainctl("verify", paths[0], "--plan", world.path("plan"), home="nobody", check=False)
    assert nobody.returncode == 4
    assert "not pinned" in nobody.stderr


# Whom a device believes.


def on_device(world: World, monkeypatch: pytest.MonkeyPatch, *pinned: str) -> Trust:
    """From here on this machine is a device's: its own key, and the pins given."""
    home = world.path("device-home")
    (home / "keys").mkdir(parents=True)
    for suffix in ("pem", "pub"):
        shutil.copy2(world.path(f"home/keys/device-00.{suffix}"), home / "keys")
    monkeypatch.setenv("CHAINCTL_HOME", str(home))
    trust = Trust(home)
    for name in pinned:
        trust.add(name, world.public(name))
    return trust


def test_a_device_works_for_a_coordinator_that_it_pinned(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    on_device(world, monkeypatch, COORDINATOR)
    assert world.train("device-00", "again").device == "device-00"


@pytest.mark.parametrize("pinned", [(), ("stranger",)])
def test_a_device_works_for_nobody_else(pinned: tuple[str, ...], world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    on_device(world, monkeypatch, *pinned)
    with pytest.raises(NotTrusted, match="not pinned") as caught:
        world.train("device-00", "again")
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("pinned", [(), (COORDINATOR,)])
def test_a_devices_own_key_does_not_count_as_a_coordinators(
    pinned: tuple[str, ...], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has the device sign something must not have it sign its own orders."""
    on_device(world, monkeypatch, *pinned)
    manifest = json.loads((world.path("plan") / "manifest.json").read_bytes())
    own = world.public("device-00")
    resign(world.path("plan"), world, "device-00", trust=manifest["trust"] | {"coordinator": own})
    with pytest.raises(NotTrusted, match="not pinned") as caught:
        world.train("device-00", "again")
    assert "own key device-00: only if you coordinate with it" in caught.value.hint


def test_a_coordinator_pins_its_own_key_and_only_that(world: World) -> None:
    """`plan` says so once; on another machine a person pins it, as the hint says."""
    assert [(pin.name, pin.key) for pin in Trust(world.keys.home).pins()] == [(COORDINATOR, world.public(COORDINATOR))]
    arguments = (
        *("plan", *sorted(world.path("profiles").iterdir()), "--model", world.model),
        *("--recipe", world.path("recipe.toml"), "--roster", world.path("roster.toml"), "--key", COORDINATOR),
        *("--expires", "2090-01-01", "--out", world.path("plan"), "--state", world.path("states/0000")),
    )
    assert "pinned" not in world.chainctl(*arguments).stdout
    shutil.rmtree(world.keys.home / "trust")
    close = (
        *("aggregate", world.path("updates"), "--plan", world.path("plan"), "--state", world.path("states/0000")),
        *("--key", COORDINATOR, "--out", world.path("states/0001")),
    )
    refused = world.chainctl(*close, check=False)
    assert refused.returncode == 4
    command = f"trust add {COORDINATOR} {world.public(COORDINATOR)}"
    assert f"'chainctl {command}'" in refused.stderr.replace("\n", " ")
    world.chainctl(*command.split())
    world.chainctl(*close)
    shutil.rmtree(world.keys.home / "trust")
    assert f"{COORDINATOR} {world.public(COORDINATOR)} is pinned here" in world.chainctl(*arguments).stdout


def test_a_plan_resigned_by_a_stranger_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stranger puts his key into the plan and signs it: the plan is not the root of trust."""
    on_device(world, monkeypatch, COORDINATOR)
    manifest = json.loads((world.path("plan") / "manifest.json").read_bytes())
    resign(world.path("plan"), world, "stranger", trust=manifest["trust"] | {"coordinator": world.public("stranger")})
    with pytest.raises(NotTrusted, match="not pinned"):
        world.train("device-00", "again")


def test_a_plan_that_asks_for_nothing_is_no_way_round(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything unsigned, the policy taken out: a machine with a pin does not fall back."""
    on_device(world, monkeypatch, COORDINATOR)
    policy: dict[str, object] = {"signatures": "none", "coordinator": None, "expires": None}
    resign(world.path("plan"), world, "stranger", trust=policy)
    (world.path("plan") / SIGNATURE_FILE).unlink()
    with pytest.raises(NotTrusted, match="only signed plans"):
        world.train("device-00", "again")


@pytest.mark.parametrize(
    ("artifact", "file", "old"), [("plan", "devices.jsonl", b"device-01"), ("states/0000", "participants.jsonl", b"01")]
)
def test_no_line_of_a_signed_plan_or_state_can_be_altered(
    artifact: str, file: str, old: bytes, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another key, another number of texts, another participant: the signature covers the hash of every line."""
    on_device(world, monkeypatch, COORDINATOR)
    path = world.path(artifact) / file
    path.write_bytes(path.read_bytes().replace(old, old[:-1] + b"9"))
    with pytest.raises(NotTrusted, match="altered"):
        world.train("device-00", "again")
    with pytest.raises(NotTrusted, match="altered"):
        fleet.combine(
            *(world.folder, [world.path("updates")], "states/0001", "states/0000"), signer=world.keys.open(COORDINATOR)
        )


@pytest.mark.parametrize("artifact", ["plan", "states/0000"])
@pytest.mark.parametrize("attack", ["unsigned", "stranger", "device-00", "swapped"])
def test_a_plan_or_state_must_carry_the_coordinators_signature(
    artifact: str, attack: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    signature = world.path(artifact) / SIGNATURE_FILE
    if attack == "unsigned":
        signature.unlink()
    elif attack == "swapped":
        other = {"plan": "states/0000", "states/0000": "plan"}[artifact]
        shutil.copy(world.path(other) / SIGNATURE_FILE, signature)
    else:
        resign(world.path(artifact), world, attack)
    on_device(world, monkeypatch, COORDINATOR)
    with pytest.raises(NotTrusted) as caught:
        world.train("device-00", "again")
    assert caught.value.exit_code == 4
    assert not world.path("again").exists()


def test_an_expired_plan_is_refused(world: World) -> None:
    manifest = json.loads((world.path("plan") / "manifest.json").read_bytes())
    resign(world.path("plan"), world, COORDINATOR, trust=manifest["trust"] | {"expires": "2020-01-01T00:00:00Z"})
    with pytest.raises(NotTrusted, match="expired"):
        world.train("device-00", "again")


def test_an_older_state_is_refused_by_a_device_that_has_seen_a_newer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.aggregate(world.path("updates"))
    on_device(world, monkeypatch, COORDINATOR)
    world.train("device-00", "second", state="states/0001")
    with pytest.raises(NotTrusted, match="not newer") as caught:
        world.train("device-00", "old", state="states/0000")
    assert {"newest here", "given"} == set(caught.value.values)
    assert world.train("device-00", "second-again", state="states/0001").round == 1


def test_a_second_history_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The coordinator's key signs two different states of one round."""
    world.aggregate(world.path("updates"))
    world.aggregate(world.path("updates/device-00"), out="fork/0001", force=True)
    on_device(world, monkeypatch, COORDINATOR)
    world.train("device-00", "second", state="states/0001")
    with pytest.raises(NotTrusted, match="not newer"):
        world.train("device-00", "other", state="fork/0001")


def test_a_device_cannot_sign_with_anothers_key_by_mistake(world: World) -> None:
    with pytest.raises(UsageProblem, match="not the key of device device-00"):
        world.train("device-00", "again", key="device-01")


# What the coordinator takes.


def test_an_unsigned_update_does_not_count(world: World) -> None:
    (world.path("updates/device-01") / SIGNATURE_FILE).unlink()
    assert world.refusal(world.path("updates")) == ["signature"]


@pytest.mark.parametrize("key", ["device-00", "stranger", COORDINATOR])
def test_an_update_signed_with_another_key_does_not_count(key: str, world: World) -> None:
    resign(world.path("updates/device-01"), world, key)
    assert world.refusal(world.path("updates")) == ["signature"]


def test_a_renamed_device_does_not_count(world: World) -> None:
    """device-00 sends its update a second time in the name of device-01."""
    shutil.rmtree(world.path("updates/device-01"))
    shutil.copytree(world.path("updates/device-00"), world.path("updates/device-01"))
    resign(world.path("updates/device-01"), world, "device-00", device="device-01")
    assert world.refusal(world.path("updates")) == ["signature"]


def test_one_update_under_two_names_counts_once(world: World) -> None:
    """Two devices that conspire, or one that copied the other: each signs the same tensors."""
    shutil.rmtree(world.path("updates/device-01"))
    shutil.copytree(world.path("updates/device-00"), world.path("updates/device-01"))
    resign(world.path("updates/device-01"), world, "device-01", device="device-01")
    assert world.refusal(world.path("updates")) == []  # and with a quorum of two the round stays open
    made = world.aggregate(world.path("updates"))
    one, signer = [world.path("updates/device-00")], world.keys.open(COORDINATOR)
    alone = fleet.combine(world.folder, one, "alone/0001", "states/0000", signer=signer, force=True).manifest
    assert made.tensors == alone.tensors
    assert (made.accepted_count, made.example_count) == (2, alone.example_count)


def test_an_update_under_a_key_that_anybody_can_sign_for_does_not_count(world: World) -> None:
    """A plan of before such keys were refused: the roster takes none of them today."""
    weak = "ed25519:01" + "00" * 31
    lines = world.path("plan") / "devices.jsonl"
    lines.write_bytes(lines.read_bytes().replace(world.public("device-01").encode(), weak.encode()))
    files = [{"name": lines.name, "size_bytes": lines.stat().st_size, "sha256": sha256_digest(lines.read_bytes())}]
    resign(world.path("plan"), world, COORDINATOR, files=files)
    plan = open_artifact(world.path("plan"), PlanManifest).digest
    resign(world.path("states/0000"), world, COORDINATOR, plan=plan)
    state = open_artifact(world.path("states/0000"), StateManifest).digest
    for device in DEVICES:
        resign(world.path(f"updates/{device}"), world, device, plan=plan, state=state)
    envelope = json.loads((world.path("updates/device-01") / SIGNATURE_FILE).read_bytes())
    forged = base64.b64encode(bytes.fromhex(weak.removeprefix("ed25519:")) + bytes(32)).decode()
    envelope["signatures"] = [{"keyid": key_id(weak), "sig": forged}]
    (world.path("updates/device-01") / SIGNATURE_FILE).write_bytes(canonical_json(envelope))
    assert world.refusal(world.path("updates")) == ["signature"]


def test_a_lie_about_the_number_of_texts_does_not_count(world: World) -> None:
    resign(world.path("updates/device-01"), world, "device-01", example_count=1_000_000)
    assert world.refusal(world.path("updates")) == ["example-count"]
    fleet.save_texts(world.path("device-01.jsonl"), fleet.texts(21))
    with pytest.raises(ChainError, match="more texts") as caught:
        world.train("device-01", "again")
    assert caught.value.values == {"at most": 20, "found": 21}


@pytest.mark.parametrize(
    ("value", "reason"), [(np.nan, "not-finite"), (np.inf, "not-finite"), (1e30, "norm"), (1e4, "norm")]
)
def test_poisoned_values_under_a_right_signature_do_not_count(value: float, reason: str, world: World) -> None:
    update = open_artifact(world.path("updates/device-01"), UpdateManifest)
    tensors = {name: values.copy() for name, values in read_tensors_unchecked(update.path).items()}
    next(iter(tensors.values())).flat[0] = value
    fleet.rewrite(update, update.path, tensors, force=True, signer=world.keys.open("device-01"))
    assert world.refusal(world.path("updates")) == [reason]


def read_tensors_unchecked(path: Path) -> dict[str, np.ndarray]:
    return read_tensors(open_artifact(path, UpdateManifest))


@pytest.mark.parametrize("file", ["manifest.json", "tensors.safetensors", SIGNATURE_FILE])
@pytest.mark.parametrize("attack", ["flipped", "cut", "longer", "omitted", "link", "fifo", "directory"])
def test_no_file_of_an_update_can_be_altered_unnoticed(file: str, attack: str, world: World) -> None:
    path = world.path("updates/device-01") / file
    data = path.read_bytes()
    path.unlink()
    if attack == "flipped":
        path.write_bytes(data[:-40] + bytes([data[-40] ^ 1]) + data[-39:])
    elif attack == "cut":
        path.write_bytes(data[:-1])
    elif attack == "longer":
        path.write_bytes(data + b"\n")
    elif attack == "link":
        kept = world.path("kept")
        kept.write_bytes(data)
        path.symlink_to(kept)
    elif attack == "fifo":
        os.mkfifo(path)
    elif attack == "directory":
        path.mkdir()
    reasons = world.refusal(world.path("updates"))
    assert len(reasons) == (0 if (file, attack) == ("manifest.json", "omitted") else 1)


def test_an_extra_file_is_refused(world: World) -> None:
    (world.path("updates/device-01") / "run-me.sh").write_text("echo")
    assert world.refusal(world.path("updates")) == ["altered"]


@pytest.mark.parametrize("file", ["manifest.json", "tensors.safetensors", SIGNATURE_FILE])
def test_files_swapped_between_updates_are_refused(file: str, world: World) -> None:
    one, other = (world.path(f"updates/{device}") / file for device in DEVICES)
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)
    assert len(world.refusal(world.path("updates"))) == 2


def test_a_link_in_place_of_an_update_is_refused(world: World) -> None:
    shutil.move(world.path("updates/device-01"), world.path("elsewhere"))
    world.path("updates/device-01").symlink_to(world.path("elsewhere"))
    assert world.refusal(world.path("updates")) == ["link"]
    assert verify_artifact(world.path("elsewhere"))


def test_a_manifest_of_a_newer_version_is_refused_and_says_upgrade(world: World) -> None:
    resign(world.path("updates/device-01"), world, "device-01", version=99)
    with pytest.raises(TooFewUpdates, match="not the kind of document"):
        world.aggregate(world.path("updates/device-01"))


def test_the_policy_of_the_plan_stands_for_the_coordinator_too(world: World) -> None:
    with pytest.raises(UsageProblem, match="only signed artifacts"):
        fleet.combine(world.folder, [world.path("updates")], "states/0001", "states/0000")


def test_a_profile_that_claims_more_texts_than_enrolled_makes_a_plan_that_says_so(world: World) -> None:
    resign(world.path("profiles/device-01"), world, "device-01", example_count=10**15)
    arguments = ("--model", world.model, "--recipe", world.path("recipe.toml"), "--roster", world.path("roster.toml"))
    done = world.chainctl(
        *("plan", *world.path("profiles").iterdir(), *arguments, "--key", COORDINATOR),
        *("--out", world.path("p"), "--state", world.path("s")),
    )
    assert "device-01 1000000000000000 of 20" in done.stdout
    lines = {one.name: one for one in planned_devices(open_artifact(world.path("p"), PlanManifest))}
    assert (lines["device-01"].example_count, lines["device-01"].max_example_count) == (20, 20)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"example_count": 12', '"example_count": ' + "9" * 400),
        ('"memory_budget_bytes": ', '"memory_budget_bytes": 1e'),
    ],
)
def test_a_profile_with_a_number_of_no_size_is_named(old: str, new: str, world: World) -> None:
    path = world.path("profiles/device-01") / "manifest.json"
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    arguments = ("--model", world.model, "--recipe", world.path("recipe.toml"), "--roster", world.path("roster.toml"))
    done = world.chainctl(
        *("plan", *world.path("profiles").iterdir(), *arguments, "--key", COORDINATOR),
        *("--out", world.path("p"), "--state", world.path("s")),
        check=False,
    )
    assert done.returncode == 3
    assert "profiles/device-01" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_profile_of_nobody_enrolled_makes_no_plan(world: World) -> None:
    shutil.copytree(world.path("profiles/device-00"), world.path("profiles/device-09"))
    resign(world.path("profiles/device-09"), world, "stranger", device="device-09")
    arguments = ("--model", world.model, "--recipe", world.path("recipe.toml"), "--roster", world.path("roster.toml"))
    done = world.chainctl(
        *("plan", *world.path("profiles").iterdir(), *arguments, "--key", COORDINATOR),
        *("--out", world.path("p"), "--state", world.path("s")),
        check=False,
    )
    assert done.returncode == 4
    assert "not enrolled" in done.stderr


# The base model.


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_a_base_model_with_one_changed_weight_or_word_is_refused(file: str, world: World, tmp_path: Path) -> None:
    changed = tmp_path / "model"
    shutil.copytree(world.model, changed)
    data = bytearray((changed / file).read_bytes())
    if file == "tokenizer.json":
        data = bytearray(bytes(data).replace(b'"wave"', b'"wavy"'))
    else:
        data[-3] ^= 1
    (changed / file).write_bytes(bytes(data))
    world.model = changed
    with pytest.raises(ChainError) as caught:
        world.train("device-00", "again")
    assert caught.value.exit_code in (3, 4)
    assert len(caught.value.values) >= 2


def remembered_head(world: World) -> Path:
    """Where the coordinator remembers how far its ledger went."""
    (path,) = world.path("home/trust/ledgers").glob("*.dsse.json")
    return path


def test_the_ledger_says_what_happened_and_cannot_be_altered(world: World) -> None:
    (world.path("updates/device-01") / SIGNATURE_FILE).unlink()
    world.refusal(world.path("updates"))
    remembered = remembered_head(world)
    before = remembered.read_bytes()
    world.aggregate(world.path("updates"))
    ledger = world.path("states/ledger.jsonl")
    lines = ledger.read_bytes().splitlines(keepends=True)
    assert [json.loads(line)["event"] for line in lines] == ["planned", "refused", "accepted", "closed"]
    plan = open_artifact(world.path("plan"), PlanManifest)
    assert all(json.loads(line)["plan"] == plan.digest for line in lines)
    for attack in (lines[1:], lines[:1] + lines[2:], [lines[0], lines[2], lines[1], lines[3]], [*lines, lines[-1]]):
        ledger.write_bytes(b"".join(attack))
        with pytest.raises(NotTrusted, match="line"):
            world.aggregate(world.path("updates"))
    ledger.write_bytes(b"".join(lines)[:-7])
    with pytest.raises(NotTrusted, match="removed"):
        world.aggregate(world.path("updates"))
    remembered.write_bytes(before)  # a power cut: a line is remembered only when it is whole, and said again
    world.aggregate(world.path("updates"))
    assert ledger.read_bytes() == b"".join(lines)
