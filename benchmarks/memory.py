"""Peak memory of one train-window against full adapters on the resident model.

    python benchmarks/memory.py [--texts 16] [--repeats 2]

RoBERTa-large-sized random weights, batch 8, sequence 256, Q = 2, AdamW, float32.  Each arm is a fresh process, the
arms take turns, and glibc's malloc is pinned (MALLOC_MMAP_THRESHOLD_ = MALLOC_TRIM_THRESHOLD_ = 128 KiB,
MALLOC_ARENA_MAX = 1) in both.  Peak is VmHWM as the operating system reports it; beside it the largest RssAnon sampled
every 20 ms.  Prints a Markdown table and writes benchmarks/results/memory.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SEQUENCE = 256
BATCH = 8
PINNED = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_ARENA_MAX": "1"}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--texts", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--arm", choices=["full"], help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.arm:
        full_adapters(arguments.model, arguments.texts)
        return
    with tempfile.TemporaryDirectory(prefix="chainctl-bench-") as folder:
        compare(Path(folder), arguments.texts, arguments.repeats)


def compare(folder: Path, texts: int, repeats: int) -> None:
    """Run both arms in turn and print the table."""
    model = folder / "model"
    make_model(model)
    window = prepare_chain(folder, model, texts)
    full = [sys.executable, __file__, "--arm", "full", "--model", str(model), "--texts", str(texts)]
    rows: list[dict[str, object]] = []
    for repeat in range(repeats):
        command = [*window, "--out", str(folder / f"update-{repeat}")]
        rows.append(run_arm("chainctl train-window, Q = 2", command) | {"repeat": repeat})
        rows[-1]["predicted_mib"] = predicted_mib(folder / f"update-{repeat}")
        rows.append(run_arm("full adapters, resident", full) | {"repeat": repeat})
    results = ROOT / "benchmarks" / "results"
    results.mkdir(exist_ok=True)
    (results / "memory.json").write_text(json.dumps(rows, indent=2) + "\n")
    print(f"| arm | peak VmHWM, MiB | RssAnon, MiB | seconds |\n|---|---|---|---|")  # noqa: F541
    for row in rows:
        print(f"| {row['arm']} | {row['peak_mib']} | {row['anonymous_mib']} | {row['seconds']} |")
    chain, resident = (
        max(int(str(row["peak_mib"])) for row in rows if str(row["arm"]).startswith(name))
        for name in ("chainctl", "full")
    )
    print(f"\nratio {resident / chain:.1f}, predicted {rows[0]['predicted_mib']} MiB for the chain")


def run_arm(name: str, command: list[str]) -> dict[str, object]:
    """One fresh process: VmHWM at its end and the largest RssAnon seen, in MiB."""
    environment = os.environ | PINNED | {"PYTHONPATH": str(ROOT)}
    began = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    peak = anonymous = 0
    while process.poll() is None:
        status = read_status(process.pid)
        peak, anonymous = max(peak, status.get("VmHWM", 0)), max(anonymous, status.get("RssAnon", 0))
        time.sleep(0.02)
    if process.returncode:
        sys.exit(f"{name} failed with exit code {process.returncode}")
    seconds = round(time.perf_counter() - began, 1)
    return {"arm": name, "peak_mib": peak // 1024, "anonymous_mib": anonymous // 1024, "seconds": seconds}


def read_status(pid: int) -> dict[str, int]:
    """VmHWM and RssAnon of a process, in KiB."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return {name: int(fields[name].split()[0]) for name in ("VmHWM", "RssAnon") if name in fields}


def make_model(directory: Path) -> None:
    """Random RoBERTa-large weights and a word tokenizer, made in a process of their own."""
    script = f"""
import json, torch
from pathlib import Path
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import RobertaConfig, RobertaModel
directory = Path({str(directory)!r})
torch.manual_seed(0)
config = RobertaConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096,
                       vocab_size=50265, max_position_embeddings=514, type_vocab_size=1)
RobertaModel(config).save_pretrained(directory)
words = {{f"w{{i}}": i for i in range(config.vocab_size)}}
tokenizer = Tokenizer(models.WordLevel(words, unk_token="w3"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer.save(str(directory / "tokenizer.json"))
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def prepare_chain(folder: Path, model: Path, texts: int) -> list[str]:
    """Texts, profile, plan and state 0; the train-window command, which trains the middle window."""
    rows = [{"text": text(index), "label": "ab"[index % 2]} for index in range(texts)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ["task.labels=['a', 'b']", f"encoding.max_length={SEQUENCE}", "chain.window_size=2", "chain.start=12"]
    settings += ["numerics.micro_batch=1", f"optimizer.batch_size={BATCH}", "similarity.min_examples=5"]
    flags = [part for setting in settings for part in ("--set", setting)]
    base = ["--model", str(model)]
    data = ["--data", str(folder / "data.jsonl"), "--device", "bench"]
    chainctl("profile", *base, *data, *flags, "--memory-budget", "2GiB", "--out", str(folder / "profile"))
    plan = ["--out", str(folder / "plan"), "--state", str(folder / "state")]
    chainctl("plan", str(folder / "profile"), *base, *flags, *plan)
    made = ["--plan", str(folder / "plan"), "--state", str(folder / "state")]
    return [sys.executable, "-m", "chainctl", "train-window", *base, *data, *made]


def chainctl(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "chainctl", *arguments, "--quiet"], check=True, cwd=ROOT)


def text(seed: int) -> str:
    """As many words as the sequence holds."""
    return " ".join(f"w{4 + (seed * 7919 + position * 31) % 50000}" for position in range(SEQUENCE))


def predicted_mib(update: Path) -> int:
    measured = json.loads((update / "measured.json").read_text())
    return int(measured["predicted_peak_bytes"]) // 2**20


def full_adapters(directory: Path, texts: int) -> None:
    """The same adapters on every layer, end to end, as people run it: the whole model resident."""
    import numpy as np
    import torch
    from transformers import AutoModelForSequenceClassification

    from schemas.settings import EncodingSettings, OptimizerSettings
    from stages.data.encode import Encoder, pad_batch
    from stages.model.adapters import adapters_from_tensors, fresh_adapters
    from stages.model.optimizer import Optimizer
    from stages.model.skeleton import find_layers

    torch.set_num_threads(2)
    model = AutoModelForSequenceClassification.from_pretrained(directory, num_labels=2).eval().requires_grad_(False)
    tensors = fresh_adapters(range(24), hidden_size=1024, bottleneck=64, seed=0)
    adapters = adapters_from_tensors(tensors, "relu")
    parameters = [value.requires_grad_() for adapter in adapters.values() for value in adapter.parameters()]
    parameters += [value.requires_grad_() for value in model.classifier.parameters()]
    for index, layer in enumerate(find_layers(model)[1]):
        layer.register_forward_hook(lambda _module, _inputs, output, index=index: adapters[index](output))
    optimizer = Optimizer(parameters, OptimizerSettings())
    encoder = Encoder.load(directory, EncodingSettings(max_length=SEQUENCE))
    rows = encoder.encode([text(index) for index in range(texts)])
    for first in range(0, texts, BATCH):
        ids, mask = pad_batch(rows[first : first + BATCH], pad_id=1, side="right")
        targets = torch.from_numpy(np.arange(len(ids)) % 2)
        logits = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).logits
        torch.nn.functional.cross_entropy(logits, targets).backward()
        optimizer.step()


if __name__ == "__main__":
    main()
