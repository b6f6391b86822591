"""Where temporary files go, and what that place is: a disk, memory, or a medium that is not written to unasked.

A stage's hidden states, adapters and moments may go to unnamed files.  They are as large as the texts and the model
ask for, so they belong neither on the stick that carries an update, nor into memory that was to be saved.  The kernel
says what a folder is on: /proc/self/mountinfo names its file system, /sys/dev/block the device.  Where there is neither
(not Linux), every folder counts as a disk.
"""

import os
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from schemas.errors import UsageProblem

MOUNTS = Path("/proc/self/mountinfo")
BLOCK_DEVICES = Path("/sys/dev/block")
IN_MEMORY = ("tmpfs", "ramfs")
OF_STICKS = ("vfat", "exfat", "msdos", "ntfs", "ntfs3", "fuseblk")
OF_NETWORKS = ("nfs", "nfs4", "cifs", "smb3", "9p")
TEMPORARY = Path("/var/tmp")  # on a disk where /tmp is in memory

Medium = Literal["disk", "memory", "removable", "network"]


@dataclass(frozen=True)
class Mount:
    """A file system: where it is mounted, its type, and its device as MAJOR:MINOR."""

    point: Path
    kind: str
    device: str


def scratch_folder(wanted: Path | None, *, beside: Path, cache: Path | None) -> Path:
    """The folder of temporary files: the `wanted` one, by default the output's folder `beside`.

    Where that is removable or on a network, it is the first of these on a disk that can be written: the `cache` in
    use, the user's cache folder, the system's folders of temporary files.  Nothing is made yet.  Raises `UsageProblem`.
    """
    if wanted is not None:
        if wanted.exists() and not wanted.is_dir():
            raise UsageProblem(f"{wanted} is not a directory", hint="give another --scratch-dir")
        if not _can_be_written(wanted):
            raise UsageProblem(f"no temporary files can be put into {wanted}", hint="give another --scratch-dir")
        return wanted
    others = [user_cache(), Path(tempfile.gettempdir()), TEMPORARY]
    return choose(beside, others if cache is None else [cache, *others], medium_of)


def choose(beside: Path, others: Sequence[Path], medium: Callable[[Path], Medium]) -> Path:
    """`beside`, or where that is removable or on a network the first of `others` on a disk; `beside` if none is."""
    if medium(beside) in ("disk", "memory"):
        return beside
    return next((folder for folder in others if medium(folder) == "disk" and _can_be_written(folder)), beside)


def medium_of(folder: Path) -> Medium:
    """What a folder is on, which need not exist yet."""
    try:
        mount = mount_of(folder.resolve(), read_mounts(os.fsdecode(MOUNTS.read_bytes())))
    except OSError:
        return "disk"
    return "disk" if mount is None else medium_of_mount(mount, BLOCK_DEVICES)


def read_mounts(text: str) -> list[Mount]:
    """The file systems of a mountinfo, in its order: proc(5)."""
    found = []
    for line in text.splitlines():
        before, dash, after = line.partition(" - ")
        fields = before.split(" ")
        if dash and len(fields) > 4:
            point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4])
            found.append(Mount(Path(point), after.split(" ")[0], fields[2]))
    return found


def mount_of(folder: Path, mounts: Sequence[Mount]) -> Mount | None:
    """The file system of an absolute path without links: the deepest, and of several in one place the last."""
    above = [mount for mount in mounts if folder.is_relative_to(mount.point)]
    return max(reversed(above), key=lambda mount: len(mount.point.parts), default=None)


def medium_of_mount(mount: Mount, blocks: Path) -> Medium:
    """What a file system is on; `blocks` is /sys/dev/block."""
    if mount.kind in IN_MEMORY:
        return "memory"
    if mount.kind in OF_STICKS or _is_removable((blocks / mount.device).resolve()):
        return "removable"
    return "network" if mount.kind in OF_NETWORKS or mount.kind.startswith("fuse") else "disk"


def user_cache() -> Path:
    """`CHAINCTL_CACHE`, else `chainctl` in the user's cache folder."""
    named = os.environ.get("CHAINCTL_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(named) if named else Path(base) / "chainctl"


def existing_folder(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())


def _is_removable(device: Path) -> bool:
    """Whether a block device, or the disk that it is a part of, or what an encrypted one is on, is removable or USB."""
    if any(part.startswith("usb") for part in device.parts):
        return True
    for place in (device, device.parent):
        flag = place / "removable"
        if flag.exists() and flag.read_text().strip() == "1":
            return True
    return any(_is_removable(slave.resolve()) for slave in device.glob("slaves/*"))


def _can_be_written(folder: Path) -> bool:
    nearest = existing_folder(folder)
    return nearest.is_dir() and os.access(nearest, os.W_OK)
