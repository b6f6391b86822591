"""A coordinator's environment may be without torch: what reads artifacts works there, the rest says what is missing."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests import fleet
from tests.fleet.signed import SignedFederation

WITHOUT = """
import sys
sys.modules |= {"torch": None, "transformers": None}
from chainctl.cli import main
main()
"""


def run_without(*arguments: object) -> fleet.Done:
    command = [sys.executable, "-c", WITHOUT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=fleet.ROOT)


@pytest.fixture
def signed(tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> SignedFederation:
    monkeypatch.setenv("CHAINCTL_HOME", str(tmp_path / "run" / "home"))
    (tmp_path / "run").mkdir()
    return SignedFederation(tmp_path / "run", tiny_bert).make()


def test_every_artifact_is_described_without_torch(signed: SignedFederation) -> None:
    for name in ("profiles/phone", "plan", "states/0001", "updates/phone", "evals/0001"):
        done = run_without("inspect", signed.folder / name)
        assert (done.returncode, done.stderr) == (0, ""), name


def test_a_run_is_reported_without_torch(signed: SignedFederation, tmp_path: Path) -> None:
    done = run_without("report", signed.folder, "-o", tmp_path / "report.html")
    assert (done.returncode, done.stderr) == (0, "")
    assert b"</html>" in (tmp_path / "report.html").read_bytes()


def test_what_runs_a_model_says_that_torch_is_missing(tiny_bert: Path) -> None:
    done = run_without("model", "info", tiny_bert)
    assert done.returncode == 3
    assert "is not installed here" in done.stderr
    assert "bug" not in done.stderr
