"""Choose what a stage keeps in memory, and find room for its temporary files before any work.

Where the scratch folder is a tmpfs, the files are memory: they count in the predicted peak.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

from schemas.errors import DoesNotFit
from stages.memory.fits import describe
from stages.memory.predict import fit
from stages.process import intent
from stages.process.measure import mebibytes
from stages.process.scratch import existing_folder, medium_of
from stages.streaming.placement import Placement

PredictBytes = Callable[[Placement], int]


def fit_with_files(
    peak: PredictBytes, files: PredictBytes, *, scratch: Path, budget_bytes: int, what: str
) -> tuple[Placement, int]:
    """The fastest placement within the budget, and its predicted peak in bytes.

    `peak` predicts the memory of the process, `files` the size of its temporary files in the folder `scratch`.
    Raises `DoesNotFit` where no placement is within the budget, or the folder has no room for the files.  A dry run
    ends here: what is placed is the work.
    """
    in_memory = medium_of(scratch) == "memory"
    try:
        placement, most = fit(
            lambda choice: peak(choice) + (files(choice) if in_memory else 0), budget_bytes, what=what
        )
    except DoesNotFit as refused:
        if not in_memory:
            raise
        raise DoesNotFit(
            f"{refused.fact}, and the scratch folder is in memory (tmpfs)",
            values={**refused.values, "scratch folder": scratch},
            hint="give a --scratch-dir on a disk, or a larger --memory-budget",
        ) from None
    free_bytes = _check_room(files(placement), scratch, what)
    intent.expect(
        peak_bytes=most,
        budget_bytes=budget_bytes,
        in_memory=describe(placement),
        scratch_bytes=files(placement),
        scratch_free_bytes=free_bytes,
        scratch_folder=str(scratch),
    )
    intent.begin()
    return placement, most


def _check_room(needed_bytes: int, scratch: Path, what: str) -> int:
    """Refuse work whose temporary files do not fit their folder; the bytes free there.  Raises `DoesNotFit`."""
    free_bytes = shutil.disk_usage(existing_folder(scratch)).free
    if needed_bytes > free_bytes:
        raise DoesNotFit(
            f"the temporary files of {what} do not fit the disk",
            values={"needed": mebibytes(needed_bytes), "free": mebibytes(free_bytes), "folder": scratch},
            hint="free some space, give a --scratch-dir on another disk, or a larger --memory-budget",
        )
    return free_bytes
