"""Signatures under keys that prove nothing: libraries verify them, and here nobody trusts them."""

import base64
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from schemas.base import canonical_json
from schemas.errors import NotTrusted, UsageProblem
from schemas.trust import Envelope, Signature
from stages.store.signing import (
    PAYLOAD_TYPE,
    SIGNATURE_FILE,
    KeyRing,
    check_key_text,
    check_signature,
    key_id,
    pre_authentication_encoding,
)

IDENTITY = "01" + "00" * 31
EVERYBODYS = bytes.fromhex(IDENTITY) + bytes(32)  # R = 0 and S = 0: S B = R + h A, whatever the message hashes to
OFF_CURVE = "02" + "00" * 31


def test_one_signature_holds_for_every_message_and_nobody_trusts_it(tmp_path: Path) -> None:
    public = f"ed25519:{IDENTITY}"
    for number in range(64):
        message = b"message %d" % number
        encoding = pre_authentication_encoding(PAYLOAD_TYPE, message)
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(IDENTITY)).verify(EVERYBODYS, encoding)
        signature = Signature(keyid=key_id(public), sig=base64.b64encode(EVERYBODYS).decode())
        payload = base64.b64encode(message).decode()
        envelope = Envelope(payload=payload, payloadType=PAYLOAD_TYPE, signatures=(signature,))
        (tmp_path / SIGNATURE_FILE).write_bytes(canonical_json(envelope.model_dump(mode="json")))
        with pytest.raises(NotTrusted, match="proves nothing") as caught:
            check_signature(tmp_path, message, public, whose="device a")
        assert "small order" in str(caught.value.values["found"])


@pytest.mark.parametrize("key", [IDENTITY, OFF_CURVE])
@pytest.mark.parametrize("in_a_file", [False, True])
def test_such_a_key_is_not_pinned(key: str, in_a_file: bool, tmp_path: Path) -> None:
    text = f"ed25519:{key}"
    if in_a_file:
        (tmp_path / "office.pub").write_text(f"{text}\n")
        text = str(tmp_path / "office.pub")
    with pytest.raises(UsageProblem, match="proves nothing") as caught:
        check_key_text(text)
    assert key in str(caught.value.values["found"])


def test_a_real_one_is_as_text_and_as_a_file(tmp_path: Path) -> None:
    public = KeyRing(tmp_path).new("office").public
    assert check_key_text(public) == check_key_text(str(tmp_path / "keys" / "office.pub")) == public


@pytest.mark.parametrize("text", ["x" * 5000, "a/" * 3000, "\0"])
def test_what_is_neither_a_key_nor_a_path_is_no_public_key(text: str) -> None:
    with pytest.raises(UsageProblem, match="not a public key"):
        check_key_text(text)
