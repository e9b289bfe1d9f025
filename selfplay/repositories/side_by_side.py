"""Does slow work for several repositories at the same time, and shows on the console what each one does.

It knows nothing of the work. Invariants: results come in the order of the items, whichever is ready first. An
interrupt ends the process at once: threads that still work end with it, and their sandboxes with them.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from selfplay.runtime.cores import usable_cores

MOST = 8  # at a time, whatever the number of cores: each may take as much memory as a sandbox
LINE_EVERY_S = 30.0  # where the console is no terminal
ROWS = 8  # of the live display

Item = TypeVar("Item")
Result = TypeVar("Result")
Report = Callable[[str], None]


class Doing:
    """What is being done, by name. Thread-safe. The live display renders it."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._now: dict[str, str] = {}
        self._lock = threading.Lock()

    def reporter(self, name: str) -> Report:
        """A function that shows its text as what `name` does."""

        def report(text: str) -> None:
            with self._lock:
                self._now[name] = text

        report("starting")
        return report

    def ended(self, name: str) -> None:
        with self._lock:
            self._now.pop(name, None)
            self._done += 1

    def texts(self) -> list[str]:
        """How many are done, then a line for each one that is being done."""
        with self._lock:
            running = [
                text if text.startswith(f"{name}:") else f"{name}: {text}" for name, text in self._now.items()
            ]
            return [f"{self._done} of {self._total} repositories are prepared", *running]

    def __rich__(self) -> Table:
        table = Table.grid()
        for text in self.texts()[: ROWS + 1]:
            table.add_row(Text(text, no_wrap=True, overflow="ellipsis"))
        return table


def in_order(
    items: Sequence[Item],
    name: Callable[[Item], str],
    work: Callable[[Item, Report], Result],
    console: Console,
    jobs: int = 0,
) -> Generator[Result, None, None]:
    """Do the work for all items, `jobs` at a time (0: as many as there are cores), and yield the results in
    order. Raises what `work` raised, in its turn; then no more items are begun.

    work: takes an item and a function for a line of progress.
    """
    if not items:
        return
    doing = Doing(len(items))
    waiting: queue.SimpleQueue[tuple[Item, Future[Result]]] = queue.SimpleQueue()
    futures: list[Future[Result]] = [Future() for _ in items]
    for item, future in zip(items, futures, strict=True):
        waiting.put((item, future))
    stopped = threading.Event()

    def run() -> None:
        while not stopped.is_set():
            try:
                item, future = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                future.set_result(work(item, doing.reporter(name(item))))
            except BaseException as error:  # it is raised where the result is wanted
                future.set_exception(error)
            doing.ended(name(item))

    with _shown(doing, console):
        for number in range(min(jobs or min(usable_cores(), MOST), len(items))):
            threading.Thread(target=run, name=f"prepare-{number}", daemon=True).start()
        try:
            for future in futures:
                yield future.result()
        finally:
            stopped.set()


@contextmanager
def _shown(doing: Doing, console: Console) -> Iterator[None]:
    """Show what is being done: live in a terminal, now and then as a line elsewhere."""
    if console.is_terminal:
        with Live(doing, console=console, refresh_per_second=4, transient=True):
            yield
        return
    ended = threading.Event()

    def tick() -> None:
        while not ended.wait(LINE_EVERY_S):
            console.print("; ".join(doing.texts()), markup=False, highlight=False, soft_wrap=True)

    ticker = threading.Thread(target=tick, name="preparing", daemon=True)
    ticker.start()
    try:
        yield
    finally:
        ended.set()
        ticker.join()
