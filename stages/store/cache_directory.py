"""A directory of results that can be computed again: bounded, shared between processes, never required.

    DIR/prefixes/<digest>.hidden    hidden states of a device's texts (stages/streaming/prefix_cache.py)
    DIR/verified/<digest>           "this part of that file had the digest it should have" (stages/weights/reader.py)

Entries appear complete (written under another name, then renamed), and the least recently used are evicted first.
Hidden states are derived from private texts, so the directory is readable by its owner only and stays on the device.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from schemas.base import canonical_json
from stages.store.filesystem import lock, sync_file

DEFAULT_LIMIT_BYTES = 4 * 2**30


@dataclass(frozen=True)
class CacheDirectory:
    """Where entries are, and how many bytes the hidden states may take together."""

    path: Path
    limit_bytes: int = DEFAULT_LIMIT_BYTES

    @property
    def prefixes(self) -> Path:
        """Entries of hidden states."""
        return self.path / "prefixes"

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
        if not self._make_room(size):
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
        return self._note(fact).exists()

    def note(self, fact: object) -> None:
        """Remember `fact`."""
        path = self._note(fact)
        with suppress(OSError):  # read-only or full: the fact is checked again next time
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.touch()

    def _note(self, fact: object) -> Path:
        return self.path / "verified" / hashlib.sha256(canonical_json(fact)).hexdigest()[:40]

    def _make_room(self, size: int) -> bool:
        """Evict entries until `size` more bytes fit; whether they do."""
        if size > self.limit_bytes:
            return False
        try:
            self.prefixes.mkdir(parents=True, exist_ok=True, mode=0o700)
            with (self.prefixes / ".lock").open("w") as file:
                lock(file.fileno(), self.prefixes, wait=True)
                self._sweep()
                entries = self.entries()
                total = sum(stat.st_size for _, stat in entries)
                for path, stat in entries:
                    if total + size <= self.limit_bytes:
                        break
                    path.unlink(missing_ok=True)
                    total -= stat.st_size
        except OSError:
            return False
        return True

    def _sweep(self) -> None:
        """Remove what killed writers left; a live writer holds the lock of its file, or loses its entry."""
        for partial in self.prefixes.glob(".*.partial"):
            with suppress(BlockingIOError, FileNotFoundError), partial.open("rb") as file:
                lock(file.fileno(), self.prefixes)
                partial.unlink(missing_ok=True)
