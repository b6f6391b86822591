"""The one seam through which anything is written: write, fsync, rename.

A directory made here is complete or absent.  It is written under a hidden name beside its target, with a lock that
ends with the process, and is renamed when everything in it is on the disk.  What a killed process left behind is
removed by the next writer of the same target.
"""

import errno
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from schemas.errors import UsageProblem
from stages.store.debris import without_debris
from stages.store.filesystem import exchange, lock, set_mode, sync_directory, sync_file

OLD = ".old.partial"


@contextmanager
def complete_directory(target: Path, *, force: bool) -> Iterator[Path]:
    """Yield a hidden directory that becomes `target` when the block succeeds, and is removed when it fails.

    With `force` an existing target is exchanged for the new one in a single step; without, `UsageProblem` is raised.
    """
    target = Path(os.path.abspath(target))  # noqa: PTH100 -- resolve() would follow a link at target itself
    refuse_existing(target, force=force)
    target.parent.mkdir(parents=True, exist_ok=True)
    with hidden_directory(target) as partial:
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
        with hidden_directory(folder / name) as partial:
            yield partial
            _sync_tree(partial)
            for entry in sorted(partial.iterdir(), reverse=True):
                _put_in_place(entry, folder / entry.name, force=force)
    except BaseException:
        if is_new and not any(folder.iterdir()):
            folder.rmdir()
        raise


def write_file(path: Path, data: bytes | memoryview, *, mode: int = 0o644) -> None:
    """Write or replace a single file in one step, durably.

    Raises `UsageProblem` where the file is private by its `mode` and the file system cannot keep it so.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            sync_file(file.fileno(), path.parent)
        set_mode(Path(name), mode)
        _check_private(Path(name), path, mode)
        Path(name).replace(path)
        sync_directory(path.parent)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _check_private(partial: Path, path: Path, mode: int) -> None:
    found = partial.stat().st_mode & 0o777
    if not mode & 0o077 and found & 0o077:
        raise UsageProblem(
            f"the file system of {path.parent} would let others read {path.name}",
            values={"expected": f"mode {mode:o}", "found": f"mode {found:o}"},
            hint="set CHAINCTL_HOME to a folder on a disk of this machine that keeps permissions",
        )


def copy_folder(source: Path, target: Path) -> None:
    """Copy the files of a folder and of those in it, without permissions and times, which not every medium keeps."""
    target.mkdir(exist_ok=True)
    for entry in without_debris(source.iterdir()):
        if entry.is_dir():
            copy_folder(entry, target / entry.name)
        else:
            shutil.copyfile(entry, target / entry.name)


def move(source: Path, target: Path) -> None:
    """Rename within one medium, durably.  Raises `OSError`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source.rename(target)
    sync_directory(target.parent)
    sync_directory(source.parent)


def sweep(target: Path) -> None:
    """Remove what killed writers of `target` left; a live writer holds the lock of its directory.

    Where there are no locks nothing is removed, as it may be the work of a live writer; see `filesystem`.
    """
    for partial in target.parent.glob(f".{glob.escape(target.name)}.*.partial"):
        if not partial.is_dir() or partial.is_symlink():
            continue
        try:
            descriptor = os.open(partial, os.O_RDONLY)
        except FileNotFoundError:
            continue  # its writer has just finished
        try:
            is_left_over = lock(descriptor, target.parent)
            if partial.name.endswith(OLD) and not os.path.lexists(target):
                partial.rename(target)  # killed between the two renames that stand for an exchange
            elif is_left_over:
                shutil.rmtree(partial, ignore_errors=True)
        except BlockingIOError:
            pass  # another process is writing there
        finally:
            os.close(descriptor)


@contextmanager
def hidden_directory(target: Path) -> Iterator[Path]:
    """A locked directory beside `target`, gone after the block unless it was renamed."""
    sweep(target)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        lock(descriptor, target.parent)
        set_mode(partial, 0o755)
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        os.close(descriptor)


def refuse_existing(target: Path, *, force: bool) -> None:
    """Nothing is replaced without `force`.  Raises `UsageProblem`."""
    if os.path.lexists(target) and not force:
        raise UsageProblem(f"{target} exists already", hint="give another --out, or replace it with --force")


def _sync_tree(directory: Path) -> None:
    for folder, _, names in os.walk(directory):
        for name in names:
            descriptor = os.open(Path(folder) / name, os.O_RDONLY)
            try:
                sync_file(descriptor, Path(folder))
            finally:
                os.close(descriptor)
        sync_directory(Path(folder))


def _put_in_place(partial: Path, target: Path, *, force: bool) -> None:
    refuse_existing(target, force=force)
    if not os.path.lexists(target) or not (partial.is_dir() or target.is_dir()):
        partial.replace(target)  # a file takes the place of another, or of a link, in one step
    elif exchange(partial, target, target.parent):
        _remove(partial)  # the old one, under the hidden name now
    else:
        aside = partial.with_suffix(OLD)
        _put_away(target, aside)
        partial.rename(target)
        shutil.rmtree(aside, ignore_errors=True)
    sync_directory(target.parent)


def _put_away(target: Path, aside: Path) -> None:
    """Make room at `target`, whose successor is on the disk."""
    try:
        target.rename(aside)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _remove(target)  # a folder of an image's layer cannot be renamed in its container


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
