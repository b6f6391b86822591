"""Everything of a release but the upload: `just release`.

Builds HEAD, checks what was built, installs it everywhere and runs it there.  The files are in dist/: sdist, wheel,
licenses.md and checked.md.  It uploads nothing.
"""

import argparse
import re
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from release.build import build_release, committed_names, sdist_names, wheel_metadata
from release.installs import TORCH, cpu_torch, try_everywhere
from release.licenses import resolve, write_licenses
from release.shell import ROOT, Failed, run, say


def main() -> None:
    """Do all of it; exit 1 with the fact where a check fails."""
    parser = argparse.ArgumentParser(prog="just release")
    parser.add_argument("--rehearsal", action="store_true", help="neither a clean tree nor a tag is needed")
    arguments = parser.parse_args()
    try:
        print(release(ROOT / "dist", rehearsal=arguments.rehearsal))
    except Failed as reason:
        sys.exit(f"error: {reason}")


def release(out: Path, *, rehearsal: bool) -> str:
    """Build and check; the report."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    start = perf_counter()
    sdist, wheel = build_release(out)
    built = round(perf_counter() - start)
    version = str(wheel_metadata(wheel)["Version"])
    tags = run("git", "tag", "--points-at", "HEAD").split()
    missing = [*not_ready(), *unversioned(version, (ROOT / "CHANGELOG.md").read_text(), tags)]
    notes = judge(missing, rehearsal=rehearsal)
    if sdist_names(sdist) != committed_names():
        raise Failed(f"sdist and commit differ: {sorted(sdist_names(sdist) ^ committed_names())}")
    run(Path(sys.executable).parent / "twine", "check", "--strict", sdist, wheel)  # metadata, and README renders
    with TemporaryDirectory(prefix="chainctl-release-") as folder:
        work = Path(folder)
        write_licenses(
            resolve(wheel, cpu_torch(Path(sys.executable), work / "report.json") or TORCH), out / "licenses.md"
        )
        tried = try_everywhere(wheel, work)
    sizes = [f"{path.name}: {path.stat().st_size / 2**20:.2f} MiB" for path in (sdist, wheel)]
    report = "\n".join(
        [
            f"# chainctl {version}\n",
            *(f"- {line}" for line in (*sizes, f"built twice, the same bytes, in {built} s", *notes)),
            "\n| installed with | Python | and run | seconds | MiB | `--help` as a share of `import torch` |",
            "|---|---|---|---|---|---|",
            *(one.row() for one in tried),
            "",
        ]
    )
    (out / "checked.md").write_text(report)
    return report


def not_ready() -> list[str]:
    """What has to be done before HEAD can be released."""
    changed = run("git", "status", "--porcelain").splitlines()
    return [f"{len(changed)} files are not committed, and so not in what was built"] if changed else []


def unversioned(version: str, changelog: str, tags: list[str]) -> list[str]:
    """Where the changelog or the tags of the commit do not name the version, or do not date it."""
    entry = re.search(rf"^## {re.escape(version)}\b.*$", changelog, re.M)
    found = [] if entry else [f"CHANGELOG.md has no section '## {version}'"]
    if entry and not re.fullmatch(r"## \S+ \(\d{4}-\d\d-\d\d\)", entry[0]):
        found.append(f"CHANGELOG.md says '{entry[0]}', expected '## {version} (YYYY-MM-DD)'")
    if f"v{version}" not in tags:
        found.append(f"the commit has no tag v{version}, its tags are: {', '.join(tags) or 'none'}")
    return found


def judge(missing: list[str], *, rehearsal: bool) -> list[str]:
    """What is missing as notes of a rehearsal.  Raises `Failed` with it before a release."""
    if missing and not rehearsal:
        raise Failed("; ".join(missing) + " (--rehearsal goes on)")
    for line in missing:
        say(f"rehearsal: {line}")
    return missing


if __name__ == "__main__":
    main()
