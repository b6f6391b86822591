"""The house itself: what a wheel holds, what --help loads, and that no impostor is let in."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from stages.assets import ASSETS

ROOT = Path(__file__).resolve().parent.parent


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
        assert len(asset.sha256) == 64
        assert "==" in asset.requirement
