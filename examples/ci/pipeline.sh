#!/usr/bin/env bash
# Runs examples/ci/pipeline.toml: every stage is a job with its own workspace.  A job sees only what it needs: the
# artifacts of earlier jobs are copied in, and the artifacts that it makes are copied out.
#
#   examples/ci/pipeline.sh WORK [MODEL TRAIN TEST RECIPE]
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
work=${1:?usage: pipeline.sh WORK [MODEL TRAIN TEST RECIPE]}
mkdir -p "$work"
if [ $# -ge 5 ]; then
  export MODEL=$2 TRAIN=$3 TEST=$4 RECIPE=$5
else
  chainctl assets get minilm bbc-news --json > "$work/assets.json"
  MODEL=$(python3 -c 'import json,sys; print(json.load(open(sys.argv[1]))["minilm"])' "$work/assets.json")
  texts=$(python3 -c 'import json,sys; print(json.load(open(sys.argv[1]))["bbc-news"])' "$work/assets.json")
  work=$(cd "$work" && pwd)
  [ -d "$work/data" ] || chainctl data holdout "$texts" --drop-duplicates --out "$work/data"
  TRAIN=$work/data/train.jsonl TEST=$work/data/test.jsonl RECIPE=$work/recipe.toml
  [ -f "$RECIPE" ] || chainctl recipe new "$RECIPE" --data "$TRAIN"
  export MODEL TRAIN TEST RECIPE CHAINCTL_ENCODING_MAX_LENGTH=48 CHAINCTL_HEAD_FORM=mean
fi
python3 "$here/run_jobs.py" "$here/pipeline.toml" "$work"
