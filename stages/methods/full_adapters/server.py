"""Full adapters need no decisions: the defaults of every method are theirs."""

from dataclasses import dataclass

from stages.methods.server import ServerMethod


@dataclass(frozen=True)
class FullAdapters(ServerMethod):
    """All layers, every round."""

    name = "full-adapters"


METHOD = FullAdapters()
