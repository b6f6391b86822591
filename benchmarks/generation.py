"""What writing a few texts costs: streamed, resident, and with accelerate's disk offload.

    python -m benchmarks.generation [--models DIR]

Random weights of TinyLlama-1.1B's size (bfloat16), 8 prompts of 64 tokens, 16 tokens each, greedy, one thread; each
arm a fresh process.  Chainctl writes every text twice, under a state and under the base model, in the same passes;
the peers write it once.  Writes benchmarks/results/generation.json and prints a table.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.harness import ROOT, Run, call, chainctl, markdown, random_model, run_arm, save, write_texts

LIKE, PROMPTS, LENGTH, NEW = "tinyllama-1.1b", 8, 64, 16
SETTINGS = {
    "task.kind": "causal-lm",
    "numerics.compute": "bfloat16",
    "numerics.threads": 1,
    "encoding.max_length": LENGTH,
    "chain.foresight": "adapters",
    "chain.start": 0,
    "chain.window_size": 2,
    "similarity.min_examples": 5,
    "similarity.max_examples": 5,
}


def main() -> None:
    """Measure every arm, or be one of the peers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=ROOT / "runs" / "models")
    parser.add_argument("--peer", choices=["resident", "disk"])
    options = parser.parse_args()
    model = random_model(LIKE, options.models)
    if options.peer:
        write_as_peer(model, disk=options.peer == "disk")
        return
    with tempfile.TemporaryDirectory(prefix="chainctl-generation-") as folder:
        runs = [*ours(model, Path(folder)), *(peer(options.models, name) for name in ("resident", "disk"))]
    rows = [run.row() | {"tokens": run.answer.get("tokens")} for run in runs]
    save("generation", {"like": LIKE, "prompts": PROMPTS, "length": LENGTH, "new": NEW, "runs": rows})
    print(
        markdown(("arm", "peak, MiB", "anonymous", "seconds"), [(r.name, r.peak, r.anonymous, r.seconds) for r in runs])
    )


def ours(model: Path, folder: Path) -> list[Run]:
    """With room, and with the smallest budget that chainctl names."""
    texts = write_texts(folder / "texts.jsonl", count=PROMPTS, length=LENGTH, vocabulary=30_000)
    settings = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
    call("profile", "--model", model, "--data", texts, "--device", "one", "--out", folder / "profile", *settings)
    outs = ("--out", folder / "plan", "--state", folder / "state")
    call("plan", folder / "profile", "--model", model, *outs, *settings)
    asks = ("--plan", folder / "plan", "--state", folder / "state", "--prompts", texts, "--max-new-tokens", NEW)
    command = chainctl("generate", "--model", model, *asks, "--before", "--json")
    refused = subprocess.run(
        [*command, "--memory-budget", "64MiB"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    smallest = json.loads(refused.stdout)["error"]["values"]["smallest budget that fits"].replace(" ", "")
    return [
        run_arm("chainctl generate, before and after", [*command, "--memory-budget", "16GiB"]),
        run_arm(f"the same, one prompt at a time, budget {smallest}", [*command, "--memory-budget", smallest]),
    ]


def peer(models: Path, name: str) -> Run:
    """transformers' own generate."""
    title = {"resident": "transformers, resident", "disk": "transformers, accelerate disk offload"}[name]
    return run_arm(title, [sys.executable, "-m", "benchmarks.generation", "--models", str(models), "--peer", name])


@torch.no_grad()
def write_as_peer(path: Path, *, disk: bool) -> None:
    """Load the model, resident or with every layer on disk, and write."""
    from benchmarks.peers import load

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="chainctl-offload-") as offload:
        model = load(path, "lm", disk=offload if disk else None)
        ids = (torch.arange(PROMPTS * LENGTH).view(PROMPTS, LENGTH) * 37) % 29_000 + 5
        began = time.perf_counter()
        written = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW,
            do_sample=False,
            eos_token_id=None,
            use_cache=True,
        )
    print(json.dumps({"tokens": written.shape[1] - LENGTH, "seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
