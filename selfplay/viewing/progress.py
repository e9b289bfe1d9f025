"""Shows the progress of `selfplay train`: a live display in a terminal, plain lines anywhere else.

It counts the events that the orchestrator reports (`orchestrator.progress.Progress`). It saves nothing:
results are in the database and the metrics file.

Invariants: every method may be called from any thread, because events come from several. Text that it
receives is never read as markup, because it may quote a policy.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.constrain import Constrain
from rich.text import Text

from selfplay.agent.observations import make_harmless
from selfplay.curriculum.store import Store
from selfplay.metrics import Value
from selfplay.orchestrator.progress import evaluation_time
from selfplay.viewing.live import ResizableLive

PLAIN_INTERVAL_S = 30.0
ROLES = ("injector", "solver")
# Columns of the live display. Terminals wrap what is wider when they are resized, and may keep a copy of it.
PANEL_WIDTH = 58
LABEL_WIDTH = len("evaluation")
BAR_WIDTHS = (4, 24)  # the least and the most


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


def fitted_text(counts: Mapping[str, int], room: int) -> str:
    """` (parser 4, 3 more)`: the largest counts that fit in so many columns; "" if none does."""
    texts = (f" ({top_text(counts, most)})" for most in (3, 2, 1) if counts)
    return next((text for text in texts if len(text) <= room), "")


@dataclass
class Counts:
    """What happened in a run: episodes by role and finish, artifacts, repairs, the last rewards.

    seconds: what the phases of earlier processes took.
    """

    finishes: dict[str, Counter[str]] = field(default_factory=lambda: {role: Counter() for role in ROLES})
    accepted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    attempts: int = 0
    repairs: int = 0
    rewards: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


def counts_so_far(store: Store) -> Counts:
    """What earlier processes of a run recorded."""
    counts = Counts()
    for row in store.episodes():
        counts.finishes.setdefault(row.role, Counter())[row.finish] += 1
    for verdict in store.verdicts():
        counts.accepted += verdict.accepted
        if not verdict.accepted:
            counts.rejected[verdict.failed_check] += 1
    graded = [attempt.passed for attempt in store.attempts() if attempt.passed is not None]
    counts.attempts, counts.repairs = len(graded), sum(graded)
    for update in store.updates():
        metrics = json.loads(update.metrics_json)
        counts.seconds += sum(_seconds(metrics).values())
        counts.rewards |= _rewards(metrics)
    return counts


class TrainProgress:
    """Counts what happens in a run and shows it. Use it as a context manager: it shows only while it is open.

    updates_total     updates of the whole run, those of earlier processes included
    done              how many of them were committed before this process started
    before            what earlier processes counted
    clock             seconds, as `time.monotonic` gives them
    plain_interval_s  seconds between two plain lines, where the console is not a terminal
    """

    def __init__(
        self,
        console: Console,
        updates_total: int,
        done: int = 0,
        before: Counts | None = None,
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
        self._counts = before if before is not None else Counts()
        self._tokens = 0
        self._evaluation = ""
        self._live: ResizableLive | None = None
        self._ended = threading.Event()
        self._ticker: threading.Thread | None = None

    def __enter__(self) -> TrainProgress:
        self._started = self._clock()
        if self._console.is_terminal:
            self._live = ResizableLive(self, self._console)
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
            self._counts.finishes.setdefault(str(role), Counter())[str(finish)] += 1

    def artifact(self, accepted: bool, failed_check: str) -> None:
        with self._lock:
            if accepted:
                self._counts.accepted += 1
            else:
                self._counts.rejected[failed_check] += 1

    def attempt(self, passed: bool | None) -> None:
        """Count a graded repair. None means that the machine failed, and is not counted."""
        if passed is None:
            return
        with self._lock:
            self._counts.attempts += 1
            self._counts.repairs += passed

    def tokens(self, count: int) -> None:
        with self._lock:
            self._tokens += count

    def update_finished(self, update: int, row: Mapping[str, Value]) -> None:
        with self._lock:
            self._done = update
            self._counts.rewards |= _rewards(row)
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
        """The current state as (label, text): the rows of the live display. None is wider than it."""
        with self._lock:
            now, counts = self._clock(), self._counts
            elapsed = now - self._started
            time_row = ("time", f"{duration_text(elapsed)} elapsed{self._left(elapsed)}")
            if self._evaluation:
                return [("evaluation", self._evaluation), time_row]
            played = now - self._played_since if self._played_since is not None else 0.0
            room = PANEL_WIDTH - 2 - max(LABEL_WIDTH, len(self._position()))
            rows = []
            for role in ROLES:
                other = Counter({f: n for f, n in counts.finishes[role].items() if f != "submitted"})
                text = f"{self._in_flight[role]} in flight, {counts.finishes[role].total()} done"
                rows.append((role, text + fitted_text(other, room - len(text))))
            text = f"{counts.accepted} accepted, {counts.rejected.total()} rejected"
            rows.append(("artifacts", text + fitted_text(counts.rejected, room - len(text))))
            rate = f" ({counts.repairs / counts.attempts:.0%})" if counts.attempts else ""
            rows.append(("repairs", f"{counts.repairs} of {counts.attempts}{rate}"))
            rewards = [f"{role} {counts.rewards[role]:+.2f}" for role in ROLES if role in counts.rewards]
            rows.append(("reward", ", ".join(rewards) or "–"))
            speed = f"{self._tokens / played:,.0f} tokens/s" if played >= 1 and self._tokens else "–"
            rows.append(("speed", speed))
            if counts.seconds:
                rows.append(("earlier", f"{duration_text(counts.seconds)} in earlier processes"))
            return [*rows, time_row]

    def _left(self, elapsed: float) -> str:
        """The time left, estimated from the updates that this process committed; "" before the first."""
        here = self._done - self._done_before
        remaining = self._total - self._done
        return f", about {duration_text(elapsed / here * remaining)} left" if here and remaining else ""

    def _position(self) -> str:
        return f"update {min(self._done + 1, self._total)}/{self._total}"

    def __rich__(self) -> Constrain:
        with self._lock:
            position, phase, done = self._position(), self._phase, self._done
        width = max(LABEL_WIDTH, len(position))
        head = Text.assemble((position.ljust(width), "bold"), "  ", (phase, "cyan"))
        if (room := PANEL_WIDTH - len(head.plain) - 2) >= BAR_WIDTHS[0]:  # a long phase takes its place
            bar = min(room, BAR_WIDTHS[1])
            filled = bar * done // max(1, self._total)
            head.append("  ").append("━" * filled, "green").append("─" * (bar - filled), "dim")
        rows = [Text.assemble((label.ljust(width), "dim"), "  ", text) for label, text in self.lines()]
        for row in (head, *rows):
            row.no_wrap, row.overflow = True, "ellipsis"
        return Constrain(Group(head, *rows), PANEL_WIDTH)

    def plain_line(self) -> str:
        """The current state in one line of a log, short enough for 120 columns. What is zero is left out."""
        with self._lock:
            counts, elapsed = self._counts, self._clock() - self._started
            head = f"{self._position()}, {self._phase}"
            flying = sum(self._in_flight.values())
            done = sum(finishes.total() for finishes in counts.finishes.values())
            judged = counts.accepted + counts.rejected.total()
            parts = [f"{flying} in play, {done} done"] if flying or done else []
            parts += [f"{counts.accepted} of {judged} artifacts accepted"] if judged else []
            parts += [f"{counts.repairs} of {counts.attempts} repairs pass"] if counts.attempts else []
            if self._evaluation:
                parts = [self._evaluation]
            left = self._left(elapsed).removeprefix(", about ")
            return f"{head}: {'; '.join([*parts, duration_text(elapsed)])}{f', {left}' if left else ''}"

    def _tick(self) -> None:
        while not self._ended.wait(self._plain_interval_s):
            self._print(Text(self.plain_line()))

    def _print_result(self, text: str) -> None:
        self._print(Text(text, style="bold" if self._live else ""))

    def _print(self, text: Text) -> None:
        if self._live is not None:  # a terminal folds a long line
            self._live.print_above(text)
        else:  # in a log, one event is one line, however long
            self._console.print(text, soft_wrap=True, highlight=False)


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


def _rewards(row: Mapping[str, Value]) -> dict[str, float]:
    """Role -> mean reward, as far as the metrics of an update have it."""
    found = {role: row.get(f"{role}/reward") for role in ROLES}
    return {role: value for role, value in found.items() if isinstance(value, int | float)}


def _seconds(row: Mapping[str, Value]) -> dict[str, float]:
    """seconds/<phase> -> seconds, of the metrics of an update."""
    return {
        name: value
        for name, value in row.items()
        if name.startswith("seconds/") and isinstance(value, int | float)
    }


def _row_text(row: Mapping[str, Value]) -> str:
    parts = [f"{role} reward {reward:+.2f}" for role, reward in _rewards(row).items()]
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
    if seconds := sum(_seconds(row).values()):
        parts.append(duration_text(seconds))
    return ", ".join(parts)
