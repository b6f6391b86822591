#!/usr/bin/env bash
# A signed federation over a USB stick: every machine has its own keys, everything travels in bundles, and a file that
# is swapped on the stick is refused.
#
#   examples/signed.sh WORK MODEL TRAIN TEST RECIPE
set -euo pipefail
work=${1:?usage: signed.sh WORK MODEL TRAIN TEST RECIPE}
model=$2 train=$3 test=$4 recipe=$5
mkdir -p "$work/stick"
work=$(cd "$work" && pwd)
export CHAINCTL_MEMORY_BUDGET=2GiB
devices="device-00 device-01"
as() { CHAINCTL_HOME="$work/$1/home" chainctl "${@:2}"; } # run a command as that machine

# Once, in person: each machine makes its own key; only public keys are exchanged.
as office keys new office --quiet
for device in $devices; do
  as "$device" keys new "$device" --quiet
  as "$device" trust add office "$(as office keys show office)" --quiet
  printf '[%s]\nkey = "%s"\nmax_examples = 1000\n' "$device" "$(as "$device" keys show "$device")" >> "$work/office/roster.toml"
done
chainctl data split "$train" --devices 2 --iid --out "$work/shards"

# Profiles come in, plan and state 0 go out.
for device in $devices; do
  as "$device" profile --model "$model" --data "$work/shards/$device.jsonl" --recipe "$recipe" --device "$device" \
    --key "$device" --out "$work/$device/$device"
  as "$device" bundle pack "$work/$device/$device" -o "$work/stick/$device.tar"
  as office bundle unpack "$work/stick/$device.tar" --into "$work/office/profiles"
done
as office plan "$work"/office/profiles/* --model "$model" --recipe "$recipe" --roster "$work/office/roster.toml" \
  --key office --expires 2090-01-01 --out "$work/office/plan" --state "$work/office/states/0000"
as office bundle pack "$work/office/plan" "$work/office/states/0000" -o "$work/stick/round-0.tar"

# Each device trains; on the way back somebody alters one byte of one bundle.
for device in $devices; do
  as "$device" bundle unpack "$work/stick/round-0.tar" --into "$work/$device/in"
  as "$device" train-window --model "$model" --plan "$work/$device/in/plan" --state "$work/$device/in/0000" \
    --data "$work/shards/$device.jsonl" --device "$device" --key "$device" --checkpoint-every 10 --out "$work/$device/updates/$device"
  as "$device" bundle pack "$work/$device/updates/$device" -o "$work/stick/update-$device.tar"
done
cp "$work/stick/update-device-01.tar" "$work/stick/altered.tar"
printf 'X' | dd of="$work/stick/altered.tar" bs=1 seek=9000 conv=notrunc status=none
if as office bundle unpack "$work/stick/altered.tar" --into "$work/office/updates/0000"; then exit 1; fi

as office bundle unpack "$work/stick/update-device-00.tar" --into "$work/office/updates/0000"
as office status "$work/office" || [ $? -eq 7 ] # waiting for device-01
as office bundle unpack "$work/stick/update-device-01.tar" --into "$work/office/updates/0000"
as office aggregate "$work/office/updates/0000" --plan "$work/office/plan" --state "$work/office/states/0000" \
  --quorum 2 --key office --out "$work/office/states/0001"
as office eval --model "$model" --plan "$work/office/plan" --state "$work/office/states/0001" --data "$test" \
  --key office --out "$work/office/evals/0001"
as office status "$work/office" || [ $? -eq 7 ]
