#!/usr/bin/env bash
# Trains the adapters of all layers of a LLaMA-2-7B-shaped language model, end to end, under a hard limit of the kernel
# (RLIMIT_DATA, no root): a profile, a plan, and one step of two texts.
# usage: examples/tight.sh FOLDER [LIMIT_MIB]
set -euo pipefail
folder=$1 limit=${2:-1536}
model=$folder/llama-2-7b
mkdir -p "$folder"
[ -e "$model" ] || chainctl model random --like llama-2-7b --out "$model"
python3 - "$folder/texts.jsonl" <<'P'
import json, sys
with open(sys.argv[1], "w") as file:
    for text in range(6):
        words = " ".join(f"w{4 + (text * 7919 + place * 31) % 31000}" for place in range(512))
        file.write(json.dumps({"text": words}) + "\n")
P
settings=(--set "task.kind='causal-lm'" --set encoding.max_length=512 --set numerics.micro_batch=1
          --set optimizer.batch_size=2 --set optimizer.steps=1 --set similarity.min_examples=5
          --set similarity.max_examples=5)
common=(--model "$model" --data "$folder/texts.jsonl" --device small)
# 100 MiB of the limit are for reserved stacks and arenas, which RLIMIT_DATA counts although they use no memory.
budget=$((limit - 100))MiB
chainctl profile "${common[@]}" "${settings[@]}" --memory-budget "$budget" --out "$folder/profile"
chainctl plan "$folder/profile" --model "$model" "${settings[@]}" --out "$folder/plan" --state "$folder/state"
prlimit --data="$((limit * 1024 * 1024))" \
    chainctl train-window "${common[@]}" --plan "$folder/plan" --state "$folder/state" \
    --memory-budget "$budget" --out "$folder/update" --force
