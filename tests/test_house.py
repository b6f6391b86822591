"""The house itself: what a wheel holds, what --help loads, and that no impostor is let in."""

import re
import subprocess
import sys
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from chainctl import cli
from stages.assets import ASSETS
from tests.fleet import ROOT
from website.reference import PAGES


def test_the_wheel_holds_exactly_our_three_packages(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = wheel.namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"chainctl", "schemas", "stages"}
    packaged = {name for name in names if name.endswith(".py")}
    sources = {
        str(path.relative_to(ROOT)) for top in ("chainctl", "schemas", "stages") for path in (ROOT / top).rglob("*.py")
    }
    assert packaged == sources
    templates = {str(path.relative_to(ROOT)) for path in (ROOT / "stages/report/templates").iterdir()}
    assert templates
    assert templates <= set(names)


@pytest.mark.parametrize("arguments", [["--help"], ["train-window", "--help"], ["--version"], ["recipe", "new", "-"]])
def test_light_commands_load_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys; from chainctl.cli import main\n"
        f"sys.argv = ['chainctl', *{arguments!r}]\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "heavy = {'torch', 'transformers', 'numpy', 'matplotlib', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_a_first_look_loads_no_command_no_model_and_nothing_that_draws(flag: str) -> None:
    """Each costs as much as everything else that these two do: docs/performance.md."""
    script = (
        "import sys; from chainctl.cli import main\n"
        f"sys.argv = ['chainctl', {flag!r}]\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "costly = [name for name in sys.modules if name.startswith('chainctl.commands.')]\n"
        "costly += {'pydantic', 'rich', 'schemas.settings', 'schemas.plan'} & set(sys.modules)\n"
        "assert not costly, costly\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_impostor_package_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "__init__.py").write_text("")
    script = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; import chainctl"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "environment of its own" in done.stderr
    assert str(tmp_path / "stages") in done.stderr


def test_every_asset_is_pinned() -> None:
    for asset in ASSETS.values():
        assert len(asset.sha256) == len(asset.contents) == 64
        assert "==" in asset.requirement


def test_every_test_that_the_threats_name_exists() -> None:
    named = re.findall(r"`(tests/[a-z_/]+\.py)::(test_\w+)`", (ROOT / "docs" / "threats.md").read_text())
    assert len(named) > 40
    for file, name in named:
        assert f"def {name}(" in (ROOT / file).read_text(), f"{file}::{name}"


DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_and_recipe_that_a_document_names_exists(document: Path) -> None:
    text = document.read_text()
    missing = [path for path in named_paths(text) if not (ROOT / path).exists()]
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)\)", text)
    generated = {ROOT / "docs" / page for page in PAGES}
    missing += [
        link for link in links if not (found := (document.parent / link).resolve()).exists() and found not in generated
    ]
    missing += [f"python -m {name}" for name in re.findall(r"python -m ([a-z_.]+)", text) if not module_exists(name)]
    recipes = re.findall(r"^([a-z][a-z-]*)[^:=\n]*:(?!=)", (ROOT / "Justfile").read_text(), re.M)
    named = re.findall(r"(?:`|&& )just\s+([a-z][a-z-]*)", text)
    missing += [f"just {name}" for name in named if name not in recipes]
    assert not missing


def named_paths(text: str) -> set[str]:
    """Paths of this repository; `NAME` stands for a method of ours."""
    tops = "chainctl|stages|schemas|tests|benchmarks|docs|examples|website"
    found = re.findall(rf"(?<![\w/.-])(?:{tops})/[\w./-]*", text.replace("NAME", "chain"))
    return {path.rstrip(".") for path in found}


def module_exists(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_that_a_document_shows_exists_with_its_options(document: Path) -> None:
    for line in shown_commands(document.read_text()):
        words = line.split()
        known, command = command_of(words[1:])
        assert command is not None, line
        named = {word.rstrip(",.") for word in re.findall(r"(?<=[\s\[])--?[a-z][a-z-]*", line)}
        assert named <= known, f"{line}: {sorted(named - known)}"


def shown_commands(text: str) -> list[str]:
    """Every `chainctl …` in a code block (with the indented lines that continue it) or in a code span."""
    blocks = re.compile(r"^```(bash|python|output|)\n(.*?)^```", re.M | re.S)
    lines: list[str] = []
    for language, block in blocks.findall(text):
        continued = r"\\\n[ \t]+" if language == "bash" else r"\\?\n[ \t]+"
        lines += (
            re.sub(continued, " ", re.sub(r"[ \t]+# .*", "", block)).splitlines() if language in ("", "bash") else []
        )
    lines = [line.strip().partition(" || ")[0] for line in lines]
    spans = re.findall(r"`([^`]+)`", blocks.sub("", text))
    found = [" ".join(one.split()) for one in (*lines, *spans)]
    return [one for one in found if re.match(r"chainctl [a-z]", one)]


@lru_cache
def commands() -> dict[str, Any]:
    return {entry.name: entry.load() for entry in cli.COMMANDS}


def command_of(words: list[str]) -> tuple[set[str], Any]:
    """The options of the command that `words` begin with, and the command; None where there is none."""
    command: Any = commands().get(words[0])
    for word in words[1:2]:
        command = command.commands.get(word) if hasattr(command, "commands") else command
    if command is None or hasattr(command, "commands"):
        return set(), command
    return {"--help", *(name for parameter in command.params for name in parameter.opts)}, command


def test_no_test_imports_another() -> None:
    """What tests share is in tests/fleet; nothing there, and no other helper, imports a test."""
    of_ours = re.compile(r"^\s*(?:from|import) (tests[\w.]*)(?: import ([^#\n]*))?", re.M)
    for path in sorted((ROOT / "tests").rglob("*.py")) + sorted((ROOT / "benchmarks").rglob("*.py")):
        for module, names in of_ours.findall(path.read_text()):
            imported = {module, *(f"{module}.{name.strip()}" for name in names.split(",") if module == "tests")}
            allowed = all(name == "tests" or name.split(".")[1] == "fleet" for name in imported)
            assert allowed, f"{path.relative_to(ROOT)} imports {', '.join(sorted(imported))}"


def test_what_is_not_streamed_is_read_through_one_door() -> None:
    """`read_regular` bounds a file before it reads it.  What the kernel says of this machine comes from nobody else."""
    whole = r"\.read_text\(|\.read_bytes\(|json\.load\(|tomllib\.load\("
    opened = r"(?<!def )(?<![\w.])open\((?!number|path, \"wb\")"  # but for descriptors, and for writing
    reads = re.compile(f"{whole}|{opened}")
    for top in ("chainctl", "schemas", "stages"):
        for path in sorted((ROOT / top).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if not name.startswith("stages/process/"):
                assert not reads.search(path.read_text()), name


def test_whatever_writes_goes_through_the_store() -> None:
    """One seam: what a stage leaves behind is written inside a hidden directory, synced and renamed by stages/store."""
    writes = re.compile(r"write_text\(|write_bytes\(|\.open\([\"'][wax]|\.rename\(|os\.replace")
    for path in sorted((ROOT / "stages").rglob("*.py")) + sorted((ROOT / "chainctl").rglob("*.py")):
        name, text = path.relative_to(ROOT).as_posix(), path.read_text()
        mine = name.startswith("stages/store/") or name == "stages/process/measure.py"  # a switch of the kernel's
        if not mine and "complete_directory" not in text:
            assert not writes.search(text), name
