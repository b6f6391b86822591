"""Files that operating systems put into every folder they show: never a part of what a person put there.

They are ignored by name, wherever artifacts, updates or files of data are listed, inside artifacts too.  What is
ignored is never read, signed, copied or counted; so a file under such a name can do no more than be there.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

NAMES = frozenset(
    {
        # macOS, on its own disks and on those of others
        ".ds_store", ".appledouble", ".apdisk", ".trashes", ".spotlight-v100", ".fseventsd", ".temporaryitems",
        ".documentrevisions-v100", ".volumeicon.icns", ".localized", "icon\r", "__macosx",
        # Windows
        "desktop.ini", "thumbs.db", "ehthumbs.db", "system volume information", "$recycle.bin", "recycler",
        # Linux and its desktops; the stores of network disks
        "lost+found", ".directory", "@eadir",
    }
)  # fmt: skip
PREFIXES = ("._", ".trash-", ".nfs", ".fuse_hidden")  # AppleDouble; of one user; removed while it was open


def is_debris(name: str) -> bool:
    """Whether an operating system puts files or folders of that name into folders, in any case of its letters."""
    folded = name.casefold()
    return folded in NAMES or folded.startswith(PREFIXES)


def without_debris(paths: Iterable[Path]) -> Iterator[Path]:
    """The paths that a person put there."""
    return (path for path in paths if not is_debris(path.name))
