"""Shows the progress of `selfplay train`: a live display in a terminal, plain lines anywhere else.

It counts the events that the orchestrator reports (`orchestrator.progress.Progress`). It saves nothing:
results are in the database and the metrics file.

Invariants: every method may be called from any thread, because events come from several. Text that it
receives is never read as markup, because it may quote a policy.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from selfplay.agent.observations import make_harmless
from selfplay.metrics import Value
from selfplay.orchestrator.progress import evaluation_time

PLAIN_INTERVAL_S = 30.0
ROLES = ("injector", "solver")


def duration_text(seconds: float) -> str:
    """Minutes and seconds as `4:05`, or hours as `1:02:03`."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def top_text(counts: Mapping[str, int], most: int = 3) -> str:
    """The `most` largest counts, equal ones by name: `parser 4, determinism 1, 2 more`."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rest = len(ordered) - most
    return ", ".join(f"{name} {count}" for name, count in ordered[:most]) + (
        f", {rest} more" if rest > 0 else ""
    )


class TrainProgress:
    """Counts what happens in a run and shows it. Use it as a context manager: it shows only while it is open.

    updates_total     updates of the whole run, those of earlier processes included
    done              how many of them were committed before this process started
    clock             seconds, as `time.monotonic` gives them
    plain_interval_s  seconds between two plain lines, where the console is not a terminal
    """

    def __init__(
        self,
        console: Console,
        updates_total: int,
        done: int = 0,
        clock: Callable[[], float] = time.monotonic,
        plain_interval_s: float = PLAIN_INTERVAL_S,
    ) -> None:
        self._console = console
        self._total = updates_total
        self._done = self._done_before = done
        self._clock = clock
        self._plain_interval_s = plain_interval_s
        # Never held while printing: the display's own thread takes it to render.
        self._lock = threading.Lock()
        self._started = clock()
        self._played_since: float | None = None
        self._phase = "starting"
        self._in_flight: Counter[str] = Counter()
        self._finished: Counter[str] = Counter()
        self._finishes: dict[str, Counter[str]] = {role: Counter() for role in ROLES}
        self._accepted = 0
        self._rejected: Counter[str] = Counter()
        self._attempts = self._repairs = 0
        self._tokens = 0
        self._rewards: dict[str, float] = {}
        self._evaluation = ""
        self._live: Live | None = None
        self._ended = threading.Event()
        self._ticker: threading.Thread | None = None

    def __enter__(self) -> TrainProgress:
        self._started = self._clock()
        if self._console.is_terminal:
            self._live = Live(self, console=self._console, refresh_per_second=4, transient=True)
            self._live.start()
        else:
            self._ticker = threading.Thread(target=self._tick, name="progress", daemon=True)
            self._ticker.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        if self._live is not None:
            self._live.stop()
        if self._ticker is not None:
            self._ticker.join()

    # -- events --------------------------------------------------------------------------------------

    def phase(self, name: str) -> None:
        with self._lock:
            changed, self._phase = name != self._phase, name
        if changed and self._live is None:
            self._print(Text(f"{self._position()}: {name}"))

    def episode_started(self, role: str) -> None:
        with self._lock:
            self._played_since = self._clock() if self._played_since is None else self._played_since
            self._in_flight[str(role)] += 1

    def episode_finished(self, role: str, finish: str) -> None:
        with self._lock:
            self._in_flight[str(role)] -= 1
            self._finished[str(role)] += 1
            self._finishes.setdefault(str(role), Counter())[str(finish)] += 1

    def artifact(self, accepted: bool, failed_check: str) -> None:
        with self._lock:
            if accepted:
                self._accepted += 1
            else:
                self._rejected[failed_check] += 1

    def attempt(self, passed: bool | None) -> None:
        """Count a graded repair. None means that the machine failed, and is not counted."""
        if passed is None:
            return
        with self._lock:
            self._attempts += 1
            self._repairs += passed

    def tokens(self, count: int) -> None:
        with self._lock:
            self._tokens += count

    def update_finished(self, update: int, row: Mapping[str, Value]) -> None:
        with self._lock:
            self._done = update
            for role in ROLES:
                reward = row.get(f"{role}/reward")
                if isinstance(reward, int | float):
                    self._rewards[role] = reward
        self._print_result(f"update {update}/{self._total} committed: {_row_text(row)}")

    def evaluating(self, done: int, total: int) -> None:
        with self._lock:
            self._evaluation = f"{done} of {total} attempts"

    def evaluated(self, update: int, row: Mapping[str, Value]) -> None:
        with self._lock:
            self._evaluation = ""
        self._print_result(f"evaluated {evaluation_time(update)}: {_evaluation_text(row)}")

    def message(self, text: str) -> None:
        """Print a line that stays on the screen."""
        self._print(Text(make_harmless(text), style="yellow" if self._live else ""))

    # -- the display ---------------------------------------------------------------------------------

    def lines(self) -> list[tuple[str, str]]:
        """The current state as (label, text): the rows of the live display, or the parts of a plain line."""
        with self._lock:
            now = self._clock()
            elapsed = now - self._started
            played = now - self._played_since if self._played_since is not None else 0.0
            episodes = []
            for role in ROLES:
                other = Counter({f: n for f, n in self._finishes[role].items() if f != "submitted"})
                ends = f" ({top_text(other, 2)})" if other else ""
                episodes.append(
                    f"{role} {self._in_flight[role]} in flight, {self._finished[role]} done{ends}"
                )
            reasons = f" ({top_text(self._rejected)})" if self._rejected else ""
            rate = f" ({self._repairs / self._attempts:.0%})" if self._attempts else ""
            rewards = ", ".join(f"{role} {value:+.2f}" for role, value in self._rewards.items())
            if self._evaluation:
                return [("evaluation", self._evaluation), ("time", f"{duration_text(elapsed)} elapsed")]
            speed = f"{self._tokens / played:,.0f} tokens/s, " if played >= 1 and self._tokens else ""
            return [
                ("episodes", " · ".join(episodes)),
                ("artifacts", f"{self._accepted} accepted, {self._rejected.total()} rejected{reasons}"),
                ("repairs", f"{self._repairs} of {self._attempts}{rate}"),
                *([("reward", rewards)] if rewards else []),
                ("time", f"{speed}{duration_text(elapsed)} elapsed{self._left(elapsed)}"),
            ]

    def _left(self, elapsed: float) -> str:
        """The time left, estimated from the updates that this process committed; "" before the first."""
        here = self._done - self._done_before
        remaining = self._total - self._done
        return f", about {duration_text(elapsed / here * remaining)} left" if here and remaining else ""

    def _position(self) -> str:
        return f"update {min(self._done + 1, self._total)}/{self._total}"

    def __rich__(self) -> Table:
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        with self._lock:
            position, phase, done = self._position(), self._phase, self._done
        head = Table.grid(padding=(0, 2))
        head.add_row(
            Text(phase, style="cyan"), ProgressBar(total=max(1, self._total), completed=done, width=24)
        )
        table.add_row(Text(position, style="bold"), head)
        for label, text in self.lines():
            table.add_row(label, Text(text))
        return table

    def _tick(self) -> None:
        while not self._ended.wait(self._plain_interval_s):
            with self._lock:
                head = f"{self._position()}: {self._phase}"
            self._print(Text(f"{head}; " + "; ".join(f"{label}: {text}" for label, text in self.lines())))

    def _print_result(self, text: str) -> None:
        self._print(Text(text, style="bold" if self._live else ""))

    def _print(self, text: Text) -> None:
        # In a log, one event is one line, however long. A terminal folds it.
        self._console.print(text, soft_wrap=self._live is None, highlight=False)


def _evaluation_text(row: Mapping[str, Value]) -> str:
    parts = []
    for mode, name in (("sampled", "sampled attempts"), ("greedy", "greedy ones")):
        rate, error = row.get(f"evaluation/{mode}/pass@1"), row.get(f"evaluation/{mode}/standard_error")
        if isinstance(rate, int | float):
            parts.append(
                f"{rate:.1%}"
                + (f" ± {100 * error:.1f}" if isinstance(error, int | float) and error else "")
                + f" of {name}"
            )
    repaired = f"{' and '.join(parts)} repaired" if parts else "no attempt was judged"
    seconds = row.get("seconds/evaluating")
    return repaired + (f", {duration_text(seconds)}" if isinstance(seconds, int | float) else "")


def _row_text(row: Mapping[str, Value]) -> str:
    parts = []
    for role in ROLES:
        reward = row.get(f"{role}/reward")
        if isinstance(reward, int | float):
            parts.append(f"{role} reward {reward:+.2f}")
    bugs, rate = row.get("curriculum/bugs"), row.get("curriculum/solve_rate")
    if isinstance(bugs, int | float):
        parts.append(
            f"{bugs:.0f} bug(s)" + (f" at solve rate {rate:.2f}" if isinstance(rate, int | float) else "")
        )
    parts.append("one optimiser step" if row.get("carried_gradient") else "no gradient, so no step")
    idle = [
        f"{name} {row[key]:.0%}"
        for name in ("trainer", "engine")
        if isinstance(row.get(key := f"idle/{name}"), int | float)
    ]
    if idle:
        parts.append(f"idle: {', '.join(idle)}")
    seconds = sum(
        value for key, value in row.items() if key.startswith("seconds/") and isinstance(value, int | float)
    )
    if seconds:
        parts.append(duration_text(seconds))
    return ", ".join(parts)
