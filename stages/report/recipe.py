"""Write a recipe for people: every setting, its value, and what it means."""

import json
from typing import Any

from pydantic import BaseModel

from schemas.settings import Settings

EXPLAINED = {
    "seed": "of everything that is drawn at random: fresh adapters, participants, order of texts",
    "task.kind": "text-classification or causal-lm",
    "task.text_column": "column of the text (JSONL, CSV, Parquet)",
    "task.label_column": "column of the label",
    "task.labels": "the label set; fixed by the plan, in this order",
    "prompt.format": "of causal-lm data: plain (the text column), alpaca (instruction, input, output), chat (messages)",
    "prompt.template": "auto: the model's chat template, Alpaca's where it has none; alpaca; or the SHA-256 of one",
    "prompt.learn": "which tokens are in the loss: response (of the assistant only), or all",
    "prompt.date": "what a chat template takes for today (strftime_now); the same on every device",
    "encoding.max_length": "tokens; longer texts are truncated; auto: what 99 % of all texts need, at most the model's",
    "encoding.padding_side": "right or left",
    "encoding.packing": "several texts share a row of max_length tokens (causal-lm); does not change gradients",
    "head.form": "transformers: the model's own classification head; mean: mean over tokens (sentence encoders)",
    "similarity.estimator": "of CKA: unbiased, or biased as in the paper (near 1 for few texts, whatever they are)",
    "similarity.kernel": "linear or rbf (median heuristic)",
    "similarity.pooling": "mean, first, last (one row per text) or tokens (one row per token)",
    "similarity.tokens": "all, or skip-first: leaves a decoder's attention sink out",
    "similarity.scale": "none, unit (each token to unit length), auto: unit for decoders",
    "similarity.reference": "compare layers with the embeddings, or with the first-layer",
    "similarity.max_examples": "most texts that a device profiles",
    "similarity.min_examples": "devices with fewer are left out of the curve",
    "chain.method": "chain; for full-adapters, linear-probe or no-ft delete the settings below: they are the chain's",
    "chain.start": "a layer; foat: first below the threshold; last: one window; auto: by passes, with adapters foat",
    "chain.cka_threshold": "T; the paper uses 0.9 for BERT-base, 0.8 for others",
    "chain.window_size": "Q; auto: as many layers as a round allows; with adapters, as fit the smallest memory budget",
    "chain.max_window": "bound for auto; auto: none; with adapters max(2, layers / 4)",
    "chain.advance": "every-round (DLCT), or on-convergence (with window_size 1: w/o DLCT)",
    "chain.patience": "on-convergence: rounds without improvement before the window moves",
    "chain.min_improvement": "on-convergence: what counts as improvement of the training loss",
    "chain.order": "of the windows: upwards or downwards; auto: downwards, with adapters upwards",
    "chain.stride": "layers from a window to the next; window: Q, so that none overlap; auto: window, with adapters 1",
    "chain.foresight": "what runs behind the window: layers (the true gradient), adapters (the paper's); auto: layers",
    "chain.local_weight": "of the loss at the window's end; auto: 1 with adapters, 0 with layers",
    "chain.global_weight": "λ (GPO); 0.0 is w/o GPO; auto: 0.2 with adapters (paper: 0.1 for BERT-base), 1 with layers",
    "adapter.reduction_factor": "bottleneck = hidden size / this; auto: 16, causal-lm 64; narrower by round_bytes",
    "adapter.activation": "relu, silu, gelu; auto: silu for decoders, relu for encoders",
    "optimizer.name": "adamw or sgd; state starts at zero in every round",
    "optimizer.learning_rate": "",
    "optimizer.round_decay": "round t trains at learning_rate · round_decay^t; 1.0 keeps it",
    "optimizer.weight_decay": "decoupled for adamw",
    "optimizer.momentum": "sgd only",
    "optimizer.schedule": "over rounds: constant (times round_decay^t), or cosine",
    "optimizer.schedule_rounds": "cosine: rounds until final_learning_rate",
    "optimizer.final_learning_rate": "cosine",
    "optimizer.steps": "per round, however many texts a device has; epochs: as many as its texts need",
    "optimizer.epochs": "passes over a device's texts per round",
    "optimizer.batch_size": "texts per step; gradients accumulate over its micro-batches",
    "optimizer.max_gradient_norm": "a longer gradient, over all that trains, is scaled down to it; or none",
    "numerics.compute": "of hidden states: float32, bfloat16, float16; auto: bfloat16 if stored and native, or float32",
    "numerics.micro_batch": "texts in memory at once; lowers the peak, does not change gradients",
    "numerics.threads": "of torch; part of what makes equal work equal to the bit",
    "federation.devices_per_round": "all, or a number drawn again each round",
    "federation.round_passes": "most passes of a text through layers in a step, forward and backward; none: no limit",
    "federation.round_bytes": "most bytes of the tensors that a device sends in a round; none: no limit",
    "federation.quorum": "accepted updates that close a round: a number, or all",
    "federation.strategy": "weighted-mean (FedAvg), coordinate-median, trimmed-mean, krum, multi-krum",
    "federation.trim_fraction": "trimmed-mean: share that is dropped at each end",
    "federation.assumed_malicious": "krum, multi-krum: f; needs 2 f + 3 updates",
    "federation.clip_norm": "longer differences are shortened to this norm; median: of the round's norms; none",
    "federation.max_update_norm": "longer differences are refused; auto: what AdamW cannot exceed; none",
    "federation.server_optimizer": "none, fedavgm, fedadam, fedyogi",
    "federation.server_learning_rate": "",
    "federation.server_momentum": "β₁",
    "federation.server_beta2": "fedadam, fedyogi",
    "federation.server_tau": "fedadam, fedyogi: smaller is more adaptive",
}


def write_recipe(settings: Settings) -> str:
    """TOML that parses back to `settings`."""
    lines = ["# Settings of a federation.  A setting that is left out has the value shown here.", ""]
    lines.append(_line("seed", "seed", settings.seed))
    for section, values in settings:
        if isinstance(values, BaseModel):
            lines += ["", f"[{section}]"]
            lines += [_line(f"{section}.{key}", key, value) for key, value in values]
    return "\n".join(lines) + "\n"


def _line(path: str, key: str, value: Any) -> str:
    text = f"{key} = {to_toml(value)}"
    explained = EXPLAINED.get(path)
    return f"{text:<36} # {explained}" if explained else text


def to_toml(value: Any) -> str:
    """Strings, numbers and lists of strings look the same in TOML as in JSON, but for DEL, which TOML escapes."""
    text = json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
    return text.replace("\x7f", "\\u007f")
