"""Two thousand mutated artifacts; `just fuzz` takes a hundred thousand."""

import os
import subprocess
import sys

from tests.fleet import ROOT

INPUTS = os.environ.get("CHAINCTL_TEST_FUZZ", "2000")


def test_every_input_is_read_or_refused_and_none_takes_much_memory() -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--inputs", INPUTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert done.stdout.count("refused") == done.stdout.count("read")
