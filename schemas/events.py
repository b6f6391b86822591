"""Log events v1: what `--log-format jsonl` writes to stderr while a command runs, one JSON object a line.

Each has the time in UTC (ISO 8601), a level and the name of the event; the others of its fields depend on the name.
No event holds a training text.  Names from outside are strings like any other: whoever shows them escapes them.
"""

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, RootModel

from schemas.base import Many, Record
from schemas.refs import Digest, NonNegativeInt, Number
from schemas.run import RoundLine


class LogLine(Record):
    """What every event has."""

    version: Literal[1] = 1
    time: AwareDatetime


class InfoLine(LogLine):
    """An event of the usual course of things."""

    level: Literal["info"] = "info"


class Started(InfoLine):
    """A command began; with `--quiet` this and `Finished` are not logged."""

    event: Literal["started"] = "started"
    command: str  # such as `data split`; nothing of its arguments
    chainctl: str  # the version


class Said(InfoLine):
    """A sentence for people."""

    event: Literal["message"] = "message"
    text: str


class Progressed(InfoLine):
    """How far a phase is: at most one event a second, and not every phase is seen."""

    event: Literal["progress"] = "progress"
    phase: str
    done: NonNegativeInt
    total: NonNegativeInt


class SimulationBegun(InfoLine):
    """The plan of a simulation is made, and state 0 evaluated: what its rounds begin with."""

    event: Literal["simulation"] = "simulation"
    plan: Digest
    method: str
    rounds: NonNegativeInt
    accuracy: Number | None
    perplexity: Number | None


class RoundDone(RoundLine, InfoLine):
    """A round of a simulation: window, metric and costs."""

    event: Literal["round"] = "round"


class Looked(InfoLine):
    """`status --watch` found something new."""

    event: Literal["status"] = "status"
    round: NonNegativeInt
    assignment: str  # layers that the round trains
    delivered: Many[str]
    missing: Many[str]
    refused: Many[str]  # device or folder, and the reason
    metric: str  # of the newest evaluated state; empty if there is none
    used_bytes: NonNegativeInt
    free_bytes: NonNegativeInt


class Warned(LogLine):
    """A note of ours, or a line that a library wrote to stderr."""

    level: Literal["warning"] = "warning"
    event: Literal["warning"] = "warning"
    text: str


class Failed(LogLine):
    """The error that ended the command, as people read it."""

    level: Literal["error"] = "error"
    event: Literal["error"] = "error"
    fact: str
    values: dict[str, str]
    hint: str
    exit_code: NonNegativeInt


class Finished(InfoLine):
    """The command ended, whether or not with an error."""

    event: Literal["finished"] = "finished"
    exit_code: NonNegativeInt


Event = Started | Said | Progressed | SimulationBegun | RoundDone | Looked | Warned | Failed | Finished


class LogEvent(RootModel[Annotated[Event, Field(discriminator="event")]]):
    """Any line of the log."""
