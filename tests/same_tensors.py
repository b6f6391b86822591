"""Proof that a change of the code changes no tensor: the digests of many runs, before and after.

    python -m tests.same_tensors record before.json     # on the commit before
    python -m tests.same_tensors compare before.json    # on the commit after, on the same machine

Everything goes through the command line, so the two commits need nothing in common but that.  Digests are those of
tensors, not of artifacts: manifests may change, values may not.  They hold for one processor and one torch only.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM

from tests import fleet

STRATEGIES: dict[str, dict[str, Any]] = {
    "coordinate-median": {"strategy": "coordinate-median"},
    "trimmed-mean": {"strategy": "trimmed-mean"},
    "krum": {"strategy": "krum"},
    "multi-krum": {"strategy": "multi-krum"},
    "clipped": {"clip_norm": "median"},
    "fedavgm": {"server_optimizer": "fedavgm"},
    "fedadam": {"server_optimizer": "fedadam"},
    "fedyogi": {"server_optimizer": "fedyogi"},
}
CHAIN = ("--no-dlct", "--no-gpo", "--no-foat")
METHODS = ("full-adapters", "linear-probe", "no-ft")


def main() -> None:
    """Record digests, or compare with those that were recorded."""
    verb, file = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CHAINCTL_HOME"] = f"{folder}/home"
        found = digests(Path(folder))
    if verb == "record":
        Path(file).write_text(json.dumps(found, indent=1))
        print(f"{len(found)} tensors of {len({name.split('/')[0] for name in found})} runs")
        return
    before: dict[str, str] = json.loads(Path(file).read_text())
    different = sorted(name for name in before.keys() | found.keys() if before.get(name) != found.get(name))
    runs = sorted({name.split("/")[0] for name in different})
    print(f"{len(before)} tensors recorded, {len(found)} found, {len(different)} differ: {', '.join(runs) or 'none'}")
    print("\n".join(different[:20]))
    sys.exit(bool(different))


def digests(folder: Path) -> dict[str, str]:
    """`run/state/tensor` -> digest, for every run."""
    models = {"bert": folder / "bert", "llama": folder / "llama"}
    fleet.save_model(models["bert"], "bert", random_norms=False, num_hidden_layers=4)
    fleet.save_model(models["llama"], "llama", factory=AutoModelForCausalLM, random_norms=False, num_hidden_layers=4)
    fleet.save_texts(folder / "train.jsonl", fleet.texts(80))
    fleet.save_texts(folder / "test.jsonl", fleet.texts(12, seed=9))
    found: dict[str, str] = {}
    found |= simulated(folder, models["bert"], "chain")
    for switch in CHAIN:
        found |= simulated(folder, models["bert"], f"chain{switch}", switch)
    found |= simulated(folder, models["bert"], "foat", chain={"start": "foat", "cka_threshold": 0.9})
    found |= simulated(folder, models["bert"], "head", head={"form": "transformers"})
    found |= simulated(folder, models["bert"], "half", numerics={"compute": "bfloat16"})
    found |= simulated(folder, models["bert"], "left", encoding={"padding_side": "left"})
    for method in METHODS:
        found |= simulated(folder, models["bert"], method, "--method", method)
    for name, federation in STRATEGIES.items():
        found |= simulated(folder, models["bert"], name, federation=federation)
    language: dict[str, Any] = {"task": {"kind": "causal-lm", "labels": ()}, "head": {"form": "transformers"}}
    found |= simulated(folder, models["llama"], "language", **language)
    found |= simulated(folder, models["llama"], "language-full", "--method", "full-adapters", **language)
    packed: dict[str, Any] = language | {"encoding": {"packing": True, "max_length": 32}}
    found |= simulated(folder, models["llama"], "language-packed", **packed)
    steps: dict[str, Any] = {"steps": 3, "schedule": "cosine", "schedule_rounds": 40, "name": "sgd", "momentum": 0.9}
    found |= simulated(folder, models["llama"], "language-steps", optimizer=steps, **language)
    return found | by_hand(folder, models["bert"])


def simulated(folder: Path, model: Path, name: str, *switches: str, **sections: dict[str, Any]) -> dict[str, str]:
    """One simulation of five rounds."""
    federation = {"devices_per_round": 4, "quorum": 1} | dict(sections.get("federation", {}))
    chosen = fleet.settings(**{**sections, "federation": federation})
    recipe = fleet.write_recipe(folder / f"{name}.toml", chosen)
    _chainctl(
        *("simulate", "--model", model, "--data", folder / "train.jsonl", "--test", folder / "test.jsonl"),
        *("--recipe", recipe, "--devices", 6, "--rounds", 5, "--iid", "--memory-budget", "2GiB"),
        *("--out", folder / name, *switches),
    )
    return {
        f"{name}/{state.name}/{tensor}": digest
        for state in sorted((folder / name / "states").iterdir())
        if state.is_dir()
        for tensor, digest in _tensors(state).items()
    }


def by_hand(folder: Path, model: Path) -> dict[str, str]:
    """A narrow window, budgets from fast to small, and a training that was killed and resumed."""
    home = folder / "hand"
    recipe = fleet.write_recipe(folder / "hand.toml", fleet.settings(optimizer={"batch_size": 4, "epochs": 3}))
    data = folder / "train.jsonl"
    common = ("--model", model, "--recipe", recipe)
    profile = ("profile", *common, "--data", data, "--device", "one", "--memory-budget", "2GiB")
    _chainctl(*profile, "--out", home / "profile")
    _chainctl("plan", home / "profile", *common, "--out", home / "plan", "--state", home / "states" / "0000")
    train: tuple[object, ...] = (
        "train-window",
        "--model",
        model,
        "--plan",
        home / "plan",
        "--state",
        home / "states" / "0000",
    )
    train = (*train, "--data", data, "--device", "one")
    _chainctl(*train, "--out", home / "whole")
    _chainctl(*train, "--out", home / "narrow", "--window-size", 1)
    _chainctl(*train, "--out", home / "cached", "--cache-dir", home / "cache")
    _chainctl(*train, "--out", home / "cached-again", "--cache-dir", home / "cache")
    resumed = (*train, "--out", home / "resumed", "--checkpoint-every", 1)
    _kill_after_checkpoint(resumed, home / ".resumed.checkpoint" / "manifest.json")
    _chainctl(*resumed)
    for name, updates in (("both", ["whole"]), ("half", ["narrow"])):
        _chainctl(
            *("aggregate", *(home / update for update in updates), "--plan", home / "plan"),
            *("--state", home / "states" / "0000", "--out", home / name / "0001"),
        )
    names = ("whole", "narrow", "cached", "cached-again", "resumed", "both/0001", "half/0001")
    return {
        f"hand-{name.replace('/', '-')}/{tensor}": digest
        for name in names
        for tensor, digest in _tensors(home / name).items()
    }


def _kill_after_checkpoint(arguments: tuple[object, ...], checkpoint: Path) -> None:
    """Run a command in a process of its own, and kill it as soon as it has left a checkpoint."""
    process = subprocess.Popen([sys.executable, "-m", "chainctl", *map(str, arguments)], stdout=subprocess.DEVNULL)
    while process.poll() is None and not checkpoint.exists():
        pass
    process.kill()
    process.wait()


def _tensors(artifact: Path) -> dict[str, str]:
    manifest = json.loads((artifact / "manifest.json").read_bytes())
    return {tensor["name"]: tensor["sha256"] for tensor in manifest["tensors"]}


def _chainctl(*arguments: object) -> None:
    """The command line in this process: a start of torch for each of fifty commands is minutes."""
    from chainctl.cli import app

    app([*map(str, arguments), "--quiet"], standalone_mode=False)


if __name__ == "__main__":
    main()
