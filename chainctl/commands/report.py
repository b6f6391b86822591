"""chainctl report"""

from pathlib import Path
from typing import Annotated

import typer

from chainctl.console import Console, existed_already, with_console
from chainctl.dry_run import with_dry_run
from chainctl.options import Force


@with_dry_run
@with_console
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN…", help="Run folders, of 'simulate --out' or of a coordinator.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Where the page goes.")] = Path(
        "report.html"
    ),
    force: Force = False,
    *,
    console: Console,
) -> None:
    """Write a page about a run that any browser shows, or one that compares several.

    It is made from the run's artifacts alone, and needs nothing but itself: no network and no other files.
    """
    from stages.store.output import check_output

    check_output(out, force=force or out.is_file())  # it may be the same one
    from stages.report.comparison import check_count, comparison_report, names_of
    from stages.report.page import render
    from stages.report.run_page import run_report
    from stages.run_view.read import read_run
    from stages.store.files import refuse_existing, write_file
    from stages.store.regular import holds

    check_count(len(runs))
    views = [read_run(run, by_device=len(runs) == 1) for run in runs]
    found = run_report(views[0]) if len(runs) == 1 else comparison_report(list(zip(names_of(runs), views, strict=True)))
    page = render(found)
    note = existed_already(out, force=force)
    if not note:
        write_file(out, page)
    elif not holds(out, page):
        refuse_existing(out, force=force)
    for one in found.notes:
        console.say(f"note: {one}")
    console.say(f"report of {len(runs)} run{'' if len(runs) == 1 else 's'} -> {out}{note}")
    console.result(path=out, runs=runs, notes=found.notes, size_bytes=len(page))
