#!/usr/bin/env bash
# Three devices and a coordinator that share nothing but a USB stick: each sees only its own folder, and artifacts are
# copied between them by hand.  The final state has the same digest as that of `chainctl simulate` with the same
# recipe.
#
#   examples/sneakernet.sh WORK [MODEL TRAIN TEST RECIPE ROUNDS]
#
# Without MODEL and the rest it downloads MiniLM and BBC news and trains two rounds.
set -euo pipefail

work=${1:?usage: sneakernet.sh WORK [MODEL TRAIN TEST RECIPE ROUNDS]}
mkdir -p "$work"
work=$(cd "$work" && pwd)

if [ $# -ge 6 ]; then
  model=$2 train=$3 test=$4 recipe=$5 rounds=$6
else
  chainctl assets get minilm bbc-news --json > "$work/assets.json"
  model=$(python3 -c 'import json,sys; print(json.load(open(sys.argv[1]))["minilm"])' "$work/assets.json")
  texts=$(python3 -c 'import json,sys; print(json.load(open(sys.argv[1]))["bbc-news"])' "$work/assets.json")
  [ -d "$work/data" ] || chainctl data holdout "$texts" --drop-duplicates --out "$work/data"
  train=$work/data/train.jsonl test=$work/data/test.jsonl recipe=$work/recipe.toml rounds=2
  [ -f "$recipe" ] || chainctl recipe new "$recipe" --data "$train"
  export CHAINCTL_ENCODING_MAX_LENGTH=48 CHAINCTL_HEAD_FORM=mean
fi
export CHAINCTL_MEMORY_BUDGET=2GiB
devices="device-00 device-01 device-02"

# Each device gets its texts and, once, the base model and the recipe.  No other machine ever sees its texts.
[ -d "$work/shards" ] || chainctl data split "$train" --devices 3 --alpha 1.0 --seed 0 --out "$work/shards"
mkdir -p "$work/coordinator/profiles" "$work/coordinator/states"
for device in $devices; do
  mkdir -p "$work/$device"
  cp "$work/shards/$device.jsonl" "$work/$device/mine.jsonl"
  cp "$recipe" "$work/$device/recipe.toml"
done

# First round trip: profiles come in, plan and state 0 go out.
for device in $devices; do
  (cd "$work/$device" && chainctl profile --model "$model" --data mine.jsonl --recipe recipe.toml --device "$device" --out profile)
  rm -rf "$work/coordinator/profiles/$device"
  cp -r "$work/$device/profile" "$work/coordinator/profiles/$device"
done
cd "$work/coordinator"
chainctl plan profiles/* --model "$model" --recipe "$recipe" --out plan --state states/0000 --explain

# Every further round trip: the state goes out on the stick, updates come back.
for ((round = 0; round < rounds; round++)); do
  now=$(printf %04d "$round") next=$(printf %04d $((round + 1)))
  mkdir -p "updates/$now"
  for device in $devices; do
    rm -rf "$work/$device/plan" "$work/$device/state" "$work/$device/update"
    cp -r plan "$work/$device/plan"
    cp -r "states/$now" "$work/$device/state"
    (cd "$work/$device" && chainctl verify plan state --quiet && chainctl train-window --model "$model" \
      --plan plan --state state --data mine.jsonl --device "$device" --out update)
    rm -rf "updates/$now/$device"
    cp -r "$work/$device/update" "updates/$now/$device"
  done
  chainctl aggregate "updates/$now"/* --plan plan --state "states/$now" --out "states/$next"
done

last=$(printf %04d "$rounds")
chainctl eval --model "$model" --plan plan --state "states/$last" --data "$test" --out "evals/$last"
chainctl log "states/$last"
echo "final state sha256:$(sha256sum "states/$last/manifest.json" | cut -d' ' -f1)"
