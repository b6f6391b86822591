"""What a process weighs before it has done anything: imports, one after the other, with and without the diet.

python -m benchmarks.imports
"""

import json
import os
import subprocess
import sys

from benchmarks.harness import PINNED, ROOT, markdown, save

CHILD = """
import json, sys
from benchmarks.harness import read_status
import os
found = {"Python": read_status(os.getpid())["VmRSS"]}
if sys.argv[1] == "lean":
    from stages.process.footprint import prepare_process
    prepare_process()
else:
    import torch
    found["torch"] = read_status(os.getpid())["VmRSS"]
    import transformers.modeling_utils
found["torch and transformers"] = read_status(os.getpid())["VmRSS"]
import stages.train_window
found["the stage train-window"] = read_status(os.getpid())["VmRSS"]
from transformers.models.roberta.modeling_roberta import RobertaModel
found["a model class"] = read_status(os.getpid())["VmRSS"]
print(json.dumps(found))
"""


def main() -> None:
    found = {}
    for way in ("lean", "default"):
        run = subprocess.run(
            [sys.executable, "-c", CHILD, way], env=os.environ | PINNED, cwd=ROOT, capture_output=True, check=True
        )
        found[way] = json.loads(run.stdout)
    save("imports", found)
    rows = [(name, found["lean"].get(name, ""), size) for name, size in found["default"].items()]
    print(markdown(("resident after importing, MiB", "lean", "CHAINCTL_IMPORTS=default"), rows))


if __name__ == "__main__":
    main()
