"""Signed manifests of earlier states, without their tensors: they show from which state another one comes.

    history/<digest>.dsse.json        the envelope of a state's manifest; `bundle unpack` puts them there
    <folder>/manifest.dsse.json       the same, of a state in a folder

Both are looked for beside a state.  An envelope holds the whole manifest, and the manifest names the parent.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from schemas.base import sha256_digest
from schemas.bundle import HISTORY_FOLDER, MOST_EARLIER_STATES, history_file
from schemas.errors import ChainError, NotTrusted
from schemas.state import StateManifest
from stages.store.artifact import Artifact
from stages.store.lineage import index
from stages.store.signing import SIGNATURE_FILE, claimed_payload, signed_payload

HISTORY_LIMIT_BYTES = 64 * 2**20  # of the envelopes that travel with a state


@dataclass(frozen=True)
class Nearby:
    """The envelopes beside a state, by the digest of what they hold."""

    state: Path

    def signed(self, digest: str, public: str) -> StateManifest | None:
        """The manifest with this digest, signed by `public`; None where it is not here."""
        for path in self._places(digest):
            try:
                payload = signed_payload(path, public, whose="the coordinator")
                if sha256_digest(payload) == digest:
                    return StateManifest.from_bytes(payload, source=str(path))
            except ChainError:
                continue  # junk by that name: another place may have it
        return None

    def claimed(self, digest: str) -> tuple[Path, StateManifest] | None:
        """The envelope of the manifest with this digest, whoever signed it; None where it is not here."""
        for path in self._places(digest):
            try:
                return path, earlier_state(path, digest)
            except ChainError:
                continue
        return None

    def _places(self, digest: str) -> Iterator[Path]:
        yield self.state.parent / HISTORY_FOLDER / history_file(digest)
        if digest in self._states:
            yield self._states[digest] / SIGNATURE_FILE

    @cached_property
    def _states(self) -> dict[str, Path]:
        return index([self.state.parent])


def earlier_state(path: Path, digest: str) -> StateManifest:
    """The state that an envelope holds, whoever signed it.  Raises `ChainError` where it is not that of `digest`."""
    payload = claimed_payload(path)
    if sha256_digest(payload) != digest:
        raise NotTrusted(
            f"{path} is not the manifest that it is named after",
            values={"expected": digest, "found": sha256_digest(payload)},
            hint="copy it again",
        )
    return StateManifest.from_bytes(payload, source=str(path))


def earlier_states(state: Artifact[StateManifest]) -> dict[str, Path]:
    """Envelopes of the states before this one by digest, the newest first, as far as they are here."""
    nearby, found, size_bytes = Nearby(state.path), dict[str, Path](), 0
    parent = state.manifest.parent
    while parent is not None and len(found) < MOST_EARLIER_STATES and (one := nearby.claimed(parent)) is not None:
        path, manifest = one
        size_bytes += path.stat().st_size
        if size_bytes > HISTORY_LIMIT_BYTES:
            break
        found[parent], parent = path, manifest.parent
    return found
