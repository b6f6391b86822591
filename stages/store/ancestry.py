"""Signed manifests of earlier states, without their tensors: they show from which state another one comes.

    history/<digest>.dsse.json        the envelope of a state's manifest; `bundle unpack` puts them there
    <folder>/manifest.dsse.json       the same, of a state in a folder

Both are looked for beside a state.  An envelope holds the whole manifest, and the manifest names the parent.
"""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from schemas.base import sha256_digest
from schemas.bundle import HISTORY_FOLDER, MOST_EARLIER_STATES, history_file
from schemas.errors import ChainError, NotTrusted
from schemas.state import StateManifest
from stages.store.artifact import Artifact
from stages.store.files import absolute
from stages.store.lineage import index
from stages.store.signing import SIGNATURE_FILE, claimed_payload, signed_payload
from stages.store.trust import Trust

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

    def claimed(self, digest: str, pinned: Collection[str]) -> tuple[Path, StateManifest] | None:
        """The envelope of the manifest with this digest; None where it is not here.

        One that a `pinned` key signed, if there is one: whoever can write there can put another before it.
        """
        claims: list[tuple[Path, StateManifest]] = []
        for path in self._places(digest):
            with suppress(ChainError):
                claims.append((path, earlier_state(path, digest)))
        vouched = (claim for claim in claims if any(_is_signed(claim[0], public) for public in pinned))
        return next(vouched, next(iter(claims), None))

    def _places(self, digest: str) -> Iterator[Path]:
        for folder in self._folders:
            yield folder / HISTORY_FOLDER / history_file(digest)
        for folder in self._states.get(digest, ()):
            yield folder / SIGNATURE_FILE

    @cached_property
    def _states(self) -> Mapping[str, Sequence[Path]]:
        return index(self._folders)

    @property
    def _folders(self) -> Sequence[Path]:
        """Where the state is: as it was given, and where a link to it leads."""
        return list(dict.fromkeys(place.parent for place in (absolute(self.state), Path(os.path.realpath(self.state)))))


def _is_signed(path: Path, public: str) -> bool:
    try:
        signed_payload(path, public, whose="the coordinator")
    except ChainError:
        return False
    return True


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
    pinned = [pin.key for pin in Trust.of_this_machine().pins()]
    parent = state.manifest.parent
    while parent is not None and len(found) < MOST_EARLIER_STATES:
        one = nearby.claimed(parent, pinned)
        if one is None:
            break
        path, manifest = one
        size_bytes += path.stat().st_size
        if size_bytes > HISTORY_LIMIT_BYTES:
            break
        found[parent], parent = path, manifest.parent
    return found
