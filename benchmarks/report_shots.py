"""Pictures of reports as a real browser shows them: `python -m benchmarks.report_shots --out DIR [--run RUN …]`.

Without a run: of a small simulation, of a signed coordinator's folder with hostile names, and of two runs compared.
"""

import argparse
import os
import tempfile
from pathlib import Path

from benchmarks.harness import call
from tests import fleet
from tests.fleet.browser import DESKTOP, PHONE, browser
from tests.fleet.runs import SignedRun, simulate

SCREENS = {"desktop": (DESKTOP, False), "phone": (PHONE, False), "dark": (DESKTOP, True), "phone-dark": (PHONE, True)}


def small_reports(folder: Path) -> list[Path]:
    """Reports of runs of a tiny model that are made here."""
    model = folder / "model"
    fleet.save_model(model, "bert", random_norms=False)
    run = simulate(folder / "first", model)
    other = simulate(folder / "second", model, "probe", "--method", "linear-probe")
    signed = SignedRun(folder / "signed", model)
    signed.folder.mkdir()
    signed.make()
    pages = [folder / f"{name}.html" for name in ("simulated", "signed", "compared")]
    call("report", run, "-o", pages[0], "--force")
    os.environ["CHAINCTL_HOME"] = str(signed.home)
    call("report", signed.run, "-o", pages[1], "--force")
    os.environ["CHAINCTL_HOME"] = str(folder / "nobody")
    call("report", run, other, "-o", pages[2], "--force")
    return pages


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--run", type=Path, action="append", default=[], help="picture the report of this run instead")
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        pages = [folder / f"{run.resolve().name}.html" for run in chosen.run]
        for run, page in zip(chosen.run, pages, strict=True):
            call("report", run, "-o", page)
        with browser(folder / "browser") as screen:
            for page in pages or small_reports(folder):
                for name, (size, dark) in SCREENS.items():
                    screen.show(page, size, dark=dark)
                    screen.picture(chosen.out / f"{page.stem}-{name}.png")
                (chosen.out / f"{page.stem}.pdf").write_bytes(screen.printed())


if __name__ == "__main__":
    main()
