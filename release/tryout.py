"""An installed chainctl, tried as a new user would: a small federation on a model and texts of its own.

    PYTHON tryout.py OUT [--coordinator RUN]

PYTHON is that of the environment in which chainctl is installed.  This file imports nothing of the checkout, so it can
be copied anywhere.  `--coordinator` needs no torch: it does what a coordinator does, with the artifacts of a run that
was made elsewhere, and ends with the same state, to the digest.
"""

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
from importlib.metadata import entry_points, version
from pathlib import Path
from time import perf_counter

LABELS = {"harbour": ["wave", "salt", "moon", "gull"], "garden": ["soil", "leaf", "seed", "moss"]}
FILLER = ["the", "slow", "grey", "old", "near", "again"]
DEVICES = ("device-00", "device-01")
COMMAND = [sys.executable, "-I", "-c", "from chainctl.cli import main; main()"]
HELP_AT_MOST = 0.12  # of the time that `import torch` takes


def main() -> None:
    """Do it, and print a line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--coordinator", metavar="RUN", type=Path)
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True)
    os.chdir(out)
    found = first_look()
    if arguments.coordinator:
        found["state"] = close_round(arguments.coordinator.resolve(), out)
    else:
        found["state"] = federation(out)
        found["help as a share of importing torch"] = share = help_share()
        if share > HELP_AT_MOST:
            sys.exit(f"--help takes {share} of importing torch, expected at most {HELP_AT_MOST}")
    print(json.dumps(found))


def chainctl(*arguments: object) -> str:
    """Run a command; what it printed.  Raises `SystemExit` with its messages where it fails."""
    done = subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"chainctl {' '.join(map(str, arguments))}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def first_look() -> dict[str, object]:
    """The script on the path, `--version`, and the help of every command."""
    (script,) = entry_points(group="console_scripts", name="chainctl")
    assert script.value == "chainctl.cli:main", script
    told = chainctl("--version").split()[-1]
    if told != version("chainctl"):
        sys.exit(f"chainctl --version says {told}, the metadata {version('chainctl')}")
    chainctl("--help")
    for command in ("simulate", "profile", "plan", "train-window", "aggregate", "eval", "doctor", "export"):
        chainctl(command, "--help")
    return {"version": told, "python": sys.version.split()[0]}


def federation(out: Path) -> str:
    """The five stages with two devices, then the simulator; the digest of the state after the round."""
    save_model(out / "model")
    save_letters(out / "letters.csv")
    chainctl("model", "check", "model")
    chainctl("data", "columns", "letters.csv")
    chainctl("data", "holdout", "letters.csv", "--text-column", "Body", "--label-column", "Topic", "--out", "data")
    chainctl("data", "split", "data/train.jsonl", "--devices", len(DEVICES), "--iid", "--out", "shards")
    chainctl("recipe", "new", "recipe.toml", "--data", "data/train.jsonl", "--set", "encoding.max_length=16")
    chainctl("doctor", "--model", "model", "--recipe", "recipe.toml")
    with_recipe = ("--model", "model", "--recipe", "recipe.toml")
    for device in DEVICES:
        of_device = ("--data", f"shards/{device}.jsonl", "--device", device)
        chainctl("profile", *with_recipe, *of_device, "--out", f"profiles/{device}")
    profiles = [f"profiles/{device}" for device in DEVICES]
    chainctl("plan", *profiles, *with_recipe, "--out", "plan", "--state", "states/0000", "--explain")
    for device in DEVICES:
        of_device = ("--data", f"shards/{device}.jsonl", "--device", device)
        in_round = ("--model", "model", "--plan", "plan", "--state", "states/0000")
        chainctl("train-window", *in_round, *of_device, "--out", f"updates/{device}")
    state = close_round(out, out)
    scored = ("--model", "model", "--plan", "plan", "--state", "states/0001", "--data", "data/test.jsonl")
    chainctl("eval", *scored, "--out", "evals/0001")
    texts = ("--data", "data/train.jsonl", "--test", "data/test.jsonl")
    chainctl("simulate", *with_recipe, *texts, "--devices", 3, "--rounds", 1, "--out", "run")
    return state


def close_round(run: Path, out: Path) -> str:
    """What a coordinator does when the updates are in, without torch; the digest of the next state."""
    updates = [run / "updates" / device for device in DEVICES]
    chainctl("verify", run / "plan", run / "states/0000", *updates)
    now = ("--plan", run / "plan", "--state", run / "states/0000")
    chainctl("aggregate", *updates, *now, "--out", out / "states/0001")
    chainctl("log", out / "states/0001")
    return "sha256:" + hashlib.sha256((out / "states/0001/manifest.json").read_bytes()).hexdigest()


def save_model(folder: Path) -> None:
    """A tiny BERT with random weights and a word tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    words = ["[PAD]", "[CLS]", "[UNK]", *FILLER, *(word for group in LABELS.values() for word in group)]
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=64, **sizes)).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "[PAD]"}))


def save_letters(path: Path) -> None:
    """Sixty texts whose words give the label away, in columns with names of their own."""
    draw = random.Random(0)
    rows = ["Topic;Body"]
    for index in range(60):
        label = list(LABELS)[index % 2]
        words = [draw.choice(LABELS[label] if draw.random() < 0.6 else FILLER) for _ in range(8)]
        rows.append(f"{label};{' '.join(words)}")
    path.write_text("\n".join(rows) + "\n")


def help_share() -> float:
    """The time of `chainctl --help` as a share of that of importing torch: the least of five runs of each."""
    torch = [sys.executable, "-I", "-c", "import torch"]
    return round(least_seconds([*COMMAND, "--help"]) / least_seconds(torch), 3)


def least_seconds(command: list[str]) -> float:
    """The least of five runs."""
    taken = []
    for _ in range(5):
        start = perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        taken.append(perf_counter() - start)
    return min(taken)


if __name__ == "__main__":
    main()
