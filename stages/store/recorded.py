"""How long the like of it took on this machine before, as `measured.json` of what is beside an output says.

Nothing is estimated: where nothing alike was measured here, nothing is said.
"""

import itertools
import statistics
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from schemas.base import Manifest
from schemas.errors import ChainError
from stages.process import intent
from stages.process.measure import machine_name
from stages.store.artifact import MANIFEST_FILE, Artifact, read_manifest

MOST = 1000  # places that are looked at

M = TypeVar("M", bound=Manifest)


def expect_seconds(out: Path, kind: type[M], alike: Callable[[M], bool]) -> None:
    """Note for a dry run the median seconds of what is `alike`, beside `out` or in the folders beside its own."""
    if intent.is_dry_run() and (seconds := list(_seconds(out, kind, alike))):
        intent.expect(seconds=statistics.median(seconds))


def _seconds(out: Path, kind: type[M], alike: Callable[[M], bool]) -> Iterator[float]:
    above = out.absolute().parent
    places = {*itertools.islice(above.glob("*"), MOST), *itertools.islice(above.parent.glob(f"*/{out.name}"), MOST)}
    for place in sorted(places):
        with suppress(ChainError, OSError):  # something else, or not whole
            manifest = read_manifest(place / MANIFEST_FILE, kind)
            measured = Artifact(place, manifest, manifest.digest).measured() if alike(manifest) else None
            if measured and (measured.artifact, measured.machine) == (manifest.digest, machine_name()):
                yield measured.seconds
