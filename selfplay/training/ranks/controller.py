"""Rank processes: started, called all at once, watched, blamed, ended. Knows no model and no DeepSpeed; where they run, `rank_link` knows.

Invariant: a call ends with every rank's answer, or with an error within the deadline after which no rank process is left.
"""

from __future__ import annotations

import pickle
import queue
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from selfplay import errors
from selfplay.errors import TrainerError
from selfplay.training.ranks.link import PipeLinks, RankLinks
from selfplay.training.ranks.process import DONE, ENDED, FAILED, ITEM, PROGRESS, WHERE

_LAST_WORDS_S = 2.0  # how long others may still speak after the first trouble: the cause often arrives after its consequences
_START_S = 300.0  # loading torch and DeepSpeed takes seconds on an idle machine, and gives no sign meanwhile
_LOST_PEER = (
    "closed by peer",
    "Connection reset",
    "Broken pipe",
    "gloo",
    "Gloo",
    "NCCL",
    "DistBackendError",
    "DistNetworkError",
)

WORKER = "selfplay.training.ranks.worker:RankWorker"
Arguments = tuple[Any, ...]


class _Rank:
    """One process as its controller sees it: what it is doing, and what came of the present call."""

    def __init__(
        self, number: int, log: Path, links: RankLinks, inbox: queue.Queue[tuple[_Rank, str, Any]]
    ) -> None:
        self.number = number
        self._inbox = inbox
        self._is_closing = False
        self.begin("start")
        self.is_done = True
        self.link = links.open(number, log, self._hear)

    def begin(self, name: str) -> None:
        """Forget the last call."""
        self.doing = name
        self.signs = 0  # of progress, in the present call
        self.is_done = False
        self.value: Any = None
        self.failure = ""
        self.error = ""  # the class of a failure that is an error of ours
        self.says_where = False

    def send(self, name: str, arguments: Arguments) -> None:
        self.link.send(pickle.dumps((name, arguments), protocol=pickle.HIGHEST_PROTOCOL))

    def _hear(self, message: bytes | None) -> None:
        kind, value = (ENDED, None) if message is None else pickle.loads(message)
        while not self._is_closing:
            try:
                self._inbox.put((self, kind, value), timeout=0.5)
            except queue.Full:
                continue
            return

    def note(self, kind: str, value: Any) -> None:
        """What a message changes here."""
        if kind == PROGRESS:
            self.doing, self.signs = value, self.signs + 1
        elif kind == WHERE:
            self.doing, self.says_where = value, True
        elif kind == DONE:
            self.value, self.is_done = value, True
        elif kind == FAILED:
            self.error, self.failure = value[0], value[1]
        elif kind == ENDED:
            self.failure = self.link.ended() or "closed its connection"

    def end(self, *, gently: bool) -> None:
        if gently and not self.link.ended():
            self.send("close", ())
        else:
            self.link.kill()

    def wait(self) -> None:
        self._is_closing = True
        self.link.wait()


class Ranks:
    """`world` processes that form one group, each with a `worker`, named module:class, made of its rank, world, address and deadline.

    Their logs go to `logs`; `links` says where they run, by default on this machine. Raises TrainerError when they do not come up within
    the deadline.
    """

    def __init__(
        self,
        world: int,
        logs: Path | None = None,
        deadline_s: float = 1800.0,
        worker: str = WORKER,
        links: RankLinks | None = None,
    ) -> None:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        self.world = world
        self._deadline_s = deadline_s
        self._why_closed = ""
        self._scratch = None if logs else tempfile.TemporaryDirectory(prefix="selfplay-ranks-")
        folder = logs or Path(self._scratch.name if self._scratch else "")
        folder.mkdir(parents=True, exist_ok=True)
        # The meeting point is the controller's own, so no port is chosen before it is bound.
        links = links or PipeLinks()
        self._store = TCPStore(links.host, 0, is_master=True, wait_for_workers=False)
        address = f"{links.host}:{self._store.port}"
        self._inbox: queue.Queue[tuple[_Rank, str, Any]] = queue.Queue(
            maxsize=world
        )  # weights must not pile up here
        self._ranks: list[_Rank] = []
        try:
            for number in range(world):
                self._ranks.append(_Rank(number, folder / f"trainer-rank-{number}.log", links, self._inbox))
            self._deadline_s = max(deadline_s, _START_S)
            self.call(
                "join",
                [(worker, rank.number, world, address, deadline_s, *rank.link.seat) for rank in self._ranks],
            )
            self._deadline_s = deadline_s
        except BaseException:
            self.close("they did not come up")
            raise

    @property
    def pids(self) -> list[int]:
        return [rank.link.pid for rank in self._ranks]

    def call(self, name: str, arguments: list[Arguments] | Arguments = ()) -> list[Any]:
        """One call on every rank, with arguments of each its own (a list) or the same for all; their values in order.

        Raises TrainerError when a rank dies, hangs or fails, and a rank's own error where it is one of ours or OSError. Either way all
        ranks are gone.
        """
        for _ in self.stream(name, arguments):
            pass
        return [rank.value for rank in self._ranks]

    def stream(self, name: str, arguments: list[Arguments] | Arguments = ()) -> Iterator[Any]:
        """The same for a method that yields: what the ranks yield as it comes. One that is not read to its end runs to it unread."""
        if self._why_closed:
            raise TrainerError(f"the trainer's ranks are gone: {self._why_closed}")
        for rank, own in zip(
            self._ranks, arguments if isinstance(arguments, list) else [arguments] * self.world, strict=True
        ):
            rank.begin(name)
            rank.send(name, own)
        is_read = False
        try:
            yield from self._answers(name)
            is_read = True
        except GeneratorExit:
            for _ in self._answers(name):
                pass
            is_read = True
            raise
        finally:
            if not is_read:
                self.close(f"{name} did not end")

    def _answers(self, name: str) -> Iterator[Any]:
        heard_at = time.monotonic()
        while not all(rank.is_done for rank in self._ranks):
            try:
                rank, kind, value = self._inbox.get(
                    timeout=max(0.0, heard_at + self._deadline_s - time.monotonic())
                )
            except queue.Empty:
                self._blame_silent(name)
            heard_at = time.monotonic()
            rank.note(kind, value)
            if kind == ITEM:
                yield value
                heard_at = time.monotonic()  # the reader's time is not theirs
            elif kind in (FAILED, ENDED):
                self._blame_failed(name)

    def _listen(self, ranks: Sequence[_Rank]) -> None:
        """Note what comes in until all of `ranks` have said something that settles it, or for a little while."""
        until = time.monotonic() + _LAST_WORDS_S
        while any(not (rank.failure or rank.says_where) for rank in ranks):
            try:
                rank, kind, value = self._inbox.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                return
            rank.note(kind, value)
            if kind == ENDED:
                return  # nobody is more to blame than one that is dead

    def _blame_failed(self, name: str) -> NoReturn:
        """The first to be heard of is often a victim: one that died by itself is to blame before one that failed, and that before
        one that only lost its peer."""
        if not any(rank.link.ended() for rank in self._ranks):
            self._listen([rank for rank in self._ranks if not rank.failure])
        for rank in self._ranks:
            rank.failure = rank.link.ended() or rank.failure
        failed = [rank for rank in self._ranks if rank.failure]
        blamed = min(
            failed,
            key=lambda rank: (
                not rank.link.ended(),
                any(word in rank.failure for word in _LOST_PEER),
                rank.number,
            ),
        )
        if blamed.error and not blamed.link.ended():
            self.close(blamed.failure)
            raise getattr(errors, blamed.error, OSError)(blamed.failure)
        self._raise(name, blamed, blamed.failure if blamed.link.ended() else f"failed: {blamed.failure}")

    def _blame_silent(self, name: str) -> NoReturn:
        """Ask the silent ones where they are. One that does not answer is to blame, else the one that came least far."""
        waiting = [rank for rank in self._ranks if not rank.is_done]
        for rank in waiting:
            rank.send(WHERE, ())
        self._listen(waiting)
        blamed = min(waiting, key=lambda rank: (rank.says_where, rank.signs, rank.number))
        answer = "" if blamed.says_where else " and does not answer"
        self._raise(name, blamed, f"gave no sign for {self._deadline_s:g} s{answer}")

    def _raise(self, name: str, blamed: _Rank, what: str) -> NoReturn:
        place = name if blamed.doing == name else f"{name}, {blamed.doing}"
        why = f"rank {blamed.number} of {self.world} {what} (in {place})"
        others = [
            f"rank {r.number} was in {r.doing}"
            for r in self._ranks
            if r is not blamed and not r.is_done and not r.link.ended()
        ]
        parts = [f"trainer {why}.", *([f"Meanwhile {', '.join(others)}."] if others else [])]
        if "out of memory" in what or "OutOfMemory" in what:
            parts.append(
                "Lower trainer.batch_tokens, raise trainer.zero_stage or trainer.ranks, or set trainer.activation_checkpointing."
            )
        parts.append("Nothing of this update is kept; continue with: selfplay train --resume")
        if self._scratch is None:
            parts.append(f"Its log: {blamed.link.where}")
        tail = blamed.link.tail()
        self.close(why)
        raise TrainerError(" ".join(parts), blamed.number, tail)

    def close(self, why: str = "") -> None:
        """End all ranks: those at rest by a word, all by a signal where there is trouble. May be called twice."""
        gently = not why and not self._why_closed
        self._why_closed = self._why_closed or why or "closed"
        for rank in self._ranks:
            rank.end(gently=gently and rank.is_done)
        for rank in self._ranks:
            rank.wait()
        if self._scratch is not None:
            self._scratch.cleanup()
