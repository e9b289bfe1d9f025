"""A rank worker without a model, for tests that start, call, watch and end ranks."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator

from selfplay.errors import EngineError


class ToyRank:
    def __init__(self, rank: int, world: int, address: str, deadline_s: float, *seat: int) -> None:
        self.rank, self.world = rank, world
        self.progress: Callable[[str], None] = lambda _: None

    def add(self, first: int, second: int) -> int:
        return first + second + self.rank

    def count(self, end: int) -> Iterator[int]:
        for number in range(end):
            yield 0 if self.rank else number + 1

    def die(self, rank: int) -> None:
        self.progress("the third layer")
        if self.rank == rank:
            print("no memory left", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)

    def fail(self, rank: int) -> None:
        if self.rank == rank:
            raise ValueError("the cause")
        raise RuntimeError("gloo: Connection closed by peer")

    def refuse(self) -> None:
        raise EngineError("no model folder x")

    def fill_the_disk(self) -> None:
        if self.rank == 0:
            raise OSError("No space left on device")
        time.sleep(60)

    def stop(self, rank: int) -> None:
        self.progress("the second layer")
        if self.rank == rank:
            os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(60)

    def dawdle(self, rank: int) -> None:
        self.progress("micro-batch 1")
        if self.rank != rank:
            self.progress("micro-batch 2")
        time.sleep(60)

    def work_on(self, signs: int, pause_s: float) -> None:
        for number in range(signs):
            self.progress(f"micro-batch {number}")
            time.sleep(pause_s)

    def take(self, data: bytes) -> int:
        return len(data)

    def close(self) -> None:
        pass
