"""A Dockerfile as stages and steps: what `release/image.py` carries out where no base image can be fetched."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import NamedTuple

from dockerfile_parse import DockerfileParser

from release.shell import Failed

STEPS = ("RUN", "COPY", "ARG", "ENV", "USER", "WORKDIR", "VOLUME", "ENTRYPOINT", "CMD")


class Step(NamedTuple):
    """An instruction and what stands behind it, with continued lines joined."""

    instruction: str
    value: str

    def pairs(self, known: Mapping[str, str]) -> dict[str, str]:
        """The names and values of an ENV or ARG; `$NAME` in a value is one of `known`."""
        found = {}
        for word in shlex.split(self.value):
            name, _, value = word.partition("=")
            found[name] = Template(value).substitute(known)
        return found

    def words(self) -> list[str]:
        """The list of an ENTRYPOINT, CMD or VOLUME.  Raises `Failed` if it is not in the form of a JSON list."""
        try:
            found = json.loads(self.value)
        except ValueError:
            found = None
        if not isinstance(found, list):
            raise Failed(f"{self.instruction} {self.value}: expected a JSON list")
        return [str(word) for word in found]


class Stage(NamedTuple):
    """What follows one FROM."""

    base: str  # an image, or the name of an earlier stage
    name: str  # empty where it has none
    steps: list[Step]


def read_dockerfile(path: Path) -> list[Stage]:
    """The stages of a Dockerfile.  Raises `Failed` at an instruction that is not one of `STEPS`."""
    stages: list[Stage] = []
    with path.open("rb") as file:
        structure = DockerfileParser(fileobj=file).structure
    for one in structure:
        instruction, value = one["instruction"], one["value"]
        if instruction == "FROM":
            base, _, name = value.partition(" AS ")
            stages.append(Stage(base.strip(), name.strip(), []))
        elif instruction in STEPS:
            stages[-1].steps.append(Step(instruction, value))
        elif instruction != "COMMENT":
            raise Failed(f"{path.name}: {instruction} is not an instruction that image-check can carry out")
    return stages
