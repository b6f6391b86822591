#!/usr/bin/env bash
# Trains a window of a LLaMA-2-7B-shaped language model under a hard limit of the kernel (RLIMIT_DATA, no root).
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
          --set optimizer.batch_size=2 --set chain.window_size=2 --set chain.start=15 --set similarity.min_examples=5)
common=(--model "$model" --data "$folder/texts.jsonl" --device small)
# 100 MiB of the limit are for reserved stacks and arenas, which RLIMIT_DATA counts although they use no memory.
chainctl profile "${common[@]}" "${settings[@]}" --memory-budget "$((limit - 100))MiB" --out "$folder/profile"
chainctl plan "$folder/profile" --model "$model" "${settings[@]}" --out "$folder/plan" --state "$folder/state"
prlimit --data="$((limit * 1024 * 1024))" \
    chainctl train-window "${common[@]}" --plan "$folder/plan" --state "$folder/state" \
    --memory-budget "$((limit - 100))MiB" --out "$folder/update" --force
