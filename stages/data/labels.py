"""One rule for labels, however a format spells them.

    JSON        Parquet                CSV, names of folders    label
    "a", "a "   string                 a                        a        NFC, without blanks around it
    true        boolean                true, True, TRUE         true
    1, 1.0      integer, floating      1, 1.0                   1
    2.5         floating, decimal      2.5                      2.5
    null, NaN   null, NaN              (nothing)                refused, as are lists and objects

Where a plan fixes the labels, its own spelling is the label: `"True"` and `"1.0"` of a recipe mean `true` and `1` too.
Texts are not numbers beyond that: `250.10` and `250.1` may be codes, and stay two labels.
"""

import math
import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal

from schemas.errors import BadInput
from schemas.refs import LABEL_LENGTH
from stages.data.records import DROPPING, LABEL_OPTION, EmptyValue, as_text

WHOLE = re.compile(r"(-?\d+)\.0", re.ASCII)  # how pandas writes the whole numbers of a column with gaps

TRUTH = ("true", "false")


class LabelRule:
    """Labels of one column; `allowed`, if any, are the only ones."""

    def __init__(self, column: str, allowed: Sequence[str] = ()) -> None:
        self.column = column
        self.allowed = {canonical(label): label for label in allowed} | {label: label for label in allowed}
        self.whole: dict[str, str] = {}  # label -> how the first text that means it is written

    def label(self, value: object, where: str) -> str:
        """The label that a value spells.  Raises `BadInput`, which never shows it."""
        spelled = self._spelled(value, where)
        self._check_length(spelled, where)
        label = canonical(spelled)
        if self.allowed:
            if spelled not in self.allowed and label not in self.allowed:
                raise self._unknown(spelled, where)
            return self.allowed.get(spelled) or self.allowed[label]
        if isinstance(value, str) and label.lower() not in TRUTH and self.whole.setdefault(label, spelled) != spelled:
            raise BadInput(
                f"{where}: two labels are one number, written as 1 and as 1.0",
                values={"column": self.column, "expected": "one way to write a whole number"},
                hint="write all of them one way; if they are codes, put a letter before them",
            )
        return label

    def _check_length(self, spelled: str, where: str) -> None:
        if not spelled:
            raise EmptyValue(
                f"{where}: the label is empty",
                values={"column": self.column, "expected": "a label"},
                hint=f"give this text a label, or remove it; {DROPPING}",
            )
        if len(spelled) > LABEL_LENGTH:
            raise BadInput(
                f"{where}: the label is too long",
                values={
                    "column": self.column,
                    "length": f"{len(spelled)} characters",
                    "expected": f"at most {LABEL_LENGTH}",
                },
                hint=f"name the column of the labels with {LABEL_OPTION}, or in [task] of the recipe; or shorten them",
            )

    def _spelled(self, value: object, where: str) -> str:
        if isinstance(value, str):
            return unicodedata.normalize("NFC", as_text(value, where, self.column)).strip()
        if value is None or (isinstance(value, float | Decimal) and math.isnan(value)):
            return ""
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, int | float | Decimal) and math.isfinite(value):
            return f"{Decimal(str(value)).normalize():f}"
        raise BadInput(
            f"{where}: the value is not a label",
            values={
                "column": self.column,
                "expected": "a text, a number, true or false",
                "found": type(value).__name__,
            },
        )

    def _unknown(self, spelled: str, where: str) -> BadInput:
        return BadInput(
            f"{where}: the label is not one of the plan's",
            values={
                "column": self.column,
                "length": f"{len(spelled)} characters",
                "expected": f"one of {', '.join(sorted(set(self.allowed.values())))}",
            },
            hint="the label set is fixed by the plan; see [task] labels in the recipe",
        )


def canonical(label: str) -> str:
    """The one spelling of a label: NFC, no blanks around it, truth in lower case, whole numbers without a fraction."""
    text = unicodedata.normalize("NFC", label).strip()
    if text.lower() in TRUTH:
        return text.lower()
    whole = WHOLE.fullmatch(text)
    return whole[1] if whole else text
