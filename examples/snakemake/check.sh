#!/usr/bin/env bash
# Runs the Snakefile as it would go on a machine that crashes: a dry run, a run that is killed in its first round, its
# continuation.  The last state has the same digest as that of `chainctl simulate` with the same recipe.
#
#   examples/snakemake/check.sh WORK [MODEL TRAIN TEST RECIPE]
#
# Without MODEL and the rest it downloads MiniLM and BBC news and trains two rounds of a few steps.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
work=${1:?usage: check.sh WORK [MODEL TRAIN TEST RECIPE]}
mkdir -p "$work"
work=$(cd "$work" && pwd)
if [ $# -ge 5 ]; then
  model=$2 train=$3 test=$4 recipe=$5
else
  chainctl assets get minilm bbc-news --json > "$work/assets.json"
  model=$(python3 -c 'import json,sys; print(json.load(open(sys.argv[1]))["minilm"])' "$work/assets.json")
  texts=$(python3 -c 'import json,sys; print(json.load(open(sys.argv[1]))["bbc-news"])' "$work/assets.json")
  chainctl data holdout "$texts" --drop-duplicates --out "$work/data"
  train=$work/data/train.jsonl test=$work/data/test.jsonl recipe=$work/recipe.toml
  chainctl recipe new "$recipe" --data "$train" --set encoding.max_length=48 --set head.form=mean --set optimizer.steps=5
fi
run=$work/run
mkdir -p "$run"
command=(snakemake --snakefile "$here/Snakefile" --directory "$run" --cores 2 --nolock --quiet all
  --config model="$model" train="$train" test="$test" recipe="$recipe" devices=3 rounds=2)

"${command[@]}" --dry-run
[ ! -e "$run/shards" ] # a dry run makes nothing

# Killed with all its jobs when the first update is there.
setsid "${command[@]}" & killed=$!
until [ -e "$run/updates/0000/device-00/manifest.json" ] || [ -e "$run/updates/0000/device-01/manifest.json" ] ||
  [ -e "$run/updates/0000/device-02/manifest.json" ]; do
  kill -0 "$killed" && sleep 0.2
done
kill -KILL -- "-$killed"
wait "$killed" || true
[ ! -e "$run/states/0001/manifest.json" ]

"${command[@]}" --rerun-incomplete
chainctl verify "$run"/plan "$run"/states/0* "$run"/updates/*/* "$run"/evals/*
chainctl log "$run/states/0002"

chainctl simulate --model "$model" --data "$train" --test "$test" --recipe "$recipe" --devices 3 --rounds 2 \
  --memory-budget 2GiB --out "$work/simulated"
cmp "$run/states/0002/manifest.json" "$work/simulated/states/0002/manifest.json"
echo "the same state: sha256:$(sha256sum "$run/states/0002/manifest.json" | cut -d' ' -f1)"
