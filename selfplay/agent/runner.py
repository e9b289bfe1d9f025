"""Plays episodes in one pool of threads and judges them in another; repeats work that the machine spoiled.

Training, evaluation and the warm start all use it. It knows no role and no database. A job brings two
functions: one plays, the other judges.

Invariants:
- A failure of the machine is never a result of the policy. The runner repeats the work. If all tries fail,
  it returns the episode without a verdict.
- An episode is in its file before it is judged. After a kill the runner only judges it. It removes a torn
  file and plays the episode again.
- Playing, judging and writing run in threads, all else in the caller's event loop. So callers need no locks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from selfplay.agent.episode import Episode, FinishReason
from selfplay.errors import SandboxUnavailable

Result = TypeVar("Result")
Verdict = TypeVar("Verdict")

WAITS_S = (0.5, 1.0)  # before the first and the second repetition of work that the machine spoiled
MIN_FAILURES = 4  # fewer never stop a run, whatever their share
MIN_TRIES = 8  # a share of fewer tries says little; it is taken of this many


@dataclass(frozen=True)
class Job(Generic[Verdict]):
    """One episode to play and to judge. Both functions block; they run in threads of the runner.

    folder, episode_id: the episode's file is `<folder>/<episode_id>.json.gz`.
    play: plays the episode. It ends with finish env_error if the machine failed.
    judge: judges the episode, and never returns None. Raises SandboxUnavailable if the machine failed.
    kind: a word for messages, for instance "solver".
    """

    folder: Path
    episode_id: str
    play: Callable[[], Episode]
    judge: Callable[[Episode], Verdict]
    kind: str = ""


@dataclass(frozen=True)
class Judged(Generic[Verdict]):
    """An episode and its verdict.

    verdict: None if the machine failed; the episode then has finish env_error.
    failed_phase, failure: what failed ("playing" or "judging") and why; "" with a verdict.
    """

    episode: Episode
    verdict: Verdict | None
    failed_phase: str = ""
    failure: str = ""


@dataclass
class FailureCounts:
    """How often the machine failed. To count anew, give the runner new counts.

    tries, failed_tries: single tries. A try at judging counts only if it failed.
    episodes, spoiled, spoiled_in_a_row: episodes after all their tries; "spoiled" ones have no verdict.
    """

    tries: int = 0
    failed_tries: int = 0
    episodes: int = 0
    spoiled: int = 0
    spoiled_in_a_row: int = 0

    def add_episode(self, is_spoiled: bool) -> None:
        self.episodes += 1
        self.spoiled += is_spoiled
        self.spoiled_in_a_row = self.spoiled_in_a_row + 1 if is_spoiled else 0

    def too_many_tries_failed(self, max_share: float) -> bool:
        return exceeds_budget(self.failed_tries, self.tries, max_share)

    def too_many_are_spoiled(self, max_share: float) -> bool:
        return exceeds_budget(self.spoiled, self.episodes, max_share)


def exceeds_budget(failed: int, tried: int, max_share: float) -> bool:
    """True if more than `max_share` of the tries failed, and enough of them to say so."""
    return failed >= MIN_FAILURES and failed > max_share * max(tried, MIN_TRIES)


class RunnerEvents:
    """What a runner reports, in the thread of its event loop. Override the methods that you need.

    An exception that a method raises ends the job and reaches the caller of `EpisodeRunner.run`.
    """

    def play_started(self, job: Job[Any]) -> None:
        """A try at playing the job begins. It may still wait for a thread."""

    def play_ended(self, job: Job[Any], episode: Episode) -> None:
        """A try at playing the job ended."""

    def episode_played(self, episode: Episode) -> None:
        """The last try at an episode ended. An episode that is read from its file is not reported."""

    def machine_failed(self, phase: str, failure: str, counts: FailureCounts) -> None:
        """A try failed. phase: "playing", with the job's kind, or "judging"."""


class EpisodeRunner:
    """Two pools of threads, so that slow verdicts never keep the engine idle, nor the reverse.

    One more thread writes episode files.
    """

    def __init__(
        self,
        plays: int,
        judges: int,
        events: RunnerEvents | None = None,
        waits_s: Sequence[float] = WAITS_S,
    ) -> None:
        """plays, judges: threads of each pool.

        waits_s: seconds before each repetition of failed work; as many repetitions as entries.
        """
        self.counts = FailureCounts()
        self._events = events or RunnerEvents()
        self._waits_s = tuple(waits_s)
        self._players = ThreadPoolExecutor(plays, thread_name_prefix="play")
        self._judges = ThreadPoolExecutor(judges, thread_name_prefix="judge")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="write")

    def close(self) -> None:
        """Start nothing more. Blocks until what runs has ended and is written."""
        for pool in (self._players, self._judges):
            pool.shutdown(wait=True, cancel_futures=True)
        self._writer.shutdown(wait=True)

    async def run(self, job: Job[Verdict]) -> Judged[Verdict]:
        """Read the job's episode from its file, else play it; then judge it.

        Raises what the job's functions raise, except SandboxUnavailable.
        """
        try:
            episode = read_episode(job.folder, job.episode_id) or await self._played(job)
        except _Spoiled as spoiled:
            judged = Judged[Verdict](spoiled.episode, None, "playing", spoiled.episode.error)
        else:
            try:
                judged = Judged(episode, await self.judge(lambda: job.judge(episode)))
            except SandboxUnavailable as failure:
                masked = replace(episode, finish=FinishReason.ENV_ERROR)
                judged = Judged[Verdict](masked, None, "judging", str(failure))
        self.counts.add_episode(is_spoiled=bool(judged.failed_phase))
        return judged

    async def play(self, work: Callable[[], Result]) -> Result:
        """Call work that plays, judges and writes by itself. It counts as one episode.

        Raises SandboxUnavailable if every try failed.
        """

        async def try_once() -> Result:
            self.counts.tries += 1
            return await self.call(work)

        try:
            result = await self._repeated("playing", try_once)
        except SandboxUnavailable:
            self.counts.add_episode(is_spoiled=True)
            raise
        self.counts.add_episode(is_spoiled=False)
        return result

    async def judge(self, work: Callable[[], Result]) -> Result:
        """Call `work` in the pool for judging. Raises SandboxUnavailable if every try failed."""
        return await self._repeated("judging", lambda: _in_pool(self._judges, work))

    async def call(self, work: Callable[[], Result]) -> Result:
        """Call `work` in the pool for playing, once."""
        return await _in_pool(self._players, work)

    async def _played(self, job: Job[Any]) -> Episode:
        """A new episode, in its file. Raises _Spoiled if every try failed."""

        async def try_once() -> tuple[Episode, Future[Path]]:
            self._events.play_started(job)
            episode, written = await self.call(lambda: self._play_and_write(job))
            self._events.play_ended(job, episode)
            self.counts.tries += 1
            if written is None:
                raise _Spoiled(episode)
            return episode, written

        try:
            episode, written = await self._repeated(f"playing {job.kind}".strip(), try_once)
        except _Spoiled as spoiled:
            self._events.episode_played(spoiled.episode)
            raise
        self._events.episode_played(episode)
        await asyncio.shield(asyncio.wrap_future(written))  # a stop must not cancel a write that waits
        return episode

    def _play_and_write(self, job: Job[Any]) -> tuple[Episode, Future[Path] | None]:
        """None: nothing is written, since the machine failed.

        Writing begins here, not in the event loop: an episode that ends while the run stops is kept too.
        """
        episode = replace(job.play(), episode_id=job.episode_id)
        if episode.finish is FinishReason.ENV_ERROR:
            return episode, None
        return episode, self._writer.submit(episode.write, job.folder)

    async def _repeated(self, phase: str, try_once: Callable[[], Awaitable[Result]]) -> Result:
        for wait_s in (*self._waits_s, None):
            try:
                return await try_once()
            except SandboxUnavailable as failure:
                self.counts.failed_tries += 1
                self._events.machine_failed(phase, str(failure), self.counts)
                if wait_s is None:
                    raise
            await asyncio.sleep(wait_s)
        raise AssertionError("the last try returns or raises")


def read_episode(folder: Path, episode_id: str) -> Episode | None:
    """The episode that was written before a kill; None without a whole file. A torn file is removed."""
    path = folder / f"{episode_id}.json.gz"
    if not path.is_file():
        return None
    try:
        return Episode.read(path)
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        path.unlink()
        return None


def unspoiled(episode: Episode) -> Episode:
    """The episode itself. Raises SandboxUnavailable if the machine failed in it."""
    if episode.finish is FinishReason.ENV_ERROR:
        raise SandboxUnavailable(episode.error or "a sandbox failed in an episode")
    return episode


async def all_of(work: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Wait for all, then raise the first failure. Work in flight ends first, so its results are kept."""
    for result in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


class _Spoiled(SandboxUnavailable):
    """The machine failed while `episode` was played."""

    def __init__(self, episode: Episode) -> None:
        super().__init__(episode.error)
        self.episode = episode


async def _in_pool(pool: ThreadPoolExecutor, work: Callable[[], Result]) -> Result:
    return await asyncio.get_running_loop().run_in_executor(pool, work)
