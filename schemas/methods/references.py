"""The methods that the chain is compared with: full adapters, only the head, nothing."""

from typing import Literal

from schemas.methods.registry import MethodSettings


class FullAdaptersSettings(MethodSettings):
    """All adapters train end to end in every round."""

    method: Literal["full-adapters"] = "full-adapters"


class LinearProbeSettings(MethodSettings):
    """Only the head trains."""

    method: Literal["linear-probe"] = "linear-probe"

    def freezes(self, layer: int, cka: float) -> bool:  # noqa: ARG002
        """All of them."""
        return True


class NoFineTuningSettings(MethodSettings):
    """Nothing trains: the base model with a fresh head."""

    method: Literal["no-ft"] = "no-ft"
