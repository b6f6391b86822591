"""Ed25519 keys, and DSSE envelopes around manifests (secure-systems-lab/dsse, protocol v1.0).

    artifact/manifest.dsse.json     {"payload": base64 of manifest.json, "payloadType": …, "signatures": [one]}

A manifest lists every file of its artifact with size and SHA-256, so one signature covers a closed set.  The payload
is compared with `manifest.json` byte for byte and never parsed by itself.  Any DSSE verifier can check an envelope;
ours takes the key from a plan or a pin, never from the envelope.

    HOME/keys/NAME.pem      private, PKCS 8, readable by its owner only
    HOME/keys/NAME.pub      public, one line
"""

import base64
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from schemas.base import canonical_json
from schemas.ed25519 import weakness
from schemas.errors import NotTrusted, UsageProblem
from schemas.trust import ENVELOPE_LIMIT_BYTES, KEY_PATTERN, KEY_PREFIX, Envelope, Signature, key_bytes
from stages.process import intent
from stages.store.debris import without_debris
from stages.store.files import make_folder, write_file
from stages.store.home import locked_home
from stages.store.regular import read_regular

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SIGNATURE_FILE = "manifest.dsse.json"
PAYLOAD_TYPE = "application/vnd.chainctl.manifest+json"
KEY_FILE_BYTES = 2**16


@dataclass(frozen=True)
class Signer:
    """A private key with its name."""

    name: str
    private: "Ed25519PrivateKey"

    @property
    def public(self) -> str:
        """`ed25519:<64 hex digits>`."""
        return KEY_PREFIX + self.private.public_key().public_bytes_raw().hex()

    def envelope(self, payload: bytes, payload_type: str = PAYLOAD_TYPE) -> bytes:
        """The DSSE envelope of `payload`.  Ed25519 is deterministic: the same bytes each time."""
        signature = self.private.sign(pre_authentication_encoding(payload_type, payload))
        envelope = Envelope(
            payload=base64.b64encode(payload).decode(),
            payloadType=payload_type,
            signatures=(Signature(keyid=key_id(self.public), sig=base64.b64encode(signature).decode()),),
        )
        return canonical_json(envelope.model_dump(mode="json"))


@dataclass(frozen=True)
class KeyRing:
    """The keys below a chainctl home."""

    home: Path

    def new(self, name: str) -> Signer:
        """Make a key.  Raises `UsageProblem` where the name is taken: a key is never overwritten.

        The private part is there first: the public one follows from it, where a kill left no other.
        """
        with_cryptography()
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        private, public = self._private(name), self._public(name)
        signer = Signer(name, Ed25519PrivateKey.generate())
        pem = signer.private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        with locked_home(self.home):
            for path in (private, public):
                if os.path.lexists(path):
                    raise UsageProblem(
                        f"a key {name} exists already", values={"found": path}, hint="choose another name"
                    )
            make_folder(private.parent, mode=0o700)
            write_file(private, pem, mode=0o600)
            write_file(public, f"{signer.public}\n".encode())
        return signer

    def open(self, name: str) -> Signer:
        """A private key.  Raises `UsageProblem` where there is none, or one that others can read."""
        with_cryptography()
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        path = self._private(name)
        if not path.is_file():
            raise UsageProblem(
                f"there is no key {name}",
                values={"looked in": path.parent, "found": ", ".join(self.names()) or "none"},
                hint=f"make it with 'chainctl keys new {name}'",
            )
        others = path.stat().st_mode & 0o077
        if others:
            raise UsageProblem(
                f"others can read the private key {name}",
                values={"expected": "mode 600", "found": f"mode {path.stat().st_mode & 0o777:o}"},
                hint=f"chmod 600 {path} if nobody else has read it; otherwise make a new key",
            )
        try:
            private = serialization.load_pem_private_key(read_regular(path, at_most=KEY_FILE_BYTES), password=None)
        except (ValueError, TypeError):
            raise UsageProblem(f"{path} does not hold a private key", hint="restore it from a copy") from None
        if not isinstance(private, Ed25519PrivateKey):
            raise UsageProblem(f"{path} is not an Ed25519 key", hint="make one with 'chainctl keys new'")
        intent.will_read(path, "key")
        return Signer(name, private)

    def names(self) -> list[str]:
        """Names of all private keys."""
        return sorted(path.stem for path in without_debris((self.home / "keys").glob("*.pem")))

    def public_keys(self) -> Iterator[tuple[str, str]]:
        """Name and public key of each, without opening a private one."""
        for name in self.names():
            public = self._public(name)
            yield name, read_public_key(public) if public.is_file() else self.open(name).public

    def _private(self, name: str) -> Path:
        return self.home / "keys" / f"{name}.pem"

    def _public(self, name: str) -> Path:
        return self.home / "keys" / f"{name}.pub"


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """PAE of DSSE: `DSSEv1 SP LEN(type) SP type SP LEN(body) SP body`."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def key_id(public: str) -> str:
    """SHA-256 of the raw public key, hex: names a key in envelopes, and proves nothing."""
    return hashlib.sha256(key_bytes(public)).hexdigest()


def check_signature(directory: Path, manifest: bytes, public: str, *, whose: str) -> None:
    """The manifest with these bytes is signed by `public`.  Raises `NotTrusted`: unsigned, another key, altered."""
    path = directory / SIGNATURE_FILE
    if not os.path.lexists(path):
        raise NotTrusted(
            f"{directory} is not signed",
            values={"expected": f"a signature by {whose} {public}", "found": "none"},
            hint="make it again with --key: this federation accepts only signed artifacts",
        )
    _check_envelope(_read_envelope(path), manifest, PAYLOAD_TYPE, public, subject=str(directory), whose=whose)


def signed_payload(path: Path, public: str, payload_type: str = PAYLOAD_TYPE, *, whose: str) -> bytes:
    """What the envelope in a file holds, signed by `public`.  Raises `NotTrusted` as `check_signature` does."""
    envelope = _read_envelope(path)
    payload = _payload(envelope)
    _check_envelope(envelope, payload, payload_type, public, subject=str(path), whose=whose)
    return payload


def claimed_payload(path: Path) -> bytes:
    """What the envelope in a file holds, whoever signed it.  A claim, not a check."""
    return _payload(_read_envelope(path))


def _payload(envelope: Envelope) -> bytes:
    try:
        return base64.b64decode(envelope.payload, validate=True)
    except ValueError:
        return b""  # which is not what the envelope says


def _check_envelope(
    envelope: Envelope, payload: bytes, payload_type: str, public: str, *, subject: str, whose: str
) -> None:
    with_cryptography()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    weak = weakness(key_bytes(public))
    if weak:
        raise NotTrusted(
            f"the key of {whose} proves nothing, so {subject} is not trusted",
            values={"expected": "an Ed25519 key of 'chainctl keys new'", "found": f"{public}, {weak}"},
            hint="make a key with 'chainctl keys new', and a new plan with it",
        )
    signature = envelope.signatures[0]
    if signature.keyid != key_id(public):
        raise NotTrusted(
            f"{subject} is signed with another key",
            values={f"{whose} has": f"{public}, id {key_id(public)[:16]}", "signed by": f"id {signature.keyid[:16]}"},
            hint="the artifact was renamed or is another's: ask for the right one",
        )
    try:
        if envelope.payload != base64.b64encode(payload).decode() or envelope.payloadType != payload_type:
            raise InvalidSignature
        key = Ed25519PublicKey.from_public_bytes(key_bytes(public))
        key.verify(base64.b64decode(signature.sig), pre_authentication_encoding(payload_type, payload))
    except InvalidSignature:
        raise NotTrusted(
            f"the signature of {subject} is not of its manifest",
            values={"expected": f"a signature by {whose} {public}", "found": "a signature of other bytes"},
            hint="the manifest or its signature was altered or swapped: copy the artifact again",
        ) from None


def signed_by(directory: Path) -> str | None:
    """Key id that an envelope claims; None where there is no envelope.  A claim, not a check."""
    path = directory / SIGNATURE_FILE
    return _read_envelope(path).signatures[0].keyid if os.path.lexists(path) else None


def check_key_text(text: str) -> str:
    """A public key as a person types it: the key itself, or the path of a `.pub` file.

    Raises `UsageProblem`, and `BadInput` as `read_public_key` does.
    """
    key = text if KEY_PATTERN.fullmatch(text) else ""
    if not key and os.path.isfile(text):  # noqa: PTH113 -- of what is too long for a path, Path.is_file raises
        key = read_public_key(Path(text))
    if not KEY_PATTERN.fullmatch(key):
        raise UsageProblem(
            "this is not a public key",
            values={"expected": "ed25519:<64 hex digits>, or a .pub file", "found": f"{len(text)} other characters"},
            hint="'chainctl keys show NAME' prints one",
        )
    weak = weakness(key_bytes(key))
    if weak:
        raise UsageProblem(
            "this public key proves nothing",
            values={"expected": "an Ed25519 key of 'chainctl keys new'", "found": f"{key}, {weak}"},
            hint="ask whose key it is for the line that 'chainctl keys show NAME' prints",
        )
    return key


def read_public_key(path: Path) -> str:
    """The line of a `.pub` file, whatever it says.  Raises `BadInput` where it is too large for one."""
    return read_regular(path, at_most=KEY_FILE_BYTES, follow_links=True).strip().decode("ascii", errors="replace")


def with_cryptography() -> None:
    """Check that the extra `[sign]` is installed.  Raises `UsageProblem`."""
    try:
        import cryptography  # noqa: F401
    except ImportError:
        raise UsageProblem("signatures need the cryptography package", hint="pip install 'chainctl[sign]'") from None


def _read_envelope(path: Path) -> Envelope:
    data = read_regular(path, at_most=ENVELOPE_LIMIT_BYTES)
    problem = NotTrusted(
        f"{path} is not a DSSE envelope with one signature",
        values={"expected": "payload, payloadType, signatures", "found": f"{len(data)} other bytes"},
        hint="copy the artifact again",
    )
    try:
        envelope = Envelope.model_validate_json(data)
    except ValidationError:
        raise problem from None
    if canonical_json(envelope.model_dump(mode="json")) != data:
        raise problem
    return envelope
