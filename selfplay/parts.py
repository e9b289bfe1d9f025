"""Parts that users can replace: the names that each setting knows, and one's own as `package.module:name`.

Names are checked when the configuration is read. Nothing is imported then, so that opening a run for
viewing runs no foreign code. `load` imports a part when it is used; `check_parts` loads all parts of a run
at its start, so that a missing one stops the run before it plays. CONTRIBUTING.md says for each kind what a
part is called with and what it returns.

Invariant: a part of one's own that raises, or returns what is not a finite number, stops the run with its
name (`PartError`).
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import math
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from selfplay.errors import PartError, SelfplayError
from selfplay.runtime.resources import resource

OWN = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
FOLDER_VARIABLE = "SELFPLAY_PARTS"  # set for processes that work in another folder than the run
PROMPTS = "injector.strategies"  # its names are those of the prompts' folder

# Setting -> name -> where the part is. A part is imported only when it is used: some need torch, vLLM or
# DeepSpeed.
PARTS: Mapping[str, Mapping[str, str]] = {
    "injector.reward": {
        "ssr": "selfplay.algorithm.rewards:ssr_injector_reward",
        "consistency": "selfplay.algorithm.rewards:consistency_reward",
    },
    "solver.reward": {
        "ssr": "selfplay.algorithm.rewards:ssr_solver_reward",
        "binary": "selfplay.algorithm.rewards:binary_reward",
    },
    "trainer.advantage": {
        "rloo": "selfplay.algorithm.advantages:rloo",
        "dr_grpo": "selfplay.algorithm.advantages:dr_grpo",
        "cwm": "selfplay.algorithm.advantages:cwm",
        "grpo": "selfplay.algorithm.advantages:grpo",
    },
    "trainer.aggregation": {
        "constant": "selfplay.algorithm.loss:constant",
        "token": "selfplay.algorithm.loss:token",
        "sequence": "selfplay.algorithm.loss:sequence",
    },
    "trainer.clipping": {
        "dual_clip": "selfplay.algorithm.loss:dual_clip",
        "clip": "selfplay.algorithm.loss:clip",
    },
    "trainer.episodes": {
        "all": "selfplay.algorithm.episodes:train_all",
        "compact": "selfplay.algorithm.episodes:compact",
        "penalise_stuck": "selfplay.algorithm.episodes:penalise_stuck",
    },
    PROMPTS: {},
    "agent.tools": {
        "bash": "selfplay.agent.tools:BASH",
        "edit": "selfplay.agent.tools:EDIT",
        "create": "selfplay.agent.tools:CREATE",
        "submit": "selfplay.agent.tools:SUBMIT",
    },
    "agent.tool_format": {
        "tags": "selfplay.agent.tool_format:TAGS",
        "hermes": "selfplay.agent.json_calls:HERMES",
        "qwen-xml": "selfplay.agent.xml_calls:QWEN_XML",
        "bash-block": "selfplay.agent.bash_blocks:BASH_BLOCK",
    },
    "curriculum.sampler": {
        "solve_rate": "selfplay.curriculum.sampling:by_solve_rate",
        "uniform": "selfplay.curriculum.sampling:uniformly",
    },
    "sandbox.type": {
        "auto": "",  # the first that works
        "docker": "selfplay.sandbox.docker_sandbox:DockerBackend",
        "bubblewrap": "selfplay.sandbox.bubblewrap_sandbox:BubblewrapBackend",
    },
    "engine.type": {
        "auto": "selfplay.orchestrator.build:auto_engine",
        "hf": "selfplay.orchestrator.build:hf_engine",
        "vllm": "selfplay.orchestrator.build:vllm_engine",
        "scripted": "selfplay.orchestrator.build:scripted_engine",
    },
    "trainer.type": {
        "torch": "selfplay.orchestrator.build:torch_trainer",
        "deepspeed": "selfplay.orchestrator.build:deepspeed_trainer",
    },
    "metrics.sinks": {
        "jsonl": "selfplay.metrics:open_jsonl",
        "csv": "selfplay.metrics:open_csv",
        "tensorboard": "selfplay.metrics:open_tensorboard",
        "wandb": "selfplay.metrics:open_wandb",
    },
    # the option --format of `selfplay export`
    "export": {
        "atif": "selfplay.exports.trajectories:write_atif",
        "mini-swe-agent": "selfplay.exports.trajectories:write_mini_swe_agent",
        "sft": "selfplay.exports.trajectories:write_sft",
        "parquet": "selfplay.exports.columns:write_parquet",
        "asciicast": "selfplay.exports.asciicast:write_asciicast",
        "swe-bench": "selfplay.exports.records:write_swe_bench",
        "swe-smith": "selfplay.exports.records:write_swe_smith",
        "harbor": "selfplay.exports.harbor:write_harbor",
    },
    # a hint of a list's line: programs in data/parsers/
    "parser": {"tap": "", "pass-fail": "", "unittest": ""},
}


def names_of(setting: str) -> tuple[str, ...]:
    """The names that a setting knows, besides one's own."""
    return _strategies() if setting == PROMPTS else tuple(PARTS[setting])


@cache
def _strategies() -> tuple[str, ...]:
    folder = resource("prompts") / "injector"
    return tuple(
        sorted(path.name.partition(".")[0] for path in folder.glob("*.md.j2") if path.name.count(".") == 2)
    )


def is_own(name: str) -> bool:
    """True for `package.module:name`."""
    return OWN.fullmatch(name) is not None


def check_name(setting: str, name: str) -> str:
    """The name itself.

    Raises ValueError, with what there is, for one that is neither known nor `package.module:name`.
    """
    known = names_of(setting)
    if name in known or is_own(name):
        return name
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(
        f"{name!r} is not one of {', '.join(known)}, nor one's own as 'package.module:name'.{hint}"
    )


@cache
def load(setting: str, name: str) -> Any:
    """The part. Raises PartError that says why it cannot be loaded.

    Modules of one's own are found where Python finds modules, and in the folder that the run was started in.
    """
    path = name if is_own(name) else PARTS[setting][name]
    module, _, attribute = path.partition(":")
    try:
        if is_own(name):
            _search_here()
        return getattr(importlib.import_module(module), attribute)
    except SelfplayError:
        raise
    except Exception as error:
        if not is_own(name):
            raise
        raise PartError(
            f"{setting} = {name!r} cannot be loaded: {type(error).__name__}: {error}. "
            f"Python must find the module {module!r} in {parts_folder()} or in PYTHONPATH, "
            f"and in it {attribute!r}."
        ) from error


def parts_folder() -> Path:
    """The folder in which modules of one's own are found: where the run was started, on other hosts too."""
    return Path(os.environ.get(FOLDER_VARIABLE) or Path.cwd())


def _search_here() -> None:
    here = str(parts_folder())
    if here not in sys.path:
        sys.path.append(here)


@contextmanager
def blamed(setting: str, name: str, *expected: type[Exception]) -> Iterator[None]:
    """An exception of a part of one's own becomes a PartError with its name.

    selfplay's own errors stay what they are, and so do `expected` ones.
    """
    meant: tuple[type[Exception], ...] = (SelfplayError, *expected)
    try:
        yield
    except meant:
        raise
    except Exception as error:
        if not is_own(name):
            raise
        raise _fault(setting, name, error) from error


@contextmanager
def named_faults(used: Mapping[str, Sequence[str]]) -> Iterator[None]:
    """Around a whole run: an unexpected exception from a module of one's own becomes a PartError with the
    part's name.

    It finds faults in methods that `blamed` does not surround, for instance those of a sandbox back end.
    """
    try:
        yield
    except SelfplayError:
        raise
    except Exception as error:
        files = {frame.filename for frame in traceback.extract_tb(error.__traceback__)}
        for setting, names in used.items():
            for name in names:
                if is_own(name) and getattr(_module(name), "__file__", None) in files:
                    raise _fault(setting, name, error) from error
        raise


def _module(name: str) -> Any:
    return sys.modules.get(name.partition(":")[0])


def _fault(setting: str, name: str, error: Exception) -> PartError:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return PartError(
        f"{setting} = {name!r} failed: {type(error).__name__}: {error} ({last.filename}:{last.lineno}). "
        "The run has stopped; fix the part, then resume."
    )


def call(setting: str, name: str, *arguments: Any) -> Any:
    """Call a part that is a function. Raises PartError if one's own fails."""
    part: Callable[..., Any] = load(setting, name)
    with blamed(setting, name):
        return part(*arguments)


def finite(setting: str, name: str, value: object) -> float:
    """The value as a float. Raises PartError for what is not a finite number."""
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    raise PartError(
        f"{setting} = {name!r} returned {value!r}; it must be a finite number. The run has stopped."
    )


def check_parts(used: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Load every part. used: setting -> names. Returns the source digests of those that are one's own.

    Key: "setting = name"; value: SHA-256 of the file of its module. Raises PartError.
    """
    digests = {}
    for setting, names in used.items():
        for name in names:
            if is_own(name):
                load(setting, name)
                digests[f"{setting} = {name}"] = _digest(name)
    return digests


def _digest(name: str) -> str:
    file = getattr(_module(name), "__file__", None)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""
