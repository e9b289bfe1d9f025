"""The runner of episodes: what it repeats, masks, counts, writes and reads again."""

import asyncio
import threading
from dataclasses import replace

import pytest

from selfplay.agent.episode import Episode, FinishReason, Role
from selfplay.agent.runner import (
    EpisodeRunner,
    FailureCounts,
    Job,
    RunnerEvents,
    all_of,
    exceeds_budget,
    read_episode,
    unspoiled,
)
from selfplay.errors import RunError, SandboxUnavailable

AT_ONCE = (0.0, 0.0)  # two repetitions, without waiting


def an_episode(finish=FinishReason.SUBMITTED, error=""):
    return Episode(
        "played", Role.SOLVER, "r", 1, "g", 0, 7, finish, (), (), (1, 2), (0, 1), (-1.0, -0.5), error=error
    )


def plays(*outcomes):
    """A play function that returns or raises one outcome after another, and the list of its calls."""
    calls = []

    def play():
        outcome = outcomes[len(calls)]
        calls.append(threading.current_thread().name)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return play, calls


SPOILED = an_episode(FinishReason.ENV_ERROR, "the machine is gone")


class Reports(RunnerEvents):
    def __init__(self):
        self.seen = []

    def play_started(self, job):
        self.seen.append(("started", job.kind))

    def play_ended(self, job, episode):
        self.seen.append(("ended", str(episode.finish)))

    def episode_played(self, episode):
        self.seen.append(("played", episode.episode_id))

    def machine_failed(self, phase, failure, counts):
        self.seen.append((phase, failure, counts.failed_tries, counts.tries))


def run(*jobs, events=None, waits_s=AT_ONCE):
    """(what each job came to, the runner)"""

    async def run_all():
        runner = EpisodeRunner(2, 2, events, waits_s)
        try:
            return await asyncio.gather(*(runner.run(job) for job in jobs)), runner
        finally:
            runner.close()

    return asyncio.run(run_all())


def test_a_play_that_fails_twice_then_succeeds_is_written_judged_and_returned(tmp_path):
    play, calls = plays(SPOILED, SPOILED, an_episode())
    reports = Reports()
    judge_threads = []

    def judge(episode):
        judge_threads.append(threading.current_thread().name)
        return read_episode(tmp_path, "e") == episode  # the file is there by now

    (judged,), runner = run(Job(tmp_path, "e", play, judge, "solver"), events=reports)
    assert (judged.verdict, judged.failed_phase, judged.episode.finish) == (True, "", "submitted")
    assert judged.episode.episode_id == "e"
    assert [name.partition("_")[0] for name in calls + judge_threads] == ["play"] * 3 + ["judge"]
    failed = ("started", "solver"), ("ended", "env_error")
    assert reports.seen == [
        *failed,
        ("playing solver", "the machine is gone", 1, 1),
        *failed,
        ("playing solver", "the machine is gone", 2, 2),
        ("started", "solver"),
        ("ended", "submitted"),
        ("played", "e"),
    ]
    assert runner.counts == FailureCounts(tries=3, failed_tries=2, episodes=1)


def test_a_play_that_always_fails_comes_out_without_a_verdict_and_without_a_file(tmp_path):
    play, calls = plays(SPOILED, SPOILED, SPOILED)
    (judged,), runner = run(Job(tmp_path, "e", play, lambda _: pytest.fail("judged")))
    assert (judged.verdict, judged.failed_phase, judged.failure) == (None, "playing", "the machine is gone")
    assert judged.episode == replace(SPOILED, episode_id="e")
    assert len(calls) == 3 and not list(tmp_path.iterdir())
    assert runner.counts == FailureCounts(3, 3, 1, 1, 1)


def test_a_judge_that_always_fails_masks_the_episode_and_keeps_its_file(tmp_path):
    play, calls = plays(an_episode())
    judge, judged_in = plays(*[SandboxUnavailable("no sandbox")] * 3)
    reports = Reports()
    (judged,), runner = run(Job(tmp_path, "e", play, lambda _: judge()), events=reports)
    assert (judged.verdict, judged.failed_phase, judged.failure) == (None, "judging", "no sandbox")
    assert judged.episode.finish is FinishReason.ENV_ERROR
    assert read_episode(tmp_path, "e").finish is FinishReason.SUBMITTED
    assert (len(calls), len(judged_in)) == (1, 3)
    assert reports.seen[3:] == [("judging", "no sandbox", number, 1) for number in (1, 2, 3)]
    assert runner.counts == FailureCounts(1, 3, 1, 1, 1)


def test_repetitions_wait_longer_each_time(tmp_path, monkeypatch):
    slept, sleep = [], asyncio.sleep
    monkeypatch.setattr("selfplay.agent.runner.asyncio.sleep", lambda s: slept.append(s) or sleep(0))
    play, _ = plays(SPOILED, SPOILED, SPOILED)
    run(Job(tmp_path, "e", play, len), waits_s=(0.5, 1.0))
    assert slept == [0.5, 1.0]


def test_an_episode_of_a_whole_file_is_judged_and_not_played_again(tmp_path):
    replace(an_episode(), episode_id="e").write(tmp_path)
    reports = Reports()
    (judged,), _ = run(Job(tmp_path, "e", lambda: pytest.fail("played"), lambda _: "good"), events=reports)
    assert judged.verdict == "good" and reports.seen == []


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b torn", b"no archive at all"])
def test_an_episode_of_a_torn_file_is_played_again(tmp_path, content):
    (tmp_path / "e.json.gz").write_bytes(content)
    play, calls = plays(an_episode())
    (judged,), _ = run(Job(tmp_path, "e", play, lambda _: "good"))
    assert judged.verdict == "good" and len(calls) == 1
    assert read_episode(tmp_path, "e") == judged.episode


def test_reading_a_torn_file_removes_it(tmp_path):
    (tmp_path / "e.json.gz").write_bytes(b"\x1f\x8b torn")
    assert read_episode(tmp_path, "e") is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("failed", "tried", "is_exceeded"),
    [(3, 3, False), (4, 4, True), (4, 13, True), (4, 14, False), (5, 16, True), (0, 0, False)],
)
def test_a_budget_of_three_in_ten_is_exceeded_by_a_larger_share_of_at_least_eight(failed, tried, is_exceeded):
    assert exceeds_budget(failed, tried, max_share=0.3) is is_exceeded


def test_counts_tell_tries_from_episodes():
    counts = FailureCounts(tries=20, failed_tries=8, episodes=12, spoiled=2)
    assert counts.too_many_tries_failed(0.3) and not counts.too_many_are_spoiled(0.3)


def test_an_event_that_raises_ends_the_job_with_its_error(tmp_path):
    class Stops(RunnerEvents):
        def machine_failed(self, phase, failure, counts):
            if counts.too_many_tries_failed(0.3):
                raise RunError(f"{counts.failed_tries} of {counts.tries}")

    jobs = [Job(tmp_path, f"e{n}", plays(*[SPOILED] * 3)[0], len) for n in range(2)]
    with pytest.raises(RunError, match="4 of 4"):
        run(*jobs, events=Stops())


def test_an_error_that_is_not_the_machines_is_neither_repeated_nor_counted(tmp_path):
    play, calls = plays(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        run(Job(tmp_path, "e", play, len))
    assert len(calls) == 1


def test_an_episode_that_ends_while_the_runner_stops_is_kept(tmp_path):
    started = threading.Event()

    async def stop_early():
        runner = EpisodeRunner(1, 1)

        def play():
            started.set()
            stopping.wait(10)
            return an_episode()

        stopping = threading.Event()
        task = asyncio.create_task(runner.run(Job(tmp_path, "e", play, len)))
        await asyncio.to_thread(started.wait, 10)
        task.cancel()
        stopping.set()
        runner.close()

    asyncio.run(stop_early())
    assert read_episode(tmp_path, "e") is not None


def test_work_that_judges_itself_counts_as_an_episode_and_is_repeated_alike():
    async def play_three():
        runner = EpisodeRunner(1, 1, waits_s=AT_ONCE)
        try:
            first, _ = plays(SandboxUnavailable("one"), "kept")
            assert await runner.play(first) == "kept"
            for in_a_row in (1, 2):
                with pytest.raises(SandboxUnavailable, match="gone"):
                    await runner.play(plays(*[SandboxUnavailable("gone")] * 3)[0])
                assert runner.counts.spoiled_in_a_row == in_a_row
            await runner.play(lambda: None)
            return runner.counts
        finally:
            runner.close()

    assert asyncio.run(play_three()) == FailureCounts(9, 7, 4, 2, 0)


def test_all_of_waits_for_all_and_raises_the_first_failure_in_their_order():
    ended = []

    async def work(number, error=None):
        await asyncio.sleep(0.01 * number)
        ended.append(number)
        if error:
            raise error

    with pytest.raises(KeyError):
        asyncio.run(run_in_loop([work(3, KeyError()), work(1, ValueError()), work(2)]))
    assert ended == [1, 2, 3]


async def run_in_loop(work):
    await all_of(work)


def test_a_spoiled_episode_is_an_error_where_no_verdict_follows():
    assert unspoiled(an_episode()) == an_episode()
    with pytest.raises(SandboxUnavailable, match="the machine is gone"):
        unspoiled(SPOILED)
