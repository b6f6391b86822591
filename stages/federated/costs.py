"""What a round cost its devices, as they measured it: `measured.json` beside each update, which decides nothing."""

from collections.abc import Iterable
from typing import Any

from schemas.errors import ChainError
from schemas.measured import Cost, LayerPasses, Measured
from schemas.state import StateManifest
from stages.federated.rules import Update
from stages.store.artifact import Artifact, artifact_bytes


def cost_of_round(updates: Iterable[Update], state: Artifact[StateManifest]) -> Cost:
    """The cost of a round's updates together; each device has fetched `state`."""
    bytes_down = artifact_bytes(state.path)
    return Cost.sum(_cost(update, bytes_down) for update in updates)


def _measured(update: Artifact[Any]) -> Measured | None:
    """What making an update cost; None where that is not known, or cannot be read."""
    try:
        return update.measured()
    except (ChainError, OSError):
        return None


def _cost(update: Artifact[Any], bytes_down: int) -> Cost:
    measured = _measured(update)
    passes = measured.passes if measured else LayerPasses()
    return Cost(
        updates=int(measured is not None),
        seconds=measured.seconds if measured else 0.0,
        peak_bytes=measured.peak_bytes or 0 if measured else 0,
        passes=passes.total,
        visits=passes.visits,
        bytes_read=measured.bytes_streamed if measured else 0,
        bytes_up=artifact_bytes(update.path),
        bytes_down=bytes_down,
    )
