"""What folders hold, as far as it can be told without reading a file: whether it is worth to look again."""

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

Snapshot = frozenset[tuple[str, int, int, int]]  # path, size, time of the last change in ns, inode


def snapshot(paths: Iterable[Path], *, depth: int) -> Snapshot:
    """Of these files and folders, and of what is in the folders `depth` levels down.

    Links are not followed below `paths`; what is not there, or goes away meanwhile, is left out.
    """
    found: set[tuple[str, int, int, int]] = set()
    for path in paths:
        _add(found, path, depth)
    return frozenset(found)


def _add(found: set[tuple[str, int, int, int]], path: Path, depth: int) -> None:
    try:
        info = path.stat(follow_symlinks=False)
        found.add((str(path), info.st_size, info.st_mtime_ns, info.st_ino))
        if depth and path.is_dir():
            for entry in os.scandir(path):
                _add(found, Path(entry.path), 0 if entry.is_symlink() else depth - 1)
    except OSError:
        return


def file_sizes(folder: Path) -> Iterator[int]:
    """Bytes of each file in `folder` and below, without links to folders; what goes away meanwhile is left out."""
    for above, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                info = os.stat(os.path.join(above, name))  # noqa: PTH116, PTH118 -- of very many files
                if stat.S_ISREG(info.st_mode):
                    yield info.st_size
