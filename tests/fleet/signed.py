"""A signed federation of one device after its first round, with an evaluation: everything that a command reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from schemas.base import canonical_json
from schemas.trust import EnrolledDevice, TrustPolicy
from stages.store.signing import SIGNATURE_FILE, KeyRing
from tests.fleet.labelled_texts import save_texts, texts
from tests.fleet.recipes import settings
from tests.fleet.stages import run_aggregate, run_eval, run_plan, run_profile, run_train

DEVICE, OFFICE, STRANGER = "phone", "office", "stranger"


class SignedFederation:
    """`profiles/phone`, `plan`, `states/0000` and `states/0001`, `updates/phone`, `evals/0001`; keys in `home`."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model, self.home = folder, model, folder / "home"
        self.data = folder / "data.jsonl"

    @property
    def keys(self) -> KeyRing:
        """Of the office, the device and a stranger."""
        return KeyRing(self.home)

    def make(self) -> SignedFederation:
        """Make it all, by the stages; `CHAINCTL_HOME` is `home`."""
        for name in (DEVICE, OFFICE, STRANGER):
            self.keys.new(name)
        save_texts(self.data, texts(12))
        office, device, folder = self.keys.open(OFFICE), self.keys.open(DEVICE), self.folder
        chosen = settings(federation={"max_update_norm": "auto"})
        run_profile(self.model, self.data, chosen, folder / "profiles" / DEVICE, device=DEVICE, signer=device)
        run_plan(
            *([folder / "profiles" / DEVICE], self.model, chosen, folder / "plan", folder / "states" / "0000"),
            policy=TrustPolicy(signatures="required", coordinator=office.public),
            roster=(EnrolledDevice(name=DEVICE, key=device.public, max_example_count=20),),
            signer=office,
        )
        update = folder / "updates" / DEVICE
        run_train(folder, self.model, self.data, update, device=DEVICE, state="states/0000", signer=device)
        run_aggregate([update], folder / "plan", folder / "states/0000", folder / "states/0001", signer=office)
        run_eval(folder, self.model, self.data, folder / "evals" / "0001", state="states/0001", signer=office)
        return self

    def copy(self, folder: Path) -> SignedFederation:
        """The same in another folder, to be attacked."""
        shutil.copytree(self.folder, folder)
        return SignedFederation(folder, self.model)

    def strip(self, artifact: str) -> None:
        """Take the signature away."""
        (self.folder / artifact / SIGNATURE_FILE).unlink()

    def swap(self, artifact: str, other: str) -> None:
        """Give an artifact the signature of another."""
        shutil.copyfile(self.folder / other / SIGNATURE_FILE, self.folder / artifact / SIGNATURE_FILE)

    def sign(self, artifact: str, key: str, **changes: object) -> None:
        """What somebody with `key` can make of an artifact."""
        folder = self.folder / artifact
        data = canonical_json(json.loads((folder / "manifest.json").read_bytes()) | changes)
        (folder / "manifest.json").write_bytes(data)
        (folder / SIGNATURE_FILE).write_bytes(self.keys.open(key).envelope(data))
        (folder / "measured.json").unlink(missing_ok=True)

    def plant(self, source: str, place: str, *, key: str | None = None, **changes: object) -> None:
        """A copy of an artifact with other values, signed with `key` or not at all."""
        shutil.copytree(self.folder / source, self.folder / place)
        self.sign(place, key or STRANGER, **changes)
        if key is None:
            self.strip(place)
