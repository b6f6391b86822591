"""Without fine-tuning there is state 0 and no round."""

from dataclasses import dataclass

from stages.methods.server import ServerMethod


@dataclass(frozen=True)
class NoFineTuning(ServerMethod):
    """No adapters, no rounds."""

    name = "no-ft"
    trains = False

    def first_layer(self, num_layers: int) -> int:
        """Behind the last layer."""
        return num_layers


METHOD = NoFineTuning()
