"""The lock of a chainctl home: everything below it is changed by one process at a time.

What is read there and then written back must be read inside the block.  The lock is not taken twice: a block inside
another would wait for itself.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from stages.process import intent
from stages.store.filesystem import lock, lock_file

LOCK_FILE = ".lock"  # where the file system cannot lock the folder itself


@contextmanager
def locked_home(home: Path) -> Iterator[None]:
    """Be the only process that changes anything below `home`; others wait.

    Raises `UsageProblem` where the file system has no locks and another process is writing there.
    """
    if intent.is_dry_run():  # nothing is changed, and a home that is not there is not made
        yield
        return
    home.mkdir(mode=0o700, parents=True, exist_ok=True)  # who can write there decides whom this machine trusts
    with ExitStack() as stack:
        descriptor = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, descriptor)
        if not lock(descriptor, home, wait=True):
            stack.enter_context(lock_file(home / LOCK_FILE))
        yield
