"""Starts rank processes, calls all of them at once, watches them, and names the one at fault after a failure.

It knows no model and no DeepSpeed; `link` knows where the processes run. Invariant: a call ends with the
answers of all ranks, or within the deadline with an error. After an error no rank process is left.
"""

from __future__ import annotations

import pickle
import queue
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from selfplay import errors
from selfplay.errors import TrainerError
from selfplay.training.ranks.link import PipeLinks, RankLinks
from selfplay.training.ranks.process import DONE, ENDED, FAILED, ITEM, PROGRESS, WHERE

_LAST_WORDS_S = 2.0  # wait for other ranks after a failure: the cause often arrives after its consequences
_START_S = 300.0  # loading torch and DeepSpeed takes seconds on an idle machine, without a sign of progress
_LOST_PEER = (  # in the error of a rank that failed only because another one was gone
    "closed by peer",
    "Connection reset",
    "Broken pipe",
    "gloo",
    "Gloo",
    "NCCL",
    "DistBackendError",
    "DistNetworkError",
)

WORKER = "selfplay.training.ranks.worker:RankWorker"  # module:class, imported in the rank's process
Arguments = tuple[Any, ...]


@dataclass(frozen=True)
class RankLaunch:
    """How rank processes are started. logs: folder of their logs. links: where they run."""

    logs: Path | None = None  # None: a temporary folder
    links: RankLinks | None = None  # None: this machine


class _Rank:
    """One process as its controller sees it: what it is doing, and the outcome of the current call."""

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
        """Start a call and forget the last one."""
        self.doing = name
        self.signs = 0  # of progress in this call
        self.is_done = False
        self.value: Any = None
        self.failure = ""
        self.error = ""  # class name of an error that the controller raises again
        self.has_answered = False  # the question of what it is doing

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
        """Update this object from a message of the rank."""
        if kind == PROGRESS:
            self.doing, self.signs = value, self.signs + 1
        elif kind == WHERE:
            self.doing, self.has_answered = value, True
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
    """Processes that form one group, one for each rank."""

    def __init__(
        self,
        world: int,
        launch: RankLaunch | None = None,
        deadline_s: float = 1800.0,
        worker: str = WORKER,
    ) -> None:
        """Start `world` processes. Raises TrainerError if they do not start within the deadline.

        worker: module:class. It is constructed in each process from rank, world, address and deadline.
        deadline_s: longest time without a sign of progress.
        """
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        launch = launch or RankLaunch()
        self.world = world
        self._deadline_s = deadline_s
        self._why_closed = ""
        self._scratch = None if launch.logs else tempfile.TemporaryDirectory(prefix="selfplay-ranks-")
        folder = launch.logs or Path(self._scratch.name if self._scratch else "")
        folder.mkdir(parents=True, exist_ok=True)
        # The controller hosts the store, so that its port is bound as soon as it is chosen.
        links = launch.links or PipeLinks()
        self._store = TCPStore(links.host, 0, is_master=True, wait_for_workers=False)
        address = f"{links.host}:{self._store.port}"
        # Bounded, so that weights do not pile up in it.
        self._inbox: queue.Queue[tuple[_Rank, str, Any]] = queue.Queue(maxsize=world)
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
            self.close("they did not start")
            raise

    @property
    def pids(self) -> list[int]:
        return [rank.link.pid for rank in self._ranks]

    def call(self, name: str, arguments: list[Arguments] | Arguments = ()) -> list[Any]:
        """Call a method of the worker on every rank. Returns their values in order.

        arguments: a list with those of each rank, or one tuple for all. Raises TrainerError if a rank dies,
        hangs or fails. A SelfplayError or OSError of a rank is raised as it is. After any error all ranks are
        gone.
        """
        for _ in self.stream(name, arguments):
            pass
        return [rank.value for rank in self._ranks]

    def stream(self, name: str, arguments: list[Arguments] | Arguments = ()) -> Iterator[Any]:
        """Call a method that yields, and yield what the ranks yield. See `call`.

        If the caller stops early, the ranks still run to the end.
        """
        if self._why_closed:
            raise TrainerError(f"the trainer's ranks are gone: {self._why_closed}")
        each = arguments if isinstance(arguments, list) else [arguments] * self.world
        for rank, own in zip(self._ranks, each, strict=True):
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
                heard_at = time.monotonic()  # the caller's time does not count against the ranks
            elif kind in (FAILED, ENDED):
                self._blame_failed(name)

    def _listen(self, ranks: Sequence[_Rank]) -> None:
        """Read messages until all of `ranks` have failed or answered, at most for `_LAST_WORDS_S`."""
        until = time.monotonic() + _LAST_WORDS_S
        while any(not (rank.failure or rank.has_answered) for rank in ranks):
            try:
                rank, kind, value = self._inbox.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                return
            rank.note(kind, value)
            if kind == ENDED:
                return  # a dead process is the cause

    def _blame_failed(self, name: str) -> NoReturn:
        """Raise the error of the rank at fault.

        The first failure that arrives is often a consequence. A process that died is at fault before one that
        raised an error, and that one before a rank that only lost its peer.
        """
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
        """Raise an error about silent ranks.

        The one at fault gives no answer, or else made the least progress.
        """
        waiting = [rank for rank in self._ranks if not rank.is_done]
        for rank in waiting:
            rank.send(WHERE, ())
        self._listen(waiting)
        blamed = min(waiting, key=lambda rank: (rank.has_answered, rank.signs, rank.number))
        answer = "" if blamed.has_answered else " and does not answer"
        self._raise(name, blamed, f"gave no sign for {self._deadline_s:g} s{answer}")

    def _raise(self, name: str, blamed: _Rank, what: str) -> NoReturn:
        step = name if blamed.doing == name else f"{name}, {blamed.doing}"
        why = f"rank {blamed.number} of {self.world} {what} (in {step})"
        others = [
            f"rank {r.number} was in {r.doing}"
            for r in self._ranks
            if r is not blamed and not r.is_done and not r.link.ended()
        ]
        parts = [f"trainer {why}.", *([f"Meanwhile {', '.join(others)}."] if others else [])]
        if "out of memory" in what or "OutOfMemory" in what:
            parts.append(
                "Lower trainer.batch_tokens, raise trainer.zero_stage, trainer.ranks or "
                "trainer.sequence_parallel, or set trainer.activation_checkpointing or trainer.logit_tokens."
            )
        parts.append("Nothing of this update is kept; continue with: selfplay train --resume")
        if self._scratch is None:
            parts.append(f"Its log: {blamed.link.where}")
        tail = blamed.link.tail()
        self.close(why)
        raise TrainerError(" ".join(parts), blamed.number, tail)

    def close(self, why: str = "") -> None:
        """End all ranks: idle ones by a message, or all by a signal after a failure. May be called twice."""
        gently = not why and not self._why_closed
        self._why_closed = self._why_closed or why or "closed"
        for rank in self._ranks:
            rank.end(gently=gently and rank.is_done)
        for rank in self._ranks:
            rank.wait()
        if self._scratch is not None:
            self._scratch.cleanup()
