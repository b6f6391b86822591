"""What this machine trusts: coordinators whose keys were pinned by hand.

    HOME/trust/coordinators.json      names and public keys

The root of trust is not the plan: a plan says who signs, a pin says which coordinator to trust.  Once anything is
pinned, only signed plans are accepted.  A key of this machine's own is no exception: a device's key must not count as a
coordinator's, so the coordinator's is pinned on its own machine when that makes a plan with it.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from schemas.base import canonical_json, describe_validation_error
from schemas.errors import BadInput, NotTrusted, UsageProblem
from schemas.plan import PlanManifest
from schemas.profile import ProfileManifest
from schemas.state import StateManifest
from schemas.trust import Pin, Pins, TrustPolicy
from schemas.update import UpdateManifest
from stages.store.artifact import Artifact, check_same_plan, open_artifact
from stages.store.devices import find_device
from stages.store.files import write_file
from stages.store.home import locked_home
from stages.store.signing import KeyRing, Signer, check_signature

HOME_VARIABLE = "CHAINCTL_HOME"


def home_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """`$CHAINCTL_HOME`, or `chainctl` in the user's configuration directory."""
    if environment.get(HOME_VARIABLE):
        return Path(environment[HOME_VARIABLE])
    return Path(environment.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "chainctl"


@contextmanager
def isolated_home(home: Path) -> Iterator[None]:
    """Use another home meanwhile: simulated devices have none of this machine's keys and pins."""
    before = os.environ.get(HOME_VARIABLE)
    os.environ[HOME_VARIABLE] = str(home)
    try:
        yield
    finally:
        if before is None:
            del os.environ[HOME_VARIABLE]
        else:
            os.environ[HOME_VARIABLE] = before


@dataclass(frozen=True)
class Trust:
    """The trust store below a chainctl home."""

    home: Path

    @classmethod
    def of_this_machine(cls) -> "Trust":
        """The trust store of this machine's home directory."""
        return cls(home_directory())

    def pins(self) -> tuple[Pin, ...]:
        """The pinned coordinators.  Raises `BadInput` for a damaged file, which is never treated as empty."""
        path = self._pins
        if not os.path.lexists(path):
            return ()
        try:
            return Pins.model_validate_json(path.read_bytes()).coordinators
        except ValidationError as error:
            raise BadInput(
                f"{path} is damaged",
                values=describe_validation_error(error),
                hint="remove it and pin the coordinators again with 'chainctl trust add'",
            ) from None

    def add(self, name: str, key: str) -> None:
        """Pin a coordinator's key.  Raises `UsageProblem` where the name is pinned with another key."""
        with self._changing() as pins:
            if name in pins and pins[name].key != key:
                raise UsageProblem(
                    f"coordinator {name} is pinned with another key",
                    values={"pinned": pins[name].key, "given": key},
                    hint=f"if the change is real, 'chainctl trust remove {name}' first",
                )
            pins[name] = Pin(name=name, key=key)

    def add_own(self, signer: Signer) -> bool:
        """Pin the key that this machine coordinates with, unless it is pinned; whether it was not.

        Raises `UsageProblem` where its name is pinned with another key.
        """
        if any(pin.key == signer.public for pin in self.pins()):
            return False
        self.add(signer.name, signer.public)
        return True

    def remove(self, name: str) -> None:
        """Remove a coordinator's pin.  Raises `UsageProblem` where there is none."""
        with self._changing() as pins:
            if pins.pop(name, None) is None:
                raise UsageProblem(f"no coordinator {name} is pinned", values={"pinned": ", ".join(pins) or "none"})

    def check_plan(self, plan: Artifact[PlanManifest]) -> None:
        """Check that a plan may be used here.  Raises `NotTrusted`: unsigned, by an untrusted coordinator, expired."""
        policy, pins = plan.manifest.trust, self.pins()
        if policy.required:
            assert policy.coordinator is not None
            if policy.coordinator not in {pin.key for pin in pins}:
                raise NotTrusted(
                    f"{plan.path} is by a coordinator whose key is not pinned here",
                    values={"plan names": policy.coordinator, "pinned": ", ".join(pin.name for pin in pins) or "none"},
                    hint=self._how_to_pin(policy.coordinator),
                )
            check_signature(plan.path, plan.bytes(), policy.coordinator, whose="the coordinator")
        elif pins:
            raise NotTrusted(
                f"{plan.path} is not signed, and this machine accepts only signed plans from pinned coordinators",
                values={"pinned": ", ".join(pin.name for pin in pins), "plan": "unsigned"},
                hint="ask for a signed plan, or 'chainctl trust remove' every coordinator to accept unsigned ones",
            )
        check_not_expired(plan)

    def check_state(self, plan: Artifact[PlanManifest], state: Artifact[StateManifest]) -> None:
        """A state is of the plan, and signed where the plan asks for it.

        Raises `BadInput` for another plan's, `NotTrusted` otherwise.
        """
        check_same_plan(plan, state)
        policy = plan.manifest.trust
        if not policy.required:
            return
        assert policy.coordinator is not None
        check_signature(state.path, state.bytes(), policy.coordinator, whose="the coordinator")

    def _how_to_pin(self, key: str) -> str:
        own = next((name for name, public in KeyRing(self.home).public_keys() if public == key), None)
        if own is None:
            return "get the key from the coordinator, but not along with the plan, then 'chainctl trust add'"
        return f"that is this machine's own key {own}: only if you coordinate with it, 'chainctl trust add {own} {key}'"

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Pin]]:
        """The pins by name, which nobody else changes meanwhile; they are written when the block succeeds."""
        with locked_home(self.home):
            pins = {pin.name: pin for pin in self.pins()}
            yield pins
            document = Pins(coordinators=tuple(pins[name] for name in sorted(pins)))
            write_file(self._pins, canonical_json(document.model_dump(mode="json")))

    @property
    def _pins(self) -> Path:
        return self.home / "trust" / "coordinators.json"


def open_trusted(plan: Path, state: Path) -> tuple[Artifact[PlanManifest], Artifact[StateManifest]]:
    """Open a plan and a state of it, and check that this machine may use them.  Raises `BadInput`, `NotTrusted`."""
    trust = Trust.of_this_machine()
    planned = open_artifact(plan, PlanManifest)
    trust.check_plan(planned)
    current = open_artifact(state, StateManifest)
    trust.check_state(planned, current)
    return planned, current


def check_signer(policy: TrustPolicy, key: str | None, signer: Signer | None, *, whose: str) -> None:
    """Check, before any work, that the signer has the key that the plan expects.  Raises `UsageProblem`."""
    if not policy.required:
        return
    if signer is None:
        raise UsageProblem(
            "this federation accepts only signed artifacts",
            values={"expected": f"--key NAME, the key of {whose}", "found": "none"},
            hint="'chainctl keys list' lists the keys on this machine",
        )
    if signer.public != key:
        raise UsageProblem(
            f"{signer.name} is not the key of {whose}",
            values={"plan names": key or "none", f"{signer.name} is": signer.public},
            hint="give the right --key; a new key needs a new plan",
        )


def check_device_signature(artifact: Artifact[ProfileManifest] | Artifact[UpdateManifest], key: str | None) -> None:
    """Check that a profile or an update is signed by the device it names, with its `key`; None: it is not enrolled.

    Raises `NotTrusted`.
    """
    device = artifact.manifest.device
    if key is None:
        raise NotTrusted(
            f"{artifact.path} is from a device that is not enrolled",
            values={"expected": "a device of the roster", "found": device},
            hint="add the device to the roster, or leave out what it sent",
        )
    check_signature(artifact.path, artifact.bytes(), key, whose=f"device {device}")


def check_signed(artifact: Artifact[Any], plan: Artifact[PlanManifest]) -> str:
    """Check that an artifact is signed by the right party, and name it.  Raises `NotTrusted` and `BadInput`."""
    policy, manifest = plan.manifest.trust, artifact.manifest
    if artifact.digest != plan.digest and getattr(manifest, "plan", plan.digest) != plan.digest:
        raise BadInput(
            f"{artifact.path} belongs to another plan",
            values={"expected": plan.digest, "found": manifest.plan},
            hint="take both from the same federation",
        )
    if not policy.required:
        return "nobody: the plan does not require signatures"
    if isinstance(manifest, ProfileManifest | UpdateManifest):
        device = find_device(plan, manifest.device)
        check_device_signature(artifact, device.key if device else None)
        return f"device {manifest.device}"
    assert policy.coordinator is not None
    check_signature(artifact.path, artifact.bytes(), policy.coordinator, whose="the coordinator")
    return "the coordinator"


def check_not_expired(plan: Artifact[PlanManifest]) -> None:
    """Check that the plan has not expired.  Raises `NotTrusted`."""
    expires = plan.manifest.trust.expires
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if expires is not None and expires <= now:
        raise NotTrusted(
            f"{plan.path} has expired",
            values={"expired": expires, "clock here": now},
            hint="ask for a new plan; or set the clock if it is wrong",
        )


def read_moment(text: str) -> str:
    """`2027-01-31` or `2027-01-31T12:00:00Z`, as a plan holds it.  Raises `UsageProblem`."""
    for pattern in ("%Y-%m-%d", "%Y-%m-%dT%H:%M:%SZ"):
        try:
            return datetime.strptime(text, pattern).replace(tzinfo=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        except ValueError:
            continue
    raise UsageProblem(
        "this is not a time", values={"expected": "2027-01-31 or 2027-01-31T12:00:00Z (UTC)", "found": text}
    )
