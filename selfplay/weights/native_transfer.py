"""From the trainer's processes into vLLM servers by vLLM's own weight transfer: nccl between GPUs, ipc on a shared one, gloo on CPUs.

Runs where the weights are; `NativeWeightSync` tells it when. Invariant: every rank iterates its source to the end, whatever fails on the
way, since gathering is collective; and nobody holds more than a layer group beyond its share.
"""

from __future__ import annotations

import base64
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

import torch
from torch import Tensor

from selfplay.engines.vllm_servers import Client, free_port, own_address
from selfplay.runtime.torch_builds import leave_out_mismatched

Backend = Literal["nccl", "ipc", "gloo"]
_BUFFER_BYTES = (
    256 << 20
)  # of weights in flight at a time, where they are sent in packages; a larger tensor is a package by itself


@dataclass(frozen=True)
class Receivers:
    """The servers that take weights together, and how. dtype: theirs. deadline_s: of each call to one and of each transfer."""

    backend: Backend
    urls: tuple[str, ...]
    dtype: str
    deadline_s: float

    def device(self, own: torch.device) -> str:
        """Where weights are wanted that lie on `own`."""
        return "cpu" if self.backend == "gloo" else str(own)


@dataclass(frozen=True)
class SendReport:
    """error: why the servers may hold a mixture now, with what each side was waiting for; "" when all of them took all of it."""

    bytes: int = 0
    seconds: float = 0.0
    error: str = ""


class Announced(NamedTuple):
    """One tensor before it comes, as vLLM's trainer side reads it."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


class Source:
    """What vLLM calls a weight source: announces all tensors, then yields them. A new pass with each iteration.

    held: what is sent, by name, for types and whole shapes alone: under ZeRO-3 parameters that are shared out. groups: starts a pass,
    collective over ranks; layer groups as copies of one's own, empty on ranks that only help to gather.
    """

    def __init__(
        self,
        receivers: Receivers,
        held: Mapping[str, Tensor],
        groups: Callable[[], Iterator[Mapping[str, Tensor]]],
    ) -> None:
        theirs: torch.dtype = getattr(torch, receivers.dtype)
        self._dtypes = {
            name: theirs if value.is_floating_point() else value.dtype for name, value in held.items()
        }
        self._announced = [
            Announced(name, self._dtypes[name], tuple(getattr(value, "ds_shape", value.shape)))
            for name, value in held.items()
        ]
        self._groups = groups
        self._pass: Iterator[tuple[str, Tensor]] | None = None
        self.at = "nothing yet"

    @property
    def sizes(self) -> list[int]:
        """Bytes of each tensor."""
        return [one.dtype.itemsize * torch.Size(one.shape).numel() for one in self._announced]

    def metadata(self) -> list[Announced]:
        return self._announced

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        self._pass = self._tensors()
        return self._pass

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for group in self._groups():
            for name, value in group.items():
                self.at = name
                yield name, value.to(self._dtypes[name]).contiguous()
        self.at = "the end"

    def finish(self) -> None:
        """What is left of a pass that broke off, or a whole one where none began."""
        for _ in self._pass or self:
            pass
        self._pass = None


class Servers:
    """Several servers behind the four calls that vLLM's trainer side makes. Each call returns when all have answered."""

    def __init__(self, receivers: Receivers) -> None:
        self._clients = [Client(f"server {url}", url) for url in receivers.urls]
        self._deadline_s = receivers.deadline_s
        self._pool = ThreadPoolExecutor(len(self._clients), thread_name_prefix="transfer-call")
        self._lock = threading.Lock()
        self._open: dict[str, str] = {}  # what was asked of whom and is not answered
        self._workers: list[int] = []

    def workers(self) -> int:
        """How many processes of all servers take weights."""
        self._workers = [
            int(answer["world_size"]) for answer in self._all("GET", "/get_world_size?include_dp=true")
        ]
        return sum(self._workers)

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._all("POST", "/shutdown_weight_transfer_engine")  # of a group that is given up
        bodies, first = [], 1
        for count in self._workers:
            bodies.append(
                {
                    "init_info": {**init_info, "rank_offset": first}
                    if "rank_offset" in init_info
                    else init_info
                }
            )
            first += count
        self._all("POST", "/init_weight_transfer_engine", bodies)

    def start_weight_update(self) -> None:
        self._all("POST", "/start_weight_update")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        info = dict(update_info)
        if (handles := info.pop("ipc_handles", None)) is not None:
            info["ipc_handles_pickled"] = base64.b64encode(pickle.dumps(handles)).decode()
        self._all("POST", "/update_weights", [{"update_info": info}] * len(self._clients))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._all("POST", "/finish_weight_update")

    def waiting(self) -> str:
        with self._lock:
            return (
                ", ".join(f"{name} was in {path}" for name, path in self._open.items())
                or "no server was asked for anything"
            )

    def close(self) -> None:
        self._pool.shutdown(wait=False)
        for client in self._clients:
            client.close()

    def _all(
        self, method: str, path: str, bodies: Sequence[Mapping[str, Any] | None] | None = None
    ) -> list[Any]:
        def ask(client: Client, body: Mapping[str, Any] | None) -> Any:
            with self._lock:
                self._open[client.name] = path.partition("?")[0]
            answer = client.call(method, path, body, deadline_s=self._deadline_s)
            with self._lock:
                del self._open[client.name]  # one that failed stays
            return answer

        return list(self._pool.map(ask, self._clients, bodies or [None] * len(self._clients)))


class NativeSender:
    """One rank's part in it: rank 0 speaks to the servers and sends, the others help to gather. Collective, like all that a rank does."""

    def __init__(self, rank: int, progress: Callable[[str], None] = lambda _: None) -> None:
        self._rank, self._progress = rank, progress
        self._receivers: Receivers | None = None
        self._engine: Any = None
        self._servers: Servers | None = None

    def send(self, receivers: Receivers, source: Source) -> SendReport:
        """All of `source` into all receivers, which were paused before and are told a version after. Never raises for what they do."""
        started = time.monotonic()
        if self._rank:
            source.finish()
            return SendReport()
        try:
            if self._engine is None or receivers != self._receivers:
                self._progress("meeting the servers")
                self._meet(receivers, max(_BUFFER_BYTES, *source.sizes))
            self._engine.source = source
            self._engine.send_weights()
        except Exception as error:  # of vLLM, gloo, nccl, HTTP: whatever it is, the servers cannot be trusted and the ranks are well
            waiting = self._servers.waiting() if self._servers else "no server was asked for anything"
            why = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}. The trainer was at {source.at}; {waiting}"
            self.close()
            source.finish()
            return SendReport(seconds=time.monotonic() - started, error=why)
        return SendReport(sum(source.sizes), time.monotonic() - started)

    def _meet(self, receivers: Receivers, package_bytes: int) -> None:
        self.close()
        leave_out_mismatched()
        from vllm.distributed.weight_transfer import WeightTransferTrainerFactory

        self._servers = servers = Servers(receivers)
        host = own_address(urlsplit(receivers.urls[0]).hostname or "127.0.0.1")
        place = (host, free_port(host), 1 + servers.workers())
        source: Any = object()  # set for each transfer
        info: Any
        if receivers.backend == "gloo":
            from selfplay.weights.gloo_transfer import GlooTrainerInitInfo, GlooTrainerTransferEngine

            info = GlooTrainerInitInfo(*place, receivers.deadline_s, rank=0)
            self._engine = GlooTrainerTransferEngine.trainer_init(info, client=servers, source=source)
        elif receivers.backend == "nccl":
            from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

            info = NCCLTrainerInitInfo(*place, packed_buffer_size_bytes=package_bytes, rank=0)
            self._engine = WeightTransferTrainerFactory.trainer_init(info, client=servers, source=source)
        else:
            from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

            info = IPCTrainerInitInfo(packed=True, packed_buffer_size_bytes=package_bytes, rank=0)
            self._engine = WeightTransferTrainerFactory.trainer_init(info, client=servers, source=source)
        self._receivers = receivers

    def close(self) -> None:
        """Let go of the servers, which hear of it when somebody meets them anew. May be called twice."""
        engine, servers, self._engine, self._servers, self._receivers = (
            self._engine,
            self._servers,
            None,
            None,
            None,
        )
        if engine is not None:
            engine.shutdown()
        if servers is not None:
            servers.close()
