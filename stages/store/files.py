"""The one seam through which anything is written: write, fsync, rename.

A directory made here is complete or absent.  It is written under a hidden name beside its target, with a lock that
ends with the process, and is renamed when everything in it is on the disk.  What a killed process left behind is
removed by the next writer of the same target.
"""

import ctypes
import errno
import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from schemas.errors import UsageProblem

AT_FDCWD = -100
RENAME_EXCHANGE = 2
OLD = ".old.partial"


@contextmanager
def complete_directory(target: Path, *, force: bool) -> Iterator[Path]:
    """Yield a hidden directory that becomes `target` when the block succeeds, and is removed when it fails.

    With `force` an existing target is exchanged for the new one in a single step; without, `UsageProblem` is raised.
    """
    target = Path(os.path.abspath(target))  # noqa: PTH100 -- resolve() would follow a link at target itself
    _refuse_existing(target, force=force)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _hidden_directory(target) as partial:
        yield partial
        _sync_tree(partial)
        _put_in_place(partial, target, force=force)


@contextmanager
def complete_entries(folder: Path, name: str, *, force: bool) -> Iterator[Path]:
    """Yield a hidden directory; when the block succeeds, its entries are moved into `folder`, last name first.

    Each entry is complete or absent; when the block fails, none is there.  `name` names the hidden directory, so that
    the next writer with that name removes what a killed process left.
    """
    folder = Path(os.path.abspath(folder))  # noqa: PTH100 -- as above
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _hidden_directory(folder / name) as partial:
            yield partial
            _sync_tree(partial)
            for entry in sorted(partial.iterdir(), reverse=True):
                _put_in_place(entry, folder / entry.name, force=force)
    except BaseException:
        if is_new and not any(folder.iterdir()):
            folder.rmdir()
        raise


def write_file(path: Path, data: bytes | memoryview, *, mode: int = 0o644) -> None:
    """Write or replace a single file in one step, durably."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(mode)
        Path(name).replace(path)
        sync_directory(path.parent)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def move(source: Path, target: Path) -> None:
    """Rename within one medium, durably.  Raises `OSError`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source.rename(target)
    sync_directory(target.parent)
    sync_directory(source.parent)


def sweep(target: Path) -> None:
    """Remove what killed writers of `target` left; a live writer holds the lock of its directory."""
    for partial in target.parent.glob(f".{glob.escape(target.name)}.*.partial"):
        if not partial.is_dir() or partial.is_symlink():
            continue
        descriptor = os.open(partial, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if partial.name.endswith(OLD) and not os.path.lexists(target):
                partial.rename(target)  # killed between the two renames that stand for an exchange
            else:
                shutil.rmtree(partial, ignore_errors=True)
        except BlockingIOError:
            pass  # another process is writing there
        finally:
            os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Make renames in `path` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _hidden_directory(target: Path) -> Iterator[Path]:
    """A locked directory beside `target`, gone after the block unless it was renamed."""
    sweep(target)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    lock = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        partial.chmod(0o755)
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        os.close(lock)


def _refuse_existing(target: Path, *, force: bool) -> None:
    if os.path.lexists(target) and not force:
        raise UsageProblem(f"{target} exists already", hint="give another --out, or replace it with --force")


def _sync_tree(directory: Path) -> None:
    for folder, _, names in os.walk(directory):
        for name in names:
            descriptor = os.open(Path(folder) / name, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_directory(Path(folder))


def _put_in_place(partial: Path, target: Path, *, force: bool) -> None:
    _refuse_existing(target, force=force)
    if not os.path.lexists(target):
        partial.rename(target)
    elif exchange(partial, target):
        _remove(partial)  # the old one, under the hidden name now
    else:
        aside = partial.with_suffix(OLD)
        target.rename(aside)
        partial.rename(target)
        shutil.rmtree(aside, ignore_errors=True)
    sync_directory(target.parent)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def exchange(left: Path, right: Path) -> bool:
    """Swap two paths in one step, where the system can (Linux `renameat2`)."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(AT_FDCWD, os.fsencode(left), AT_FDCWD, os.fsencode(right), RENAME_EXCHANGE) == 0:
        return True
    if ctypes.get_errno() in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(right))
