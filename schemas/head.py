"""The head that trains: its parameters, and where each begins."""

from collections.abc import Iterable
from typing import Literal

from schemas.base import Many, Record
from schemas.refs import PositiveInt, TensorName

# `fresh`: the checkpoint does not hold it.  `checkpoint`: its rows there, in the order of the plan's labels.
# `other-labels`: fresh too, since the rows that the checkpoint holds are for other labels.
HeadStart = Literal["fresh", "checkpoint", "other-labels"]

SAID: dict[HeadStart, str] = {
    "fresh": "fresh",
    "checkpoint": "from the checkpoint, in the order of the plan's labels",
    "other-labels": "fresh, for the checkpoint's head has other labels ('chainctl model info MODEL' lists them)",
}


class HeadParameter(Record):
    """A parameter of the head that trains: one that the checkpoint lacks, or that has a row for each label."""

    name: TensorName
    shape: Many[PositiveInt]
    start: HeadStart


def described_head(parameters: Iterable[HeadParameter]) -> list[str]:
    """Where a head begins, for people: a phrase for each way that there is."""
    names: dict[HeadStart, list[str]] = {}
    for one in parameters:
        names.setdefault(one.start, []).append(one.name)
    return [f"{', '.join(found)} start{'' if found[1:] else 's'} {SAID[start]}" for start, found in names.items()]
