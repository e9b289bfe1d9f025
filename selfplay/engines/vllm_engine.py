"""Generation by unmodified vLLM servers over HTTP: external ones, or our own, which it watches and replaces.

`vllm_servers` handles processes, `routing` chooses the server of a request, and a WeightSync moves the
weights. Invariant: every token carries the version of the weights that sampled it, as the server reported it.
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
from selfplay.engines.vllm_client import Client
from selfplay.engines.vllm_launch import Launch, check_installed
from selfplay.engines.vllm_requests import PATH, check_request, read_answer, request_body
from selfplay.engines.vllm_servers import (
    ExternalServer,
    OwnServer,
    ServerSet,
    VllmServer,
    describe_loss,
    sweep,
)
from selfplay.errors import EngineError, ServerLost

if TYPE_CHECKING:
    import torch

_MAX_TRIES = 4  # of one request, each at another server or at a replaced one
_MAX_RESTARTS = 3  # of one server in a row, without an answer from it in between
_WATCH_S = 1.0
_WATCHES_PER_CHECK = 10  # load and health are requested at every tenth watch
_HEALTH_S = 120.0  # a server without an answer for this long counts as dead; busy machines answer late
_CLOSE_S = 30.0


Lost = Mapping[Client, ServerLost]


class WeightSync(Protocol):
    """Moves weights into servers.

    One call at a time, except that `deliver` may run for several servers at once.
    """

    def publish(
        self, weights: Mapping[str, torch.Tensor], version: int, clients: Sequence[Client]
    ) -> tuple[dict[str, float], Lost]:
        """Give all servers these weights and their version, and drop everything that older weights computed.

        Running requests wait meanwhile and continue with the new weights. Returns metrics (seconds, bytes),
        and the servers that were lost during the update, each with its error. Raises WeightSyncError for a
        server that answers and refuses the weights.
        """
        ...

    def deliver(self, client: Client) -> dict[str, float]:
        """Give a server that joins later the weights published last.

        Before the first `publish` it keeps its own weights, as version 0. Raises ServerLost, or
        WeightSyncError for a server that answers and refuses the weights.
        """
        ...

    def verify(self, client: Client, weights: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """Compare the server's weights with these.

        Returns how far they differ, and raises WeightSyncError if it is too much.
        """
        ...

    def close(self) -> None: ...


class VllmEngine:
    """See `Engine`."""

    def __init__(
        self,
        launch: Launch,
        sync: WeightSync,
        servers: ServerSet | None = None,
        *,
        request_timeout_s: float = 1800.0,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Start all `servers` (by default one) and wait until they answer.

        report: called with a message when a server is lost or replaced. Raises PrerequisiteError if vLLM is
        not installed, EngineError, with the reason from its log, if a server does not start.
        """
        servers = servers or ServerSet()
        self._open_server = servers.open_server
        self._launch, self._sync, self._report = launch, sync, report
        self._request_timeout_s = request_timeout_s
        self._version = 0
        self._router: Router[VllmServer] = Router(launch.max_batch)
        self._syncing = threading.Lock()  # held by an update and by the first delivery to a new server
        self._closed = threading.Event()
        self._verified = False
        self._restarts: Counter[str] = Counter()  # by name, since its last answer
        self._last_sync: dict[str, float] = {}
        self._openers: list[threading.Thread] = []
        self._urls = {f"vllm-{number}": url for number, url in enumerate(servers.urls)}
        names = list(self._urls) or [f"vllm-{number}" for number in range(servers.count)]
        if not servers.urls and servers.open_server is OwnServer:
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
                self.close()  # the servers that still start give up
                raise
        self._watcher = threading.Thread(target=self._watch, name="vllm-watch", daemon=True)
        self._watcher.start()

    @property
    def weight_version(self) -> int:
        return self._version

    @property
    def last_sync(self) -> Mapping[str, float]:
        """Metrics of the last `load_weights`: sync/seconds, sync/bytes and others."""
        return self._last_sync

    def servers(self) -> dict[str, VllmServer]:
        """The servers that take requests now, by name."""
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
        """Try servers until one answers.

        The seed belongs to the request, so another server samples the same tokens.
        """
        body = request_body(request, sampling)
        for attempt in range(1, _MAX_TRIES + 1):
            with self._router.slot(conversation_of(request.tag), self._request_timeout_s) as server:
                try:
                    answer = server.client.call("POST", PATH, body, deadline_s=self._request_timeout_s)
                except ServerLost as loss:
                    if self._closed.is_set():
                        raise EngineError("the engine was closed while a request ran.") from loss
                    self._replace(server, str(loss))
                    if attempt == _MAX_TRIES:
                        reason = describe_loss(server, str(loss))
                        raise EngineError(
                            f"request {request.tag!r} lost {attempt} servers, the last: {reason}"
                        ) from loss
                    continue
            self._restarts[server.name] = 0  # only its own answer shows that it works
            done = read_answer(answer, request)
            return replace(done, metadata={**done.metadata, "tries": float(attempt)})
        raise AssertionError("unreachable")

    def load_weights(self, weights: Mapping[str, torch.Tensor], version: int) -> None:
        """Update all servers. Running requests wait and continue with the new weights.

        A server that is lost meanwhile is replaced. After the first update each server is verified against
        `weights`. Raises WeightSyncError.
        """
        if self._closed.is_set():
            raise EngineError("the engine is closed; open another one.")
        started = time.monotonic()
        with self._syncing:
            servers = {server.client: server for server in self._router.servers().values()}
            metrics, lost = self._sync.publish(weights, version, list(servers))
            self._version = version
            for client, loss in lost.items():
                self._replace(servers[client], str(loss))
            updated = len(servers) - len(lost)
            metrics |= {"sync/seconds": time.monotonic() - started, "sync/servers": float(updated)}
            if not self._verified and updated:
                metrics |= self._verify(weights)
                self._verified = True
            self._last_sync = metrics

    def check_weights(self, weights: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """Verify that all servers hold these weights. Raises WeightSyncError if one does not."""
        with self._syncing:
            return self._verify(weights)

    def close(self) -> None:
        """Wait at most 30 s for running requests, then end our servers."""
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

    # -- servers coming and going
    # --------------------------------------------------------------------------------------

    def _open(self, name: str) -> None:
        """Open a server, give it the weights that the others hold, and let it take requests."""
        server: VllmServer
        if name in self._urls:
            server = ExternalServer(name, self._urls[name], self._launch.context_tokens)
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

    def _verify(self, weights: Mapping[str, torch.Tensor]) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for server in self._router.servers().values():
            for name, value in self._sync.verify(server.client, weights).items():
                metrics[name] = max(metrics.get(name, 0.0), value)
        return metrics

    def _replace(self, server: VllmServer, reason: str) -> None:
        """Remove a lost server and open another one in its place.

        Only the first thread that notices the loss does so.
        """
        if self._closed.is_set() or not self._router.remove(server.name, server):
            return
        self._report(f"{describe_loss(server, reason)} A new server replaces it.")
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
                self._report(f"{lost.name} could not be opened again: {error}")
                if self._restarts[lost.name] >= _MAX_RESTARTS:
                    self._give_up(lost.name, error)
                    return
                self._closed.wait(_WATCH_S)

    def _give_up(self, name: str, error: EngineError) -> None:
        """Stop opening a server. Requests fail only if no other server can still start."""
        self._given_up.add(name)
        if self._given_up == self._names:
            reason = f"{name} could not be opened {_MAX_RESTARTS} times in a row, the last: {error}"
            self._router.fail(ServerLost(reason))

    def _watch(self) -> None:
        """Find servers that died without a request, and note how many requests each has."""
        number = 0
        while not self._closed.wait(_WATCH_S):
            number += 1
            for name, server in self._router.servers().items():
                if not server.is_running:
                    self._replace(server, f"{name} ended")
                elif number % _WATCHES_PER_CHECK == 0:
                    with suppress(EngineError):
                        self._check_health(name, server)

    def _check_health(self, name: str, server: VllmServer) -> None:
        try:
            server.client.call("GET", "/health", deadline_s=_HEALTH_S)
            self._router.report(name, server.client.requests(_HEALTH_S))
        except ServerLost as loss:
            self._replace(server, str(loss))
            raise
