"""The site builds strictly, needs no network, and says what the code says."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from chainctl import cli
from schemas.kinds import DOCUMENTS
from schemas.methods import known_methods, settings_class
from schemas.recipe import setting_paths
from stages.report.recipe import EXPLAINED
from tests import fleet
from tests.fleet import ROOT
from website.reference import PAGES

FETCHED = {("script", "src"), ("link", "href"), ("img", "src"), ("source", "src"), ("iframe", "src"), ("use", "href")}


class Page(HTMLParser):
    """What a page links to, what it loads, and where it can be entered."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.ids: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if (tag, name) in FETCHED and ("rel", "canonical") not in attrs:
                self.loads.append(value or "")
            elif (tag, name) == ("a", "href"):
                self.links.append(value or "")
            elif name == "id":
                self.ids.add(value or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `just docs` builds it."""
    out = tmp_path_factory.mktemp("site") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING -" not in done.stderr, done.stderr  # with --quiet, mkdocs would not count them
    return out


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html")}


def test_every_page_is_there_and_every_link_and_anchor_leads_somewhere(site: Path, pages: dict[Path, Page]) -> None:
    written = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    for source in [*written, *map(Path, PAGES)]:
        assert site / source.with_suffix(".html") in pages, source
    for path, page in pages.items():
        if path.name != "404.html":  # its links are from the root, wherever it is shown
            for link in page.links:
                assert leads_somewhere(path, link, pages), f"{path.relative_to(site)}: {link}"


def leads_somewhere(path: Path, link: str, pages: dict[Path, Page]) -> bool:
    parts = urlsplit(link)
    if parts.scheme:
        return parts.scheme == "https" and bool(parts.netloc)  # no network in a test
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if target.is_dir():
        target /= "index.html"
    if not parts.fragment or target not in pages:
        return target.exists()
    return unquote(parts.fragment) in pages[target].ids


def test_a_link_of_the_readme_leads_to_a_page_and_an_anchor_of_it(site: Path, pages: dict[Path, Page]) -> None:
    links = re.findall(r"\]\((?!https?:)([^)\s]+)\)", (ROOT / "README.md").read_text())
    assert len(links) > 20
    for link in links:
        path, _, anchor = link.partition("#")
        assert (ROOT / path).exists(), link
        if path.endswith(".md"):
            page = pages[site / Path(path).relative_to("docs").with_suffix(".html")]
            assert not anchor or anchor in page.ids, link


def test_a_page_loads_nothing_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        outside = [one for one in page.loads if urlsplit(one).scheme or one.startswith("//")]
        assert not outside, f"{path.relative_to(site)}: {outside}"
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", style.read_text()), style


def test_equations_are_mathml(pages: dict[Path, Page]) -> None:
    (algorithm,) = (path for path in pages if path.name == "algorithm.html")
    text = algorithm.read_text()
    assert text.count("<math") > 30
    assert 'class="arithmatex"' not in text
    assert "\\text" not in text


def test_the_readme_is_one_screen() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 100


def test_the_reference_is_the_same_bytes_in_every_process_and_terminal() -> None:
    script = "import json; from website.reference import PAGES; print(json.dumps([make() for make in PAGES.values()]))"
    for environment in ({"PYTHONHASHSEED": "1", "COLUMNS": "40"}, {"PYTHONHASHSEED": "2", "CHAINCTL_KEY": "me"}):
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=environment)
        assert json.loads(done.stdout) == [make() for make in PAGES.values()]


def test_the_reference_has_every_command_and_option() -> None:
    page = PAGES["reference/commands.md"]()
    for entry in cli.COMMANDS:
        loaded = entry.load()
        for name, command in getattr(loaded, "commands", {"": loaded}).items():
            section = page.split(f"### chainctl {entry.name} {name}".rstrip() + "\n")[1].split("\n#")[0]
            for parameter in command.params:
                shown = (
                    parameter.opts if parameter.param_type_name == "option" else [parameter.metavar or parameter.name]
                )
                assert all(str(one) in section for one in shown), f"{entry.name} {name}: {shown}"


def test_the_reference_has_every_setting_with_its_meaning_and_every_document() -> None:
    settings = PAGES["reference/settings.md"]()
    paths = {*setting_paths()} | {
        f"chain.{key}" for method in known_methods() for key in settings_class(method).model_fields
    }
    for path in paths:
        assert f"| `{path}` " in settings, path
        assert path in EXPLAINED, path
    documents = PAGES["reference/documents.md"]()
    assert all(f"\n## {name}\n" in documents for name in DOCUMENTS if name != "recipe")


def test_the_reference_has_the_exit_codes_that_help_names() -> None:
    named = re.findall(r"(\d+) [a-z]", fleet.chainctl("--help").stdout.split("Exit codes:")[1])
    assert len(named) == 8
    page = PAGES["reference/exit-codes.md"]()
    assert all(f"| `{code}`" in page for code in named)
