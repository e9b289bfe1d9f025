"""vLLM's weight transfer over gloo: for CPUs what vLLM's nccl backend is for GPUs, on both sides.

`engines/vllm_extension.py` registers the server's side, and `native_transfer.py` uses the trainer's side.
Import this module only where vLLM is installed. Invariant: rank 0 sends tensors one after another, in the
order that `update_weights` announced, as with nccl.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.distributed import BroadcastOptions, ProcessGroupGloo, TCPStore  # type: ignore[attr-defined]
from vllm.distributed.weight_transfer.base import TrainerInitInfo, WeightTransferInitInfo
from vllm.distributed.weight_transfer.nccl_engine import (
    NCCLTrainerWeightTransferEngine,
    NCCLWeightTransferEngine,
    NCCLWeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.mtp_validation import disable_mtp_completeness_check

from selfplay.engines.vllm_client import own_address


class Group:
    """A gloo process group. Rank 0 is the trainer, the other ranks are the servers' workers.

    timeout_s: of the meeting of all ranks, and of each broadcast.
    """

    def __init__(self, host: str, port: int, rank: int, world: int, timeout_s: float) -> None:
        timeout = timedelta(seconds=timeout_s)
        self._store = TCPStore(host, port, world, rank == 0, timeout)
        gloo: Any = ProcessGroupGloo
        options = gloo._Options()
        options._timeout = timeout
        # By default gloo takes the device from environment variables and host names.
        options._devices = [gloo.create_device(hostname=own_address(towards=host))]
        self._gloo = gloo(self._store, rank, world, options)

    def broadcast(self, tensor: Tensor) -> None:
        """Send `tensor` from rank 0 to all. It must be contiguous and on the CPU.

        It travels as bytes, since gloo supports fewer dtypes than models use.
        """
        options = BroadcastOptions()
        options.rootRank = 0
        self._gloo.broadcast([tensor.view(-1).view(torch.uint8)], options).wait()


@dataclass
class GlooInitInfo(WeightTransferInitInfo):  # type: ignore[misc]
    """What a server needs to join the group. rank_offset: rank of its first worker."""

    master_address: str
    master_port: int
    rank_offset: int
    world_size: int
    timeout_s: float


@dataclass
class GlooTrainerInitInfo(TrainerInitInfo):  # type: ignore[misc]
    backend: ClassVar[str] = "gloo"
    master_address: str
    master_port: int
    world_size: int
    timeout_s: float


class GlooTransferEngine(NCCLWeightTransferEngine):  # type: ignore[misc]
    """The worker's side. It inherits the layer-by-layer reload from the nccl engine."""

    init_info_cls: Any = GlooInitInfo
    _group: Group | None = None

    def init_transfer_engine(self, init_info: Any) -> None:
        own = (
            self.parallel_config.data_parallel_index * self.parallel_config.world_size
            + self.parallel_config.rank
        )
        address = (init_info.master_address, init_info.master_port)
        rank = init_info.rank_offset + own
        self._group = Group(*address, rank, init_info.world_size, init_info.timeout_s)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: NCCLWeightTransferUpdateInfo) -> None:
        if self._group is None:
            raise RuntimeError("weights came before init_weight_transfer_engine was called")
        with disable_mtp_completeness_check():
            for name, dtype, shape in zip(
                update_info.names, update_info.dtype_names, update_info.shapes, strict=True
            ):
                weight = torch.empty(shape, dtype=getattr(torch, dtype))
                self._group.broadcast(weight)
                self.model.load_weights([(name, weight)])

    def shutdown(self) -> None:
        self._group = None


class GlooTrainerTransferEngine(NCCLTrainerWeightTransferEngine):  # type: ignore[misc]
    """The side of the trainer's rank 0.

    It inherits `send_weights`, with its calls to servers, from the nccl engine.
    """

    init_info_cls: Any = GlooTrainerInitInfo
    _group: Group

    @classmethod
    def trainer_init(cls, init_info: Any, *, client: Any, source: Any = None) -> Self:
        engine = cls(client=client, source=source, is_sender=init_info.is_sender, packed=False)
        address = (init_info.master_address, init_info.master_port)
        servers_info = GlooInitInfo(*address, 1, init_info.world_size, init_info.timeout_s)
        with ThreadPoolExecutor(1) as pool:  # in this call the servers wait for rank 0
            answer = pool.submit(client.init_weight_transfer_engine, asdict(servers_info))
            engine._group = Group(*address, 0, init_info.world_size, init_info.timeout_s)
            answer.result()
        return engine

    def _broadcast(self, source: Any, meta: list[Any]) -> None:
        for _, tensor in self._checked_iter(source, meta):
            self._group.broadcast(tensor.contiguous())
