"""Work in a child that the system stops: results and errors come back, and what takes too much is ended."""

import os
import signal
from typing import Any

import pytest

from schemas.errors import BadInput
from stages.process import confined
from stages.process.confined import Limits, OverLimitError, limited_memory, map_confined, run_confined

TIGHT = Limits(seconds=1, extra_bytes=64 * 2**20)


class Unreadable(Exception):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)


def spin() -> None:
    while True:
        pass


def refuse() -> None:
    raise BadInput("no", values={"a": 1}, hint="go on")


def test_results_come_back_in_order_from_one_child() -> None:
    found = map_confined(lambda item: (item * 2, os.getpid()), [1, 2, 3])
    assert [value for value, _ in found] == [2, 4, 6]
    assert len({process for _, process in found}) == 1
    assert found[0][1] != os.getpid()


def work_for(seconds: float) -> float:
    before = os.times().user
    while os.times().user - before < seconds:
        pass
    return seconds


def test_more_items_have_more_time() -> None:
    assert map_confined(work_for, [0.3] * 6, Limits(seconds=1, seconds_each=0.5)) == [0.3] * 6


def test_one_item_may_take_long_and_not_every_one() -> None:
    limits = Limits(seconds=2, seconds_each=0.1)
    assert map_confined(work_for, [0.9, 0.0, 0.0], limits) == [0.9, 0.0, 0.0]
    with pytest.raises(OverLimitError, match="processor time"):
        map_confined(work_for, [0.9] * 8, limits)


def test_an_endless_loop_is_stopped_by_the_system() -> None:
    with pytest.raises(OverLimitError) as caught:
        map_confined(lambda item: spin() if item == 2 else item, [0, 1, 2, 3], TIGHT)
    assert (caught.value.resource, caught.value.index) == ("processor time", 2)


def test_waiting_for_ever_is_stopped_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confined, "WAITING", 1)
    with pytest.raises(OverLimitError) as caught:
        run_confined(signal.pause, TIGHT)
    assert caught.value.resource == "time"


@pytest.mark.parametrize("work", [lambda: bytes(2**33), lambda: "x" * 2**33, lambda: list(range(2**28))])
def test_what_needs_too_much_memory_is_stopped(work: Any) -> None:
    with pytest.raises(OverLimitError) as caught:
        run_confined(work, TIGHT)
    assert (caught.value.resource, caught.value.index) == ("memory", 0)


def test_a_child_that_the_system_ends_is_not_waited_for() -> None:
    with pytest.raises(OverLimitError):
        run_confined(lambda: os.kill(os.getpid(), signal.SIGKILL), TIGHT)


def test_refusals_come_back_whole() -> None:
    with pytest.raises(BadInput) as caught:
        run_confined(refuse)
    assert (caught.value.fact, caught.value.values, caught.value.hint) == ("no", {"a": 1}, "go on")


def test_an_exception_that_cannot_be_sent_is_named() -> None:
    def fail() -> None:
        raise Unreadable("text", "text")

    with pytest.raises(RuntimeError, match=r"^Unreadable$"):
        run_confined(fail)


def test_nothing_that_a_child_says_is_seen_and_no_child_is_left(capfd: pytest.CaptureFixture[str]) -> None:
    def speak() -> int:
        os.write(1, b"out")
        os.write(2, b"err")
        return os.getpid()

    child = run_confined(speak)
    assert capfd.readouterr() == ("", "")
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_memory_of_this_process_is_limited_in_a_block_and_not_after() -> None:
    with pytest.raises(MemoryError), limited_memory(64 * 2**20):
        bytearray(2**28)
    assert len(bytearray(2**28)) == 2**28
