"""The chain on a device: Eq. 2 over the assigned window, with foresight through adapters or through layers."""

from dataclasses import dataclass

from schemas.assignment import Assignment
from schemas.methods import ChainSettings, MethodSettings
from schemas.methods.chain import LossWeights
from schemas.refs import Window
from stages.methods.device import DeviceMethod


@dataclass(frozen=True)
class ChainOnDevice(DeviceMethod):
    """The defaults, with the losses of Eq. 2."""

    def span(self, chain: MethodSettings, num_layers: int, assignment: Assignment) -> Window:
        """The window; with foresight through layers, every layer from its first on."""
        window = super().span(chain, num_layers, assignment)
        return Window(start=window.start, stop=num_layers) if self.loss_weights(chain).through_layers else window

    def loss_weights(self, chain: MethodSettings) -> LossWeights:
        """Those of the recipe."""
        assert isinstance(chain, ChainSettings)
        return chain.weights


METHOD = ChainOnDevice()
