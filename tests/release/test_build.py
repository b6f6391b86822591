"""What a release builds: the same bytes each time, the files of the commit, and metadata from one place."""

import tarfile
import zipfile
from functools import partial
from pathlib import Path

import pytest

import chainctl
from release.__main__ import unversioned
from release.build import build_release, committed_names, normalize_sdist, sdist_names, wheel_metadata
from tests.fleet import ROOT


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist and the wheel of HEAD, each built twice."""
    if not (ROOT / ".git").exists():
        pytest.skip("a release is built from a commit, and this is an sdist")
    out = tmp_path_factory.mktemp("release") / "dist"
    out.mkdir()
    return build_release(out)


def test_two_builds_of_a_commit_are_the_same_bytes_and_the_sdist_holds_all_of_it(built: tuple[Path, Path]) -> None:
    assert sdist_names(built[0]) == committed_names()


def test_the_metadata_of_the_wheel_says_what_the_package_says(built: tuple[Path, Path]) -> None:
    found = wheel_metadata(built[1])
    assert found["Version"] == chainctl.__version__
    assert (found["License-Expression"], found["License-File"]) == ("Apache-2.0", "LICENSE")
    assert "Typing :: Typed" in found.get_all("Classifier", [])
    with zipfile.ZipFile(built[1]) as wheel:
        typed = {name for name in wheel.namelist() if name.endswith("py.typed")}
    assert typed == {"chainctl/py.typed", "schemas/py.typed", "stages/py.typed"}


def test_an_sdist_packed_at_another_time_by_another_user_has_the_same_bytes(tmp_path: Path) -> None:
    found = []
    for number in (1, 2):
        source = tmp_path / str(number) / "pack"
        source.mkdir(parents=True)
        (source / "one.txt").write_text("one")
        (source / "one.txt").chmod(0o600 if number == 1 else 0o664)
        sdist = tmp_path / f"{number}.tar.gz"
        with tarfile.open(sdist, "w:gz") as archive:
            archive.add(source, "pack", filter=partial(owned_by, number))
        normalize_sdist(sdist, epoch=1_700_000_000)
        found.append(sdist.read_bytes())
    assert found[0] == found[1]


def owned_by(number: int, member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.mtime, member.uid, member.uname = number * 1000, number, f"user-{number}"
    return member


@pytest.mark.parametrize(
    ("changelog", "tags", "missing"),
    [
        ("## 0.2.0 (2026-12-01)\n\nNew.\n", ["v0.2.0", "latest"], 0),
        ("## 0.2.0 (unreleased)\n", ["v0.2.0"], 1),
        ("## 0.2.0\n", ["v0.1.0"], 2),
        ("## 0.2.01 (2026-12-01)\n", ["v0.2.0"], 1),
        ("", [], 2),
    ],
)
def test_a_release_has_a_dated_section_in_the_changelog_and_a_tag(
    changelog: str, tags: list[str], missing: int
) -> None:
    assert len(unversioned("0.2.0", changelog, tags)) == missing
