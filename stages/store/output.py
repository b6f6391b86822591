"""Tries the place of an output before the work that makes it: nobody should train for a night to hear "read-only".

What putting the output in place will need is done once in small, in a hidden directory beside it that is gone
afterwards; what a killed process left of that, the next writer of the same output removes.  What the file system lacks
but can be done without is said here, before the work (`filesystem.py`).
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from schemas.errors import BadInput, UsageProblem
from stages.process import intent
from stages.store.files import absolute, hidden_directory, refuse_existing
from stages.store.filesystem import exchange, sync_directory, sync_file

BLOCK_BYTES = 4096
FULL = (errno.ENOSPC, errno.EDQUOT)


def check_output(out: Path, *, force: bool, needed_bytes: int = 0, or_holding: str = "") -> None:
    """Check that a file or folder can be put at `out`, which takes `needed_bytes` or more; nothing is left there.

    Folders above it that are missing can be made, all names are possible, there is room, and with `force` what is
    there can be replaced.  A folder that has a file `or_holding` may be the output of the same command, and stays.
    Raises `UsageProblem` where something is in the way, `BadInput` where the medium refuses.
    """
    target = absolute(out)
    with _explained(target):
        if not force:
            _refuse_dead_link(target)
            if not (or_holding and (target / or_holding).is_file() and not target.is_symlink()):
                refuse_existing(target, force=force)
        elif os.path.lexists(target):
            _check_replaceable(target)
        above = _folder_above(target)
        _check_room(above, target, needed_bytes)
        (_look if intent.is_dry_run() else _rehearse)(above, target)


def refuse_overlap(out: Path, *read: Path) -> None:
    """Refuse to replace what is read: `force` deletes what is at `out`.  Raises `UsageProblem`."""
    target = Path(os.path.realpath(out))
    for source in read:
        if Path(os.path.realpath(source)).is_relative_to(target):  # unlike `resolve`, whatever links lead to
            raise UsageProblem(
                f"{source} is read, and is what --out would replace, or inside it",
                values={"read": source, "--out": out},
                hint="give another --out: what is read is never changed",
            )


def _refuse_dead_link(target: Path) -> None:
    if target.is_symlink() and not target.exists():
        raise UsageProblem(
            f"{target} is a link to something that is not there",
            values={"links to": target.readlink()},
            hint="mount or make what it links to, give another --out, or replace the link with --force",
        )


def _check_replaceable(target: Path) -> None:
    if target.is_mount():
        raise UsageProblem(f"{target} is a mount point, so it cannot be replaced", hint="give a folder inside it")
    folder, user = target.parent.stat(), os.geteuid()
    if folder.st_mode & stat.S_ISVTX and user not in (0, folder.st_uid, target.lstat().st_uid):
        raise UsageProblem(
            f"{target} belongs to somebody else, and nobody else may replace it in that folder",
            hint="give another --out",
        )


def _folder_above(target: Path) -> Path:
    """The nearest folder above `target` that exists.  Raises `UsageProblem` where something else is in the way."""
    above = next(place for place in target.parents if _is_there(place))
    if not above.is_dir():
        found = "a file" if above.exists() else f"a link to {above.readlink()}, which is not there"
        raise UsageProblem(
            f"{above} is not a folder, so {target.name} cannot be put into it",
            values={"expected": "a folder", "found": found},
            hint="give another --out",
        )
    return above


def _is_there(place: Path) -> bool:
    """Whether there is anything.  Raises `PermissionError` where that may not be seen."""
    try:
        place.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _check_room(folder: Path, target: Path, needed_bytes: int) -> None:
    free_bytes = _free_bytes(folder)
    if free_bytes is not None and free_bytes < needed_bytes:
        raise BadInput(
            f"there is not enough room for {target}",
            values={"needed": f"{-(-needed_bytes // 1024)} KiB or more", "free": f"{free_bytes // 1024} KiB"},
            hint="make room, or give another --out",
        )


def _free_bytes(folder: Path) -> int | None:
    """What this user may still write there; None on a file system that does not say."""
    found = os.statvfs(folder)
    return found.f_frsize * (found.f_bfree if os.geteuid() == 0 else found.f_bavail) if found.f_blocks else None


def _rehearse(folder: Path, target: Path) -> None:
    """Make, write, sync, rename and swap in `folder` what will be made, written, synced, renamed and swapped there."""
    missing = target.parent.relative_to(folder)
    with hidden_directory(folder / target.name) as hidden:
        sync_directory(folder)
        made = hidden.path / "made" / missing / target.name
        made.mkdir(parents=True)
        with (made / "block").open("wb") as file:
            file.write(bytes(BLOCK_BYTES))
            file.flush()
            sync_file(file.fileno(), folder)
        made.rename(hidden.path / "renamed")
        if os.path.lexists(target):
            made.mkdir()
            exchange((hidden.descriptor, str(made.relative_to(hidden.path))), (hidden.descriptor, "renamed"), folder)


def _look(folder: Path, target: Path) -> None:
    """What can be seen of that without writing.  Raises `OSError`."""
    free_bytes = _free_bytes(folder)
    if os.statvfs(folder).f_flag & os.ST_RDONLY:
        number = errno.EROFS
    elif not os.access(folder, os.W_OK | os.X_OK):
        number = errno.EACCES
    elif free_bytes is not None and free_bytes < BLOCK_BYTES:
        number = errno.ENOSPC
    else:
        return
    raise OSError(number, os.strerror(number), str(target))


@contextmanager
def _explained(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BadInput(
            f"{target} cannot be written",
            values={"reason": error.strerror or type(error).__name__},
            hint="make room, or give another --out" if error.errno in FULL else "give another --out",
        ) from None
