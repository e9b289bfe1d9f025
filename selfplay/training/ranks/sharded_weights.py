"""Whole tensors out of and into a model that ZeRO partitions over ranks: weights, fp32 masters and moments.

It writes no files and sends nothing. Invariants: every method is collective, so all ranks call the same ones
in the same order; no rank holds more than one layer group beyond its own share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from selfplay.training.adapter import Adapter, outer_name
from selfplay.weights.checkpoint_names import layer_groups

MOMENTS = ("exp_avg", "exp_avg_sq")


class ShardedWeights:
    """The weights of one DeepSpeed engine and the state of its optimiser.

    parameters: name -> parameter, partitioned under ZeRO-3; factors of an adapter included.
    groups: names of the model's weights by layer group, without factors.
    """

    def __init__(
        self,
        engine: Any,
        names: Sequence[str],
        adapter: Adapter | None,
        zero_stage: int,
        device: torch.device,
    ) -> None:
        """names: weights of the model without an adapter. device: the rank's."""
        self._engine, self._adapter, self._zero_stage, self._device = engine, adapter, zero_stage, device
        self._rank, self._world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        named = engine.module.model.named_parameters(remove_duplicate=False)
        self.parameters: dict[str, Any] = {outer_name(name): parameter for name, parameter in named}
        self._buffers: dict[str, Tensor] = dict(engine.module.model.named_buffers())
        self.groups = layer_groups(names)

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The model's weights as this rank holds them: for names, dtypes and shapes."""
        names = [name for group in self.groups for name in group]
        return {name: (self.parameters if name in self.parameters else self._buffers)[name] for name in names}

    @property
    def _is_partitioned(self) -> bool:
        return self._zero_stage == 3

    # -- reading
    # -----------------------------------------------------------------------------------------------------

    def computed(self, names: Sequence[str], device: str) -> dict[str, Tensor]:
        """Return copies on `device` in the dtype of the forward pass, with an adapter merged.

        Rank 0 gets them, the others {}. With bf16 the matrices travel as bf16, and an engine takes them so.
        An adapter is merged in fp32 and then rounded.
        """
        if self._adapter is None:
            return self._gathered(names, device)
        merged = self.merged(names, device)
        return {name: value.to(self._computed_type(name, value)) for name, value in merged.items()}

    def merged(self, names: Sequence[str], device: str = "cpu") -> dict[str, Tensor]:
        """Return copies of the fp32 weights on `device`, with an adapter merged.

        Rank 0 gets them, the others {}.
        """
        if self._adapter is None:
            return self.masters(names, device=device)
        own = str(self._device)  # products are fast there
        weights, factors = self.masters(names, device=own), self.masters(self.trained(names), device=own)
        return {
            name: self._adapter.merged(name, value, factors).to(device) for name, value in weights.items()
        }

    def trained(self, names: Sequence[str]) -> Sequence[str]:
        """Return what the optimiser holds for these weights: an adapter's factors, or the weights
        themselves.
        """
        if self._adapter is None:
            return names
        return [factor for name in names for factor in self._adapter.factors.get(name, ())]

    def masters(self, names: Sequence[str], moment: str = "", device: str = "cpu") -> dict[str, Tensor]:
        """Return copies of fp32 masters, or of one of their moments. Rank 0 gets them, the others {}."""
        copies: dict[str, Tensor] = {}
        for name in names:
            if name in self.parameters:
                value = self._master(self.parameters[name], moment)
            elif moment:
                continue  # a buffer has no moments
            else:
                value = self._buffers[name]
            if not self._rank:
                copies[name] = value.detach().to(device, copy=True)
        return copies

    def _gathered(self, names: Sequence[str], device: str) -> dict[str, Tensor]:
        from deepspeed import zero

        parameters = [self.parameters[name] for name in names if name in self.parameters]
        with zero.GatheredParameters(parameters) if self._is_partitioned else nullcontext():
            if self._rank:
                return {}
            copies = {name: self._as_computed(name).detach().to(device, copy=True) for name in names}
            if self._device.type == "cuda":
                torch.cuda.synchronize()  # copy before the gathered weights are freed
            return copies

    def _as_computed(self, name: str) -> Tensor:
        if name not in self.parameters:
            return self._buffers[name]
        value: Tensor = self.parameters[name]
        return value.to(self._computed_type(name, value))

    def _computed_type(self, name: str, value: Tensor) -> torch.dtype:
        found: torch.dtype = getattr(self.parameters.get(name), "comm_dtype", value.dtype)
        return found

    def _master(self, parameter: nn.Parameter, moment: str) -> Tensor:
        """Return a parameter's fp32 master, or one of its two moments, whole on every rank."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        value: Tensor
        if not parameter.requires_grad:
            value = self._frozen(parameter)
        elif self._zero_stage == 0:
            value = self._engine.basic_optimizer.state[parameter][moment] if moment else parameter
        elif moment:
            value = safe_get_full_optimizer_state(parameter, moment)
        else:
            value = safe_get_full_fp32_param(parameter)
        return value

    def _frozen(self, parameter: Any) -> Tensor:
        """Return a weight that no optimiser holds, whole and in fp32.

        DeepSpeed itself gathers it only in the dtype of the forward pass, which may be bf16.
        """
        whole: Tensor = parameter
        if not self._is_partitioned:
            return whole
        share = parameter.ds_tensor.detach().contiguous().to(self._device)
        whole = share.new_empty(self._world * share.numel())
        torch.distributed.all_gather_single(whole, share)
        return whole[: parameter.ds_numel].view(parameter.ds_shape)

    # -- writing
    # -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def put(self, name: str, value: Tensor, moment: str = "") -> None:
        """Write a whole value into this rank's share.

        It becomes the master and the weight of the forward pass, or one of the moments.
        """
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        if name not in self.parameters:
            self._buffers[name].copy_(value)
            return
        parameter, value = self.parameters[name], value.to(self._device)
        if self._is_partitioned:
            self._put_share(parameter, value, moment)
        elif not self._zero_stage:
            (self._engine.basic_optimizer.state[parameter][moment] if moment else parameter).copy_(value)
        elif moment:
            safe_set_full_optimizer_state(parameter, value, moment)
        else:
            safe_set_full_fp32_param(parameter, value)
            parameter.copy_(value)

    def _put_share(self, parameter: Any, value: Tensor, moment: str) -> None:
        from deepspeed import zero
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        share = self._share(parameter, value)
        if moment:
            safe_set_local_optimizer_state(parameter, share, moment)
            return
        # The gathered weight may be bf16, and its share may be the master itself. So the master is written
        # last.
        with zero.GatheredParameters([parameter], modifier_rank=0):
            if not self._rank:
                parameter.copy_(value)
        safe_set_local_fp32_param(parameter, share)

    def _share(self, parameter: Any, value: Tensor) -> Tensor:
        """Return this rank's share of a value.

        The last share may be longer than the rest: then it ends with zeros.
        """
        size = parameter.ds_tensor.numel()
        share = value.new_zeros(size)
        own = value.flatten()[self._rank * size : (self._rank + 1) * size]
        share[: own.numel()] = own
        return share

    # -- the optimiser
    # -----------------------------------------------------------------------------------------------

    def optimizer_steps(self) -> int:
        state = self._engine.basic_optimizer.state
        return max((int(entry["step"]) for entry in state.values()), default=0)

    def set_optimizer_steps(self, steps: int) -> None:
        for entry in self._engine.basic_optimizer.state.values():
            entry["step"].fill_(steps)

    def link_moments(self) -> None:
        """Let DeepSpeed find the moments of all parameters.

        Under ZeRO 1 and 2, DeepSpeed 0.19.8 finds moments by links, which it makes after the step of the
        first group of parameters. The second group has no moments yet then, so the links are made again here.
        """
        if self._zero_stage in (1, 2) and self.optimizer_steps():
            self._engine.optimizer._hp_optimizer_states_linked = False
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()
