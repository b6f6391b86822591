"""`chainctl bundle` as a person types it: pack, carry, unpack; exit codes; nothing but one object with --json."""

import json
from pathlib import Path
from typing import Any

import pytest

from stages.store.artifact import verify_artifact
from tests import fleet


def chainctl(*arguments: object) -> fleet.Done:
    return fleet.chainctl("bundle", *arguments, check=False)


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def answer(done: fleet.Done) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    parsed: dict[str, Any] = json.loads(done.stdout)
    return parsed


@pytest.mark.parametrize("split", [(), ("--split", "4KiB")])
def test_artifacts_of_two_rounds_are_carried_on_a_stick(split: tuple[str, ...], tmp_path: Path) -> None:
    places = [tmp_path / "updates" / number / "phone" for number in ("0000", "0001")]
    made = [fleet.write_update(place, device=f"d-{place.parent.name}").path for place in places]
    stick = tmp_path / "stick" / "out.tar"
    packed = answer(chainctl("pack", *made, "-o", stick, *split, "--json"))
    assert [entry["name"] for entry in packed["artifacts"]] == ["0000-phone", "0001-phone"]
    assert [Path(path).name for path in packed["paths"]] == entries(stick.parent)
    assert sum(path.stat().st_size for path in stick.parent.iterdir()) == packed["size_bytes"]
    again = answer(chainctl("pack", *made, "-o", stick, *split, "--json"))
    assert again == {**packed, "is_new": False}
    unpacked = answer(chainctl("unpack", stick, "--into", tmp_path / "in", "--json"))
    for there, entry, source in zip(unpacked["artifacts"], packed["artifacts"], made, strict=True):
        assert there["is_new"] is True
        assert there["kind"] == "update"
        assert there["digest"] == entry["digest"] == verify_artifact(source).digest
        assert verify_artifact(Path(there["path"])).digest == entry["digest"]
    said = chainctl("unpack", stick, "--into", tmp_path / "in")
    assert said.returncode == 0
    assert said.stdout.count("(existed already)") == 2
    assert chainctl("unpack", stick, "--into", tmp_path / "in", "--quiet").stdout == ""


def test_exit_codes_say_what_was_wrong(tmp_path: Path) -> None:
    fleet.write_update(tmp_path / "a")
    fleet.write_update(tmp_path / "b")
    bundle = tmp_path / "x.tar"
    assert chainctl("pack", tmp_path / "a", "-o", bundle).returncode == 0
    assert chainctl("pack", tmp_path / "b", "-o", bundle).returncode == 2
    assert chainctl("pack", tmp_path / "none", "-o", tmp_path / "y.tar").returncode == 3
    assert chainctl("pack", tmp_path / "a", "-o", tmp_path / "y.tar", "--split", "much").returncode == 2
    assert chainctl("unpack", tmp_path / "none", "--into", tmp_path / "in").returncode == 3
    assert chainctl("unpack", bundle, "--into", tmp_path / "in", "--limit", "1KiB").returncode == 3
    bundle.write_bytes(bundle.read_bytes()[:-1])
    refused = chainctl("unpack", bundle, "--into", tmp_path / "in", "--json")
    assert refused.returncode == 4
    assert json.loads(refused.stdout)["error"]["exit_code"] == 4
    assert "Traceback" not in refused.stderr
    assert entries(tmp_path) == ["a", "b", "x.tar"]
