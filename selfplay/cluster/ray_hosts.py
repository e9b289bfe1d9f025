"""Plays episodes on the nodes of a Ray cluster: each node has an actor with a LocalHost.

Training and evaluation use it; an `EnvironmentSource` says what the nodes prepare.

The engine stays with the run, and a host asks it for each turn. Which nodes get hosts is decided in
`placement`. Invariant: each call ends once, on one node. If a node is lost, its calls go to other nodes.
Nothing of its unfinished work was recorded.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from selfplay import parts
from selfplay.agent.chat import open_chat
from selfplay.agent.episode import Episode
from selfplay.agent.hosts import InjectorWork, SolverWork
from selfplay.agent.local_host import LocalHost
from selfplay.agent.workspaces import EpisodeContext, EpisodeKey
from selfplay.cluster.seats import Node
from selfplay.config import Config
from selfplay.engines.base import Completion, Engine, GenerationRequest, Sampling
from selfplay.errors import EngineError, PartError, SelfplayError
from selfplay.verdicts.checks import Thresholds
from selfplay.verdicts.grading import Grade
from selfplay.verdicts.randomness import Secret
from selfplay.verdicts.verdict import Verdict

if TYPE_CHECKING:
    import torch

    from selfplay.repositories.prepare import EnvironmentSource

# An actor sends messages (number of the call, kind, value), with one of these kinds.
GENERATE, DONE, FAILED, LOST = "generate", "done", "failed", "lost"
_WAIT_S = 1.0  # how long one call waits for messages
Message = tuple[int, str, Any]


class HostActor:
    """Plays and judges on its node, in the node's own sandboxes and environments."""

    def __init__(
        self, config: Config, source: EnvironmentSource, model: str, parts_folder: str, secret: Secret
    ) -> None:
        """source: what it plays on. model: the policy's folder or id, for its tokenizer.

        parts_folder: where modules of one's own are. secret: of the run, so that all hosts judge alike.
        """
        self._secret = secret
        os.environ[parts.FOLDER_VARIABLE] = parts_folder
        self._config, self._source, self._model = config, source, model
        threads = config.train.episodes_in_flight + config.train.workers
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="host")
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._engine = _RemoteEngine(self._messages)
        self._host: LocalHost | None = None

    def open(self) -> tuple[str, ...]:
        """Prepare the environments on this node. Returns the names of those that run.

        Raises PrerequisiteError or RunError, and PartError if a part of one's own cannot be loaded here.
        """
        from pathlib import Path

        from rich.console import Console

        from selfplay.agent.workspaces import sandbox_limits
        from selfplay.repositories.prepare import Preparer
        from selfplay.runtime.heaps import bound_heaps
        from selfplay.sandbox import open_backend
        from selfplay.verdicts.test_runs import TestRunner

        bound_heaps()
        parts.check_parts(self._config.parts())
        backend, _ = open_backend(self._config.sandbox.type)
        backend.sweep()
        limits = sandbox_limits(self._config)
        with Path(os.devnull).open("w") as nowhere:
            preparer = Preparer(backend, self._config, limits, Console(file=nowhere))
            environments = self._source.prepare(preparer)
        labels = {"run": "host", "owner": str(os.getpid())}
        runner = TestRunner(backend, self._config.validator, limits, labels, self._secret)
        chat = open_chat(self._model, self._config.policy, self._config.agent)
        context = EpisodeContext(self._config, self._engine, chat, backend, limits)
        self._host = LocalHost(context, environments, runner)
        return tuple(environments)

    def call(self, number: int, method: str, arguments: tuple[Any, ...]) -> None:
        """Start a call of the LocalHost in a thread. Its result is a message with this number."""
        self._pool.submit(self._run, number, method, arguments)

    def _run(self, number: int, method: str, arguments: tuple[Any, ...]) -> None:
        self._engine.enter(number)
        try:
            self._messages.put((number, DONE, getattr(self._host, method)(*arguments)))
        except BaseException as error:  # the run decides what to do, so it hears of every error
            self._messages.put((number, FAILED, _carried(error)))
        finally:
            self._engine.leave(number)

    def answer(
        self, number: int, completions: list[Completion] | None, error: Exception | None, version: int
    ) -> None:
        """The engine's answer to the request of a call."""
        self._engine.answer(number, completions, error, version)

    def receive(self) -> list[Message]:
        """The messages since the last call, in order; waits up to _WAIT_S for one."""
        found: list[Message] = []
        with contextlib.suppress(queue.Empty):
            found.append(self._messages.get(timeout=_WAIT_S))
            while True:
                found.append(self._messages.get_nowait())
        return found


def _carried(error: BaseException) -> BaseException:
    """The error itself if it can be pickled, else an EngineError with its text."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return EngineError(f"{type(error).__name__}: {error}")


class _RemoteEngine:
    """Implements `Engine` on a host: sends requests to the run and waits for its answers.

    Each call runs in a thread of its own, which identifies the call of a request.
    """

    def __init__(self, messages: queue.SimpleQueue[Message]) -> None:
        self._messages = messages
        self._answers: dict[int, queue.SimpleQueue[tuple[list[Completion] | None, Exception | None]]] = {}
        self._thread = threading.local()
        self._version = 0

    def enter(self, number: int) -> None:
        self._thread.number = number
        self._answers[number] = queue.SimpleQueue()

    def leave(self, number: int) -> None:
        del self._answers[number]

    def answer(
        self, number: int, completions: list[Completion] | None, error: Exception | None, version: int
    ) -> None:
        self._version = version
        self._answers[number].put((completions, error))

    @property
    def weight_version(self) -> int:
        return self._version

    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> list[Completion]:
        number = self._thread.number
        self._messages.put((number, GENERATE, (list(requests), sampling)))
        completions, error = self._answers[number].get()
        if error is not None:
            raise error
        assert completions is not None
        return completions

    def load_weights(self, weights: Mapping[str, torch.Tensor], version: int) -> None:
        raise EngineError("a host's engine takes no weights; the run's own does.")

    def close(self) -> None:
        pass


class _HostLost(Exception):
    """The node was lost before it answered the call."""


class _Host:
    """The run's side of a HostActor.

    share         episodes that it should have in flight, by the placement
    repositories  names of those that it can play
    lost          why the node was lost; "" while it is there
    """

    def __init__(self, actor: Any, node: Node, share: int, repositories: Sequence[str]) -> None:
        self.node, self.share, self.repositories = node, share, frozenset(repositories)
        self.in_flight = 0
        self.lost = ""
        self._actor = actor
        self._inboxes: dict[int, queue.SimpleQueue[tuple[str, Any]]] = {}
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        threading.Thread(target=self._read, name=f"host-{node.name}", daemon=True).start()

    def _read(self) -> None:
        import ray

        try:
            while True:
                for number, kind, value in ray.get(
                    self._actor.receive.options(concurrency_group="messages").remote()
                ):
                    inbox = self._inboxes.get(number)
                    if inbox is not None:
                        inbox.put((kind, value))
        except Exception as error:  # any error of Ray means that the actor is lost
            with self._lock:
                self.lost = str(error).strip().partition("\n")[0] or type(error).__name__
                for inbox in self._inboxes.values():
                    inbox.put((LOST, None))

    def call(self, method: str, arguments: tuple[Any, ...], engine: Engine) -> Any:
        """Run a method on the host and return its result.

        The caller's thread also takes the requests of the call to the engine. Raises _HostLost, and what the
        method raises.
        """
        number = next(self._numbers)
        inbox: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        with self._lock:
            if self.lost:
                raise _HostLost
            self._inboxes[number] = inbox
        try:
            self._actor.call.options(concurrency_group="calls").remote(number, method, arguments)
            while True:
                kind, value = inbox.get()
                if kind == LOST:
                    raise _HostLost
                if kind == DONE:
                    return value
                if kind == FAILED:
                    raise value
                self._actor.answer.options(concurrency_group="calls").remote(
                    number, *_generate(engine, *value), engine.weight_version
                )
        finally:
            with self._lock:
                del self._inboxes[number]

    def close(self) -> None:
        import ray

        ray.kill(self._actor)


def _generate(
    engine: Engine, requests: Sequence[GenerationRequest], sampling: Sampling
) -> tuple[list[Completion] | None, Exception | None]:
    try:
        return engine.generate(requests, sampling), None
    except SelfplayError as error:
        return None, error


class ClusterHosts:
    """Implements `EpisodeHost`: spreads calls over this machine and the other nodes, by their shares."""

    def __init__(
        self,
        actors: Sequence[tuple[Any, Node, int]],
        share: int,
        local: LocalHost,
        report: Callable[[str], None],
    ) -> None:
        """Wait until every node has prepared its environments. A node that cannot is reported and left out.

        Raises PartError if a part of one's own cannot be loaded on a node.

        actors  a HostActor on each other node, the node, and its share of the episodes
        share   share of this machine
        local   host of this machine. Its engine answers all requests. It plays everything if no other host is
                left
        report  called with a line when a node cannot play episodes or is lost
        """
        import ray

        self._local, self._share, self._report = local, share, report
        self._here = 0  # calls in flight on this machine
        self._lock = threading.Lock()
        self._hosts: list[_Host] = []
        opening = [actor.open.options(concurrency_group="calls").remote() for actor, _, _ in actors]
        for (actor, node, episodes), opened in zip(actors, opening, strict=True):
            try:
                self._hosts.append(_Host(actor, node, episodes, ray.get(opened)))
            except ray.exceptions.RayError as error:
                cause = getattr(error, "cause", None)
                if isinstance(cause, PartError):
                    raise PartError(f"{node.name}: {cause}") from error
                reason = cause or str(error).strip().partition("\n")[0]
                report(f"{node.name} plays no episodes: {reason}")
                ray.kill(actor)

    def prepare(self, work: SolverWork) -> SolverWork:
        return self._local.prepare(work)

    def play(self, work: InjectorWork | SolverWork, key: EpisodeKey) -> Episode:
        episode: Episode = self._call("play", work.repository, work, key)
        return episode

    def judge(self, work: InjectorWork, episode: Episode) -> Verdict:
        verdict: Verdict = self._call("judge", work.repository, work, episode)
        return verdict

    def grade(self, work: SolverWork, patch: str) -> Grade:
        found: Grade = self._call("grade", work.repository, work, patch)
        return found

    def judge_second_order(self, work: SolverWork, patch: str, thresholds: Thresholds) -> Verdict:
        verdict: Verdict = self._call("judge_second_order", work.repository, work, patch, thresholds)
        return verdict

    def engine_busy_s(self) -> float:
        return self._local.engine_busy_s()

    def _call(self, method: str, repository: str, *arguments: Any) -> Any:
        while True:
            host = self._enter(repository)
            try:
                if host is None:
                    return getattr(self._local, method)(*arguments)
                return host.call(method, arguments, self._local.engine)
            except _HostLost:
                assert host is not None
                self._drop(host)
            finally:
                with self._lock:
                    if host is None:
                        self._here -= 1
                    else:
                        host.in_flight -= 1

    def _enter(self, repository: str) -> _Host | None:
        """The host with the smallest part of its share in flight; None for this machine."""
        with self._lock:
            fitting = [host for host in self._hosts if repository in host.repositories]
            best = min(fitting, key=lambda host: host.in_flight / host.share, default=None)
            if best is None or (self._share and self._here / self._share <= best.in_flight / best.share):
                self._here += 1
                return None
            best.in_flight += 1
            return best

    def _drop(self, host: _Host) -> None:
        with self._lock:
            if host not in self._hosts:
                return
            self._hosts.remove(host)
        self._report(f"{host.node.name} was lost ({host.lost}); its episodes are played elsewhere.")

    def close(self) -> None:
        for host in self._hosts:
            host.close()
