"""The one seam through which anything is written: write, fsync, rename.

A directory made here is complete or absent.  It is written under a hidden name beside its target, with a lock that
ends with the process, and is renamed when everything in it is on the disk.  What a killed process left behind is
removed by the next writer of the same target.

    .NAME.1f2e3d4c.partial        NAME in the making; the last eight characters are random, so NAME may have dots
    .NAME.1f2e3d4c.old.partial    what was at NAME, while its successor takes its place on a medium without exchange

Whoever looks for a NAME that is missing and finds the second puts it back (`put_back`): its writer was killed.
"""

import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from schemas.errors import BadInput, UsageProblem
from stages.process import intent
from stages.store.debris import without_debris
from stages.store.filesystem import exchange, lock, set_mode, sync_file, sync_names
from stages.store.folder import OPEN, Folder, identity_of
from stages.store.permissions import EVERYBODY, file_mode, folder_mode
from stages.store.regular import file_digest

PARTIAL = ".partial"
OLD = ".old.partial"
TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)
LEFT_OVER = re.compile(r"\.(.+)\.[a-z0-9_]{8}(\.old)?\.partial", re.DOTALL)


@contextmanager
def complete_directory(
    target: Path, *, force: bool, or_same: bool = False, derived_from: Path | None = None
) -> Iterator[Path]:
    """Yield a hidden directory that becomes `target` when the block succeeds, and is removed when it fails.

    With `force` an existing target is exchanged for the new one in a single step; without, `UsageProblem` is raised,
    unless `or_same` and it has the same content, which is left as it is.  Nobody can read what is `derived_from` a file
    or folder who cannot read that; the umask applies as everywhere.
    """
    target = absolute(target)
    if not or_same:
        refuse_existing(target, force=force)
    intent.begin(target)
    mode = EVERYBODY if derived_from is None else file_mode(derived_from)
    with Folder.open(target.parent, make=True) as folder, _hidden(folder, target.name) as (hidden, granted):
        yield hidden.path
        if derived_from is not None:
            _narrow_tree(hidden, mode)
        _sync_tree(hidden)
        set_mode(hidden.descriptor, granted & folder_mode(mode), folder.path)
        _refuse_another(folder, hidden)
        try:
            _put_in_place(folder, hidden.path.name, folder, target.name, force=force)
        except UsageProblem:
            if not (or_same and folder.is_folder(target.name) and _same_content(hidden.path, target)):
                raise


@contextmanager
def complete_entries(folder: Path, name: str, *, force: bool) -> Iterator[Path]:
    """Yield a hidden directory; when the block succeeds, its entries are moved into `folder`, last name first.

    Each entry is complete or absent; when the block fails, none is there.  `name` names the hidden directory, so that
    the next writer with that name removes what a killed process left.
    """
    intent.begin()
    folder = absolute(folder)
    is_new = not folder.exists()
    try:
        with Folder.open(folder, make=True) as into, _hidden(into, name) as (hidden, _):
            yield hidden.path
            _sync_tree(hidden)
            names = sorted(hidden.names(), reverse=True)
            _settle(into, names)
            for entry in names:
                _put_in_place(hidden, entry, into, entry, force=force)
    except BaseException:
        if is_new and not any(folder.iterdir()):
            folder.rmdir()
        raise


@contextmanager
def hidden_directory(target: Path) -> Iterator[Folder]:
    """A locked directory beside `target` that only this user can enter, gone after the block."""
    with Folder.open(target.parent) as folder, _hidden(folder, target.name) as (hidden, _):
        yield hidden


def write_file(path: Path, data: bytes | memoryview, *, mode: int = 0o666) -> None:
    """Write or replace a single file in one step, durably.  The umask narrows `mode`.

    Raises `UsageProblem` where the file is private by its `mode` and the file system cannot keep it so.
    """
    if intent.is_dry_run():
        intent.will_write(path, len(data))
        return
    with Folder.open(path.parent, make=True) as folder:
        _settle(folder, {path.name})
        write_in(folder, path.name, data, mode=mode)


def new_file(path: Path) -> BinaryIO:
    """A file that was not there, for a library whose readers watch it grow; no link is followed.  Raises `OSError`."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o666), "wb")


def write_in(folder: Folder, name: str, data: bytes | memoryview, *, mode: int = 0o666) -> None:
    """`write_file` in an open folder, which is not swept."""
    hidden, descriptor = _new_file(folder, name, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            sync_file(descriptor, folder.path)
            _check_private(os.fstat(descriptor), folder.path / name, mode)
            folder.move(hidden, folder, name)
        folder.sync()
    except BaseException:
        with suppress(FileNotFoundError):
            folder.remove(hidden)
        raise


def _check_private(info: os.stat_result, path: Path, mode: int) -> None:
    found = stat.S_IMODE(info.st_mode)
    if not mode & 0o077 and found & 0o077:
        raise UsageProblem(
            f"the file system of {path.parent} would let others read {path.name}",
            values={"expected": f"mode {mode:o}", "found": f"mode {found:o}"},
            hint="set CHAINCTL_HOME to a folder on a disk of this machine that keeps permissions",
        )


def make_folder(path: Path, *, mode: int = 0o777) -> None:
    """A folder, and those above it, where they are missing."""
    if not intent.is_dry_run():
        path.mkdir(parents=True, exist_ok=True, mode=mode)


def copy_folder(source: Path, target: Path) -> None:
    """Copy the files of a folder and of those in it, without permissions and times, which not every medium keeps."""
    target.mkdir(exist_ok=True)
    for entry in without_debris(source.iterdir()):
        if entry.is_dir():
            copy_folder(entry, target / entry.name)
        else:
            shutil.copyfile(entry, target / entry.name)


def absolute(path: Path) -> Path:
    """The path from the root; a link at its end, or on the way, stays one, as it would not with `resolve`."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def refuse_existing(target: Path, *, force: bool, place: str = "--out") -> None:
    """Nothing is replaced without `force`; `place` is the argument that names the target.  Raises `UsageProblem`."""
    if os.path.lexists(target) and not force:
        raise UsageProblem(f"{target} exists already", hint=f"give another {place}, or replace it with --force")


# What killed writers left.


def sweep(target: Path) -> None:
    """Remove what killed writers of `target` left, or put it back; a live writer holds the lock of its directory.

    Where there are no locks nothing is removed, as it may be the work of a live writer; see `filesystem`.
    """
    if intent.is_dry_run():
        return
    target = absolute(target)
    with suppress(FileNotFoundError, NotADirectoryError), Folder.open(target.parent) as folder:
        _settle(folder, {target.name})


def put_back(path: Path) -> None:
    """Put back what killed writers had put away, and no successor has replaced: in `path`, or where it is missing.

    A medium that cannot be written to is left as it is.
    """
    if intent.is_dry_run():
        return
    path = absolute(path)
    with suppress(OSError, StopIteration):
        place = next(place for place in (path, *path.parents) if os.path.lexists(place))
        with Folder.open(place) as folder:
            for left in _left_overs(folder):
                if left.is_old and folder.status(left.target) is None:
                    left.settle()


@dataclass(frozen=True)
class _LeftOver:
    """Something in `folder` under a hidden name of `target`; of a live writer or a killed one."""

    folder: Folder
    name: str
    target: str
    is_old: bool

    def settle(self) -> None:
        """Put it back or remove it, if its writer was killed."""
        with self._of_the_dead() as removable:
            if self.is_old and self.folder.status(self.target) is None:
                self.folder.move(self.name, self.folder, self.target)
                self.folder.sync()
            elif removable:
                self.folder.remove(self.name)

    @contextmanager
    def _of_the_dead(self) -> Iterator[bool]:
        """Hold its lock; whether that proves its writer dead.  Raises `BlockingIOError` where the writer lives."""
        info = self.folder.status(self.name)
        if info is None or not (stat.S_ISDIR(info.st_mode) or stat.S_ISREG(info.st_mode)):
            yield self.is_old  # a link has no lock, and nothing is made under a hidden name but files and directories
            return
        descriptor = os.open(self.name, OPEN, dir_fd=self.folder.descriptor)
        try:
            yield lock(descriptor, self.folder.path)
        finally:
            os.close(descriptor)


def _left_overs(folder: Folder, targets: Collection[str] | None = None) -> list[_LeftOver]:
    """What is under hidden names of `targets`, or of anything."""
    names = (name for name in folder.names() if name.endswith(PARTIAL))
    found = [match for name in names if (match := LEFT_OVER.fullmatch(name))]
    return [
        _LeftOver(folder, match[0], match[1], bool(match[2]))
        for match in found
        if targets is None or match[1] in targets
    ]


def _settle(folder: Folder, targets: Collection[str]) -> None:
    for left in _left_overs(folder, targets):
        with suppress(OSError):  # its writer lives or has just finished, or it is somebody else's
            left.settle()


# Hidden names.


def _hidden_name(target: str, ending: str = PARTIAL) -> str:
    return f".{target}.{secrets.token_hex(4)}{ending}"


@contextmanager
def _hidden(folder: Folder, target: str) -> Iterator[tuple[Folder, int]]:
    """A locked directory in `folder` that only this user can enter, gone after the block unless it was renamed.

    And the mode that folders get here.
    """
    _settle(folder, {target})
    hidden = _new_directory(folder, target)
    try:
        granted = stat.S_IMODE(os.fstat(hidden.descriptor).st_mode)
        set_mode(hidden.descriptor, granted & ~0o077, folder.path)
        yield hidden, granted
    finally:
        if _is_there(folder, hidden.path.name, hidden.descriptor):
            with suppress(OSError):
                folder.remove(hidden.path.name)
        os.close(hidden.descriptor)


def _new_directory(folder: Folder, target: str) -> Folder:
    while True:
        name = _hidden_name(target)
        os.mkdir(name, dir_fd=folder.descriptor)
        with suppress(FileNotFoundError):
            descriptor = os.open(name, OPEN | os.O_DIRECTORY, dir_fd=folder.descriptor)
            if _claimed(folder, name, descriptor):
                return Folder(folder.path / name, descriptor)


def _new_file(folder: Folder, target: str, mode: int) -> tuple[str, int]:
    while True:
        name = _hidden_name(target)
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode, dir_fd=folder.descriptor)
        if _claimed(folder, name, descriptor):
            return name, descriptor


def _claimed(folder: Folder, name: str, descriptor: int) -> bool:
    """Whether this process has the lock of what it has just made; another may have taken it for a left-over."""
    with suppress(BlockingIOError):
        lock(descriptor, folder.path)
        if _is_there(folder, name, descriptor):
            return True
    os.close(descriptor)
    return False


def _is_there(folder: Folder, name: str, descriptor: int) -> bool:
    """Whether what is open has that name."""
    there = folder.status(name)
    return there is not None and identity_of(there) == identity_of(os.fstat(descriptor))


# Putting in place.


def _narrow_tree(directory: Folder, mode: int) -> None:
    """Take from all files in it what `mode` does not grant."""
    for place, descriptor, is_folder in _opened_tree(directory):
        found = stat.S_IMODE(os.fstat(descriptor).st_mode)
        set_mode(descriptor, found & (folder_mode(mode) if is_folder else mode), place)


def _sync_tree(directory: Folder) -> None:
    for place, descriptor, is_folder in _opened_tree(directory):
        (sync_names if is_folder else sync_file)(descriptor, place)


def _opened_tree(directory: Folder) -> Iterator[tuple[Path, int, bool]]:
    """Every file, opened, and after those of a folder itself: where it is, its descriptor, whether it is a folder."""
    for place, _, names, opened in os.fwalk(".", dir_fd=directory.descriptor):
        for name in names:
            descriptor = os.open(name, OPEN, dir_fd=opened)
            try:
                yield directory.path / place, descriptor, False
            finally:
                os.close(descriptor)
        yield directory.path / place, opened, True


def _same_content(one: Path, other: Path) -> bool:
    """Whether two directories hold the same files, apart from what operating systems leave."""
    names = {entry.name for entry in without_debris(one.iterdir())}
    if names != {entry.name for entry in without_debris(other.iterdir())}:
        return False
    return all(_same_entry(one / name, other / name) for name in names)


def _same_entry(one: Path, other: Path) -> bool:
    if one.is_dir() or other.is_dir():
        return one.is_dir() and other.is_dir() and not other.is_symlink() and _same_content(one, other)
    try:
        return one.stat().st_size == other.stat().st_size and file_digest(one) == file_digest(other)
    except BadInput:
        return False  # a link, a pipe or a device


def _refuse_another(folder: Folder, hidden: Folder) -> None:
    if not _is_there(folder, hidden.path.name, hidden.descriptor):
        raise BadInput(
            f"{hidden.path} was taken away while it was written",
            hint="run one command at a time for an output, in a folder that nobody else writes to",
        )


def _put_in_place(source: Folder, name: str, folder: Folder, target: str, *, force: bool) -> None:
    refuse_existing(folder.path / target, force=force)
    if folder.status(target) is None or not (source.is_folder(name) or folder.is_folder(target)):
        try:  # a file takes the place of another, or of a link, in one step
            source.move(name, folder, target)
        except OSError as error:
            if error.errno not in TAKEN or folder.status(target) is None:
                raise
            _put_in_place(source, name, folder, target, force=force)  # another command was faster
        folder.sync()
    elif exchange((source.descriptor, name), (folder.descriptor, target), folder.path):
        folder.sync()
        with suppress(OSError):  # the old one, under the hidden name now; another command may be removing it
            source.remove(name)
    else:
        _replace(source, name, folder, target)


def _replace(source: Folder, name: str, folder: Folder, target: str) -> None:
    """What an exchange does, in two steps: the old one is put away beside its place, where `put_back` finds it."""
    aside = _hidden_name(target, OLD)
    with _held(folder, target):
        try:
            folder.move(target, folder, aside)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            folder.remove(target)  # a folder of an image's layer cannot be renamed in its container
        try:
            source.move(name, folder, target)
        except BaseException:
            with suppress(OSError):
                folder.move(aside, folder, target)
            raise
        folder.sync()
        with suppress(OSError):
            folder.remove(aside)


@contextmanager
def _held(folder: Folder, target: str) -> Iterator[None]:
    """Hold the lock of what is at `target`, so that nobody puts it back while its writer lives."""
    info = folder.status(target)
    if info is None or not (stat.S_ISDIR(info.st_mode) or stat.S_ISREG(info.st_mode)):
        yield
        return
    descriptor = os.open(target, OPEN, dir_fd=folder.descriptor)
    try:
        with suppress(BlockingIOError):
            lock(descriptor, folder.path)
        yield
    finally:
        os.close(descriptor)
