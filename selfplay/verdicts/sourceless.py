"""The check that a bug does without readable source: a run in which its modules are bytecode only.

A bug that hashes its own text has no text there. The check decides nothing about a project that reads its own
source.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence

from selfplay.outcomes import TestOutcomes
from selfplay.sandbox.base import WORKSPACE
from selfplay.verdicts.checks import Finding, shown

# The environment's own Python compiles, so that it can read what it wrote. A file that it cannot compile, or
# that is not there, stays as it is. The code keeps the file name that it had.
COMPILE = """import os, py_compile, sys
for path in sys.argv[1:]:
    try:
        py_compile.compile(path, path + "c", os.path.abspath(path), doraise=True)
        os.remove(path)
    except (OSError, py_compile.PyCompileError):
        pass
"""
END = "END OF COMPILATION"


def modules_among(paths: Iterable[str]) -> list[str]:
    """The Python modules, sorted: equal files give equal scripts, whose runs are known."""
    return sorted(path for path in paths if path.endswith(".py"))


def without_source(script: str, modules: Sequence[str]) -> str:
    """The shell script that removes the source of `modules` and then does what `script` does."""
    command = f"python -I - {shlex.join(modules)}"
    return f"cd {WORKSPACE} && {command} <<'{END}' || exit 3\n{COMPILE}{END}\n{script}"


def judge_without_source(
    original: Sequence[tuple[TestOutcomes, str]], buggy: Sequence[tuple[TestOutcomes, str]]
) -> Finding:
    """Check that the buggy state's outcomes are the same without source.

    original, buggy: (outcomes, error or "") with source, and without.
    """
    moved = [_moved(*runs) for runs in (original, buggy)]
    if moved[0]:
        return Finding(
            True, "", {"without_source": "does not apply: the original needs it", "moved": moved[0]}
        )
    if moved[1]:
        reason = (
            f"outcomes change if the source of the bug's modules cannot be read ({', '.join(moved[1][:3])})"
        )
        return Finding(False, reason, {"without_source": "moved", "moved": moved[1]})
    return Finding(True, "", {"without_source": "the same"})


def _moved(with_source: tuple[TestOutcomes, str], without: tuple[TestOutcomes, str]) -> list[str]:
    if without[1]:
        return [without[1]]
    return shown(with_source[0].differing(without[0]))
