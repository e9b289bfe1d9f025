"""vLLM's weight transfer over gloo: between CPUs what its own nccl backend is between GPUs, both halves of it.

`vllm_extension` registers the servers' half, `training/native_transfer.py` uses the trainer's. Imported only where vLLM is.
Invariant: as with nccl, tensors travel one after another from rank 0, in the order that `update_weights` announced.
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

from selfplay.engines.vllm_servers import own_address


class Group:
    """Rank 0 is the trainer's, the others are servers' workers. timeout_s: of meeting, and of each broadcast."""

    def __init__(self, host: str, port: int, rank: int, world: int, timeout_s: float) -> None:
        timeout = timedelta(seconds=timeout_s)
        self._store = TCPStore(host, port, world, rank == 0, timeout)
        gloo: Any = ProcessGroupGloo
        options = gloo._Options()
        options._timeout = timeout
        options._devices = [
            gloo.create_device(hostname=own_address(towards=host))
        ]  # else it goes by variables and host names
        self._gloo = gloo(self._store, rank, world, options)

    def broadcast(self, tensor: Tensor) -> None:
        """From rank 0, as bytes: gloo knows fewer types than models have. `tensor` is contiguous and on the CPU."""
        options = BroadcastOptions()
        options.rootRank = 0
        self._gloo.broadcast([tensor.view(-1).view(torch.uint8)], options).wait()


@dataclass
class GlooInitInfo(WeightTransferInitInfo):  # type: ignore[misc]
    """What a server is told. rank_offset: the rank of its first worker."""

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
    """In a worker of a server. The layer-by-layer reload around it is the nccl engine's."""

    init_info_cls: Any = GlooInitInfo
    _group: Group | None = None

    def init_transfer_engine(self, init_info: Any) -> None:
        own = (
            self.parallel_config.data_parallel_index * self.parallel_config.world_size
            + self.parallel_config.rank
        )
        place = (init_info.master_address, init_info.master_port, init_info.rank_offset + own)
        self._group = Group(*place, init_info.world_size, init_info.timeout_s)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: NCCLWeightTransferUpdateInfo) -> None:
        if self._group is None:
            raise RuntimeError("weights come before init_weight_transfer_engine")
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
    """In the trainer's rank 0: `send_weights`, the round of calls around the broadcasts, is the nccl engine's."""

    init_info_cls: Any = GlooTrainerInitInfo
    _group: Group

    @classmethod
    def trainer_init(cls, init_info: Any, *, client: Any, source: Any = None) -> Self:
        engine = cls(client=client, source=source, is_sender=init_info.is_sender, packed=False)
        place = (init_info.master_address, init_info.master_port)
        told = GlooInitInfo(*place, 1, init_info.world_size, init_info.timeout_s)
        with ThreadPoolExecutor(1) as pool:  # servers wait in this call for rank 0 to come
            answer = pool.submit(client.init_weight_transfer_engine, asdict(told))
            engine._group = Group(*place, 0, init_info.world_size, init_info.timeout_s)
            answer.result()
        return engine

    def _broadcast(self, source: Any, meta: list[Any]) -> None:
        for _, tensor in self._checked_iter(source, meta):
            self._group.broadcast(tensor.contiguous())
