"""Mutated artifacts against everything that parses them.

    python -m tests.fuzz --inputs 100000 [--seed 0]

Every input is a small change of something real: bytes flipped, cut, doubled, put in, lines of another document, numbers
that are too large, lists and objects that are too long.  Each must be read cleanly or refused with a `ChainError`;
anything else is printed with its seed and ends in exit code 1, as does an input that takes more than 64 MiB.  The
slowest input is printed too; with `--strict` more than a second of processor time is a failure.
"""

import argparse
import collections
import json
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from schemas.errors import ChainError
from schemas.kinds import ARTIFACTS, artifact_model
from schemas.trust import parse_roster
from schemas.update import UpdateManifest
from stages.federated.intake import Intake
from stages.methods.registry import server_method
from stages.process.measure import peak_bytes, reset_peak, resident_bytes
from stages.store.artifact import open_artifact, read_tensors, verify_artifact
from stages.store.ledger import Ledger
from stages.store.signing import SIGNATURE_FILE, KeyRing, check_signature
from tests.fleet import DEVICES, combine, make_update, make_world

GOLDEN = Path(__file__).parent / "golden"
MEMORY_BYTES = 64 * 2**20
SECONDS = 1.0
NUMBERS = [b"-1", b"0", b"1e999", b"NaN", b"9" * 400, b"1.5", b"18446744073709551616", b"-0.0", b"true", b"null"]
BOMBS = [b"[" * 5000, b'{"a":' * 5000, b"[" + b"[]," * 20_000, b'"' + b"\\u0000" * 20_000, b"\x00" * 4096]

Target = Callable[[random.Random], None]


def mutate(data: bytes, draw: random.Random, other: bytes = b"") -> bytes:
    """A few changes."""
    changed = bytearray(data)
    for _ in range(draw.choice([1, 1, 1, 2, 3, 8])):
        at, to = sorted((draw.randrange(len(changed) + 1), draw.randrange(len(changed) + 1)))
        kind = draw.randrange(9)
        if kind == 0 and changed:
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del changed[at : min(to, at + draw.choice([1, 4, 64, 4096]))]
        elif kind == 2:
            changed[at:at] = changed[at : min(to, at + 200)] * draw.choice([1, 2, 50])
        elif kind == 3:
            del changed[draw.choice([at, len(changed) - 1]) :]
        elif kind == 4:
            changed[at:at] = draw.randbytes(draw.choice([1, 8, 100]))
        elif kind == 5:
            changed[at:at] = draw.choice(BOMBS)
        elif kind == 6 and other:
            lines, foreign = bytes(changed).splitlines(keepends=True), other.splitlines(keepends=True)
            lines[draw.randrange(len(lines) + 1) :][:1] = [draw.choice(foreign)]
            changed = bytearray(b"".join(lines))
        elif kind == 7:
            digits = [index for index, byte in enumerate(changed) if 48 <= byte <= 57]
            if digits:
                index = draw.choice(digits)
                changed[index : index + 1] = draw.choice(NUMBERS)
        else:
            changed[at : at + 8] = draw.choice([2**63 - 1, 2**64 - 1, 8, 0, 75_000_000]).to_bytes(8, "little")
    return bytes(changed)


def restructure(data: bytes, draw: random.Random) -> bytes:
    """A canonical document whose values were changed: what a liar who knows the format writes."""
    document = json.loads(data)
    places: list[tuple[dict[str, object] | list[object], str | int]] = []

    def walk(value: object) -> None:
        if isinstance(value, dict):
            places.extend((value, key) for key in value)
            for item in value.values():
                walk(item)
        elif isinstance(value, list):
            places.extend((value, index) for index in range(len(value)))
            for item in value:
                walk(item)

    walk(document)
    for _ in range(draw.choice([1, 1, 2, 5])):
        holder, key = draw.choice(places)
        new: object = draw.choice(
            [
                None,
                True,
                0,
                -1,
                [0],
                2**63,
                2**70,
                1.5,
                1e308,
                "",
                "x" * 300,
                "../../x",
                "sha256:" + "0" * 64,
                [],
                {},
                [[]],
            ]
        )
        if draw.random() < 0.1:
            new = draw.choice([[{}] * 20_000, list(range(20_000)), {f"k{n}": 0 for n in range(20_000)}, "y" * 900_000])
        holder[key] = new  # type: ignore[index]
    return json.dumps(document, sort_keys=True, indent=2, ensure_ascii=False).encode() + b"\n"


def targets(folder: Path) -> dict[str, Target]:
    """What is fuzzed, by name, over real things that are made in `folder` first."""
    plan, state = make_world(folder / "world")
    intake = Intake(plan, state, {}, server_method("chain"))
    for seed, device in enumerate(DEVICES):
        make_update(folder / "world" / "in" / device, state, device, seed=seed)
    combine(folder / "world", [folder / "world" / "in"])
    update = folder / "world" / "in" / "a"
    signer = KeyRing(folder / "home").new("device")
    manifest = (update / "manifest.json").read_bytes()
    (update / SIGNATURE_FILE).write_bytes(signer.envelope(manifest))
    ledger = (folder / "world" / "ledger.jsonl").read_bytes()
    documents = [path.read_bytes() for path in sorted(GOLDEN.glob("v*/*.json"))]
    classes = [artifact_model(kind) for kind in ARTIFACTS]

    def read_manifest(draw: random.Random) -> None:
        data = draw.choice(documents)
        data = restructure(data, draw) if draw.random() < 0.5 else mutate(data, draw, draw.choice(documents))
        draw.choice(classes).from_bytes(data, source="manifest.json")

    def read_artifact(draw: random.Random) -> None:
        copy = folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        for file in update.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        chosen = copy / draw.choice([file.name for file in update.iterdir()])
        data = chosen.read_bytes()
        structured = chosen.suffix == ".json" and draw.random() < 0.5
        chosen.write_bytes(restructure(data, draw) if structured else mutate(data, draw, draw.choice(documents)))
        delivery = intake.take([copy])
        assert len(delivery.accepted) + len(delivery.refused) + len(delivery.ignored) == 1
        verify_artifact(copy)
        read_tensors(open_artifact(copy, UpdateManifest))
        check_signature(copy, (copy / "manifest.json").read_bytes(), signer.public, whose="a device")

    def read_ledger(draw: random.Random) -> None:
        path = folder / "ledger.jsonl"
        path.write_bytes(mutate(ledger, draw, ledger))
        list(Ledger(path).events())

    def read_roster(draw: random.Random) -> None:
        roster = b'[device-00]\nkey = "ed25519:' + b"fe" * 32 + b'"\nmax_examples = 5\n'
        parse_roster(mutate(roster, draw, documents[0]).decode(errors="replace"), source="roster.toml")

    return {"manifest": read_manifest, "artifact": read_artifact, "ledger": read_ledger, "roster": read_roster}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--strict", action="store_true")
    chosen = parser.parse_args()
    outcomes: collections.Counter[str] = collections.Counter()
    slowest, greediest = (0.0, ""), (0, "")
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        parts = targets(Path(folder))
        for number in range(chosen.inputs):
            name = list(parts)[number % len(parts)]
            reset_peak()
            before, began = resident_bytes() or 0, time.process_time()
            try:
                parts[name](random.Random(f"{chosen.seed} {number}"))
                outcomes[f"{name}: read"] += 1
            except ChainError:
                outcomes[f"{name}: refused"] += 1
            except Exception:
                print(f"{name}, input {number} of seed {chosen.seed}:", file=sys.stderr)
                traceback.print_exc()
                failed = True
            grown = (peak_bytes() or 0) - before
            if grown > greediest[0]:
                greediest = (grown, f"{name}, input {number}")
            slowest = max(slowest, (time.process_time() - began, f"{name}, input {number}"))
    print(", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items())))
    print(f"slowest {slowest[0]:.2f} s ({slowest[1]}); {greediest[0] / 2**20:.0f} MiB at most ({greediest[1]})")
    return int(failed or greediest[0] > MEMORY_BYTES or (chosen.strict and slowest[0] > SECONDS))


if __name__ == "__main__":
    sys.exit(main())
