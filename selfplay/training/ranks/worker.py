"""One rank of the DeepSpeed trainer: its share of model and optimiser, and the collective steps of all ranks.

A plain class that any process can run. Its caller splits updates, sets deadlines and starts processes.
Invariants: every method is collective, so all ranks call the same ones in the same order, with equally many
micro-batches; no rank holds more than one layer group (or an adapter) beyond its share.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfplay import parts
from selfplay.engines.models import checkpoint_activations, load_causal_model
from selfplay.errors import PrerequisiteError
from selfplay.runtime.cores import usable_cores
from selfplay.settings.learning import TrainerSettings
from selfplay.training.adapter import FOLDER, Adapter, add_adapter, check_same_base
from selfplay.training.objective import MetricSums, WeightedBatch, dummy_batch
from selfplay.training.optimizer import make_optimizer
from selfplay.training.ranks.model import LossModule, deepspeed_settings, loading_in_shares, mark_head
from selfplay.training.ranks.sequence_parallel import SequenceGroups, share_sequences
from selfplay.training.ranks.sharded_weights import MOMENTS, ShardedWeights
from selfplay.training.windows import cut_into_windows
from selfplay.weights.checkpoint_names import CheckpointNames
from selfplay.weights.native_transfer import NativeSender, Receivers, SendReport, WeightSource


@dataclass(frozen=True)
class StepReport:
    """grad_norm: of all ranks together, before clipping. It is not finite if the step was not applied.

    peak_bytes: this rank's highest memory use so far.
    """

    sums: MetricSums
    grad_norm: float
    is_applied: bool
    peak_bytes: int


class RankWorker:
    """One member of the process group. `open` loads a model."""

    def __init__(
        self,
        rank: int,
        world: int,
        address: str,
        timeout_s: float = 1800.0,
        device: int | None = None,
        neighbours: int = 0,
    ) -> None:
        """Join the group.

        address: host:port of a torch TCPStore.
        device: index of this rank's GPU among those that the process sees. None: all ranks see all GPUs of
            one machine, and the index is the rank.
        neighbours: number of ranks on this machine. 0: all.
        """
        self.rank, self.world = rank, world
        local, neighbours = rank if device is None else device, neighbours or world
        self.progress: Callable[[str], None] = lambda _: None
        os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
        os.environ.update(LOCAL_RANK=str(local), RANK=str(rank), WORLD_SIZE=str(world))
        os.environ.update(LOCAL_SIZE=str(neighbours), LOCAL_WORLD_SIZE=str(neighbours))
        import deepspeed  # reads the variables above

        # Otherwise DeepSpeed compiles a C++ extension for a minute if it finds a compiler.
        deepspeed.ops.__compatible_ops__ = {}
        self._deepspeed = deepspeed
        self._device = torch.device("cpu")
        if os.environ["DS_ACCELERATOR"] == "cuda":
            gpus = torch.cuda.device_count()
            if device is None and world > gpus:
                raise PrerequisiteError(
                    f"trainer.ranks = {world}, but this machine has {gpus} GPU(s), "
                    f"and nccl needs one for each rank. Set trainer.ranks = {gpus}."
                )
            self._device = torch.device("cuda", local)
            torch.cuda.set_device(self._device)
        else:
            torch.set_num_threads(max(1, usable_cores() // neighbours))
        self._join(address, timedelta(seconds=timeout_s))
        self._sequence_groups = SequenceGroups(rank, world)
        self._engine: Any = None
        self._sender = NativeSender(rank, lambda what: self.progress(what))

    def _join(self, address: str, timeout: timedelta) -> None:
        host, _, port = address.rpartition(":")
        make_store: Any = torch.distributed.TCPStore  # type: ignore[attr-defined]
        store = make_store(host, int(port), is_master=False, timeout=timeout)
        backend = "gloo" if self._device.type == "cpu" else "nccl"
        torch.distributed.init_process_group(
            backend, store=store, rank=self.rank, world_size=self.world, timeout=timeout
        )
        self._deepspeed.init_distributed(dist_backend=backend)

    def open(self, model_path: str, settings: TrainerSettings, seed: int) -> None:
        """Load the model and partition it.

        A second call replaces the model. Raises EngineError if it does not load, PartError if a part of one's
        own cannot be loaded in this process.
        """
        parts.check_parts(
            {"trainer.aggregation": (settings.aggregation,), "trainer.clipping": (settings.clipping,)}
        )
        self.release()
        torch.manual_seed(seed)
        self._settings = settings
        with loading_in_shares(settings.offload_weights) if settings.zero_stage == 3 else nullcontext():
            model = load_causal_model(model_path, torch.float32)
            has_copy = settings.kl_coef and not settings.lora_rank  # the base of an adapter needs no copy
            reference = load_causal_model(model_path, torch.float32) if has_copy else None
        tied = set(getattr(model, "all_tied_weights_keys", None) or ())
        names = [name for name in model.state_dict() if name not in tied]
        self._adapter: Adapter | None = add_adapter(model, settings, seed)
        model.eval()  # without dropout, as in the engine: the importance ratio compares the two
        if settings.activation_checkpointing:
            checkpoint_activations(model)
        self._config = model.config
        self._names = CheckpointNames(model)
        self._generation_config = model.generation_config
        mark_head(model)
        if reference is not None:
            mark_head(reference.eval().requires_grad_(False))
        if settings.sequence_parallel > 1:
            group = self._sequence_groups.of(settings.sequence_parallel)
            for each in filter(None, (model, reference)):
                share_sequences(each, group)
        loss = LossModule(model, reference, settings)
        optimizer = make_optimizer(loss, settings.learning_rate, settings.weight_decay)
        self._engine, *_ = self._deepspeed.initialize(
            model=loss,
            optimizer=optimizer,
            config=self._deepspeed_settings(settings),
            dist_init_required=False,
        )
        self._weights = ShardedWeights(self._engine, names, self._adapter, settings.zero_stage, self._device)

    def _deepspeed_settings(self, settings: TrainerSettings) -> dict[str, Any]:
        hidden_size = int(getattr(self._config, "hidden_size", 0))
        return deepspeed_settings(settings, hidden_size, self._device.type == "cuda")

    # -- learning
    # ----------------------------------------------------------------------------------------------------

    def step(self, share: Sequence[WeightedBatch | None], rate: float) -> StepReport:
        """Make one optimiser step with all ranks.

        share: this rank's micro-batches; None stands for a dummy batch. rate: the learning rate. Gradients
        are summed over ranks, since token weights are already normalised over the whole update.
        """
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        engine = self._engine
        for group in engine.basic_optimizer.param_groups:
            group["lr"] = rate
        sums = MetricSums()
        for number, batch in enumerate(share, start=1):
            self.progress(f"micro-batch {number} of {len(share)}")
            engine.set_gradient_accumulation_boundary(number == len(share))
            loss = engine((self._dummy_batch() if batch is None else batch).to(self._device), sums)
            engine.backward(loss * self.world)  # DeepSpeed takes the mean over ranks
        self.progress("the optimiser's step")
        norm, is_applied = self._apply()
        return StepReport(sums, norm, is_applied, self._peak_bytes())

    def _dummy_batch(self) -> WeightedBatch:
        parts = self._settings.sequence_parallel
        return cut_into_windows(dummy_batch(2 * parts), parts)[self.rank % parts]

    def _apply(self) -> tuple[float, bool]:
        """Apply the gradients. Returns their global norm, and whether they were applied.

        Every rank drops gradients that are not finite.
        """
        engine = self._engine
        if self._settings.zero_stage:
            engine.step()
            # DeepSpeed itself drops gradients that are not finite.
            norm = float(engine.get_global_grad_norm()) if engine.was_step_applied() else math.nan
            return norm, math.isfinite(norm)
        norm = float(torch.nn.utils.clip_grad_norm_(engine.module.parameters(), self._settings.max_grad_norm))
        if math.isfinite(norm):
            engine.step()
        else:
            engine.zero_grad()
        return norm, math.isfinite(norm)

    def _peak_bytes(self) -> int:
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated())
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    # -- weights
    # -----------------------------------------------------------------------------------------------------

    def weights(self, as_computed: bool = False, device: str = "cpu") -> Iterator[dict[str, Tensor]]:
        """Yield copies of the weights on `device`, a layer group at a time. Ranks other than 0 yield {}.

        All ranks must iterate to the end. The weights are fp32 masters, or with `as_computed` in the dtype of
        the forward pass. An adapter is merged.
        """
        for names in self._weights.groups:
            self.progress(f"gathering {names[0]}")
            if as_computed:
                yield self._weights.computed(names, device)
            else:
                yield self._weights.merged(names, device)

    def send_weights(self, receivers: Receivers) -> SendReport:
        """Send the weights from rank 0 to rollout servers, a layer group at a time.

        Rank 0's report counts.
        """
        device = receivers.device(self._device)
        source = WeightSource(
            receivers,
            self._weights.tensors,
            lambda: self.weights(receivers.dtype == "bfloat16", device),
            self._names,
        )
        return self._sender.send(receivers, source)

    # -- checkpoints
    # -------------------------------------------------------------------------------------------------

    def save(self, folder: str) -> int:
        """Write weights and both moments, one file for each layer group. Returns the optimiser's steps.

        With an adapter the weights are merged, the moments are the adapter's, and it gets a folder of its
        own. Only rank 0 writes. The files do not depend on the number of ranks or the ZeRO stage. Raises
        OSError if they cannot be written.
        """
        path, weights = Path(folder), self._weights
        steps = weights.optimizer_steps()
        weights.link_moments()
        weight_map: dict[str, str] = {}  # name -> file
        size = 0
        if not self.rank:
            (path / "optimizer").mkdir()
        for number, names in enumerate(weights.groups, start=1):
            self.progress(f"saving {names[0]}")
            file = f"model-{number:05d}-of-{len(weights.groups):05d}.safetensors"
            merged, moments = weights.merged(names), self._moments(names) if steps else {}
            if not self.rank:
                _write(path / file, merged)
                _write(path / "optimizer" / f"{number:05d}.safetensors", moments)
                weight_map |= dict.fromkeys(merged, file)
                size += sum(value.nbytes for value in merged.values())
        if self._adapter is not None:
            self.progress("saving the adapter")
            factors = weights.masters(self._adapter.names)  # small enough to be held whole
            if not self.rank:
                self._adapter.write(path / FOLDER, factors)
        if not self.rank:
            index = {"metadata": {"total_size": size}, "weight_map": weight_map}
            (path / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
            self._config.save_pretrained(path)
            if self._generation_config is not None:
                self._generation_config.save_pretrained(path)
        return steps

    def _moments(self, names: Sequence[str]) -> dict[str, Tensor]:
        trained = self._weights.trained(names)
        return {
            f"{moment}/{name}": value
            for moment in MOMENTS
            for name, value in self._weights.masters(trained, moment).items()
        }

    def load(self, folder: str, steps: int) -> None:
        """Read what `save` wrote, on any number of ranks and any ZeRO stage. steps: what `save` returned."""
        from safetensors import safe_open

        path, weights = Path(folder), self._weights
        if steps and not weights.optimizer_steps():
            # A dummy step at rate 0 changes no weight, and makes DeepSpeed allocate the moments.
            self.step([None], 0.0)
        weights.link_moments()
        weight_map = json.loads((path / "model.safetensors.index.json").read_text())["weight_map"]
        for number, names in enumerate(weights.groups, start=1):
            self.progress(f"loading {names[0]}")
            moments = path / "optimizer" / f"{number:05d}.safetensors"
            with safe_open(moments, "pt") as saved:
                self._load_group(path, names, path / weight_map[names[0]], saved if steps else None)
        weights.set_optimizer_steps(steps)

    def _load_group(self, path: Path, names: Sequence[str], file: Path, moments: Any) -> None:
        """Read one layer group of a checkpoint at `path`.

        file: its weights. moments: open file of its moments; None before the first optimiser step.
        """
        from safetensors import safe_open

        weights = self._weights
        # With an adapter the weights are only compared, on rank 0 alone.
        needed = () if self._adapter is not None and self.rank else names
        with safe_open(file, "pt") as saved:
            values = {name: saved.get_tensor(name) for name in needed}
        trained = weights.trained(names)
        factors = {} if self._adapter is None else self._adapter.read(path / FOLDER, trained)
        for name in trained:
            weights.put(name, (factors or values)[name])
            for moment in MOMENTS if moments is not None and name in weights.parameters else ():
                weights.put(name, moments.get_tensor(f"{moment}/{name}"), moment)
        if self._adapter is not None:
            for name, value in weights.merged(names).items():
                check_same_base(path, name, values[name], value)

    def release(self) -> None:
        """Free the model, and stay in the group."""
        if self._engine is not None:
            self._engine.destroy()
            self._engine = None
            del self._weights

    def close(self) -> None:
        self._sender.close()
        self.release()
        torch.distributed.destroy_process_group()


def _write(file: Path, tensors: dict[str, Tensor]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, file, {"format": "pt"})
    except SafetensorError as error:  # for example a full disk
        raise OSError(str(error)) from error
