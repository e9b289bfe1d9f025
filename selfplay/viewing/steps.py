"""Shows how much of a piece of work is done: a bar in a terminal, plain lines anywhere else.

For work that counts its own steps. `progress` shows a run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from selfplay.agent.observations import make_harmless

PLAIN_INTERVAL_S = 5.0


class StepProgress:
    """Shows the newest report. Use it as a context manager: the bar goes when it ends.

    The first report of each kind of work is shown at once. Plain lines follow every `plain_interval_s`.
    """

    def __init__(
        self,
        console: Console,
        clock: Callable[[], float] = time.monotonic,
        plain_interval_s: float = PLAIN_INTERVAL_S,
    ) -> None:
        self._console = console
        self._clock = clock
        self._plain_interval_s = plain_interval_s
        self._what = ""
        self._shown_at = 0.0
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> StepProgress:
        if self._console.is_terminal:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=12),
                TextColumn("{task.fields[count]}", markup=False),
                TimeElapsedColumn(),
            )
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def report(self, what: str, done: int, total: int, limit: str = "of") -> None:
        """Show that `done` of `total` steps are done; total 0: not known yet.

        limit: the words between the two, "of" or "of at most"
        """
        is_new = what != self._what
        self._what = what
        count = f"{done:,} {limit} {total:,}" if total else ""
        if self._bar is not None:
            if is_new:
                for task in self._bar.task_ids:
                    self._bar.remove_task(task)
                self._task = self._bar.add_task(make_harmless(what), total=total or None, count=count)
            self._bar.update(self._task, completed=done, total=total or None, count=count)
            return
        now = self._clock()
        if is_new or now - self._shown_at >= self._plain_interval_s:
            self._shown_at = now
            text = f"{what}: {count}" if count else what
            self._console.print(Text(make_harmless(text)), soft_wrap=True, highlight=False)
