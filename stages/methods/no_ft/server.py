"""Without fine-tuning there is only state 0."""

from dataclasses import dataclass

from stages.methods.server import ServerMethod


@dataclass(frozen=True)
class NoFineTuning(ServerMethod):
    """Trains nothing: no adapters, no rounds."""

    name = "no-ft"
    trains = False

    def first_layer(self, num_layers: int) -> int:
        """`num_layers`: no layer has an adapter."""
        return num_layers


METHOD = NoFineTuning()
