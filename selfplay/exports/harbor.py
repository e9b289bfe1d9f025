"""Bugs as Harbor task folders: task.toml, instruction.md, environment/, tests/ and solution/.

The image gets the original from where the run got it, then the bug and the weakened tests, and one commit.
`tests/test.sh` brings back the whole tests, runs the artifact's script, and writes the reward: 1 if all
fail-to-pass and pass-to-pass tests pass, else 0. It does none of selfplay's second gradings.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from selfplay.curriculum.rows import BugRow
from selfplay.exports.base import RunExport, instance_id
from selfplay.exports.trajectories import file_name
from selfplay.repositories.specs import RepositorySpec
from selfplay.runtime.resources import resource
from selfplay.sandbox.base import WORKSPACE
from selfplay.source.diffs import diff_bytes, reverse_patch

PYTHON = "3.11"  # where the list names none
TEXTS = "data/harbor"


def write_harbor(run: RunExport, path: Path) -> int:
    """A folder of task folders. Repositories from a local folder are left out: no image can fetch them."""
    path.mkdir()
    count = 0
    for bug in run.bugs():
        spec = run.specs[bug.repository]
        if spec.kind == "path" or spec.location.startswith("file:"):
            run.left_out["bugs are of folders on this machine, which no Dockerfile can fetch"] += 1
            continue
        write_task(path / file_name(instance_id(bug)), bug, spec)
        count += 1
    return count


def write_task(folder: Path, bug: BugRow, spec: RepositorySpec) -> None:
    """Write the task of one bug."""
    artifact = bug.artifact
    diffs = {name: artifact[name] for name in ("bug_inject.diff", "test_weaken.diff")}
    diffs["attempt.diff"] = bug.attempt_patch  # made where the tests were weakened
    spec_diff = reverse_patch(artifact["test_weaken.diff"])
    tests = {"fail_to_pass": list(bug.fail_to_pass), "pass_to_pass": list(bug.pass_to_pass)}
    repairs = [reverse_patch(bug.attempt_patch)] if bug.attempt_patch else []
    repairs.append(reverse_patch(artifact["bug_inject.diff"]))
    files = {
        "task.toml": task_toml(bug),
        "instruction.md": instruction(bug, spec_diff),
        "environment/Dockerfile": dockerfile(spec, [name for name, diff in diffs.items() if diff]),
        **{f"environment/{name}": diff for name, diff in diffs.items() if diff},
        "tests/test.sh": _text("test.sh"),
        "tests/grade.py": _text("grade.py"),
        "tests/tests.json": json.dumps(tests, indent=1) + "\n",
        "tests/spec.diff": spec_diff,
        **{f"tests/{name}": artifact.get(name, "") for name in ("test_script.sh", "test_parser.py")},
        "solution/solve.sh": _solve(len(repairs)),
        **{f"solution/repair-{number}.diff": diff for number, diff in enumerate(repairs, 1)},
    }
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(diff_bytes(text))
        if path.suffix == ".sh":
            path.chmod(0o755)


def _text(name: str) -> str:
    return (resource(TEXTS) / name).read_text(encoding="utf-8").replace("@WORKSPACE@", WORKSPACE)


def task_toml(bug: BugRow) -> str:
    """The settings of a task. A JSON text is a TOML text."""
    rate = "" if bug.solve_rate is None else f"solve_rate = {bug.solve_rate:.4f}\n"
    return (
        'schema_version = "1.4"\n\n[metadata]\n'
        f"instance_id = {_quoted(instance_id(bug))}\nrepository = {_quoted(bug.repository)}\n"
        f"base_commit = {_quoted(bug.base_commit)}\nstrategy = {_quoted(bug.strategy)}\norder = {bug.order}\n"
        f'{rate}category = "debugging"\ntags = ["selfplay"]\n\n'
        "[verifier]\ntimeout_sec = 900.0\n\n[agent]\ntimeout_sec = 1800.0\n\n"
        "[environment]\nbuild_timeout_sec = 1200.0\ncpus = 1\nmemory_mb = 4096\nstorage_mb = 10240\n"
    )


def _quoted(text: str) -> str:
    """A TOML text. JSON escapes what TOML does, but DEL."""
    return json.dumps(text.encode("utf-8", "replace").decode()).replace("\x7f", "\\u007f")


def instruction(bug: BugRow, spec_diff: str) -> str:
    """What an agent is told: that tests fail once they are whole, and the change that makes them whole."""
    fence = "`" * max(3, 1 + _longest_run(spec_diff))
    return (
        f"The project in `{WORKSPACE}` has a bug. Its tests were weakened, so that they do not notice it.\n\n"
        "The change below makes the tests whole again. Some of them fail then. Repair the code, so that\n"
        "all tests pass after this change. Your own changes of the tests do not "
        f"count.\n\n{fence}diff\n{spec_diff.rstrip()}\n{fence}\n"
    )


def _longest_run(text: str) -> int:
    """The length of the longest run of backticks."""
    longest = run = 0
    for character in text:
        run = run + 1 if character == "`" else 0
        longest = max(longest, run)
    return longest


def dockerfile(spec: RepositorySpec, diffs: list[str]) -> str:
    """The image: the repository's dependencies, the original, and on it the bug with the weakened tests."""
    image, fetch = _source(spec)
    folder = WORKSPACE
    install = spec.install or "python -m pip install -q -e . pytest"
    patches = " && ".join(f"git apply --whitespace=nowarn /bug/{name}" for name in diffs)
    return (
        f"# syntax=docker/dockerfile:1\nFROM {image}\n"
        "RUN command -v git >/dev/null || (apt-get update -q && apt-get install -q -y git && "
        "rm -rf /var/lib/apt/lists/*)\n"
        f"{fetch}WORKDIR {folder}\nRUN {install}\n"
        "# Bound for this step only, so that no layer of the image holds the bug's diffs.\n"
        f"RUN --mount=type=bind,target=/bug rm -rf .git && git init -q && {patches} && \\\n    git add -A && "
        "git -c user.name=selfplay -c user.email=selfplay@localhost commit -q -m start && git tag start\n"
    )


def _source(spec: RepositorySpec) -> tuple[str, str]:
    """(the image to start from, the lines that put the original into the workspace)."""
    python = f"python:{spec.python or PYTHON}-slim"
    if spec.kind == "docker":
        image, _, folder = spec.location.partition("#")
        is_elsewhere = folder.rstrip("/") not in ("", WORKSPACE)
        return image, f"RUN cp -a {shlex.quote(folder)} {WORKSPACE}\n" if is_elsewhere else ""
    if spec.kind == "pypi":
        version = (spec.rev or "").rpartition("..")[2]
        wanted = shlex.quote(f"{spec.location}=={version}")
        return python, (
            f"RUN mkdir -p {WORKSPACE} /tmp/sdist && \\\n"
            f"    python -m pip download -q --no-deps --no-binary :all: -d /tmp/sdist {wanted} && \\\n"
            f"    tar -xzf /tmp/sdist/*.tar.gz --strip-components=1 -C {WORKSPACE} && rm -rf /tmp/sdist\n"
        )
    checkout = f" && git -C {WORKSPACE} checkout -q {shlex.quote(spec.rev)}" if spec.rev else ""
    return python, (f"RUN git clone -q {shlex.quote(spec.location)} {WORKSPACE}{checkout}\n")


def _solve(count: int) -> str:
    lines = [f'git apply --whitespace=nowarn "$HERE/repair-{number}.diff"' for number in range(1, count + 1)]
    return (
        f'#!/bin/bash\nset -e\nHERE=$(cd "$(dirname "$0")" && pwd)\ncd {WORKSPACE}\n'
        + "\n".join(lines)
        + "\n"
    )
