"""The reference: pages made from the command tree, the settings, the documents and the errors, never by hand.

The same code gives the same bytes: nothing depends on the terminal, the environment or the order of a set.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from chainctl import cli
from schemas import errors
from schemas.errors import ChainError
from website import documents
from website.markdown import code, escaped, paragraphs, table


def commands_page() -> str:
    """Every command with its arguments, options, defaults and help."""
    parts = [
        "# Commands\n",
        "Made from the commands themselves: `chainctl COMMAND --help` prints the same. "
        "What ends a command is in [exit codes](exit-codes.md).\n",
    ]
    section = ""
    for entry in cli.COMMANDS:
        if entry.section != section:
            section = entry.section
            parts.append(f"## {section}\n")
        parts += _described(entry.name, entry.load())
    return "\n".join(parts)


def _described(name: str, command: Any) -> Iterator[str]:
    """A command, or each command of a group."""
    if hasattr(command, "commands"):
        for each in command.commands:
            yield from _described(f"{name} {each}", command.commands[each])
        return
    context = command.context_class(command, info_name=f"chainctl {name}")
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"### chainctl {name}\n"
    yield paragraphs(inspect.cleandoc(command.help)) + "\n"
    yield f"```\nchainctl {name} {usage}\n```\n"
    records = [parameter.get_help_record(context) for parameter in command.params]
    yield table(("option", "meaning"), [(code(names), escaped(text)) for names, text in filter(None, records)])


def exit_codes_page() -> str:
    """What each exit code means, by the classes of errors."""
    classes = [one for _, one in inspect.getmembers(errors, inspect.isclass) if issubclass(one, ChainError)]
    found = {one.exit_code: inspect.getdoc(one) or "" for one in classes if one is not ChainError}
    rows = {0: "Done.", **found, 130: "Interrupted with Ctrl-C.", 141: "What read the output has gone (`| head -1`)."}
    return (
        "# Exit codes\n\n"
        "An error says on stderr what is wrong, the values that disagree, and the way out; with `--json` the same is "
        "an object on stdout. Nothing half-written is left, whatever the code. Code 4 is also what is unsigned, or "
        "signed by a key that nobody pinned here.\n"
        + table(("code", "meaning"), [(code(number), escaped(rows[number])) for number in sorted(rows)])
    )


PAGES: Mapping[str, Callable[[], str]] = {
    "reference/commands.md": commands_page,
    "reference/settings.md": documents.settings_page,
    "reference/documents.md": documents.documents_page,
    "reference/exit-codes.md": exit_codes_page,
}
