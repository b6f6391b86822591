"""Who may read what is derived from private files: nobody who may not read those."""

import os
import stat
from pathlib import Path

OWNER = 0o600
EVERYBODY = 0o666


def file_mode(source: Path) -> int:
    """The widest mode for a file made from `source`, a file or a folder: what all of it grants to group and others."""
    if not source.is_dir():
        return OWNER | source.stat().st_mode & EVERYBODY
    granted = EVERYBODY
    for place, _, names in os.walk(source):
        granted &= OWNER | _entered_by(Path(place).stat().st_mode)
        for name in names:
            granted &= file_mode(Path(place, name))
    return granted


def folder_mode(mode: int) -> int:
    """The mode of a folder for files of that mode: who may read them may list it."""
    return 0o700 | mode | (mode & 0o444) >> 2


def _entered_by(mode: int) -> int:
    """Bits for those who may open files in a folder of that mode, if the files let them."""
    return (stat.S_IRGRP | stat.S_IWGRP) * bool(mode & stat.S_IXGRP) | (stat.S_IROTH | stat.S_IWOTH) * bool(
        mode & stat.S_IXOTH
    )
