"""The defaults of `ServerMethod`."""

from dataclasses import dataclass

from stages.methods.server import ServerMethod


@dataclass(frozen=True)
class FullAdapters(ServerMethod):
    """Trains the adapters of all layers and the head in every round."""

    name = "full-adapters"


METHOD = FullAdapters()
