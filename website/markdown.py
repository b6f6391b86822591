"""Text of the code as Markdown."""

import re
from collections.abc import Sequence

from stages.report.tables import markdown_table


def escaped(text: str) -> str:
    """Text as it is: nothing in it is Markdown but code spans between backticks."""
    parts = re.split(r"(`[^`\n]+`)", " ".join(text.split()))
    return "".join(part if part.startswith("`") else _plain(part) for part in parts)


def _plain(text: str) -> str:
    entities = text.replace("&", "&amp;").replace("<", "&lt;")  # Python-Markdown knows no backslash before these
    return re.sub(r"([\\`*_{}\[\]|!])", r"\\\1", entities)


def code(text: object) -> str:
    """A code span; empty for an empty text.  In Python-Markdown's tables it may hold a bar."""
    return f"`{text}`" if str(text) else ""


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table between empty lines."""
    return "\n" + markdown_table(columns, rows) + "\n"


def paragraphs(docstring: str) -> str:
    """A docstring's paragraphs, each on one line."""
    return "\n\n".join(escaped(one) for one in docstring.strip().split("\n\n"))
