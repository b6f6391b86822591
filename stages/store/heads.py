"""The one ledger of a federation: where it is, and how far it went when this machine last wrote to it.

    HOME/trust/ledgers/<plan>.dsse.json     a `LedgerHead`, signed with the coordinator's key

The ledger is beside the state that a round starts from, or where it was last written to, or in a folder around that
state: the next state may go anywhere, and the ledger stays.  What it said once it must say for ever: lines may have
come since, so that a power cut between a line and its being remembered does no harm, but the remembered line must be
one of them.  A machine without a memory of the federation takes the ledger as it is, and so does a federation without
signatures.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote_from_bytes, unquote_to_bytes

from pydantic import ValidationError

from schemas.base import canonical_json
from schemas.errors import BadInput, ChainError, NotTrusted
from schemas.ledger import Closed, Planned
from schemas.plan import PlanManifest
from schemas.state import StateManifest
from schemas.trust import LedgerHead
from stages.process import intent
from stages.store.artifact import Artifact
from stages.store.debris import without_debris
from stages.store.files import write_file
from stages.store.filesystem import locked_file
from stages.store.ledger import LEDGER_FILE, End, Ledger, LockedLedger
from stages.store.signing import Signer, signed_payload
from stages.store.trust import home_directory

PAYLOAD_TYPE = "application/vnd.chainctl.ledger-head+json"


@contextmanager
def open_ledger(
    state: Artifact[StateManifest], plan: Artifact[PlanManifest], signer: Signer | None
) -> Iterator[LockedLedger]:
    """The ledger of the federation that `state` is of, locked; what is appended is remembered.

    `signer` has the coordinator's key where the plan asks for signatures.  Raises `NotTrusted` where the ledger lacks
    what is remembered of it.
    """
    if not plan.manifest.trust.required:
        with Ledger(_found_from(state)).locked() as ledger:
            yield ledger
        return
    assert signer is not None
    memory = Memory(plan)
    with locked_file(memory.path.with_suffix(".lock")):
        head = memory.head()
        path = memory.find(state, head)
        with Ledger(path).locked(lambda end: memory.remember(path, end, signer)) as ledger:
            yield ledger


def intend_ledger(ledger: Path, plan: Artifact[PlanManifest]) -> None:
    """Note for a dry run that lines come to a ledger, and what is remembered of it."""
    intent.will_write(ledger)
    if plan.manifest.trust.required:
        intent.will_write(Memory(plan).path)


def check_ledger(ledger: Ledger, plan: Artifact[PlanManifest]) -> bool:
    """Check that a ledger has what this machine remembers of the plan's; whether it remembers anything.

    Raises `NotTrusted`.
    """
    if not plan.manifest.trust.required:
        return False
    memory = Memory(plan)
    head = memory.head()
    if head is not None:
        memory.check(ledger.path, head)
    return head is not None


@dataclass(frozen=True)
class Memory:
    """What this machine remembers of the ledger of a plan that asks for signatures."""

    plan: Artifact[PlanManifest]

    @property
    def path(self) -> Path:
        """Where it is kept."""
        return home_directory() / "trust" / "ledgers" / f"{self.plan.digest.removeprefix('sha256:')}.dsse.json"

    def head(self) -> LedgerHead | None:
        """The head that is remembered, if one is.  Raises `NotTrusted` where the coordinator did not sign it."""
        if not os.path.lexists(self.path):
            return None
        coordinator = self.plan.manifest.trust.coordinator
        assert coordinator is not None
        try:
            payload = signed_payload(self.path, coordinator, PAYLOAD_TYPE, whose="the coordinator")
            head = LedgerHead.model_validate_json(payload)
        except (BadInput, NotTrusted) as error:
            raise type(error)(error.fact, values=error.values, hint=self._way_out()) from None
        except ValidationError:
            raise BadInput(f"{self.path} is damaged", hint=self._way_out()) from None
        if head.plan != self.plan.digest:
            raise NotTrusted(
                f"{self.path} is of another plan",
                values={"expected": self.plan.digest, "found": head.plan},
                hint=self._way_out(),
            )
        return head

    def find(self, state: Artifact[StateManifest], head: LedgerHead | None) -> Path:
        """The path of the ledger.  Raises `NotTrusted`."""
        if head is None:
            return _found_from(state)
        path = beside(state.path)
        if not os.path.lexists(path):
            path = _path_of(head)
        self.check(path, head)
        return path

    def check(self, path: Path, head: LedgerHead) -> None:
        """Check that the ledger at `path` has the remembered line.  Raises `NotTrusted`."""
        if not Ledger(path).holds(head.line, size_bytes=head.size_bytes):
            found = f"{path.stat().st_size} bytes without that line" if path.is_file() else "nothing"
            raise NotTrusted(
                f"{path} is not the ledger that this machine wrote to, or lines at its end were removed",
                values={
                    "remembered": f"line {head.line_count}, {head.line}, at byte {head.size_bytes}",
                    "of": _path_of(head),
                    "found": found,
                },
                hint=f"restore that ledger, or give the state beside it; {self._way_out()}",
            )

    def remember(self, path: Path, end: End, signer: Signer) -> None:
        """Remember the end of the ledger, which goes on from what was remembered before."""
        before = self.head()
        if before is not None:
            self.check(path, before)
        assert end.line is not None
        if before is not None and (before.line, _path_of(before)) == (end.line, path):
            intent.is_there(self.path)
            return
        head = LedgerHead(
            plan=self.plan.digest,
            ledger=quote_from_bytes(os.fsencode(path)),
            line_count=end.line_count,
            size_bytes=end.size_bytes,
            line=end.line,
        )
        write_file(self.path, signer.envelope(canonical_json(head.model_dump(mode="json")), PAYLOAD_TYPE))

    def _way_out(self) -> str:
        return f"where the right one is lost for good, removing {self.path} lets this machine take whichever it finds"


def _path_of(head: LedgerHead) -> Path:
    return Path(os.fsdecode(unquote_to_bytes(head.ledger)))


def _found_from(state: Artifact[StateManifest]) -> Path:
    """The ledger beside a state, or the one around it that says where the state came from; a new one beside it."""
    there = beside(state.path)
    if os.path.lexists(there):
        return there
    around = Path(os.path.realpath(state.path)).parent.parent
    folders = [around, *(entry for entry in without_debris(around.iterdir()) if entry.is_dir())]
    others = (folder / LEDGER_FILE for folder in sorted(folders))
    return next((path for path in others if os.path.lexists(path) and _says(path, state.digest)), there)


def _says(path: Path, state: str) -> bool:
    """Whether a round made the state by this ledger, or it is one of round 0 there."""
    try:
        return any(isinstance(event, Planned | Closed) and event.state == state for event in Ledger(path).events())
    except ChainError:
        return False


def beside(state: Path) -> Path:
    """The ledger beside a state, or where a link to a state leads: whichever is there."""
    given, led_to = (Path(os.path.abspath(state)).parent, Path(os.path.realpath(state)).parent)  # noqa: PTH100
    places = [folder / LEDGER_FILE for folder in (led_to, given)]
    return next((place for place in places if os.path.lexists(place)), places[0])
