"""What `status` says has arrived, whatever the names of devices and of what lies beside their updates."""

from pathlib import Path

import pytest

from tests import fleet
from tests.fleet import combine, make_update, make_world


@pytest.mark.parametrize("beside", ["nothing", "another device's", "a folder", "a file", "a dead link"])
@pytest.mark.parametrize("of_round", [False, True])
def test_a_name_that_looks_like_a_round_hides_no_update(beside: str, of_round: bool, tmp_path: Path) -> None:
    _, first = make_world(tmp_path, devices=("0003", "0007", "phone"))
    state = combine(tmp_path, [make_update(tmp_path / "first", first, "phone", seed=1)])
    updates = tmp_path / "updates"
    make_update(updates / "0001" / "phone" if of_round else updates / "phone", state, "phone", seed=1)
    planted = updates / "0007"
    if beside == "another device's":
        make_update(planted, state, "0007", seed=2)
    elif beside == "a folder":
        planted.mkdir()
    elif beside == "a file":
        planted.touch()
    elif beside == "a dead link":
        planted.symlink_to("nowhere")
    delivered = ["0007", "phone"] if beside == "another device's" else ["phone"]
    said = fleet.chainctl("status", tmp_path, check=False).stdout
    assert f"delivered  {', '.join(delivered)}\n" in said


def test_an_update_of_an_older_state_is_not_passed_over_in_silence(tmp_path: Path) -> None:
    _, first = make_world(tmp_path, devices=("a", "b"))
    old = make_update(tmp_path / "first", first, "a", seed=1)
    combine(tmp_path, [old])
    again = fleet.chainctl(
        *("aggregate", old, "--plan", tmp_path / "plan", "--state", tmp_path / "next", "--out", tmp_path / "third"),
        check=False,
    )
    assert again.returncode == 6
    assert "counted before  1 of earlier rounds" in again.stderr
