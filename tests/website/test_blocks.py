"""The commands of the tutorial, run as a reader copies them, on a tiny model in the place of the one it fetches."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import fleet
from tests.fleet import ROOT
from tests.fleet.fork_server import chainctl_on_path
from website.blocks import Block, Failed, blocks_of, printed_in, run

TUTORIAL = ROOT / "docs" / "tutorial.md"
CLASSES = ("business", "entertainment", "politics", "sport", "tech")
SMALL = {"CHAINCTL_NUMERICS_THREADS": "1", "CHAINCTL_OPTIMIZER_STEPS": "5"}  # over what the recipe says
# `assets get` puts what it fetches into the cache; everything else is chainctl.
STAND_IN = """#!/bin/bash
if [ "$1" = assets ]; then
  mkdir -p "$CHAINCTL_CACHE" && cp -r "{assets}"/* "$CHAINCTL_CACHE"
  for name in minilm bbc-news; do echo "$name  $CHAINCTL_CACHE/$name-tiny"; done
else
  exec "{chainctl}" "$@"
fi
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """One with a `chainctl` of this source tree, which has a tiny model of MiniLM's depth and tiny texts as assets."""
    folder = tmp_path_factory.mktemp("assets")
    fleet.save_model(folder / "minilm-tiny", "bert", random_norms=False, num_hidden_layers=6)
    for number, row in enumerate(fleet.texts(150)):
        text = folder / "bbc-news-tiny" / CLASSES[number % 5] / f"{number:03d}.txt"
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text(row["text"])
    with chainctl_on_path(tmp_path_factory.mktemp("tools")) as tools:
        stand_in = tmp_path_factory.mktemp("bin") / "chainctl"
        stand_in.write_text(STAND_IN.format(assets=folder, chainctl=tools / "chainctl"))
        stand_in.chmod(0o755)
        yield os.environ | {"PATH": f"{stand_in.parent}:{os.environ['PATH']}"}


def test_every_command_of_the_tutorial_works_and_prints_what_it_shows(
    environment: dict[str, str], home: Path, tmp_path: Path
) -> None:
    printed = run(blocks_of(TUTORIAL), tmp_path, environment | {"CHAINCTL_HOME": str(home), **SMALL})
    assert "accuracy" in printed
    assert (tmp_path / "mine" / "README.md").is_file()
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {"cache", "data", "shards", "recipe.toml", "profiles", "plan", "states", "updates", "evals", "mine"}


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=lambda path: path.name)
def test_every_block_of_a_page_can_be_read_by_bash(page: Path) -> None:
    for block in blocks_of(page):
        run([Block(page, block.line, f"set -n\n{block.commands}")], ROOT, os.environ)


def test_a_page_that_fails_or_says_something_else_is_named_with_its_line(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A page\n\n```bash\nx=1\n```\n\n```bash\necho has $x texts\n```\n\n```output\nhas 22 texts\n```\n"
    )
    assert run(blocks_of(page), tmp_path, os.environ) == "has 1 texts\n"
    page.write_text(page.read_text().replace("has 22 texts", "has no texts"))
    with pytest.raises(Failed, match=r"page\.md, line 7 does not print 'has no texts'"):
        run(blocks_of(page), tmp_path, os.environ)
    page.write_text(page.read_text().replace("x=1", "false"))
    with pytest.raises(Failed, match=r"page\.md, line 3 ended with 1"):
        run(blocks_of(page), tmp_path, os.environ)


@pytest.mark.parametrize(
    ("shown", "printed", "there"),
    [
        ("accuracy 0.95", "  accuracy   0.123 (0.1 to 0.2)", True),
        ("state … -> states/0001", "state sha256:0a1b2c -> states/0001", True),
        ("accuracy 0.95", "macro-F1 0.95", False),
        ("a … b", "b a", False),
    ],
)
def test_a_shown_line_is_compared_but_for_its_numbers(shown: str, printed: str, there: bool) -> None:
    assert printed_in(shown, printed) is there
