"""Several repositories at the same time."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing

import pytest
from rich.console import Console

from selfplay.repositories import side_by_side
from selfplay.repositories.side_by_side import Doing, in_order

Report = Callable[[str], None]


def quiet() -> Console:
    return Console(file=io.StringIO())


def test_results_come_in_order_although_the_first_item_is_ready_last() -> None:
    second_is_done = threading.Event()

    def work(item: int, report: Report) -> int:
        if item == 1:
            assert second_is_done.wait(60), "the second item did not run beside the first"
        else:
            second_is_done.set()
        return 10 * item

    assert list(in_order([1, 2, 3], str, work, quiet(), jobs=2)) == [10, 20, 30]


def test_no_more_than_the_chosen_number_is_done_at_a_time() -> None:
    lock, running, most = threading.Lock(), 0, 0

    def work(item: int, report: Report) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1

    list(in_order(range(12), str, work, quiet(), jobs=3))
    assert most <= 3


def test_an_error_is_raised_in_its_turn_and_ends_the_rest() -> None:
    begun: list[int] = []

    def work(item: int, report: Report) -> int:
        begun.append(item)
        if item == 2:
            raise ValueError("the second one")
        return item

    seen = []
    with (
        pytest.raises(ValueError, match="the second one"),
        closing(in_order([1, 2, 3], str, work, quiet(), jobs=1)) as results,
    ):
        seen.extend(results)
    assert seen in ([], [1])
    assert threading.active_count() < 50


def test_nothing_to_do_gives_nothing() -> None:
    assert list(in_order([], str, lambda item, report: item, quiet())) == []


def test_progress_names_what_each_one_does() -> None:
    doing = Doing(3)
    doing.reporter("shop")("shop: baseline 1 of 3")
    doing.reporter("inn")("fetching")
    assert doing.texts() == ["0 of 3 repositories are prepared", "shop: baseline 1 of 3", "inn: fetching"]
    doing.ended("shop")
    assert doing.texts() == ["1 of 3 repositories are prepared", "inn: fetching"]


def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_by_side, "LINE_EVERY_S", 0.01)
    console = quiet()

    def work(item: str, report: Report) -> None:
        report("installing pytest [dev]")
        for _ in range(6000):
            if "installing" in console.file.getvalue():  # type: ignore[attr-defined]
                return
            time.sleep(0.01)

    list(in_order(["shop"], str, work, console))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "0 of 1 repositories are prepared; shop: installing pytest [dev]" in text


PROGRAM = """
import io, os, signal, sys, time
from rich.console import Console
from selfplay.repositories.side_by_side import in_order

signal.signal(signal.SIGINT, signal.default_int_handler)

def work(item, report):
    os.write(1, b"working\\n")  # print writes the end of the line apart, and another thread may come between
    time.sleep(1000)

try:
    list(in_order([1, 2], str, work, Console(file=io.StringIO())))
except KeyboardInterrupt:
    os.write(1, b"interrupted\\n")
    raise SystemExit(130)
"""


def test_an_interrupt_ends_the_process_while_threads_still_work() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "working\n"
            child.send_signal(signal.SIGINT)
            out, _ = child.communicate(timeout=120)
        finally:
            child.kill()
    assert "interrupted\n" in out  # not always at the end: the second thread may come to its line after it
    assert child.returncode == 130
