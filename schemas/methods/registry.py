"""The unions tagged by `method`, and how a method is added to them."""

import json
from typing import Annotated, Any, Generic, TypeVar

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from schemas.assignment import Assignment
from schemas.base import Record
from schemas.refs import NonNegativeInt

DEFAULT_METHOD = "chain"


class MethodSettings(Record):
    """What a recipe chooses of a method.  Subclasses pin `method` with a `Literal` and a default."""

    method: str

    @property
    def decided(self) -> bool:
        """Whether no setting is `auto`, as a plan requires."""
        return True

    def freezes(self, layer: int, cka: float) -> bool:  # noqa: ARG002 -- for methods that look at either
        """Whether a layer of that similarity (Eq. 3) is likely to be left as it is, going by one device's curve."""
        return False


class MethodDecisions(Record):
    """A method's decisions in a plan.

    Layers from `first_layer` on have trained tensors; the input of `first_layer` never changes in a federation.
    """

    method: str
    first_layer: NonNegativeInt

    def assignments(self, num_layers: int) -> tuple[Assignment, ...]:
        """The assignments that the plan foresees: it predicts the memory of each."""
        return (Assignment(layers=tuple(range(self.first_layer, num_layers))),)

    def check(self, num_layers: int) -> None:
        """Check that the decisions fit a model with that many layers.  Raises `ValueError`."""
        if self.first_layer > num_layers:
            raise ValueError("the first layer is a layer of the model, or the head")


class MethodProgress(Record):
    """What a state keeps for a method from round to round."""

    method: str


R = TypeVar("R", MethodSettings, MethodDecisions, MethodProgress)


class Union(Generic[R]):
    """Records of one base class by method name; as metadata of an annotation, their tagged union."""

    def __init__(self, base: type[R]) -> None:
        self.base: type[R] = base
        self.records: dict[str, type[R]] = {}

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(
            self._validate,
            serialization=core_schema.plain_serializer_function_ser_schema(lambda value: value.model_dump()),
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        choices: dict[Any, CoreSchema] = {
            name: record.__pydantic_core_schema__ for name, record in self.records.items()
        }
        schema = handler(core_schema.tagged_union_schema(choices, discriminator="method"))
        if "oneOf" in schema:  # where `method` may be left out, a table may fit several
            schema["anyOf"] = schema.pop("oneOf")
        return schema

    def _validate(self, value: Any, info: core_schema.ValidationInfo) -> R:
        if isinstance(value, self.base):
            return value
        if not isinstance(value, dict):
            raise PydanticCustomError("method", "a table of settings was expected")
        name = value.get("method", DEFAULT_METHOD if self.base is MethodSettings else None)
        if not isinstance(name, str) or name not in self.records:
            raise PydanticCustomError("method", f"method is one of {', '.join(self.records)}")
        if info.mode == "json":  # arrays are lists, which a strict record accepts only from JSON
            return self.records[name].model_validate_json(json.dumps(value))
        return self.records[name].model_validate(value)


_SETTINGS = Union(MethodSettings)
_DECISIONS = Union(MethodDecisions)
_PROGRESS = Union(MethodProgress)

ChosenSettings = Annotated[MethodSettings, _SETTINGS]
ChosenDecisions = Annotated[MethodDecisions, _DECISIONS]
ChosenProgress = Annotated[MethodProgress, _PROGRESS]


def register(
    settings: type[MethodSettings],
    decisions: type[MethodDecisions] = MethodDecisions,
    progress: type[MethodProgress] = MethodProgress,
) -> None:
    """Add a method under the default of `settings.method`."""
    name: str = settings.model_fields["method"].default
    _SETTINGS.records[name] = settings
    _DECISIONS.records[name] = decisions
    _PROGRESS.records[name] = progress


def unregister(name: str) -> None:
    """Remove a method that a test added."""
    for union in (_SETTINGS, _DECISIONS, _PROGRESS):
        del union.records[name]


def known_methods() -> tuple[str, ...]:
    """Names of all methods, in order of registration."""
    return tuple(_SETTINGS.records)


def settings_class(method: str) -> type[MethodSettings]:
    """The settings of a method.  Raises `KeyError`."""
    return _SETTINGS.records[method]


def default_settings(method: str) -> MethodSettings:
    """The default settings of a method.  Raises `KeyError`."""
    return _SETTINGS.records[method].model_validate({})
