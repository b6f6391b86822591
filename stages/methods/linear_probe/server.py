"""A linear probe has no adapters."""

from dataclasses import dataclass

from schemas.errors import BadInput
from stages.methods.server import Decided, Facts, ServerMethod


@dataclass(frozen=True)
class LinearProbe(ServerMethod):
    """Trains the head in every round."""

    name = "linear-probe"

    def decide(self, facts: Facts) -> Decided:
        """The defaults.  Raises `BadInput` for language models, whose head is frozen."""
        if facts.settings.task.kind == "causal-lm":
            raise BadInput(
                "a linear probe trains a head, and the head of a causal language model is frozen",
                values={"task.kind": facts.settings.task.kind, "chain.method": self.name},
                hint="compare with full-adapters or no-ft",
            )
        return super().decide(facts)

    def first_layer(self, num_layers: int) -> int:
        """`num_layers`: no layer has an adapter."""
        return num_layers


METHOD = LinearProbe()
