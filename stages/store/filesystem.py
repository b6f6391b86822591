"""What some file systems lack, and what is done without it.

Lustre and NFS may have no file locks, CIFS and FUSE no fsync of a folder, exFAT and NTFS no permissions, and few can
swap two folders in one step.  Each call here does what the file system can, and otherwise says once per file system,
as a warning of this module's logger, what the lack means.

    no locks          two writers still cannot mix their outputs: each writes under a name of its own, and a rename
                      decides.  What a killed writer left cannot be told from the work of a live one, so it stays.
                      The ledger takes a lock file instead (`ledger.py`): two writers would break its chain.
    no folder fsync   a rename may be lost in a power cut; what it renamed is whole or absent all the same
    no fsync at all   the same; and what was renamed may be cut short, which its digests show
    no permissions    files are made readable as the mount says; a private key is refused there (`write_file`)
    no exchange       with --force the old output is away for a moment, and is put back if the writer is killed then;
                      but in a container a folder of its image cannot be put away, and is removed first
"""

import ctypes
import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from schemas.errors import BadInput, UsageProblem
from stages.process import intent
from stages.store.regular import open_regular

RENAME_EXCHANGE = 2
NOT_SUPPORTED = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})
# EBADF: NFS emulates flock by locks that need a file that is open for writing, which a folder never is.
NO_LOCKS = NOT_SUPPORTED | {errno.ENOLCK, errno.EBADF, errno.EISDIR}
NO_FOLDER_SYNC = NOT_SUPPORTED | {errno.EBADF, errno.EISDIR}
NO_PERMISSIONS = NOT_SUPPORTED | {errno.EPERM}
NO_EXCHANGE = NOT_SUPPORTED | {errno.EPERM, errno.EXDEV}  # EXDEV: overlayfs, for a folder of an image's layer
OWNER_LIMIT_BYTES = 2**9  # of what a lock file says

LOCKS = "has no file locks: run one command at a time for an output; what a killed one leaves (.*.partial) stays there"
FOLDER_SYNC = "cannot make new names durable (fsync of a folder): after a power cut, look whether the output is there"
FILE_SYNC = "cannot make files durable (fsync): after a power cut, run 'chainctl verify' on the output"
PERMISSIONS = "keeps no permissions: who may read the output is decided where it is mounted"
EXCHANGE = "cannot swap two folders in one step: while --force replaces the output, it is missing for a moment"

log = logging.getLogger(__name__)
_said: set[tuple[int, str]] = set()


def lock(descriptor: int, folder: Path, *, wait: bool = False) -> bool:
    """Take the lock of an open file or folder in `folder`, until it is closed; whether the file system has locks.

    Raises `BlockingIOError` where another process has it, unless this one is to `wait`.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError as error:
        _do_without(error, NO_LOCKS, LOCKS, folder)
        return False
    return True


@contextmanager
def locked_file(path: Path, mode: int = 0o644) -> Iterator[int]:
    """A file, made if it is not there, that only one process at a time has open here; the others wait for it.

    A dry run makes none, and its descriptor is no file's.
    """
    if intent.is_dry_run():
        yield -1
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        stack.callback(os.close, descriptor)
        if not lock(descriptor, path.parent, wait=True):
            stack.enter_context(lock_file(path.with_name(f".{path.name}.lock")))
        yield descriptor


@contextmanager
def lock_file(path: Path) -> Iterator[None]:
    """A lock where the file system has none: a file that only one process can make, gone after the block.

    It says who made it.  Raises `UsageProblem` where it is there: nobody can tell whether its owner still runs, so it
    is never taken away.
    """
    owner = f"process {os.getpid()} on {socket.gethostname()}, since {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        raise UsageProblem(
            f"another command is writing in {path.parent}, or was killed while it did",
            values={"its lock": path, "held by": _owner(path)},
            hint=f"wait until it is done; if that process no longer runs there, remove {path}; then run this again",
        ) from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(owner.encode(errors="replace"))
        yield
    finally:
        path.unlink(missing_ok=True)


def _owner(path: Path) -> str:
    """Who a lock file says holds it; anybody may have written it."""
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            said = file.read(OWNER_LIMIT_BYTES).decode(errors="replace")
    except BadInput:
        said = ""
    return ascii(said)[1:-1] or "it does not say"


def sync_file(descriptor: int, folder: Path) -> None:
    """Make the content of an open file in `folder` durable, where that is possible."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        _do_without(error, NOT_SUPPORTED, FILE_SYNC, folder)


def sync_directory(path: Path) -> None:
    """Make renames in `path` durable, where that is possible."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        sync_names(descriptor, path)
    finally:
        os.close(descriptor)


def sync_names(descriptor: int, folder: Path) -> None:
    """Make renames in an open folder durable, where that is possible."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        _do_without(error, NO_FOLDER_SYNC, FOLDER_SYNC, folder)


def set_mode(descriptor: int, mode: int, folder: Path) -> None:
    """Set permissions of an open file or folder in `folder`, where there are any."""
    try:
        os.fchmod(descriptor, mode)
    except OSError as error:
        _do_without(error, NO_PERMISSIONS, PERMISSIONS, folder)


def exchange(left: tuple[int, str], right: tuple[int, str], folder: Path) -> bool:
    """Swap two names, each in the folder of a descriptor, in one step; whether the system can (Linux `renameat2`)."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(left[0], os.fsencode(left[1]), right[0], os.fsencode(right[1]), RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    _do_without(OSError(number, os.strerror(number), str(folder / right[1])), NO_EXCHANGE, EXCHANGE, folder)
    return False


def _do_without(error: OSError, lacks: frozenset[int], meaning: str, folder: Path) -> None:
    """Say what a lack means, once per file system.  Raises `error` where it is another."""
    if error.errno not in lacks:
        raise error
    lack = (folder.stat().st_dev, meaning)
    if lack not in _said:
        _said.add(lack)
        log.warning("note: the file system of %s %s", folder, meaning)
