"""What the chain is compared with: everything end to end, the head alone, nothing."""

from typing import Literal

from schemas.methods.registry import MethodSettings


class FullAdaptersSettings(MethodSettings):
    """Every adapter trains end to end, every round."""

    method: Literal["full-adapters"] = "full-adapters"


class LinearProbeSettings(MethodSettings):
    """The head alone trains."""

    method: Literal["linear-probe"] = "linear-probe"

    def freezes(self, layer: int, cka: float) -> bool:  # noqa: ARG002
        """All of them."""
        return True


class NoFineTuningSettings(MethodSettings):
    """Nothing trains: what the base model does with a fresh head."""

    method: Literal["no-ft"] = "no-ft"
