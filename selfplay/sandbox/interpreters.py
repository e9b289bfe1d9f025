"""Finds a CPython of a given version on this machine, for environments with another Python than selfplay's.

Searched in this order: the interpreters that uv manages, `pythonX.Y` on PATH, pyenv's. If there is none, uv
is asked to fetch one. Only programs of this machine are asked, never one of a repository.

Invariant: an interpreter is taken only if it has said itself which version it is, and can make virtual
environments.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from selfplay.errors import MissingPythonError

OLDEST = (3, 9)  # that pip, pytest and selfplay's own programs in a sandbox still run with
ASK_S = 30.0
FETCH_S = 600.0
# Prints what an interpreter is. The base prefix, since PATH may lead to a virtual environment.
QUESTION = """import importlib.util, json, sys
print(json.dumps({"version": "%d.%d" % sys.version_info[:2], "release": "%d.%d.%d" % sys.version_info[:3],
    "prefix": sys.base_prefix, "kind": sys.implementation.name,
    "whole": all(importlib.util.find_spec(name) for name in ("ensurepip", "venv"))}))"""


@dataclass(frozen=True)
class Interpreter:
    """A Python of this machine.

    version  "3.9"
    release  "3.9.18"
    prefix   the folder that holds its bin and lib
    stamp    changes when the program at `prefix` does
    """

    version: str
    release: str
    prefix: str
    stamp: str

    @property
    def place(self) -> str:
        """Where a sandbox has its prefix."""
        return f"/opt/python{self.version}"

    @property
    def program(self) -> str:
        """Its path inside of a sandbox."""
        return f"{self.place}/bin/python{self.version}"

    def to_text(self) -> str:
        return json.dumps(asdict(self), sort_keys=True) + "\n"

    @property
    def is_there(self) -> bool:
        """Whether the machine still has it, unchanged."""
        return _stamp(self.prefix, self.version) == self.stamp


def interpreter_of(text: str) -> Interpreter | None:
    """What `Interpreter.to_text` has written; None for another text."""
    try:
        return Interpreter(**json.loads(text))
    except (ValueError, TypeError):
        return None


def find_interpreter(version: str) -> Interpreter:
    """This machine's CPython of a version such as "3.9". Raises MissingPythonError with the remedy.

    A failure is remembered as long as this process lives: a fetch may take minutes.
    """
    if tuple(map(int, version.split("."))) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise MissingPythonError(
            f"python={version} is older than what environments can be built for ({oldest}). "
            "Give an image that has it: docker:IMAGE#/FOLDER."
        )
    found, tried = _search(version)
    if found is None:
        raise MissingPythonError(
            f"python={version} is asked for, and this machine has no Python {version} ({tried}). Install it "
            f"(pip install uv && uv python install {version}, or pyenv install {version}), "
            "or give an image: docker:IMAGE#/FOLDER."
        )
    return found


@cache
def _search(version: str) -> tuple[Interpreter | None, str]:
    """The interpreter, and what was tried, in words."""
    problems: list[str] = []
    found = present_interpreter(version, problems)
    if found is not None:
        return found, ""
    uv = _uv()
    if not uv:
        return None, "; ".join([*problems, "looked on PATH and in pyenv; there is no uv that could fetch it"])
    said = " ".join(_run([*uv, "python", "install", version], FETCH_S).split())[-200:]
    found = present_interpreter(version, problems)
    problems.append(f"looked in uv, on PATH and in pyenv; uv cannot fetch it: {said}")
    return found, "; ".join(dict.fromkeys(problems))


def present_interpreter(version: str, problems: list[str] | None = None) -> Interpreter | None:
    """The interpreter of this version that is here, None without one. Fetches nothing.

    problems: gets a line for each one that is found and cannot be used.
    """
    for program in _candidates(version):
        found = _asked(program, version, [] if problems is None else problems)
        if found is not None:
            return found
    return None


def _candidates(version: str) -> Iterator[str]:
    """Programs that may be this Python, best first."""
    yield from _managed(version)
    on_path = shutil.which(f"python{version}")
    if on_path:
        yield on_path
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    folders = [folder for folder in (root / "versions").glob(f"{version}.*") if _patch(folder.name) >= 0]
    for folder in sorted(folders, key=lambda folder: _patch(folder.name), reverse=True):
        yield str(folder / "bin" / f"python{version}")


def _patch(name: str) -> int:
    """The last number of "3.9.18"; -1 for a pre-release and the like."""
    found = re.fullmatch(r"\d+\.\d+\.(\d+)", name)
    return int(found[1]) if found else -1


def _uv() -> list[str]:
    """The command line of uv: the program on PATH, or the package beside selfplay; [] without it."""
    program = shutil.which("uv")
    if program:
        return [program]
    return [sys.executable, "-m", "uv"] if importlib.util.find_spec("uv") else []


def _managed(version: str) -> Iterator[str]:
    uv = _uv()
    if not uv:
        return
    only_managed = {"UV_PYTHON_PREFERENCE": "only-managed", "UV_PYTHON_DOWNLOADS": "never"}
    lines = _run([*uv, "python", "find", version], ASK_S, only_managed).splitlines()
    if lines and Path(lines[-1]).is_file():
        yield lines[-1]


def _asked(program: str, version: str, problems: list[str]) -> Interpreter | None:
    """The interpreter behind a program, None if it is another one. Adds to `problems` why not."""
    try:
        seen: dict[str, Any] = json.loads(_run([program, "-I", "-c", QUESTION], ASK_S))
        prefix, is_whole = os.path.realpath(str(seen["prefix"])), seen["whole"] is True
        stamp = _stamp(prefix, version)
    except (ValueError, LookupError, TypeError):
        return None  # a shim of pyenv for a version that is not chosen, for instance
    if seen["version"] != version or seen["kind"] != "cpython" or not stamp:
        return None
    if not is_whole:
        problems.append(f"{program} cannot make virtual environments: apt-get install python{version}-venv")
        return None
    return Interpreter(version, str(seen["release"]), prefix, stamp)


def _stamp(prefix: str, version: str) -> str:
    """Size and time of the program of an interpreter; "" if there is none."""
    try:
        found = (Path(prefix) / "bin" / f"python{version}").stat()
    except OSError:
        return ""
    return f"{found.st_size}-{found.st_mtime_ns}"


def _run(command: Sequence[str], timeout_s: float, variables: Mapping[str, str] | None = None) -> str:
    """Standard output of a command that succeeds, else the end of what it said as an error."""
    try:
        done = subprocess.run(
            command,
            cwd="/",
            env={**os.environ, **(variables or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return done.stdout if done.returncode == 0 else done.stderr
