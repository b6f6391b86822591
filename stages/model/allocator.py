"""Make the allocator give memory back.

glibc keeps what is freed for later.  A stage that evicts layers then stays as large as its largest moment of all:
on RoBERTa-large the difference is 846 to 566 MiB.  Above the threshold set here every block is a mapping of its own
that is gone when freed.  `CHAINCTL_MALLOC=default` leaves the allocator alone; elsewhere than glibc nothing happens.
"""

import ctypes
import os

THRESHOLD_BYTES = 128 * 2**10
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h


def return_freed_memory() -> bool:
    """Set the thresholds, before torch is imported; whether that was done."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or os.environ.get("CHAINCTL_MALLOC") == "default":
        return False
    for option, value in ((M_MMAP_THRESHOLD, THRESHOLD_BYTES), (M_TRIM_THRESHOLD, THRESHOLD_BYTES), (M_ARENA_MAX, 1)):
        mallopt(option, value)
    return True
