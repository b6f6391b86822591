"""Modules that take the place of the layers, the token embedding and the language head, and call a visitor."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from stages.model.architecture import returns_tuple
from stages.model.held import Places
from stages.model.passes import PassCounter
from stages.model.stored import StoredMatrices

# What happens in a slot: (layer index, hidden states (B, S, D), the layer as a function) -> hidden states.
Visit = Callable[[int, Tensor, Callable[[Tensor, Mapping[str, Tensor]], Tensor]], Tensor]


KEPT_TYPES = (Tensor, bool, int, float, str)


class Stop(Exception):
    """Not an error: ends the model's forward early."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


class Host(Protocol):
    """What a slot asks for what to do: the skeleton."""

    visit: Visit
    dtype: torch.dtype  # that computes; a layer may get hidden states in a wider one (Mamba)
    threads: int  # of the plan
    passes: PassCounter


class Slot(nn.Module):
    """Takes a layer's place, has its attributes, and calls the visitor."""

    def __init__(self, index: int, layer: nn.Module, host: "Host") -> None:
        super().__init__()
        # Bypasses nn.Module's registry, so that the layer's parameters are no longer the model's.
        self.__dict__.update(index=index, layer=layer, host=host, returns_tuple=returns_tuple(layer))
        self.__dict__.update(places=Places(layer), matrices=StoredMatrices(layer))

    def __getattr__(self, name: str) -> Any:
        """Attributes that a model reads from its layers (such as `attention_type`) are those of the layer."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["layer"], name)

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, None]:
        """What the visitor returns for the hidden states (B, S, D), in the form that the model expects."""

        def apply(hidden: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
            # Masks and angles move to the hidden states' device (meta, when memory is predicted).
            own_args, own_kwargs = tree_map_only(Tensor, lambda value: value.to(hidden.device), (args, kwargs))
            computed: Tensor = self.compute(hidden, weights, own_args, own_kwargs)
            return computed

        if self.host.recorded is not None:
            self.host.recorded.append((args, kwargs))
        visit: Visit = self.host.visit
        output = visit(self.index, hidden, apply)
        return (output, None) if self.returns_tuple else output

    def compute(
        self, hidden: Tensor, weights: Mapping[str, Tensor], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Tensor:
        """The layer itself, (B, S, D) to (B, S, D), with `weights` for its own."""
        with self.places.holding(self.matrices.computing(weights, self.host.dtype, self.host.threads)):
            output = self.layer(hidden, *args, **kwargs)
        first: Tensor = output[0] if isinstance(output, tuple) else output
        self.host.passes.layer(first)
        return first


class GatheredEmbedding(nn.Module):
    """The token embedding without its table: rows come from disk, or are zero where they are not used."""

    inner: Any  # bypasses nn.Module's registry, as in a slot
    places: Places

    def __init__(self, inner: nn.Module, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.__dict__.update(inner=inner, places=Places(inner))
        self.width, self.dtype = width, dtype
        self.rows: tuple[Tensor, Tensor] | None = None  # (sorted token ids (U,), their rows (U, D))

    def forward(self, ids: Tensor) -> Tensor:
        """Rows of `ids` (B, S) as (B, S, D)."""
        if self.rows is None:
            return torch.zeros(*ids.shape, self.width, dtype=self.dtype)
        known, table = self.rows
        with self.places.holding({"weight": table}):
            embedded: Tensor = self.inner(torch.searchsorted(known, ids))
        return embedded


class VocabularySlot(nn.Module):
    """Takes the place of the language head, whose (B, S, V) logits would be the largest tensor of all.

    Without an answer the forward ends here; with one, the model continues as if these were the logits.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.__dict__.update(inner=inner, answer=None)

    def __getattr__(self, name: str) -> Any:
        """Attributes that a model reads from its head (such as its weight's dtype) are those of the head."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["inner"], name)

    def forward(self, hidden: Tensor) -> Tensor:
        """End the forward with the head's input (B, S, D), or return the answer as logits."""
        answer: Tensor | None = self.__dict__["answer"]
        if answer is None:
            raise Stop(hidden)
        return answer


def pass_on(index: int, hidden: Tensor, apply: Any) -> Tensor:  # noqa: ARG001
    """A slot that does nothing: hidden states (B, S, D) as they arrive."""
    return hidden
