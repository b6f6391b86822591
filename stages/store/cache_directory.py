"""A directory of results that can be computed again: bounded, shared between processes, never required.

    DIR/prefixes/<digest>.hidden    hidden states of a device's texts (stages/streaming/prefix_cache.py)
    DIR/verified/<digest>           "this part of that file had the digest it should have" (stages/weights/reader.py)
    HOME/cache.key                  the secret of all entries, readable by its owner only

Entries appear complete (written under another name, then renamed), and the least recently used are evicted first.
Hidden states are derived from private texts, so the directory is readable by its owner only and stays on the device.

What a device trains, and then signs, comes from here, so an entry counts only with a MAC (HMAC-SHA256) by the secret of
this home: whoever can write to the directory can take entries away, and add none.  Names of entries depend on the
secret too, so several homes can share a directory.
"""

import hmac
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO

from schemas.base import canonical_json
from schemas.errors import ChainError
from stages.process import intent
from stages.store.files import write_file
from stages.store.filesystem import lock, locked_file, sync_file
from stages.store.home import locked_home
from stages.store.regular import open_regular, read_regular
from stages.store.trust import home_directory

DEFAULT_LIMIT_BYTES = 4 * 2**30
SECRET_FILE = "cache.key"
SECRET_BYTES = 32


@dataclass(frozen=True)
class CacheDirectory:
    """Where entries are, how many bytes the hidden states may take together, and whose secret they are made with."""

    path: Path
    limit_bytes: int = DEFAULT_LIMIT_BYTES
    home: Path = field(default_factory=home_directory)

    @property
    def prefixes(self) -> Path:
        """Entries of hidden states."""
        return self.path / "prefixes"

    @cached_property
    def secret(self) -> bytes | None:
        """The secret of the home, made where there is none; None where none can be kept: then nothing is cached."""
        path = self.home / SECRET_FILE
        try:
            return _secret(path) or _new_secret(path)
        except (OSError, ChainError):
            return None

    def mac(self, fact: object) -> "hmac.HMAC":
        """A MAC that begins with `fact` (any JSON value)."""
        return hmac.new(self.secret or secrets.token_bytes(SECRET_BYTES), canonical_json(fact), "sha256")

    def prefix(self, facts: object) -> Path:
        """The entry of hidden states that follow from these facts."""
        return self.prefixes / f"{self.mac(['prefix', facts]).hexdigest()[:40]}.hidden"

    def entries(self) -> list[tuple[Path, os.stat_result]]:
        """Entries of hidden states, least recently used first."""
        found = []
        for path in self.prefixes.glob("*.hidden"):
            with suppress(FileNotFoundError):  # evicted by another process
                found.append((path, path.stat()))
        return sorted(found, key=lambda entry: (entry[1].st_mtime_ns, entry[0].name))

    @contextmanager
    def writing(self, path: Path, size: int) -> Iterator[IO[bytes] | None]:
        """A file that becomes the entry `path` when the block succeeds; None where `size` bytes are over the limit.

        A full disk costs the entry, not the work.
        """
        if self.secret is None or not self._make_room(size):
            yield None
            return
        descriptor, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=".partial", dir=self.prefixes)
        partial = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                lock(file.fileno(), self.prefixes, wait=True)
                yield file
                file.flush()
                sync_file(file.fileno(), self.prefixes)
                partial.replace(path)
        except OSError:
            partial.unlink(missing_ok=True)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    def knows(self, fact: object) -> bool:
        """Whether `fact` (any JSON value) was noted."""
        path, expected = self._note(fact)
        try:
            return hmac.compare_digest(read_regular(path, at_most=len(expected)), expected)
        except ChainError:
            return False

    def note(self, fact: object) -> None:
        """Remember `fact`."""
        if intent.is_dry_run():
            return
        with suppress(OSError, ChainError):  # read-only or full: the fact is checked again next time
            path, data = self._note(fact)
            (self.path / "verified").mkdir(parents=True, exist_ok=True, mode=0o700)
            write_file(path, data)

    def _note(self, fact: object) -> tuple[Path, bytes]:
        """The file that says so, and what it holds."""
        digest = self.mac(["verified", fact]).hexdigest().encode()
        return self.path / "verified" / digest[:40].decode(), digest

    def _make_room(self, size: int) -> bool:
        """Evict entries until `size` more bytes fit; whether they do."""
        if size > self.limit_bytes:
            return False
        try:
            self.prefixes.mkdir(parents=True, exist_ok=True, mode=0o700)
            with locked_file(self.prefixes / ".lock"):
                self._sweep()
                entries = self.entries()
                total = sum(stat.st_size for _, stat in entries)
                for path, stat in entries:
                    if total + size <= self.limit_bytes:
                        break
                    path.unlink(missing_ok=True)
                    total -= stat.st_size
        except (OSError, ChainError):
            return False
        return True

    def _sweep(self) -> None:
        """Remove what killed writers left; a live writer holds the lock of its file, or loses its entry."""
        for partial in self.prefixes.glob(".*.partial"):
            with suppress(BlockingIOError, ChainError), os.fdopen(open_regular(partial), "rb") as file:
                lock(file.fileno(), self.prefixes)
                partial.unlink(missing_ok=True)


def _secret(path: Path) -> bytes | None:
    """The secret in a file; None where there is none, or one that others can read."""
    if not os.path.lexists(path):
        return None
    data = read_regular(path, at_most=SECRET_BYTES)
    return data if len(data) == SECRET_BYTES and not path.stat().st_mode & 0o077 else None


def _new_secret(path: Path) -> bytes:
    """A secret that was not there, unless another process has just made one."""
    with locked_home(path.parent):
        found = _secret(path)
        if found is None:
            found = secrets.token_bytes(SECRET_BYTES)
            write_file(path, found, mode=0o600)
    return found
