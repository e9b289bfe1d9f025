"""Sends weights from the trainer's processes to vLLM servers by vLLM's own weight transfer.

nccl is for different GPUs, ipc for a shared one, gloo for CPUs. The code runs in the trainer's processes, and
`NativeWeightSync` starts it. Invariants: every rank iterates its source to the end even after a failure,
since gathering is collective; no rank holds more than one layer group beyond its own share.
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

from selfplay.engines.vllm_client import Client, free_port, own_address
from selfplay.runtime.torch_builds import leave_out_mismatched
from selfplay.weights.checkpoint_names import CheckpointNames

Backend = Literal["nccl", "ipc", "gloo"]
_NO_CALL = "no server was asked for anything"
_BUFFER_BYTES = 256 << 20  # of weights in one package of nccl and ipc; a larger tensor is a package by itself


@dataclass(frozen=True)
class Receivers:
    """The servers that take weights together. deadline_s: of each call to a server, and of each transfer."""

    backend: Backend
    urls: tuple[str, ...]
    dtype: str  # of the servers' weights
    deadline_s: float

    def device(self, own: torch.device) -> str:
        """Return the device from which weights are sent. own: the device where they are."""
        return "cpu" if self.backend == "gloo" else str(own)


@dataclass(frozen=True)
class SendReport:
    """Outcome of one transfer.

    error: "" if all servers took all weights. Else why not, and what each side was waiting for; the servers
    may hold weights of two versions.
    """

    bytes: int = 0
    seconds: float = 0.0
    error: str = ""


class TensorInfo(NamedTuple):
    """Announces one tensor, with the fields that vLLM's trainer side reads."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


class WeightSource:
    """A weight source in vLLM's sense: announces all tensors, then yields them. Each iteration is a new pass.

    tensors: what is sent, by name. Only dtypes and whole shapes are read: under ZeRO-3 these are partitioned
    parameters. groups: starts a pass, collective over ranks. It yields layer groups as copies, and empty
    groups on ranks that only help to gather. names: of the tensors in checkpoints; None: those of `tensors`.
    """

    def __init__(
        self,
        receivers: Receivers,
        tensors: Mapping[str, Tensor],
        groups: Callable[[], Iterator[Mapping[str, Tensor]]],
        names: CheckpointNames | None = None,
    ) -> None:
        target: torch.dtype = getattr(torch, receivers.dtype)
        whole = {
            name: torch.empty(getattr(value, "ds_shape", value.shape), dtype=value.dtype, device="meta")
            for name, value in tensors.items()
        }
        self._names = names
        self._infos = [
            TensorInfo(name, target if value.is_floating_point() else value.dtype, tuple(value.shape))
            for name, value in (names.converted(whole) if names else whole.items())
        ]
        self._dtypes = {info.name: info.dtype for info in self._infos}
        self._groups = groups
        self._pass: Iterator[tuple[str, Tensor]] | None = None
        self.at = "nothing yet"  # the last tensor, for error messages

    @property
    def sizes(self) -> list[int]:
        """Bytes of each tensor."""
        return [info.dtype.itemsize * torch.Size(info.shape).numel() for info in self._infos]

    def metadata(self) -> list[TensorInfo]:
        return self._infos

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        self._pass = self._tensors()
        return self._pass

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for group in self._groups():
            for name, value in (self._names.convert(group) if self._names else group).items():
                self.at = name
                yield name, value.to(self._dtypes[name]).contiguous()
        self.at = "the end"

    def finish(self) -> None:
        """Iterate the rest of a pass that broke off, or a whole pass if none has started."""
        for _ in self._pass or self:
            pass
        self._pass = None


class ServerGroup:
    """Several servers behind the four calls of vLLM's trainer side.

    Each call returns when all servers answered.
    """

    def __init__(self, receivers: Receivers) -> None:
        self._clients = [Client(f"server {url}", url) for url in receivers.urls]
        self._deadline_s = receivers.deadline_s
        self._pool = ThreadPoolExecutor(len(self._clients), thread_name_prefix="transfer-call")
        self._lock = threading.Lock()
        self._unanswered: dict[str, str] = {}  # server -> path of the call that it has not answered
        self._workers: list[int] = []  # of each server

    def count_workers(self) -> int:
        """Ask all servers for the number of processes that take weights. Returns the sum."""
        answers = self._call_all("GET", "/get_world_size?include_dp=true")
        self._workers = [int(answer["world_size"]) for answer in answers]
        return sum(self._workers)

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._call_all("POST", "/shutdown_weight_transfer_engine")  # ends the previous group
        bodies, first = [], 1
        for count in self._workers:
            own = {"rank_offset": first} if "rank_offset" in init_info else {}
            bodies.append({"init_info": init_info | own})
            first += count
        self._call_all("POST", "/init_weight_transfer_engine", bodies)

    def start_weight_update(self) -> None:
        self._call_all("POST", "/start_weight_update")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        info = dict(update_info)
        if (handles := info.pop("ipc_handles", None)) is not None:
            info["ipc_handles_pickled"] = base64.b64encode(pickle.dumps(handles)).decode()
        self._call_all("POST", "/update_weights", [{"update_info": info}] * len(self._clients))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._call_all("POST", "/finish_weight_update")

    def describe_unanswered(self) -> str:
        with self._lock:
            calls = ", ".join(f"{name} was in {path}" for name, path in self._unanswered.items())
        return calls or _NO_CALL

    def close(self) -> None:
        self._pool.shutdown(wait=False)
        for client in self._clients:
            client.close()

    def _call_all(
        self, method: str, path: str, bodies: Sequence[Mapping[str, Any] | None] | None = None
    ) -> list[Any]:
        def ask(client: Client, body: Mapping[str, Any] | None) -> Any:
            with self._lock:
                self._unanswered[client.name] = path.partition("?")[0]
            answer = client.call(method, path, body, deadline_s=self._deadline_s)
            with self._lock:
                del self._unanswered[client.name]  # not reached if the call failed
            return answer

        return list(self._pool.map(ask, self._clients, bodies or [None] * len(self._clients)))


class NativeSender:
    """One rank's part of a transfer: rank 0 calls the servers and sends, the other ranks help to gather.

    Its methods are collective: all ranks call the same ones in the same order.
    """

    def __init__(self, rank: int, progress: Callable[[str], None] = lambda _: None) -> None:
        self._rank, self._progress = rank, progress
        self._receivers: Receivers | None = None
        self._engine: Any = None
        self._servers: ServerGroup | None = None

    def send(self, receivers: Receivers, source: WeightSource) -> SendReport:
        """Send all of `source` to all receivers, which the caller has paused. Failures go into the report."""
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
        # After an error of vLLM, gloo, nccl or HTTP nobody knows what the servers hold, but the ranks can go
        # on.
        except Exception as error:
            unanswered = self._servers.describe_unanswered() if self._servers else _NO_CALL
            first_line = str(error).strip().partition("\n")[0]
            reason = f"{type(error).__name__}: {first_line}. The trainer was at {source.at}; {unanswered}"
            self.close()
            source.finish()
            return SendReport(seconds=time.monotonic() - started, error=reason)
        return SendReport(sum(source.sizes), time.monotonic() - started)

    def _meet(self, receivers: Receivers, package_bytes: int) -> None:
        self.close()
        leave_out_mismatched()
        from vllm.distributed.weight_transfer import WeightTransferTrainerFactory

        self._servers = servers = ServerGroup(receivers)
        host = own_address(urlsplit(receivers.urls[0]).hostname or "127.0.0.1")
        group = (host, free_port(host), 1 + servers.count_workers())  # address, port, world size
        source: Any = object()  # `send` sets the real one for each transfer
        info: Any
        if receivers.backend == "gloo":
            from selfplay.weights.gloo_transfer import GlooTrainerInitInfo, GlooTrainerTransferEngine

            info = GlooTrainerInitInfo(*group, receivers.deadline_s, rank=0)
            self._engine = GlooTrainerTransferEngine.trainer_init(info, client=servers, source=source)
        elif receivers.backend == "nccl":
            from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

            info = NCCLTrainerInitInfo(*group, packed_buffer_size_bytes=package_bytes, rank=0)
            self._engine = WeightTransferTrainerFactory.trainer_init(info, client=servers, source=source)
        else:
            from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

            info = IPCTrainerInitInfo(packed=True, packed_buffer_size_bytes=package_bytes, rank=0)
            self._engine = WeightTransferTrainerFactory.trainer_init(info, client=servers, source=source)
        self._receivers = receivers

    def close(self) -> None:
        """Leave the group. The servers notice at the next meeting. May be called twice."""
        engine, servers = self._engine, self._servers
        self._engine = self._servers = self._receivers = None
        if engine is not None:
            engine.shutdown()
        if servers is not None:
            servers.close()
