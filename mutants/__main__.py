"""Put every small error into every module, one at a time, and say which of them no test finds.

    python -m mutants [--modules PATTERN …] [--jobs N] [--out FILE] [--list]

Each result is a line of FILE: what was killed stays killed, what survived is tried again where a test has changed.
Exit status 1 if mutants survive that are not listed as equivalent, or if one that is listed does not exist any more.
"""

import argparse
import ast
import hashlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from mutants.operators import Mutant, mutants
from mutants.reach import statement
from mutants.slots import Slot, preload, waited
from mutants.targets import Target, read_equivalents, read_targets, unmatched

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """The run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modules", nargs="*", default=["*"], help="patterns, such as stages/store/*")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "mutants" / "results.jsonl")
    parser.add_argument("--list", action="store_true", help="say how many mutants each module has, and run nothing")
    chosen = parser.parse_args()
    targets = [one for one in read_targets(ROOT) if any(fnmatch(one.module, glob) for glob in chosen.modules)]
    if chosen.list:
        for target in targets:
            print(f"{len(list(mutants((ROOT / target.module).read_text()))):5}  {target.module}")
        return 0
    gone = unmatched(ROOT, read_equivalents(), [target.module for target in targets])
    for one in gone:
        print(f"{one.module}: listed as equivalent, and no mutant: {one.line}: {one.code} -> {one.becomes}")
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    run = MutationRun(chosen.out.resolve(), chosen.jobs)
    for target in targets:
        run.module(target)
    run.report()
    return 1 if gone or run.left else 0


@dataclass
class MutationRun:
    """The mutants of some modules."""

    out: Path
    jobs: int
    counts: Counter[str] = field(default_factory=Counter)
    left: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.out.parent.mkdir(parents=True, exist_ok=True)
        lines = self.out.read_text().splitlines() if self.out.exists() else []
        self.known: dict[str, tuple[str, str]] = {}  # by mutant: outcome, and digest of the tests
        for line in map(json.loads, lines):
            self.known[line["mutant"]] = (line["outcome"], line["tests"])
        self.slots = [Slot.of(ROOT, self.out.parent / f"tree-{number}") for number in range(self.jobs)]

    def module(self, target: Target) -> None:
        """All mutants of a module."""
        source = (ROOT / target.module).read_text()
        tests = digest(*((ROOT / test).read_bytes() for test in target.tests))
        pending = list(self._pending(target, source, tests))
        if pending:
            began = time.monotonic()
            self._try(target, source, pending, tests)
            each = (time.monotonic() - began) / len(pending)
            print(f"{target.module}: {len(pending)} mutants, {each:.1f} s each", flush=True)

    def report(self) -> None:
        """What became of all mutants."""
        asked = sum(count for outcome, count in self.counts.items() if outcome != "equivalent")
        caught = self.counts["killed"] + self.counts["timeout"]
        print("\n".join(self.left))
        print(", ".join(f"{count} {outcome}" for outcome, count in sorted(self.counts.items())))
        if asked:
            print(f"{100 * caught / asked:.1f} % of {asked} killed or stopped")

    def _pending(self, target: Target, source: str, tests: str) -> Iterator[tuple[str, Mutant]]:
        """The mutants that are not known yet, each with its key."""
        equivalents = read_equivalents()
        for mutant in mutants(source):
            key = digest(target.module.encode(), mutant.text.encode())
            outcome, before = self.known.get(key, ("", ""))
            if any(one.matches(target.module, mutant) for one in equivalents):
                self.counts["equivalent"] += 1
            elif outcome == "killed" or (outcome and before == tests):
                self._count(target, mutant, outcome)
            else:
                yield key, mutant

    def _try(self, target: Target, source: str, pending: list[tuple[str, Mutant]], tests: str) -> None:
        """Ask the tests of each mutant.  Raises `RuntimeError` if they fail on the module as it is."""
        loaded = self.out.parent / "loaded"
        for slot in self.slots:
            for path in (target.module, *target.tests):
                slot.write(path, (ROOT / path).read_text())
        servers = [slot.serve(target, loaded=loaded) for slot in self.slots]
        reach, *_ = [server.survey() for server in servers]
        waiting, asked, slowly = pending[::-1], dict[int, tuple[str, Mutant]](), list[tuple[str, Mutant]]()
        tree = ast.parse(source)
        with self.out.open("a") as out:

            def note(key: str, mutant: Mutant, outcome: str) -> None:
                self._count(target, mutant, outcome)
                out.write(json.dumps({"mutant": key, "outcome": outcome, "tests": tests}) + "\n")
                out.flush()

            while waiting or asked:
                for number, server in enumerate(servers):
                    if number not in asked and waiting:
                        key, mutant = waiting.pop()
                        chosen = reach.tests(statement(tree, mutant.line))
                        if reach.starts.issuperset(chosen):  # what runs in other processes is read from the copy
                            slowly.append((key, mutant))
                            continue
                        asked[number] = key, mutant
                        server.ask(mutant.text, chosen, reach.limit(chosen))
                    elif number in asked and (outcome := server.outcome()):
                        key, mutant = asked.pop(number)
                        if outcome == "cannot":
                            slowly.append((key, mutant))
                        else:
                            note(key, mutant, outcome)
                time.sleep(0.005)
            for server in servers:
                server.close()
            preload(loaded.read_text().splitlines())
            slot = self.slots[0]
            for key, mutant in slowly:
                slot.write(target.module, mutant.text)
                chosen = reach.tests(statement(tree, mutant.line))
                note(key, mutant, waited(slot.ask(chosen, seconds=reach.limit(chosen))))
        slot.write(target.module, source)

    def _count(self, target: Target, mutant: Mutant, outcome: str) -> None:
        self.counts[outcome] += 1
        if outcome != "killed":
            line = f"{outcome}: {target.module}:{mutant.line}: {mutant.code}  ->  {mutant.becomes}"
            print(line, flush=True)
            if outcome == "survived":
                self.left.append(line)


def digest(*parts: bytes) -> str:
    """Of all parts together."""
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
