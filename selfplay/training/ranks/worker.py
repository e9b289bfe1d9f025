"""One rank of the DeepSpeed trainer: its share of model and optimiser, and what all ranks do together. A plain class for any process.

Leaves cutting an update into shares, deadlines and other processes to its caller. Invariant: every method is collective: all ranks call
the same ones in the same order, with equally many micro-batches, and none holds more than a layer group (or an adapter) beyond its share.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from selfplay.algorithm.loss import Clipping
from selfplay.config import TrainerSettings
from selfplay.engines.models import checkpoint_activations, load_causal_model
from selfplay.errors import PrerequisiteError
from selfplay.runtime.cores import usable_cores
from selfplay.training.adapter import FOLDER, Adapter, add_adapter, check_same_base, outer_name
from selfplay.training.objective import Tally, WeighedBatch, action_logits, filler, weighed_losses
from selfplay.training.optimizer import make_optimizer
from selfplay.weights.native_transfer import NativeSender, Receivers, SendReport, Source

_MOMENTS = ("exp_avg", "exp_avg_sq")
_BUCKET = (
    50_000_000  # elements that are reduced or gathered at once; DeepSpeed's own default takes 2 GB of fp32
)


@dataclass(frozen=True)
class StepReport:
    """grad_norm: of all ranks together, before clipping; not finite when nothing was applied. peak_bytes: this rank's, since it began."""

    tally: Tally
    grad_norm: float
    is_applied: bool
    peak_bytes: int


def layer_groups(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Names of parameters in the groups that are gathered together: a layer, or what lies outside of all layers by module."""

    def group(name: str) -> str:
        numbered = re.match(r"(.*?\.\d+)\.", name)
        return numbered[1] if numbered else name.rpartition(".")[0]

    return [tuple(members) for _, members in itertools.groupby(names, key=group)]


def _write(file: Path, tensors: dict[str, Tensor]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, file, {"format": "pt"})
    except SafetensorError as error:  # its way of reporting a full disk
        raise OSError(str(error)) from error


@contextmanager
def _loaded_in_shares() -> Iterator[None]:
    """transformers makes every parameter as this rank's share of it inside the block, so that no rank holds a whole model even then."""
    from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

    class Zero3:
        config: ClassVar[dict[str, Any]] = {
            "train_micro_batch_size_per_gpu": 1,
            "zero_optimization": {"stage": 3},
        }

        def is_zero3(self) -> bool:
            return True

    kept = Zero3()  # transformers itself only keeps a weak reference
    set_hf_deepspeed_config(kept)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]


class _TiedHead(nn.Linear):
    """A head that shares the embedding's weight. DeepSpeed gathers the weights of plain linear modules as bf16; through a shared one that
    would round the embedding, and all that is added to it, layer after layer."""


class _Loss(nn.Module):
    """The forward pass as one module, so that DeepSpeed's hooks see all of it."""

    def __init__(self, model: Any, anchor: Any, clipping: Clipping, kl_coef: float) -> None:
        super().__init__()
        self.model = model
        self.anchor = anchor  # None where nothing holds the policy
        self._clipping = clipping
        self._anchor_weight = kl_coef

    def forward(self, batch: WeighedBatch, tally: Tally) -> Tensor:
        places = (batch.token_ids, batch.action_rows, batch.action_places, batch.positions)
        logits = action_logits(self.model, *places)  # (actions, vocab)
        with torch.no_grad():
            anchor = None if self.anchor is None else action_logits(self.anchor, *places)
        return weighed_losses(batch, logits, self._clipping, tally, anchor, self._anchor_weight).sum()


class RankWorker:
    """Joins the ranks at `address` (host:port of a torch TCPStore) when made; `open` then builds the model on them.

    device: which GPU of those that this process sees, where others do not see the same; neighbours: how many ranks share its machine.
    By default all ranks are on one machine and see all its GPUs.
    """

    def __init__(
        self,
        rank: int,
        world: int,
        address: str,
        timeout_s: float = 1800.0,
        device: int | None = None,
        neighbours: int = 0,
    ) -> None:
        self.rank, self.world = rank, world
        local, neighbours = rank if device is None else device, neighbours or world
        self.progress: Callable[[str], None] = lambda _: None
        os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
        os.environ.update(LOCAL_RANK=str(local), RANK=str(rank), WORLD_SIZE=str(world))
        os.environ.update(LOCAL_SIZE=str(neighbours), LOCAL_WORLD_SIZE=str(neighbours))
        import deepspeed  # after the variables that it reads

        deepspeed.ops.__compatible_ops__ = {}  # else it compiles a C++ extension for a minute, where it finds a compiler
        self._deepspeed = deepspeed
        self._device = torch.device("cpu")
        if os.environ["DS_ACCELERATOR"] == "cuda":
            if device is None and world > torch.cuda.device_count():
                raise PrerequisiteError(
                    f"trainer.ranks = {world}, but this machine has {torch.cuda.device_count()} GPU(s) and nccl needs one for each rank. "
                    f"Set trainer.ranks = {torch.cuda.device_count()}."
                )
            self._device = torch.device("cuda", local)
            torch.cuda.set_device(self._device)
        else:
            torch.set_num_threads(max(1, usable_cores() // neighbours))
        host, _, port = address.rpartition(":")
        timeout = timedelta(seconds=timeout_s)
        store = torch.distributed.TCPStore(host, int(port), is_master=False, timeout=timeout)  # type: ignore[attr-defined]
        backend = "gloo" if self._device.type == "cpu" else "nccl"
        torch.distributed.init_process_group(
            backend, store=store, rank=rank, world_size=world, timeout=timeout
        )
        deepspeed.init_distributed(dist_backend=backend)
        self._engine: Any = None
        self._sender = NativeSender(rank, lambda what: self.progress(what))

    def open(self, model_path: str, settings: TrainerSettings, seed: int) -> None:
        """Load the model and share it out. Raises EngineError when it does not load. A second call replaces the first's model."""
        self.release()
        torch.manual_seed(seed)
        self._settings = settings
        with _loaded_in_shares() if settings.zero_stage == 3 else nullcontext():
            model = load_causal_model(model_path, torch.float32)
            anchor = (
                load_causal_model(model_path, torch.float32).eval().requires_grad_(False)
                if settings.kl_coef
                else None
            )
        tied = set(getattr(model, "all_tied_weights_keys", None) or ())
        self._names = [name for name in model.state_dict() if name not in tied]
        self._adapter: Adapter | None = add_adapter(model, settings, seed)
        model.eval()  # no dropout: the ratio compares with what the engine computed
        if settings.activation_checkpointing:
            checkpoint_activations(model)
        self._config = model.config
        self._generation_config = model.generation_config
        for one in (model, anchor) if anchor is not None else (model,):
            head = one.get_output_embeddings()
            if type(head) is nn.Linear and head.weight is one.get_input_embeddings().weight:
                head.__class__ = _TiedHead
        loss = _Loss(
            model,
            anchor,
            Clipping(settings.clip_low, settings.clip_high, settings.clip_negative),
            settings.kl_coef,
        )
        optimizer = make_optimizer(loss, settings.learning_rate, settings.weight_decay)
        self._engine, *_ = self._deepspeed.initialize(
            model=loss,
            optimizer=optimizer,
            config=self._deepspeed_settings(settings),
            dist_init_required=False,
        )
        named = self._engine.module.model.named_parameters(remove_duplicate=False)
        self._parameters = {outer_name(name): parameter for name, parameter in named}
        self._buffers = dict(self._engine.module.model.named_buffers())

    def _deepspeed_settings(self, settings: TrainerSettings) -> dict[str, Any]:
        zero: dict[str, Any] = {
            "stage": settings.zero_stage,
            "reduce_bucket_size": _BUCKET,
            "allgather_bucket_size": _BUCKET,
            "stage3_prefetch_bucket_size": _BUCKET,
            "stage3_param_persistence_threshold": 10
            * int(getattr(self._config, "hidden_size", 0)),  # norms stay, matrices are shared out
            "overlap_comm": self._device.type == "cuda",
        }
        if settings.offload:
            zero["offload_optimizer"] = {"device": "cpu", "pin_memory": self._device.type == "cuda"}
        return {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,  # boundaries are set by hand: every update has as many micro-batches as it needs
            "zero_optimization": zero,
            "gradient_clipping": settings.max_grad_norm
            if settings.zero_stage
            else 0.0,  # stage 0 is clipped below
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,  # torch's AdamW: nothing to compile, and the reference's arithmetic
            "torch_autocast": {"enabled": settings.bf16, "dtype": "bfloat16"},
            "steps_per_print": 1 << 60,
        }

    # -- learning ----------------------------------------------------------------------------------------------------

    def step(self, shard: Sequence[WeighedBatch | None], rate: float) -> StepReport:
        """One optimiser step over the shards of all ranks; None is a micro-batch of weight zero.

        Gradients are summed over ranks: the weights of the tokens are normalised over the whole update already.
        """
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        engine = self._engine
        for group in engine.basic_optimizer.param_groups:
            group["lr"] = rate
        tally = Tally()
        for number, batch in enumerate(shard):
            self.progress(f"micro-batch {number + 1} of {len(shard)}")
            engine.set_gradient_accumulation_boundary(number + 1 == len(shard))
            loss = engine((filler() if batch is None else batch).to(self._device), tally)
            engine.backward(loss * self.world)  # DeepSpeed takes the mean over ranks
        self.progress("the optimiser's step")
        norm, is_applied = self._apply()
        return StepReport(tally, norm, is_applied, self._peak_bytes())

    def _apply(self) -> tuple[float, bool]:
        """The global norm of the gradients, and whether they were applied. Those that are not finite are dropped on every rank."""
        engine = self._engine
        if self._settings.zero_stage:
            engine.step()
            norm = (
                float(engine.get_global_grad_norm()) if engine.was_step_applied() else math.nan
            )  # DeepSpeed drops what is not finite
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

    # -- weights -----------------------------------------------------------------------------------------------------

    def weights(self, as_computed: bool = False, device: str = "cpu") -> Iterator[dict[str, Tensor]]:
        """The model's weights, a layer group at a time, as copies on `device`: rank 0 yields them, the others empty dictionaries.

        All ranks iterate to the end. fp32 masters; `as_computed`, what the forward pass multiplies with instead: with bf16 the matrices
        travel and arrive as bf16, which is what an engine wants. An adapter is merged in fp32 either way, then rounded.
        """
        for names in layer_groups(self._names):
            self.progress(f"gathering {names[0]}")
            if as_computed and self._adapter is None:
                yield self._gathered(names, device)
                continue
            merged = self._merged(names, device)
            yield (
                {name: value.to(self._computed_type(name, value)) for name, value in merged.items()}
                if as_computed
                else merged
            )

    def send_weights(self, receivers: Receivers) -> SendReport:
        """The weights into rollout servers, a layer group at a time, from rank 0; see NativeSender. Rank 0's report counts."""
        held = {
            name: self._parameters[name] if name in self._parameters else self._buffers[name]
            for name in self._names
        }
        device = receivers.device(self._device)
        source = Source(receivers, held, lambda: self.weights(receivers.dtype == "bfloat16", device))
        return self._sender.send(receivers, source)

    def _gathered(self, names: Sequence[str], device: str) -> dict[str, Tensor]:
        """Copied, and the copying over, before the gathered weights are let go of."""
        parameters = [self._parameters[name] for name in names if name in self._parameters]
        gathering = (
            self._deepspeed.zero.GatheredParameters(parameters) if self._is_partitioned else nullcontext()
        )
        with gathering:
            if self.rank:
                return {}
            copies = {name: self._computed_with(name).detach().to(device, copy=True) for name in names}
            if self._device.type == "cuda":
                torch.cuda.synchronize()
            return copies

    def _computed_with(self, name: str) -> Tensor:
        if name not in self._parameters:
            buffer: Tensor = self._buffers[name]
            return buffer
        value: Tensor = self._parameters[name]
        return value.to(self._computed_type(name, value))

    def _computed_type(self, name: str, value: Tensor) -> torch.dtype:
        found: torch.dtype = getattr(self._parameters.get(name), "comm_dtype", value.dtype)
        return found

    def _merged(self, names: Sequence[str], device: str = "cpu") -> dict[str, Tensor]:
        """The masters of a layer group with what the adapter adds to them."""
        if self._adapter is None:
            return self._masters(names, device=device)
        here = str(self._device)  # where products are fast
        kept, factors = self._masters(names, device=here), self._masters(self._trained(names), device=here)
        return {name: self._adapter.merged(name, value, factors).to(device) for name, value in kept.items()}

    def _trained(self, names: Sequence[str]) -> Sequence[str]:
        """Of a layer group, what the optimiser holds: the factors of its weights where there is an adapter."""
        if self._adapter is None:
            return names
        return [factor for name in names for factor in self._adapter.factors.get(name, ())]

    def _masters(self, names: Sequence[str], moment: str = "", device: str = "cpu") -> dict[str, Tensor]:
        kept: dict[str, Tensor] = {}
        for name in names:
            if name in self._parameters:
                value = self._master(self._parameters[name], moment)
            elif moment:
                continue
            else:
                value = self._buffers[name]
            if not self.rank:
                kept[name] = value.detach().to(device, copy=True)
        return kept

    def _master(self, parameter: nn.Parameter, moment: str) -> Tensor:
        """A parameter's fp32 master or one of its two moments, whole on every rank."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        value: Tensor
        if not parameter.requires_grad:
            value = self._frozen(parameter)
        elif self._settings.zero_stage == 0:
            value = self._engine.basic_optimizer.state[parameter][moment] if moment else parameter
        elif moment:
            value = safe_get_full_optimizer_state(parameter, moment)
        else:
            value = safe_get_full_fp32_param(parameter)
        return value

    def _frozen(self, parameter: Any) -> Tensor:
        """A weight that no optimiser holds, whole and in fp32: DeepSpeed gathers it only as it is computed with, which may be bf16."""
        whole: Tensor = parameter
        if not self._is_partitioned:
            return whole
        share = parameter.ds_tensor.detach().contiguous().to(self._device)
        whole = share.new_empty(self.world * share.numel())
        torch.distributed.all_gather_single(whole, share)
        return whole[: parameter.ds_numel].view(parameter.ds_shape)

    @property
    def _is_partitioned(self) -> bool:
        return self._settings.zero_stage == 3

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def save(self, folder: str) -> int:
        """Fill a folder with the weights (for transformers too) and both moments, a file a layer group; returns the optimiser's steps.

        With an adapter the weights are merged, the moments its own, and it lies in a folder of its own. Only rank 0 writes. Nothing
        depends on the number of ranks or the stage. Raises OSError when it cannot be written.
        """
        path, groups, steps = Path(folder), layer_groups(self._names), self._optimizer_steps()
        self._link_moments()
        places: dict[str, str] = {}
        size = 0
        if not self.rank:
            (path / "optimizer").mkdir()
        for number, names in enumerate(groups, start=1):
            self.progress(f"saving {names[0]}")
            file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
            weights, trained = self._merged(names), self._trained(names)
            moments = {
                f"{moment}/{name}": v
                for moment in _MOMENTS * bool(steps)
                for name, v in self._masters(trained, moment).items()
            }
            if not self.rank:
                _write(path / file, weights)
                _write(path / "optimizer" / f"{number:05d}.safetensors", moments)
                places |= dict.fromkeys(weights, file)
                size += sum(value.numel() * value.element_size() for value in weights.values())
        if self._adapter is not None:
            self.progress("saving the adapter")
            factors = self._masters(self._adapter.names)  # small enough to be held whole
            if not self.rank:
                self._adapter.write(path / FOLDER, factors)
        if not self.rank:
            index = {"metadata": {"total_size": size}, "weight_map": places}
            (path / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
            self._config.save_pretrained(path)
            if self._generation_config is not None:
                self._generation_config.save_pretrained(path)
        return steps

    def _optimizer_steps(self) -> int:
        state = self._engine.basic_optimizer.state
        return max((int(entry["step"]) for entry in state.values()), default=0)

    def _link_moments(self) -> None:
        """Under ZeRO 1 and 2 DeepSpeed 0.19.8 finds moments by links that it makes after the step of the first group of parameters, when
        the second group has none yet: made again, they hold all."""
        if self._settings.zero_stage in (1, 2) and self._optimizer_steps():
            self._engine.optimizer._hp_optimizer_states_linked = False
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    def load(self, folder: str, steps: int) -> None:
        """Take weights, moments and the optimiser's count of steps from what `save` wrote, on whatever number of ranks and stage."""
        from safetensors import safe_open

        path = Path(folder)
        if steps and not self._optimizer_steps():
            self.step(
                [None], 0.0
            )  # an empty step at rate 0 changes no weight and makes DeepSpeed lay out the moments
        self._link_moments()
        places = json.loads((path / "model.safetensors.index.json").read_text())["weight_map"]
        for number, names in enumerate(layer_groups(self._names), start=1):
            self.progress(f"loading {names[0]}")
            kept = path / "optimizer" / f"{number:05d}.safetensors"
            trained = self._trained(names)
            with safe_open(path / places[names[0]], "pt") as weights, safe_open(kept, "pt") as moments:
                needed = (
                    () if self._adapter is not None and self.rank else names
                )  # with one, only to compare what rank 0 gathers
                values = {name: weights.get_tensor(name) for name in needed}
                factors = {} if self._adapter is None else self._adapter.read(path / FOLDER, trained)
                for name in trained:
                    if name not in self._parameters:
                        self._buffers[name].copy_(values[name])
                        continue
                    self._put(self._parameters[name], (factors or values)[name])
                    for moment in _MOMENTS * bool(steps):
                        self._put(self._parameters[name], moments.get_tensor(f"{moment}/{name}"), moment)
            if self._adapter is not None:
                for name, value in self._merged(names).items():
                    check_same_base(path, name, values[name], value)
        for entry in self._engine.basic_optimizer.state.values():
            entry["step"].fill_(steps)

    @torch.no_grad()
    def _put(self, parameter: Any, value: Tensor, moment: str = "") -> None:
        """A whole value into this rank's share, both of the master (or a moment) and of what the forward pass uses."""
        from deepspeed.utils import (
            safe_set_full_fp32_param,
            safe_set_full_optimizer_state,
            safe_set_local_fp32_param,
            safe_set_local_optimizer_state,
        )

        value = value.to(self._device)
        if self._is_partitioned:
            part = self._part(parameter, value)
            if moment:
                safe_set_local_optimizer_state(parameter, part, moment)
                return
            # What is gathered may be bf16, and its share may be the master itself: the master is written last.
            with self._deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                if not self.rank:
                    parameter.copy_(value)
            safe_set_local_fp32_param(parameter, part)
        elif not self._settings.zero_stage:
            (self._engine.basic_optimizer.state[parameter][moment] if moment else parameter).copy_(value)
        elif moment:
            safe_set_full_optimizer_state(parameter, value, moment)
        else:
            safe_set_full_fp32_param(parameter, value)
            parameter.copy_(value)

    def _part(self, parameter: Any, value: Tensor) -> Tensor:
        """This rank's share of a value, zeros past its end: the last share may be longer than what is left."""
        size = parameter.ds_tensor.numel()
        part = value.new_zeros(size)
        mine = value.flatten()[self.rank * size : (self.rank + 1) * size]
        part[: mine.numel()] = mine
        return part

    def release(self) -> None:
        """Let go of the model, and stay joined."""
        if self._engine is not None:
            self._engine.destroy()
            self._engine = None
            self._parameters = {}
            self._buffers = {}

    def close(self) -> None:
        self._sender.close()
        self.release()
        torch.distributed.destroy_process_group()
