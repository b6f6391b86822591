"""A file of a terabyte that takes no room, in every place where a command reads one that it does not stream.

Each ends at once in a clear error, or the file is left out: within ten seconds of processor time and 192 MiB.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from stages.store.bundle import pack
from stages.store.signing import SIGNATURE_FILE, KeyRing
from tests import fleet
from tests.fleet.confined import chainctl_confined

TERABYTE = 2**40


@dataclass(frozen=True)
class Case:
    """A command, the file that is a giant, and how it ends."""

    command: str
    file: str
    code: int

    def __str__(self) -> str:
        return f"{self.command}: {self.file}"


VERIFY = "verify state next in/a"
AGGREGATE = "aggregate in --plan plan --state state --out new --quorum 2"
PLAN = "plan profile --model model --recipe recipe.toml --out new --state new-state"
CASES = [
    *(Case("status .", file, 7) for file in ("junk/manifest.json", "in/a/manifest.json", "in/a/measured.json")),
    *(Case("status .", f"next/{name}", 3) for name in ("manifest.json", "measured.json")),
    *(Case("status .", f"plan/{name}", 3) for name in ("manifest.json", "measured.json")),
    *(Case("status .", file, 4) for file in ("ledger.jsonl", "plan/devices.jsonl", "next/participants.jsonl")),
    *(Case("log next", file, 0) for file in ("junk/manifest.json", "in/a/manifest.json")),
    *(Case("log next", file, 3) for file in ("next/manifest.json", "next/measured.json", "plan/measured.json")),
    Case("log next", "state/tensors.safetensors", 4),
    *(Case(VERIFY, file, 3) for file in ("next/manifest.json", "in/a/measured.json", f"in/a/{SIGNATURE_FILE}")),
    *(Case(VERIFY, file, 4) for file in ("next/participants.jsonl", "in/a/tensors.safetensors")),
    Case("inspect next", "next/measured.json", 3),
    Case("inspect in/a", "in/a/manifest.json", 3),
    *(Case(AGGREGATE, f"in/a/{name}", 0) for name in ("manifest.json", "measured.json", "tensors.safetensors")),
    *(Case(AGGREGATE, file, 3) for file in ("plan/manifest.json", "state/manifest.json", "state/measured.json")),
    Case(AGGREGATE, "ledger.jsonl", 4),
    *(Case("bundle pack in/a in/b --out new", f"in/a/{name}", 3) for name in ("manifest.json", "measured.json")),
    Case("bundle unpack bundle --into new", "bundle", 4),
    Case("keys list", "home/keys/office.pub", 3),
    Case("keys show office", "home/keys/office.pem", 3),
    Case("trust list", "home/trust/coordinators.json", 3),
    Case("trust add office home/keys/office.pub", "home/keys/office.pub", 3),
    Case("eval --model model --data data --out new --plan plan --state state", "home/trust/coordinators.json", 3),
    Case("doctor --model model --recipe recipe.toml", "recipe.toml", 3),
    Case(PLAN, "recipe.toml", 3),
    Case(f"{PLAN} --roster roster.toml --key office", "roster.toml", 3),
    Case("recipe new new --data data", "data", 3),
    *(Case("model info model", f"model/{name}", 3) for name in ("config.json", "tokenizer_config.json")),
    *(Case("model check model", f"model/{name}", 3) for name in ("config.json",)),
    *(Case("doctor --model model", f"model/{name}", 3) for name in ("config.json", "tokenizer.json")),
]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    """A round that is closed, a bundle of its updates, and files that a person wrote."""
    folder = tmp_path_factory.mktemp("giants") / "world"
    _, state = fleet.make_world(folder)
    for seed, name in enumerate(fleet.DEVICES):
        fleet.make_update(folder / "in" / name, state, name, seed=seed)
    fleet.combine(folder, [folder / "in"])
    pack([folder / "in" / "a"], folder / "bundle")
    (folder / "junk").mkdir()
    KeyRing(folder / "home").new("office")
    (folder / "home" / "trust").mkdir()
    fleet.write_recipe(folder / "recipe.toml", fleet.settings())
    fleet.save_texts(folder / "data", fleet.texts(6))
    shutil.copytree(tiny_bert, folder / "model")
    return folder


@pytest.fixture
def world(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "world"))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_giant_is_refused_or_left_out_at_once(case: Case, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    monkeypatch.setenv("CHAINCTL_HOME", str(world / "home"))
    with (world / case.file).open("ab") as file:
        try:
            file.truncate(TERABYTE)
        except OSError as error:
            pytest.skip(f"this file system has no files of a terabyte: {os.strerror(error.errno or 0)}")
    if case.command == AGGREGATE and case.file != "ledger.jsonl":
        (world / "ledger.jsonl").unlink()  # a round that is open
    done = chainctl_confined(*case.command.split(), folder=world.parent)
    assert done.returncode == case.code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    if case.code in (3, 4):
        assert "error: " in done.stderr
        assert not list(world.glob("new*"))
