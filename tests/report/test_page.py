"""A report as a real browser shows it: nothing but itself, on any screen, and names are text whatever they hold."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args

import pytest

from schemas.evaluation import Estimate
from schemas.perplexity import PerplexityManifest
from schemas.recipe import parse_recipe
from schemas.refusal import Reason
from schemas.run import FederationManifest
from stages.report.page import render
from stages.report.refusals import MEANINGS
from stages.report.run_page import run_report
from stages.run_view.read import read_run
from stages.store.artifact import new_artifact, read_manifest
from tests import fleet
from tests.fleet.browser import DESKTOP, PHONE, Page, browser
from tests.fleet.runs import HOSTILE_FOLDER, HOSTILE_LABELS, SignedRun, simulate

HOSTILE_NAME = "<b onmouseover=alert(3)>run"
CONTRAST = """
(() => {
  const channel = (value) => (value /= 255) <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const luminance = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map(Number);
    return 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  };
  const behind = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const colour = getComputedStyle(one).backgroundColor;
      if (!/, 0\\)$/.test(colour)) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const low = [];
  for (const one of document.querySelectorAll("body *")) {
    if (![...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim())) continue;
    if (one.closest("script, style")) continue;
    const style = getComputedStyle(one);
    const [text, page] = [luminance(one.closest("svg") ? style.fill : style.color), luminance(behind(one))];
    const ratio = (Math.max(text, page) + 0.05) / (Math.min(text, page) + 0.05);
    if (ratio < 4.5) low.push(`${one.tagName} ${one.textContent.slice(0, 20)} ${ratio.toFixed(2)}`);
  }
  return low;
})()
"""
CUT_OFF = """
[...document.querySelectorAll("svg text")].filter((text) => {
  const [inner, outer] = [text.getBoundingClientRect(), text.closest("svg").getBoundingClientRect()];
  return inner.left < outer.left - 1 || inner.right > outer.right + 1 || inner.bottom > outer.bottom + 1;
}).map((text) => text.textContent)
"""
OVERFLOW = "[document.documentElement.scrollWidth, window.innerWidth]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    """Reports of a simulation, of a signed coordinator's folder with hostile names, and of both compared."""
    folder = tmp_path_factory.mktemp("reports")
    (folder / "home").mkdir()
    run = simulate(folder, tiny_bert)
    fleet.chainctl("report", run, "-o", folder / "run.html", home=folder / "home")
    signed = SignedRun(folder / "signed", tiny_bert)
    signed.folder.mkdir()
    office = signed.make().run.rename(signed.folder / HOSTILE_NAME)
    fleet.chainctl("report", office, "-o", folder / "office.html", home=signed.home)
    (folder / "again").mkdir()
    other = simulate(folder / "again", tiny_bert, "other", "--method", "linear-probe")
    fleet.chainctl("report", run, other, "-o", folder / "both.html", home=folder / "home")
    return folder


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


REPORTS = ("run.html", "office.html", "both.html")


@pytest.mark.parametrize("report", REPORTS)
@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_a_page_fits_its_screen_asks_for_nothing_and_says_nothing_on_the_console(
    report: str, size: tuple[int, int], folder: Path, page: Page
) -> None:
    page.show(folder / report, size)
    page.value("document.querySelectorAll('details').forEach((one) => { one.open = true })")
    wide, window = page.value(OVERFLOW)
    assert (window, wide <= window) == (size[0], True)
    assert page.value(CUT_OFF) == []
    assert page.troubles == []
    assert [url for url in page.requests if not url.startswith(("file:", "data:"))] == []
    assert page.requests[0] == (folder / report).as_uri()
    assert not [url for url in page.requests[1:] if url.startswith("file:")]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("report", REPORTS)
def test_all_text_has_enough_contrast(report: str, dark: bool, folder: Path, page: Page) -> None:
    page.show(folder / report, DESKTOP, dark=dark)
    page.value("document.querySelectorAll('details').forEach((one) => { one.open = true })")
    assert page.value(CONTRAST) == []
    background = page.value("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(20, 24, 28)" if dark else "rgb(255, 255, 255)")


def test_hostile_names_are_text(folder: Path, page: Page) -> None:
    page.show(folder / "office.html", DESKTOP)
    assert page.value("document.querySelectorAll('script').length") == 1
    assert page.value("document.querySelectorAll('img, b, [onerror], [onmouseover]').length") == 0
    assert page.value("document.querySelector('h1').textContent") == HOSTILE_NAME
    text = page.value("document.body.textContent")
    for name in (*HOSTILE_LABELS, HOSTILE_FOLDER):
        assert name in text
    assert page.troubles == []


def test_values_appear_under_the_pointer_and_tables_are_sorted_by_their_heads(folder: Path, page: Page) -> None:
    page.show(folder / "run.html", DESKTOP)
    nearest = """
    (() => {
      const svg = document.querySelector('#score-rounds svg');
      const box = svg.querySelectorAll('.mark')[2].getBoundingClientRect();
      svg.dispatchEvent(new PointerEvent('pointermove', { clientX: box.x + 4, clientY: box.y + 4 }));
      return document.querySelector('#score-rounds output').textContent;
    })()
    """
    assert page.value(nearest).startswith("round 2: ")
    table = "document.querySelector('#rounds table')"
    page.value(f"{table}.tHead.rows[0].cells[5].querySelector('button').click()")
    losses = page.value(f"[...{table}.tBodies[0].rows].map((row) => Number(row.cells[5].textContent))")
    assert losses == sorted(losses)
    assert len(losses) == 3
    page.value(f"{table}.tHead.rows[0].cells[5].querySelector('button').click()")
    assert page.value(f"{table}.tHead.rows[0].cells[5].getAttribute('aria-sort')") == "descending"
    assert page.value(f"Number({table}.tBodies[0].rows[0].cells[5].textContent)") == losses[-1]


def test_it_is_whole_without_its_script_and_when_it_is_printed(folder: Path, page: Page) -> None:
    page.show(folder / "run.html", DESKTOP, script=False)
    page.ask("Emulation.setScriptExecutionDisabled", value=False)
    assert page.value("document.querySelectorAll('figure svg path').length") > 10
    page.value("document.querySelector('#rounds details summary').click()")
    assert page.value("document.querySelector('#rounds table').getBoundingClientRect().height") > 0
    assert page.printed().startswith(b"%PDF")


class Structure(HTMLParser):
    """Headings in order, and what assistive technology reads of figures and tables."""

    def __init__(self) -> None:
        super().__init__()
        self.levels: list[int] = []
        self.figures: list[str] = []
        self.tables, self.captions = 0, 0
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if re.fullmatch("h[1-6]", tag):
            self.levels.append(int(tag[1]))
        if tag == "svg":
            assert found["role"] == "img"
            self.figures.append(found["aria-label"] or "")
        self.tables += tag == "table"
        self.captions += tag == "caption"
        if found.get("id"):
            self.ids.append(found["id"] or "")


@pytest.mark.parametrize("report", REPORTS)
def test_headings_are_in_order_and_every_figure_is_described(report: str, folder: Path) -> None:
    found = Structure()
    found.feed((folder / report).read_text())
    assert found.levels[0] == 1
    assert found.levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(found.levels, found.levels[1:], strict=False))
    assert len(found.figures) >= 3
    assert all(len(alt) > 20 for alt in found.figures)
    assert found.tables == found.captions > 0
    assert len(found.ids) == len(set(found.ids))


def test_the_same_folder_elsewhere_gives_the_same_bytes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = tmp_path / "elsewhere" / "run"
    shutil.copytree(folder / "run", moved)
    monkeypatch.chdir(moved)
    page = render(run_report(read_run(Path())))
    assert page == (folder / "run.html").read_bytes()
    assert str(folder).encode() not in page


def test_a_report_is_written_again_only_where_it_differs_with_force(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert "existed already" not in fleet.chainctl("report", folder / "run", "-o", out).stdout
    assert "existed already" in fleet.chainctl("report", folder / "run", "-o", out).stdout
    out.write_text("something else")
    refused = fleet.chainctl("report", folder / "run", "-o", out, check=False)
    assert (refused.returncode, out.read_text()) == (2, "something else")
    fleet.chainctl("report", folder / "run", "-o", out, "--force")
    assert out.read_bytes() == (folder / "run.html").read_bytes()


def test_too_many_runs_for_one_figure_are_refused(folder: Path, tmp_path: Path) -> None:
    done = fleet.chainctl("report", *[folder / "run"] * 9, "-o", tmp_path / "out.html", check=False)
    assert done.returncode == 2
    assert "at most  8" in done.stderr


def test_every_reason_of_a_refusal_is_explained() -> None:
    assert set(MEANINGS) == set(get_args(Reason))


def test_the_recipe_and_the_command_shown_are_those_that_made_the_run(folder: Path, page: Page) -> None:
    page.show(folder / "run.html", DESKTOP)
    recipe = page.value("document.querySelector('#settings pre').textContent")
    made_of = read_manifest(folder / "run" / "federation.json", FederationManifest)
    assert parse_recipe(recipe, source="the page") == made_of.settings
    command = page.value("document.querySelector('#again pre').textContent")
    assert "--devices 4 --iid --rounds 3 --memory-budget 8589934592 --out RUN" in command


def test_a_run_that_has_only_begun_has_a_report(folder: Path) -> None:
    found = read_run(folder / "run")
    text = render(run_report(replace(found, rounds=(), scores=(), before=None, devices=(), federation=None))).decode()
    assert "0 rounds" in text
    assert "Round 4 is open: 0 delivered, 2 missing." in text


@pytest.mark.parametrize("values", [(15573.9, 20.4), (31.5, 20.4)], ids=["far apart", "close"])
def test_perplexities_are_drawn_as_accuracies_are(values: tuple[float, float], folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "evals")
    run = read_run(tmp_path / "run")
    for number, (state, value) in enumerate(zip((run.rounds[0].parent, run.state), values, strict=True)):
        write_perplexity(tmp_path / "run" / "evals" / str(number), run.plan_digest, state, value)
    found = read_run(tmp_path / "run")
    assert [(score.metric, score.round, score.value) for score in found.scores] == [
        ("perplexity", 0, values[0]),
        ("perplexity", 3, values[1]),
    ]
    text = render(run_report(found)).decode()
    assert "Perplexity by rounds" in text
    assert f"From {values[0]:.4g} to {values[1]:.4g}" in text


def write_perplexity(out: Path, plan: str, state: str, value: float) -> None:
    """An evaluation of a language model."""
    estimate = Estimate(value=value, low=0.9 * value, high=1.1 * value)
    manifest = PerplexityManifest(
        plan=plan,
        state=state,
        round=0,
        data=fleet.ZERO,
        example_count=10,
        token_count=100,
        loss=Estimate(value=3.0, low=2.9, high=3.1),
        perplexity=estimate,
    )
    with new_artifact(out, force=False) as draft:
        draft.finish(manifest, None)
