"""Who is trusted: the policy inside a plan, the roster of its devices, and what a device has pinned."""

import re
import tomllib
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, ValidationError, model_validator

from schemas.base import LARGE_MANIFEST_LIMIT_BYTES, Many, Record, describe_validation_error
from schemas.ed25519 import weakness
from schemas.errors import BadInput
from schemas.refs import DeviceName, Digest, NonNegativeInt, PositiveInt, PublicKey

Moment = Annotated[str, StringConstraints(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]  # UTC
ENVELOPE_LIMIT_BYTES = LARGE_MANIFEST_LIMIT_BYTES * 4 // 3 + 2**12  # base64 takes four bytes for three
KEY_PATTERN = re.compile(r"ed25519:[0-9a-f]{64}")
KEY_PREFIX = "ed25519:"


def key_bytes(key: str) -> bytes:
    """The 32 bytes of a public key."""
    return bytes.fromhex(key.removeprefix(KEY_PREFIX))


def _usable(key: str) -> str:
    found = weakness(key_bytes(key))
    if found:
        raise ValueError(found)
    return key


SigningKey = Annotated[PublicKey, AfterValidator(_usable)]  # one that is trusted from here on


class EnrolledDevice(Record):
    """A line of the roster: a device by its key, and how many texts it may say it has."""

    name: DeviceName
    key: SigningKey
    max_example_count: PositiveInt


class TrustPolicy(Record):
    """What every artifact of a federation must carry.  Fixed by the plan; nothing that arrives can relax it."""

    signatures: Literal["none", "required"] = "none"
    coordinator: SigningKey | None = None
    expires: Moment | None = None  # the only time that is ever compared with a clock

    @property
    def required(self) -> bool:
        """Whether anything unsigned is refused."""
        return self.signatures == "required"

    @model_validator(mode="after")
    def _who_signs_has_a_key(self) -> Self:
        if self.required != (self.coordinator is not None):
            raise ValueError("signatures and the coordinator's key come together")
        return self


class Pin(Record):
    """A coordinator's key that was given by hand."""

    name: DeviceName
    key: SigningKey


class Pins(Record):
    """Every coordinator that a machine believes."""

    version: Literal[1] = 1
    coordinators: Many[Pin] = ()


class NewestState(Record):
    """The newest state of a plan that a machine has trained on."""

    version: Literal[1] = 1
    plan: Digest
    round: NonNegativeInt
    state: Digest


class LedgerHead(Record):
    """How far the ledger of a plan went when this machine last wrote to it, and where it was."""

    version: Literal[1] = 1
    plan: Digest
    ledger: str  # its path, percent-encoded
    line_count: PositiveInt
    size_bytes: PositiveInt
    line: Digest  # of the last of these lines


class Signature(Record):
    """One signature of an envelope: `keyid` is the SHA-256 of the public key, `sig` is base64."""

    keyid: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    sig: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/]{86}==$")]


class Envelope(Record):
    """DSSE (secure-systems-lab/dsse, v1.0): a payload, its type and who signed both.  Exactly one signature."""

    payload: str  # base64
    payloadType: str
    signatures: Annotated[tuple[Signature, ...], Field(min_length=1, max_length=1)]


def parse_roster(text: str, *, source: str) -> tuple[EnrolledDevice, ...]:
    """Enrolled devices from TOML: a table for each, with `key` and `max_examples`.  Raises `BadInput`.

    [device-00]
    key = "ed25519:…"
    max_examples = 500
    """
    try:
        return tuple(_enrolled(name, table, source=source) for name, table in sorted(tomllib.loads(text).items()))
    except (tomllib.TOMLDecodeError, KeyError, AttributeError, TypeError, ValueError, RecursionError):
        raise BadInput(
            f"{source} is no roster of devices",
            values={"expected": '[device-00], key = "ed25519:…", max_examples = 500', "found": "something else"},
        ) from None


def _enrolled(name: str, table: dict[str, Any], *, source: str) -> EnrolledDevice:
    try:
        key, most = table.pop("key"), table.pop("max_examples")
        return EnrolledDevice(name=name, key=key, max_example_count=most, **table)
    except ValidationError as error:
        raise BadInput(
            f"{source} is no roster of devices",
            values={"table": ascii(name)[:80], **describe_validation_error(error)},
            hint="'chainctl keys show NAME' on the device prints its key; the table is called as the device",
        ) from None


def check_keys(roster: Iterable[EnrolledDevice], coordinator: str) -> None:
    """Every device, and the coordinator, has a key of its own.  Raises `BadInput` with who shares one."""
    owners = {coordinator: "the coordinator"}
    for device in roster:
        other = owners.setdefault(device.key, device.name)
        if other != device.name:
            raise BadInput(
                "two machines are enrolled with one key",
                values={"key": device.key, "of": f"{other} and {device.name}"},
                hint="make a key on each machine with 'chainctl keys new', and put its own line into the roster",
            )
