"""Which updates hold which tensors: groups of tensors that have the same holders.

Few updates differ in what they hold (by window), so equal ones are taken together: memory grows with devices times
windows, not with devices times tensors.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class Group:
    """Tensors, in ascending order, and the ascending indices of the updates that hold them."""

    tensors: tuple[str, ...]
    holders: tuple[int, ...]


def groups_of(held: Sequence[Iterable[str]]) -> list[Group]:
    """Groups of the names that each update holds, in the order of their first names."""
    alike: dict[frozenset[str], list[int]] = {}
    for index, names in enumerate(held):
        alike.setdefault(frozenset(names), []).append(index)
    together: dict[tuple[int, ...], list[str]] = {}
    for name in sorted(frozenset().union(*alike)):
        kinds = tuple(kind for kind, names in enumerate(alike) if name in names)
        together.setdefault(kinds, []).append(name)
    indices = list(alike.values())
    return [
        Group(tuple(names), tuple(sorted(index for kind in kinds for index in indices[kind])))
        for kinds, names in together.items()
    ]
