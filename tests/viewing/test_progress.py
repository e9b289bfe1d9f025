import io
import threading

import pytest
from rich.console import Console
from rich.text import Text

from selfplay.curriculum.store import Store
from selfplay.viewing.live import ResizableLive
from selfplay.viewing.progress import TrainProgress, counts_so_far, duration_text, top_text
from store_rows import recorded_run


def a_console(width: int = 80, terminal: bool = False) -> Console:
    return Console(
        file=io.StringIO(), width=width, force_terminal=terminal, color_system=None, legacy_windows=False
    )


def printed(console: Console) -> str:
    return console.file.getvalue()


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def played(progress: TrainProgress) -> None:
    progress.phase("injecting")
    for finish in ("submitted", "max_turns"):
        progress.episode_started("injector")
        progress.episode_finished("injector", finish)
    progress.episode_started("solver")
    progress.artifact(True, "")
    progress.artifact(False, "parser")
    progress.attempt(True)
    progress.attempt(False)
    progress.attempt(None)


def test_progress_counts_reported_events():
    clock = Clock()
    progress = TrainProgress(a_console(), 4, clock=clock)
    played(progress)
    progress.tokens(500)
    clock.now = 100.0
    progress.update_finished(1, {"injector/reward": -0.5, "carried_gradient": True})
    lines = dict(progress.lines())
    assert lines["injector"] == "0 in flight, 2 done (max_turns 1)"
    assert lines["solver"] == "1 in flight, 0 done"
    assert lines["artifacts"] == "1 accepted, 1 rejected (parser 1)"
    assert lines["repairs"] == "1 of 2 (50%)"
    assert lines["reward"] == "injector -0.50"
    assert (lines["speed"], lines["time"]) == ("5 tokens/s", "1:40 elapsed, about 5:00 left")


def test_time_left_counts_only_updates_of_this_process():
    clock = Clock()
    progress = TrainProgress(a_console(), 10, done=7, clock=clock)
    clock.now = 60.0
    assert "left" not in dict(progress.lines())["time"]
    progress.update_finished(8, {})
    assert dict(progress.lines())["time"].endswith("about 2:00 left")


def test_a_resumed_run_goes_on_counting_where_the_last_process_ended(tmp_path):
    recorded_run(tmp_path / "run")
    clock = Clock()
    with Store.open(tmp_path / "run" / "selfplay.db") as store:
        store.begin_update(3)
        store.set_update_metrics(3, '{"seconds/solving": 19.0}')
        progress = TrainProgress(a_console(), 4, 2, counts_so_far(store), clock=clock)
    clock.now = 40.0
    lines = dict(progress.lines())
    assert (lines["injector"], lines["solver"]) == ("0 in flight, 5 done", "0 in flight, 4 done")
    assert lines["artifacts"] == "2 accepted, 3 rejected (parser 2, 1 more)"
    assert lines["repairs"] == "1 of 3 (33%)"
    assert lines["reward"] == "injector -0.40, solver +0.25"
    assert (lines["earlier"], lines["time"]) == ("5:20 in earlier processes", "0:40 elapsed")
    progress.artifact(True, "")
    assert dict(progress.lines())["artifacts"].startswith("3 accepted")


def test_a_terminal_that_became_narrower_is_cleared_of_the_whole_display():
    console = a_console(width=80, terminal=True)
    live = ResizableLive(Text("x" * 70 + "\n" + "y" * 30), console)
    with live:
        live.refresh()
        assert erased_rows(console, live) == 2
        console.width = 40  # 70 columns take 2 rows now; a terminal wraps both lines at their full width
        assert erased_rows(console, live) == 3
        assert erased_rows(console, live) == 3


def erased_rows(console: Console, live: ResizableLive) -> int:
    """Rows that a refresh erases."""
    console.file.seek(0)
    console.file.truncate()
    live.refresh()
    return printed(console).count("\x1b[2K")


def test_without_a_terminal_progress_is_plain_lines():
    console = a_console()
    with TrainProgress(console, 2) as progress:
        played(progress)
        progress.message("machine failure: \x1b[2J [bold]no sandbox[/bold]")
        progress.update_finished(1, {"solver/reward": 1.0, "seconds/solving": 65.0})
    lines = printed(console).splitlines()
    assert lines == [
        "update 1/2: injecting",
        r"machine failure: \x1b[2J [bold]no sandbox[/bold]",
        "update 1/2 committed: solver reward +1.00, no gradient, so no step, 1:05",
    ]


def test_without_a_terminal_a_line_comes_periodically():
    console = a_console()
    with TrainProgress(console, 2, plain_interval_s=0.01) as progress:
        progress.phase("solving")
        for _ in range(6000):  # up to a minute, for a busy machine
            if "solving: 0:0" in printed(console):
                break
            threading.Event().wait(0.01)
    assert "update 1/2, solving: 0:0" in printed(console)


def test_a_line_of_a_log_is_a_short_sentence_at_any_count():
    clock = Clock()
    progress = TrainProgress(a_console(), 60, clock=clock)
    assert progress.plain_line() == "update 1/60, starting: 0:00"
    played(progress)
    assert progress.plain_line() == (
        "update 1/60, injecting: 1 in play, 2 done; 1 of 2 artifacts accepted; 1 of 2 repairs pass; 0:00"
    )
    for _ in range(1000):
        played(progress)
    progress.phase("second order")
    clock.now = 7500.0
    progress.update_finished(12, {})
    line = progress.plain_line()
    assert len(line) <= 140 and line.endswith("; 2:05:00, 8:20:00 left")


def test_in_a_terminal_progress_is_a_live_display_fed_by_threads():
    console = a_console(terminal=True)
    with TrainProgress(console, 2) as progress:
        threads = [
            threading.Thread(target=lambda: [played(progress), progress.message("a message")])
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        console.print(progress)
    text = printed(console)
    assert text.count("a message") == 8
    assert "8 accepted, 8 rejected (parser 8)" in text


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_the_live_display_is_as_narrow_at_60_columns_as_at_120(width):
    console = a_console(width)
    progress = TrainProgress(console, 2)
    played(progress)
    console.print(progress)
    assert max(map(len, printed(console).splitlines())) <= min(width, 58)


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("phase", ["solving", "evaluating before the first update"])
def test_a_long_phase_stays_on_its_line(phase, width):
    console = a_console(width)
    progress = TrainProgress(console, 1200, done=1199)
    progress.phase(phase)
    console.print(progress)
    first, second, *_ = printed(console).splitlines()[1:]
    assert first.startswith(f"update 1200/1200  {phase if width > 40 else phase[:18]}")
    assert second.startswith("injector")


@pytest.mark.parametrize("width", [80, 120])
def test_no_row_is_folded_at_any_count(width):
    console = a_console(width)
    progress = TrainProgress(console, 1000, done=999)
    for finish, count in (("max_turns", 12345), ("bad_format", 2345), ("context", 345), ("stuck", 45)):
        for role in ("injector", "solver"):
            progress.episode_started(role)
            for _ in range(count):
                progress.episode_finished(role, finish)
    for check in (
        "not_submitted/bad_format",
        "inverse_mutation",
        "weakening_hides",
        "not_submitted/max_turns",
    ):
        for _ in range(1000):
            progress.artifact(False, check)
    console.print(progress)
    rows = printed(console).splitlines()
    assert [row.split()[0] for row in rows] == ["update", *dict(progress.lines())]
    assert all(text in "\n".join(rows) for _, text in progress.lines())


def test_a_line_is_written_before_another_thread_may_refresh_the_display():
    console, found = a_console(terminal=True), []
    with TrainProgress(console, 2) as progress:
        live = progress._live

        class File(io.StringIO):
            def write(self, text: str) -> int:
                if "a message" in text:  # what a refresh needs is held while this is written
                    other = threading.Thread(target=lambda: found.append(live._lock.acquire(blocking=False)))
                    other.start()
                    other.join()
                return super().write(text)

        console.file = File()
        progress.message("a message")
    assert found == [False]


def test_durations_and_counts_are_short():
    assert (duration_text(5), duration_text(245.4), duration_text(3723)) == ("0:05", "4:05", "1:02:03")
    assert top_text({"a": 1, "b": 3, "c": 2, "d": 1}) == "b 3, c 2, a 1, 1 more"


def test_during_an_evaluation_progress_shows_nothing_else():
    console = a_console()
    with TrainProgress(console, 2) as progress:
        progress.phase("evaluating before the first update")
        progress.evaluating(3, 18)
        assert dict(progress.lines()) == {"evaluation": "3 of 18 attempts", "time": "0:00 elapsed"}
        row = {
            "evaluation/sampled/pass@1": 0.25,
            "evaluation/sampled/standard_error": 0.05,
            "evaluation/greedy/pass@1": 0.0,
        }
        progress.evaluated(0, {**row, "evaluation/greedy/standard_error": 0.0, "seconds/evaluating": 30.0})
        assert "repairs" in dict(progress.lines())
    assert printed(console).splitlines()[1:] == [
        "evaluated before the first update: "
        "25.0% ± 5.0 of sampled attempts and 0.0% of greedy ones repaired, 0:30"
    ]
