"""Run folders as the real commands leave them: a simulation's, and a signed coordinator's with hostile deliveries."""

from __future__ import annotations

from pathlib import Path

from stages.store.signing import KeyRing
from tests.fleet.labelled_texts import save_texts, texts
from tests.fleet.processes import chainctl
from tests.fleet.recipes import settings, write_recipe
from tests.fleet.signed import OFFICE, STRANGER

MARKUP = '<script>alert("{}")</script>'
HOSTILE_LABELS = (MARKUP.format("label"), "</style><img src=x onerror=alert(1)>")
HOSTILE_FOLDER = "<img src=x onerror=alert(2)>"
PHONES = ("phone-a", "phone-b")


def simulate(folder: Path, model: Path, name: str = "run", *options: object) -> Path:
    """Four devices, two of them in each of three rounds; `name` is that of the run folder."""
    data = save_texts(folder / "train.jsonl", texts(40))
    test = save_texts(folder / "test.jsonl", texts(10, seed=9))
    recipe = write_recipe(folder / "recipe.toml", settings(chain={"start": "foat", "cka_threshold": 1.0}))
    chainctl(
        *("simulate", "--model", model, "--data", data, "--test", test, "--recipe", recipe, "--devices", 4),
        *("--per-round", 2, "--rounds", 3, "--iid", "--memory-budget", "8GiB", "--out", folder / name, *options),
    )
    return folder / name


class SignedRun:
    """One closed round of two phones, of which one's update was signed by a stranger; then somebody left a folder.

    `run` is the coordinator's folder, `home` has its keys and pins.  Labels and the folder's name are hostile.
    """

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model, self.run, self.home = folder, model, folder / "office", folder / "home"

    def make(self) -> SignedRun:
        """Make it all, by the commands."""
        keys = KeyRing(self.home)
        for name in (OFFICE, STRANGER, *PHONES):
            keys.new(name)
        rows = [row | {"label": HOSTILE_LABELS[row["label"] == "root"]} for row in texts(12)]
        data = save_texts(self.folder / "data.jsonl", rows)
        chosen = settings(task={"labels": HOSTILE_LABELS}, federation={"max_update_norm": "auto", "quorum": 1})
        recipe = write_recipe(self.folder / "recipe.toml", chosen)
        for name in PHONES:
            out = self.folder / "profiles" / name
            self._run("profile", "--data", data, "--recipe", recipe, "--device", name, "--key", name, "--out", out)
        roster = "".join(f'[{name}]\nkey = "{keys.open(name).public}"\nmax_examples = 20\n' for name in PHONES)
        (self.folder / "roster.toml").write_text(roster)
        plan, states = self.run / "plan", self.run / "states"
        self._run(
            "plan",
            *(*(self.folder / "profiles" / name for name in PHONES), "--recipe", recipe, "--key", OFFICE),
            *("--roster", self.folder / "roster.toml", "--out", plan, "--state", states / "0000"),
        )
        updates = self.run / "updates" / "0000"
        begin = ("--plan", plan, "--state", states / "0000")
        for name in PHONES:
            self._run("train-window", *begin, "--data", data, "--device", name, "--key", name, "--out", updates / name)
        forged = updates / PHONES[1]
        (forged / "manifest.dsse.json").write_bytes(
            keys.open(STRANGER).envelope((forged / "manifest.json").read_bytes())
        )
        end = ("--key", OFFICE, "--out")
        chainctl("aggregate", updates, *begin, *end, states / "0001", home=self.home)
        for number in ("0000", "0001"):
            evaluated = ("--plan", plan, "--state", states / number, "--data", data)
            self._run("eval", *evaluated, *end, self.run / "evals" / number)
        hostile = self.run / "updates" / "0001" / HOSTILE_FOLDER
        hostile.mkdir(parents=True)
        (hostile / "manifest.json").write_text("{}")
        return self

    def _run(self, command: str, *arguments: object) -> None:
        budget = ("--memory-budget", "8GiB") if command in ("profile", "train-window") else ()
        chainctl(command, *arguments, "--model", self.model, *budget, home=self.home)
