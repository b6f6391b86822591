"""The wheel alone, in fresh environments outside of the checkout: with each installer, with each Python of the machine.

Where the index has a CPU build of torch for a Python, a federation runs there end to end.  Where it has none (a plain
install would bring gigabytes of CUDA), everything but torch is installed, and a coordinator closes the round of
another Python's federation: it must end with the same state, to the digest.
"""

import json
import os
import shutil
import sys
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

from release.build import wheel_metadata
from release.shell import ROOT, Failed, folder_mib, run, say

TORCH = "2.13.0"
OLDEST = (3, 11)
PIP = (sys.executable, "-m", "pip")
TRYOUT = ROOT / "release" / "tryout.py"


class Tried(NamedTuple):
    """What one installer did with one Python."""

    how: str
    what: str
    seconds: int  # to install
    mebibytes: int  # of the environment
    found: dict[str, object]  # what `tryout.py` printed

    def row(self) -> str:
        """A line of a table."""
        share = self.found.get("help as a share of importing torch", "")
        return f"| {self.how} | {self.found['python']} | {self.what} | {self.seconds} | {self.mebibytes:,} | {share} |"


def try_everywhere(wheel: Path, work: Path) -> list[Tried]:
    """Install and run with each installer and Python.  Raises `Failed` where one fails or ends with another state."""
    found, without = [], []
    for python in pythons():
        torch = cpu_torch(python, work / "report.json")
        if torch is None:
            without.append(python)
        else:
            found += [try_with(how, wheel, python, torch, work) for how in INSTALLERS]
    if not found:
        raise Failed(f"no Python of this machine has a CPU build of torch {TORCH}: nothing could be run")
    of_another = next(work.glob("*/run"))
    found += [try_without_torch(wheel, python, of_another, work) for python in without]
    states = {one.found["state"] for one in found}
    if len(states) != 1:
        raise Failed(f"the same federation ended with {len(states)} states: {found}")
    return found


def pythons() -> list[Path]:
    """One interpreter of each minor version that chainctl supports: from the path and from pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    named = [shutil.which(f"python3.{minor}") for minor in range(OLDEST[1], 30)]
    candidates = [Path(sys.executable), *map(Path, filter(None, named)), *sorted(pyenv.glob("3.*/bin/python3"))]
    found: dict[tuple[int, int], Path] = {}
    for candidate in candidates:
        try:
            told = json.loads(run(candidate, "-I", "-c", WHICH))
        except Failed:  # a shim of a version that is not switched on
            continue
        found.setdefault((told["version"][0], told["version"][1]), Path(told["base"]))
    return [found[version] for version in sorted(found) if version >= OLDEST]


WHICH = "import json, sys; print(json.dumps({'version': sys.version_info[:2], 'base': sys._base_executable}))"


def cpu_torch(python: Path, report: Path) -> str | None:
    """The version of torch that pip would install for this Python, or None if that comes with CUDA."""
    pip = (*PIP, "--python", python, "install", "--quiet", "--dry-run", "--ignore-installed", "--report", report)
    run(*pip, f"torch=={TORCH}")
    chosen = {one["metadata"]["name"]: one["metadata"]["version"] for one in json.loads(report.read_text())["install"]}
    brings_cuda = any(name.lower().startswith(("nvidia-", "cuda-")) for name in chosen)
    return None if brings_cuda else str(chosen["torch"])


def try_with(how: str, wheel: Path, python: Path, torch: str, work: Path) -> Tried:
    """Install with one installer, and run a federation."""
    folder = folder_for(how, python, work)
    say(f"{how}, {python}")
    start = perf_counter()
    environment = INSTALLERS[how](folder, wheel, python, torch)
    seconds = round(perf_counter() - start)
    found = tryout(environment, folder / "run")
    return Tried(how, "a federation", seconds, folder_mib(environment), found)


def folder_for(how: str, python: Path, work: Path) -> Path:
    """An empty folder for one installer and one Python."""
    version = run(python, "-I", "-c", "import sys; print(*sys.version_info[:2], sep='.')").strip()
    folder = work / f"{how.replace(', ', '-').replace(' ', '-')}-{version}"
    folder.mkdir()
    return folder


def tryout(environment: Path, out: Path, *more: object) -> dict[str, object]:
    """Run `tryout.py` in an environment, from a copy beside its folder; what it printed."""
    copy = out.parent / TRYOUT.name
    shutil.copy(TRYOUT, copy)
    script = environment / "bin" / "chainctl"
    if not run(script, "--version", cwd=out.parent).startswith("chainctl "):
        raise Failed(f"{script} --version does not name chainctl")
    found: dict[str, object] = json.loads(run(environment / "bin" / "python", "-I", copy, out, *more, cwd=out.parent))
    return found


def with_pip(folder: Path, wheel: Path, python: Path, torch: str) -> Path:
    """As README says: torch first, then the wheel, into a virtual environment."""
    environment = folder / "venv"
    run(python, "-m", "venv", environment)
    run(environment / "bin" / "python", "-m", "pip", "install", "--quiet", f"torch=={torch}")
    run(environment / "bin" / "python", "-m", "pip", "install", "--quiet", wheel)
    return environment


def with_uv(folder: Path, wheel: Path, python: Path, torch: str) -> Path:
    """`uv tool install`, with all that it writes in one folder."""
    places = {"UV_TOOL_DIR": "tools", "UV_TOOL_BIN_DIR": "bin", "UV_CACHE_DIR": "cache"}
    constraints = write_constraints(folder, torch)
    command = ("uv", "tool", "install", "--quiet", "--python", python, "--constraints", constraints, wheel)
    run(tool(command[0]), *command[1:], extra={**links(), **{key: str(folder / name) for key, name in places.items()}})
    return folder / "tools" / "chainctl"


def with_pipx(folder: Path, wheel: Path, python: Path, torch: str) -> Path:
    """`pipx install`, with all that it writes in one folder."""
    places = {"PIPX_HOME": "home", "PIPX_BIN_DIR": "bin", "PIPX_MAN_DIR": "man"}
    options = f"--constraint {write_constraints(folder, torch)}"
    command = (tool("pipx"), "install", "--quiet", "--backend", "pip", "--python", python, "--pip-args", options, wheel)
    run(*command, extra={key: str(folder / name) for key, name in places.items()})
    return folder / "home" / "venvs" / "chainctl"


def from_stick(folder: Path, wheel: Path, python: Path, torch: str) -> Path:
    """Wheels that pip downloads into a folder, then an installation from this folder and nothing else."""
    environment, stick = folder / "venv", folder / "stick"
    run(python, "-m", "venv", environment)
    pip = (environment / "bin" / "python", "-m", "pip")
    run(*pip, "download", "--quiet", "--dest", stick, f"torch=={TORCH}")
    run(*pip, "download", "--quiet", "--dest", stick, "--find-links", stick, wheel, f"torch=={torch}")
    alone = {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PIP_EXTRA_INDEX_URL": ""}
    run(*pip, "install", "--quiet", "--no-index", "--find-links", stick, "chainctl", extra=alone)
    return environment


INSTALLERS = {"pip": with_pip, "pip, offline": from_stick, "uv tool": with_uv, "pipx": with_pipx}


def tool(name: str) -> Path:
    """A tool of the environment that this runs in."""
    return Path(sys.executable).parent / name


def links() -> dict[str, str]:
    """Folders with wheels that pip was told about are told to uv as well."""
    folders = os.environ.get("PIP_FIND_LINKS", "").replace(" ", ",")
    return {"UV_FIND_LINKS": os.environ.get("UV_FIND_LINKS") or folders}


def write_constraints(folder: Path, torch: str) -> Path:
    """The build of torch that these installers may take, and no other."""
    path = folder / "constraints.txt"
    path.write_text(f"torch=={torch}\n")
    return path


def try_without_torch(wheel: Path, python: Path, run_of_another: Path, work: Path) -> Tried:
    """Install all but torch, and close the round of another Python's federation."""
    folder = folder_for("pip", python, work)
    say(f"pip without torch, {python}")
    start = perf_counter()
    environment = folder / "venv"
    run(python, "-m", "venv", environment)
    needed = [one for one in wheel_metadata(wheel).get_all("Requires-Dist", ()) if "extra ==" not in one]
    others = [one for one in needed if not one.startswith("torch")]
    run(environment / "bin" / "python", "-m", "pip", "install", "--quiet", *others)
    run(environment / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-deps", wheel)
    seconds = round(perf_counter() - start)
    found = tryout(environment, folder / "run", "--coordinator", run_of_another)
    return Tried("pip", "a coordinator without torch", seconds, folder_mib(environment), found)
