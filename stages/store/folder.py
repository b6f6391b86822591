"""A folder held open, so that what is made, moved or removed in it is there and nowhere else.

Whoever can write to a folder can put a link where a name will be looked up.  The path that a person gives is followed
once, when the folder is opened; from then on entries are reached by name below its descriptor, and no link is followed.
"""

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from stages.store.filesystem import sync_names

Identity = tuple[int, int]  # device and inode
OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def identity_of(info: os.stat_result) -> Identity:
    """What tells one file or folder from every other."""
    return info.st_dev, info.st_ino


@dataclass(frozen=True)
class Folder:
    """An open folder; `path` is how errors name it."""

    path: Path
    descriptor: int

    @classmethod
    @contextmanager
    def open(cls, path: Path, *, make: bool = False) -> Iterator["Folder"]:
        """The folder at `path`, whose links are followed; with `make` it is made where it is missing.

        Raises `OSError`.
        """
        if make:
            path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield cls(path, descriptor)
        finally:
            os.close(descriptor)

    @contextmanager
    def own(self, name: str) -> Iterator["Folder"]:
        """The folder `name` in this one, made where it is missing.

        Raises `OSError` where something else is there: a link, a file, or a folder of another user.
        """
        with suppress(FileExistsError):
            os.mkdir(name, dir_fd=self.descriptor)
        descriptor = os.open(name, OPEN | os.O_DIRECTORY, dir_fd=self.descriptor)
        try:
            owner = os.fstat(descriptor).st_uid
            if owner != os.geteuid() and owner != self._owner_of_what_is_made():
                raise PermissionError(errno.EPERM, "it belongs to another user", str(self.path / name))
            yield Folder(self.path / name, descriptor)
        finally:
            os.close(descriptor)

    def names(self) -> list[str]:
        """Of all that is in it."""
        with os.scandir(self.descriptor) as entries:
            return [entry.name for entry in entries]

    def status(self, name: str) -> os.stat_result | None:
        """Of what has that name, be it a link; None where nothing has."""
        try:
            return os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def is_folder(self, name: str) -> bool:
        """Whether `name` is a folder, and not a link to one."""
        info = self.status(name)
        return info is not None and stat.S_ISDIR(info.st_mode)

    def move(self, name: str, to: "Folder", new: str) -> None:
        """Rename within one medium.  Raises `OSError`."""
        os.rename(name, new, src_dir_fd=self.descriptor, dst_dir_fd=to.descriptor)

    def remove(self, name: str) -> None:
        """Remove a file, a link, or a folder with all that is in it."""
        if self.is_folder(name):
            shutil.rmtree(name, dir_fd=self.descriptor)
        else:
            os.unlink(name, dir_fd=self.descriptor)

    def sync(self) -> None:
        """Make renames in it durable, where that is possible."""
        sync_names(self.descriptor, self.path)

    def _owner_of_what_is_made(self) -> int:
        """Media without owners show everything as somebody's, whoever made it."""
        name = f".{secrets.token_hex(8)}"
        os.mkdir(name, dir_fd=self.descriptor)
        try:
            return os.stat(name, dir_fd=self.descriptor, follow_symlinks=False).st_uid
        finally:
            os.rmdir(name, dir_fd=self.descriptor)
