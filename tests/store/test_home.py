"""What is below a chainctl home survives commands that change it at the same time.

Each command is a process of its own, and all of them wait at a lock that the test holds: they begin together.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stages.store.home import locked_home
from tests import fleet

WRITER = (
    "import sys; from pathlib import Path\n"
    "from stages.store.home import locked_home\n"
    "home = Path(sys.argv[1])\n"
    "with locked_home(home):\n"
    "    count = home / 'count'\n"
    "    found = int(count.read_text()) if count.exists() else 0\n"
    "    count.write_text('')\n"
    "    count.write_text(str(found + 1))\n"
)


def python(*arguments: object) -> "subprocess.Popen[str]":
    command = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=fleet.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}
    )


def test_who_changes_a_home_is_alone(tmp_path: Path) -> None:
    home = tmp_path / "new" / "home"
    with locked_home(home):
        writers = [python("-c", WRITER, home) for _ in range(8)]
        with pytest.raises(subprocess.TimeoutExpired):
            writers[0].wait(timeout=1)
    errors = [writer.communicate()[1] for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * 8, errors
    assert (home / "count").read_text() == "8"
