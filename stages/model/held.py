"""Run a module with other tensors: `torch.func.functional_call`, with its search done once.

functional_call walks all parameters and buffers of a module at every call, to find where tensors are kept and which
are tied.  With a small layer that is a seventh of the time; places do not change, so they are looked up once.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

Place = tuple[dict[str, Tensor | None], str]  # a module's own parameters or buffers, and the name there


class Places:
    """Where the parameters and buffers of a module are kept, under every name that they are tied to."""

    def __init__(self, module: nn.Module) -> None:
        self._places: dict[str, list[Place]] = {}
        tied: dict[int, list[Place]] = {}
        for prefix, inner in module.named_modules(remove_duplicate=False):
            for kept in (inner._parameters, inner._buffers):
                for name, tensor in kept.items():
                    if tensor is None:
                        continue
                    places = tied.setdefault(id(tensor), [])
                    if not any(kept is other and name == key for other, key in places):  # a module with two names
                        places.append((kept, name))
                    self._places[f"{prefix}.{name}" if prefix else name] = places

    @contextmanager
    def holding(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Put `values` in the places of their names, and of those tied to them; afterwards the old tensors are back.

        Raises `KeyError` for a name that the module does not have.
        """
        before: list[tuple[dict[str, Tensor | None], str, Tensor | None]] = []
        try:
            for name, value in values.items():
                for kept, key in self._places[name]:
                    before.append((kept, key, kept[key]))
                    kept[key] = value
            yield
        finally:
            for kept, key, own in reversed(before):
                kept[key] = own
