"""Text from outside as a person is shown it: what would steer the terminal, or change how it reads, is spelled out."""

import re

# Escape sequences, what moves the cursor, the direction of writing, line ends that are not ours, bytes of names that
# are not UTF-8.
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """A value or a sentence on one line: what is not printable is shown as `repr` shows it, `\\x1b` or `\\n`."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else _spelled(one) for one in text)


def visible_text(text: str) -> str:
    """Lines of text as they are, but for what steers a terminal; tabs and line feeds stay."""
    return STEERING.sub(lambda match: _spelled(match[0]), text)


def _spelled(character: str) -> str:
    return repr(character)[1:-1]
