"""Federations of many devices are planned, verified, inspected, signed and sampled from in little memory.

Each size has a process of its own, over profiles that are copies of a real one under other names; the stages are the
real ones.  What a process needs beyond one of 100 devices is what devices cost.
"""

import os
import subprocess
import sys
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from stages.store.signing import SIGNATURE_FILE, KeyRing, Signer
from tests import fleet

FEW, MANY = 100, int(os.environ.get("CHAINCTL_TEST_DEVICES", "2000"))
MOST_GROWTH_BYTES = 50 * 2**20 * (MANY - FEW) // (10_000 - FEW)  # 50 MiB from 100 to 10,000 devices

SCRIPT = """
import sys
from pathlib import Path
from schemas.profile import ProfileManifest
from schemas.trust import TrustPolicy, parse_roster
from stages import plan
from stages.federated.sampling import sample_participants
from stages.process.footprint import prepare_process
from stages.process.measure import peak_bytes, reset_peak, resident_bytes
from stages.report.explain import describe_artifact
from stages.store.artifact import open_artifact, verify_artifact
from stages.store.devices import find_device, takes_part
from stages.store.signing import KeyRing
from stages.store.trust import Trust, check_signed
from tests import fleet

prepare_process()
folder, model = map(Path, sys.argv[1:])
signer = KeyRing(folder / "home").open("office")
reset_peak()
before = resident_bytes()
policy = TrustPolicy(signatures="required", coordinator=signer.public)
roster = parse_roster((folder / "roster.toml").read_text(), source="roster")
profiles = sorted((folder / "profiles").iterdir())
plan.run(
    profiles,
    model_dir=model,
    settings=fleet.settings(federation={"devices_per_round": 50}),
    out=folder / "plan",
    state_out=folder / "states" / "0000",
    policy=policy,
    roster=roster,
    signer=signer,
)
del roster
planned, first = verify_artifact(folder / "plan"), verify_artifact(folder / "states" / "0000")
Trust(folder / "home").check_plan(planned)
said = " ".join(describe_artifact(planned) + describe_artifact(first))
assert f"{len(profiles)}: d00000, d00001" in said, said
for artifact in (planned, first, open_artifact(profiles[-1], ProfileManifest)):
    check_signed(artifact, planned)
assert len({sample_participants(planned, number).data for number in range(5)}) == 5
last = f"d{len(profiles) - 1:05}"
assert find_device(planned, last).name == last
assert not takes_part(first, "nobody")
print(peak_bytes() - before)
"""


def make_profiles(folder: Path, model: Path, count: int) -> None:
    """Profiles of that many devices, and their roster: what their sticks would bring."""
    data = fleet.save_texts(folder / "texts.jsonl", fleet.texts(12))
    real = fleet.run_profile(model, data, fleet.settings(), folder / "real", device="d00000").manifest
    roster = []
    for number in range(count):
        name = f"d{number:05}"
        manifest = real.model_copy(update={"device": name, "memory_budget_bytes": 2**33 + number})
        place = folder / "profiles" / name
        place.mkdir(parents=True)
        (place / "manifest.json").write_bytes(manifest.canonical_bytes())
        signer = Signer(name, Ed25519PrivateKey.generate())
        (place / SIGNATURE_FILE).write_bytes(signer.envelope(manifest.canonical_bytes()))
        roster.append(f'[{name}]\nkey = "{signer.public}"\nmax_examples = 20\n')
    (folder / "roster.toml").write_text("".join(roster))


def peak(folder: Path, model: Path, count: int) -> int:
    """Most memory that a process takes for a federation of that many devices, beyond its libraries; in bytes."""
    KeyRing(folder / "home").new("office")
    make_profiles(folder, model, count)
    command = [sys.executable, "-c", SCRIPT, str(folder), str(model)]
    environment = os.environ | {"CHAINCTL_HOME": str(folder / "home"), "PYTHONPATH": str(fleet.ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=fleet.ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_many_devices_take_little_more_memory_than_a_hundred(tiny_bert: Path, tmp_path: Path) -> None:
    """Enrolled ones, which need all that others need and their keys besides."""
    few, many = (peak(tmp_path / str(count), tiny_bert, count) for count in (FEW, MANY))
    print(f"{FEW} devices {few / 2**20:.0f} MiB, {MANY} devices {many / 2**20:.0f} MiB")
    assert many - few < MOST_GROWTH_BYTES
