"""The commands of a page, run in order with bash in one shell session, as a reader would.

A block of the language `bash` or `python` is run; one of the language `output` after it is part of what it prints.  A
block without a language is only shown.

    python -m website.blocks FOLDER PAGE…       run pages one after the other in a folder, which is made
"""

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

BLOCK = re.compile(r"^```(bash|python|output)\n(.*?)^```$", re.M | re.S)
NUMBER = re.compile(r"(?<![a-z])[0-9][0-9a-f.,]*|(?<=sha256:)[0-9a-f]+")
ANYTHING = "…"  # in a line of output
MARK = "\x1e"  # between the outputs of blocks


class Failed(Exception):
    """A block that did not do what its page says; the text names the page and the line."""


@dataclass(frozen=True)
class Block:
    """Commands of a page and the lines of output that it shows; `line` is where they begin."""

    page: Path
    line: int
    commands: str
    shown: tuple[str, ...] = ()


def blocks_of(page: Path) -> tuple[Block, ...]:
    """The blocks of a page.  Raises `ValueError` for output without commands before it."""
    text, found = page.read_text(), list[Block]()
    for match in BLOCK.finditer(text):
        if match[1] != "output":
            commands = f"python - <<'PYTHON'\n{match[2]}PYTHON\n" if match[1] == "python" else match[2]
            found.append(Block(page, text[: match.start()].count("\n") + 1, commands))
        elif not found or found[-1].shown:
            raise ValueError(f"{page}: output that no commands print")
        else:
            found[-1] = Block(page, found[-1].line, found[-1].commands, tuple(match[2].splitlines()))
    return tuple(found)


def run(blocks: Sequence[Block], folder: Path, environment: Mapping[str, str]) -> str:
    """Run blocks in one bash in a folder; what they printed.

    Raises `Failed` where a command fails, or does not print what its page shows.
    """
    script = f"\necho '{MARK}'\n".join(["set -eu", *(block.commands for block in blocks)])
    command = ["bash", "-c", f"exec 2>&1\n{script}"]
    done = subprocess.run(command, cwd=folder, env=dict(environment), stdout=subprocess.PIPE, text=True, check=False)
    _, *printed = done.stdout.split(f"{MARK}\n")
    for number, (block, output) in enumerate(zip(blocks, printed, strict=False), 1):
        where = f"{block.page.name}, line {block.line}"
        if done.returncode and number == len(printed):
            raise Failed(f"{where} ended with {done.returncode}:\n{output}")
        missing = [line for line in block.shown if not printed_in(line, output)]
        if missing:
            raise Failed(f"{where} does not print '{missing[0]}' but:\n{output}")
    return "".join(printed)


def printed_in(shown: str, printed: str) -> bool:
    """Whether a line of a page was printed, whatever its numbers, its spaces and what stands for `…`."""
    parts = [re.escape(plain(part)) for part in shown.split(ANYTHING)]
    return any(re.search(".*".join(parts), plain(line)) for line in printed.splitlines())


def plain(line: str) -> str:
    """A line without its numbers and digests, words one space apart."""
    return " ".join(NUMBER.sub("#", line).split())


def main(folder: Path, *pages: Path) -> None:
    """Run pages in a folder that does not exist yet, and print what they print."""
    folder.mkdir(parents=True)
    print(run([block for page in pages for block in blocks_of(page)], folder, os.environ))


if __name__ == "__main__":
    try:
        main(*map(Path, sys.argv[1:]))
    except Failed as failed:
        sys.exit(str(failed))
