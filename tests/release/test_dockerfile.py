"""The Dockerfile: clean, read as `just image-check` reads it, and never root at run time."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from release.dockerfile import Step, read_dockerfile
from release.image import BASES, Image, carry_out
from release.installs import TORCH
from release.shell import Failed
from tests.fleet import ROOT


def test_the_linter_finds_nothing() -> None:
    linter = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([linter, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_stage_stands_on_a_base_that_debootstrap_makes_or_on_an_earlier_stage() -> None:
    known = set(BASES)
    for stage in read_dockerfile(ROOT / "Dockerfile"):
        assert stage.base in known
        known.add(stage.name)


def test_the_image_runs_chainctl_as_a_user_that_owns_only_volumes() -> None:
    last = read_dockerfile(ROOT / "Dockerfile")[-1]
    steps = {step.instruction: step for step in last.steps}
    assert steps["USER"].value.partition(":")[0] not in ("", "0", "root")
    assert [step.instruction for step in last.steps].index("USER") > [s.instruction for s in last.steps].index("RUN")
    assert steps["ENTRYPOINT"].words() == ["chainctl"]
    environment = steps["ENV"].pairs({})
    assert {environment["HOME"], environment["CHAINCTL_HOME"]} <= set(steps["VOLUME"].words())
    assert steps["WORKDIR"].value in steps["VOLUME"].words()


def test_continued_lines_comments_and_variables_are_read_as_docker_reads_them(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(
        "# a comment\nFROM one:1 AS first\nRUN a \\\n    # between\n    && b\n"
        'FROM first\nENV A=1 \\\n    B="$HOME/x y"\n'
    )
    first, second = read_dockerfile(tmp_path / "Dockerfile")
    assert (first.base, first.name, second.base, second.name) == ("one:1", "first", "first", "")
    assert " ".join(first.steps[0].value.split()) == "a && b"
    assert second.steps[0].pairs({"HOME": "/h"}) == {"A": "1", "B": "/h/x y"}


def test_what_cannot_be_carried_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM one:1\nADD https://example.org/x /x\n")
    with pytest.raises(Failed, match="ADD"):
        read_dockerfile(tmp_path / "Dockerfile")
    with pytest.raises(Failed, match="JSON list"):
        Step("ENTRYPOINT", "chainctl --help").words()


def test_copy_takes_from_an_earlier_stage_and_refuses_what_is_not_there(tmp_path: Path) -> None:
    build, last = Image(tmp_path / "build"), Image(tmp_path / "last")
    (build.root / "opt/program").mkdir(parents=True)
    (build.root / "opt/program/run").write_text("x")
    (last.root / "opt").mkdir(parents=True)
    carry_out(Step("COPY", "--from=build /opt/program /opt/program"), last, {}, {"build": build})
    assert (last.root / "opt/program/run").read_text() == "x"
    with pytest.raises(Failed, match="nothing of that name"):
        carry_out(Step("COPY", "--from=build /opt/other-*.whl /opt/"), last, {}, {"build": build})


def test_an_argument_of_the_build_is_known_to_later_settings_and_the_environment_overrides_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, arguments = Image(tmp_path), dict[str, str]()
    monkeypatch.setenv("PACK_OTHER", "given")
    for step in (Step("ARG", "PACK_ONE=1"), Step("ARG", "PACK_OTHER=2"), Step("ENV", "A=$PACK_ONE B=$PACK_OTHER")):
        carry_out(step, image, arguments, {})
    assert (image.environment["A"], image.environment["B"]) == ("1", "given")


@pytest.mark.parametrize("name", ["Justfile", "Dockerfile", "README.md", "docs/install.md"])
def test_one_version_of_torch_is_named_everywhere(name: str) -> None:
    named = set(re.findall(r"\btorch==([\d.]*\d)", (ROOT / name).read_text()))
    assert named == {TORCH}
