"""Generation by unmodified vLLM servers over HTTP: ours, watched and replaced when they die, or given by URL.

Leaves processes to vllm_servers, who goes where to routing, and how weights travel to the WeightSync. Invariant: every token comes with
the version of the weights that drew it, as the server counted it.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from selfplay.engines.base import Completion, GenerationRequest, Sampling
from selfplay.engines.routing import Router, conversation_of
from selfplay.engines.vllm_requests import PATH, check_request, read_answer, request_body
from selfplay.engines.vllm_servers import (
    Client,
    GivenServer,
    Launch,
    OpenServer,
    OwnServer,
    VllmServer,
    check_installed,
    describe_loss,
    sweep,
)
from selfplay.errors import EngineError, ServerLost

if TYPE_CHECKING:
    import torch

_TRIES = 4  # of one request, each at another server or at a replaced one
_RESTARTS = 3  # of one server in a row, without an answer of its own between them
_WATCH_S = 1.0
_ASK_EVERY = 10  # watches between two questions about load and health
_HEALTH_S = 120.0  # a server that says nothing for so long is dead; a busy machine lets one wait
_CLOSE_S = 30.0


Lost = Mapping[Client, ServerLost]


class WeightSync(Protocol):
    """How weights come into servers. One call at a time, but that `deliver` may run for several servers at once."""

    def publish(
        self, weights: Mapping[str, torch.Tensor], version: int, clients: Sequence[Client]
    ) -> tuple[dict[str, float], Lost]:
        """These servers hold these weights and their version when this returns, and nothing that older ones computed.

        Running requests wait meanwhile and go on with the new weights. Returns figures (seconds, bytes), and the servers that were lost on
        the way, each with how. Raises WeightSyncError for one that answers and does not take them.
        """
        ...

    def deliver(self, client: Client) -> dict[str, float]:
        """A server that comes later holds what was published last; before the first `publish` the weights of its start, version 0.

        Raises ServerLost, or WeightSyncError for one that answers and does not take them.
        """
        ...

    def verify(self, client: Client, weights: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """Raises WeightSyncError when the server does not hold these weights. Returns how near it is."""
        ...

    def close(self) -> None: ...


class VllmEngine:
    """Raises PrerequisiteError without vLLM, EngineError (with the reason from its log) when a server of ours does not start."""

    def __init__(
        self,
        launch: Launch,
        sync: WeightSync,
        servers: int = 1,
        urls: Sequence[str] = (),
        *,
        request_timeout_s: float = 1800.0,
        tell: Callable[[str], None] = lambda _: None,
        open_server: OpenServer = OwnServer,
    ) -> None:
        """urls: servers that run already; with them `servers` counts for nothing. tell: hears of servers that come and go.

        open_server: how one of our own is started, by default on this machine.
        """
        self._open_server = open_server
        self._launch, self._sync, self._tell = launch, sync, tell
        self._request_timeout_s = request_timeout_s
        self._version = 0
        self._router: Router[VllmServer] = Router(launch.max_batch)
        self._syncing = threading.Lock()  # one update, or one newcomer's first, at a time
        self._closed = threading.Event()
        self._verified = False
        self._restarts: Counter[str] = Counter()  # by name, since its last answer
        self._last_sync: dict[str, float] = {}
        self._openers: list[threading.Thread] = []
        self._urls = {f"vllm-{number}": url for number, url in enumerate(urls)}
        names = list(self._urls) or [f"vllm-{number}" for number in range(servers)]
        if not urls and open_server is OwnServer:
            check_installed()
        self._names = set(names)
        self._given_up: set[str] = set()
        self._pool = ThreadPoolExecutor(launch.max_batch * len(names), thread_name_prefix="vllm-request")
        sweep()
        with ThreadPoolExecutor(len(names)) as pool:
            openings = [pool.submit(self._open, name) for name in names]
            try:
                for opening in openings:
                    opening.result()
            except BaseException:
                self.close()  # those that still start give up
                raise
        self._watcher = threading.Thread(target=self._watch, name="vllm-watch", daemon=True)
        self._watcher.start()

    @property
    def weight_version(self) -> int:
        return self._version

    @property
    def last_sync(self) -> Mapping[str, float]:
        """Figures of the last `load_weights`: sync/seconds, sync/bytes, …"""
        return self._last_sync

    def servers(self) -> dict[str, VllmServer]:
        """Those that take requests now, by name."""
        return self._router.servers()

    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> list[Completion]:
        for request in requests:
            check_request(request, sampling, self._launch.context_tokens)
        if self._closed.is_set():
            raise EngineError("the engine is closed; open another one.")
        if len(requests) == 1:
            return [self._complete(requests[0], sampling)]
        return list(self._pool.map(lambda request: self._complete(request, sampling), requests))

    def _complete(self, request: GenerationRequest, sampling: Sampling) -> Completion:
        """Asks until a server answers: the seed is the request's own, so another server draws what the first would have."""
        body = request_body(request, sampling)
        for attempt in range(1, _TRIES + 1):
            with self._router.place(conversation_of(request.tag), self._request_timeout_s) as server:
                try:
                    answer = server.client.call("POST", PATH, body, deadline_s=self._request_timeout_s)
                except ServerLost as loss:
                    if self._closed.is_set():
                        raise EngineError("the engine was closed while a request ran.") from loss
                    self._lose(server, str(loss))
                    if attempt == _TRIES:
                        raise EngineError(
                            f"request {request.tag!r} lost {attempt} servers, the last: {describe_loss(server, str(loss))}"
                        ) from loss
                    continue
            self._restarts[server.name] = 0  # the others' answers say nothing of one that does not come up
            done = read_answer(answer, request)
            return replace(done, metadata={**done.metadata, "tries": float(attempt)})
        raise AssertionError("unreachable")

    def load_weights(self, weights: Mapping[str, torch.Tensor], version: int) -> None:
        """Running requests wait and go on with the new weights. A server that is lost on the way is replaced by one that holds them.

        After the first update each server is checked against `weights`. Raises WeightSyncError.
        """
        if self._closed.is_set():
            raise EngineError("the engine is closed; open another one.")
        started = time.monotonic()
        with self._syncing:
            servers = {server.client: server for server in self._router.servers().values()}
            figures, lost = self._sync.publish(weights, version, list(servers))
            self._version = version
            for client, loss in lost.items():
                self._lose(servers[client], str(loss))
            taken = len(servers) - len(lost)
            figures |= {"sync/seconds": time.monotonic() - started, "sync/servers": float(taken)}
            if not self._verified and taken:
                figures |= self._check(weights)
                self._verified = True
            self._last_sync = figures

    def check_weights(self, weights: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """On demand: do all servers hold these weights? Raises WeightSyncError when one does not."""
        with self._syncing:
            return self._check(weights)

    def close(self) -> None:
        """Running requests are answered first, for as long as half a minute; then our servers end."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._router.wait_until_idle(_CLOSE_S)
        self._router.fail(EngineError("the engine is closed; open another one."))
        with self._syncing:
            for name, server in self._router.servers().items():
                self._router.remove(name, server)
                server.close()
        for thread in self._openers:
            thread.join()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._sync.close()

    # -- servers coming and going --------------------------------------------------------------------------------------

    def _open(self, name: str) -> None:
        """A server that takes requests: it holds the weights that the others hold."""
        server: VllmServer
        if name in self._urls:
            server = GivenServer(name, self._urls[name], self._launch.context_tokens)
        else:
            server = self._open_server(name, self._launch, self._closed.is_set)
        try:
            with self._syncing:
                self._sync.deliver(server.client)
                if self._closed.is_set():
                    raise EngineError("the engine is closed; open another one.")
                self._router.add(name, server)
        except BaseException:
            server.close()
            raise

    def _check(self, weights: Mapping[str, torch.Tensor]) -> dict[str, float]:
        figures: dict[str, float] = {}
        for server in self._router.servers().values():
            for name, value in self._sync.verify(server.client, weights).items():
                figures[name] = max(figures.get(name, 0.0), value)
        return figures

    def _lose(self, server: VllmServer, reason: str) -> None:
        """Take it out and open another in its place; only the first to notice does so."""
        if self._closed.is_set() or not self._router.remove(server.name, server):
            return
        self._tell(f"{describe_loss(server, reason)} A new one takes its place.")
        thread = threading.Thread(
            target=self._reopen, args=(server,), name=f"reopen-{server.name}", daemon=True
        )
        self._openers = [known for known in self._openers if known.is_alive()] + [thread]
        thread.start()

    def _reopen(self, lost: VllmServer) -> None:
        lost.close()
        while not self._closed.is_set():
            self._restarts[lost.name] += 1
            try:
                self._open(lost.name)
                return
            except EngineError as error:
                self._tell(f"{lost.name} could not be opened again: {error}")
                if self._restarts[lost.name] >= _RESTARTS:
                    self._given_up.add(lost.name)
                    if self._given_up == self._names:  # while another may come up, requests wait for that one
                        self._router.fail(
                            ServerLost(
                                f"{lost.name} could not be opened {_RESTARTS} times in a row, the last: {error}"
                            )
                        )
                    return
                self._closed.wait(_WATCH_S)

    def _watch(self) -> None:
        """Notices servers that die while nobody asks them, and hears how much each has to do."""
        number = 0
        while not self._closed.wait(_WATCH_S):
            number += 1
            for name, server in self._router.servers().items():
                if not server.is_running:
                    self._lose(server, f"{name} ended")
                elif number % _ASK_EVERY == 0:
                    with suppress(EngineError):
                        self._ask(name, server)

    def _ask(self, name: str, server: VllmServer) -> None:
        try:
            server.client.call("GET", "/health", deadline_s=_HEALTH_S)
            self._router.report(name, server.client.requests(_HEALTH_S))
        except ServerLost as loss:
            self._lose(server, str(loss))
            raise
