"""A day as a text, `2024-07-26`: TOML has dates, JSON has not."""

from datetime import date
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field


def _as_text(value: object) -> object:
    return value.isoformat() if type(value) is date else value


def _in_the_calendar(value: str) -> str:
    try:
        return date.fromisoformat(value).isoformat()
    except ValueError:
        raise ValueError("a date is year, month and day, such as 2024-07-26") from None


Day = Annotated[
    str, BeforeValidator(_as_text), AfterValidator(_in_the_calendar), Field(json_schema_extra={"format": "date"})
]
