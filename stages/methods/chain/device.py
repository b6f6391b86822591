"""The chain on a device: Eq. 2 over the assigned window."""

from dataclasses import dataclass

from schemas.methods import ChainSettings
from schemas.plan import PlanManifest
from schemas.refs import Window
from stages.memory.predict import MemoryModel
from stages.methods.device import DeviceMethod
from stages.streaming.placement import Placement


@dataclass(frozen=True)
class ChainOnDevice(DeviceMethod):
    """The defaults, with the global branch of GPO."""

    def global_weight(self, plan: PlanManifest) -> float:
        """The recipe's λ."""
        chain = plan.settings.chain
        assert isinstance(chain, ChainSettings)
        return chain.global_weight

    def peak_bytes(self, memory: MemoryModel, span: Window, placement: Placement, *, first_layer: int) -> int:
        """The default peak, plus the adapters above the window if the global branch runs."""
        chain = memory.settings.chain
        assert isinstance(chain, ChainSettings)
        return memory.train_layers(span, placement, first_layer=first_layer, foresight=chain.global_weight > 0.0)


METHOD = ChainOnDevice()
