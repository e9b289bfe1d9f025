"""A sandbox that runs the given test script in a fresh sandbox, once for all episodes with equal files.

Invariant: the output of such a command follows from the workspace's files alone. Every other command runs in
the episode's own sandbox.

Validation shares the first run of a state with episodes, so that a bug cannot tell the two. An author can
choose that run's outcome, as one who hashes the code can; the repeats of a validation decide. No grading
shares a run with an episode: the graded tree has changes without meaning. So an attempt cannot wait for a
lucky run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from selfplay.errors import ArtifactError, PatchError
from selfplay.sandbox.base import SUBMIT, TIMED_OUT, WORKSPACE, ExecResult, Sandbox, SandboxSpec
from selfplay.source.trees import Tree
from selfplay.verdicts.test_runs import ScriptRun, TestRunner

if TYPE_CHECKING:
    from selfplay.repositories.environment import Environment

# A larger workspace is not copied, and its script runs in its own sandbox: a policy may have filled it.
MOST_BYTES = 64 << 20
# A command that begins with the script. Injectors may store their diff first: that changes no file that it
# reads.
BEGINS_WITH_SCRIPT = re.compile(
    rf"(git diff > {SUBMIT}/bug_inject\.diff; *)?bash {SUBMIT}/test_script\.sh( *(?:$|[|;\n]|&&|2?>).*)?",
    re.DOTALL,
)
# A script in the background, or with an input of its own, cannot be replaced by its output.
OWN_INPUT = re.compile(r"<|(?<![&>])&(?!&)")
# The statuses of pytest if tests ran. With another one it may have written to stderr, and the log of a shared
# run mixes both streams.
PLAIN_STATUSES = (0, 1)


def around_script(command: str) -> tuple[str, str] | None:
    """The parts before and after the script, if the command can take its output from elsewhere; else None."""
    found = BEGINS_WITH_SCRIPT.fullmatch(command)
    if found is None or OWN_INPUT.search(found[2] or ""):
        return None
    return found[1] or "", found[2] or ""


@dataclass(frozen=True)
class SharedTests:
    """`box` for the agent, except for commands that begin with `script`, the one in /submit."""

    box: Sandbox
    runner: TestRunner
    environment: Environment
    script: str

    @property
    def spec(self) -> SandboxSpec:
        return self.box.spec

    def run(
        self, command: str, timeout_s: float = 60.0, output_bytes: int | None = None, stdin: bytes = b""
    ) -> ExecResult:
        around = None if stdin else around_script(command)
        if around is None or (done := self._script_run(timeout_s)) is None:
            return self.box.run(command, timeout_s, output_bytes, stdin)
        before, after = around
        if done.timings.script_s >= timeout_s:  # it would time out here too
            self.box.run(before or ":", timeout_s)
            shown = b"" if after.strip() else done.log[:output_bytes]
            return ExecResult(TIMED_OUT, shown, truncated=False, timed_out=True, duration_s=timeout_s)
        return self.box.run(f"{before}(cat; exit {done.exit_code}){after}", timeout_s, output_bytes, done.log)

    def _script_run(self, timeout_s: float) -> ScriptRun | None:
        """The run of the script on the workspace's files. None if it must run in this sandbox."""
        if self.environment.command:
            return None  # make compares time stamps of built files, and an archive does not keep them
        try:
            tree = Tree.from_tar(self.box.read_archive(WORKSPACE, MOST_BYTES))
            given = Tree.from_tar(self.box.read_archive(SUBMIT, MOST_BYTES))
        except (ArtifactError, PatchError):
            return None
        if "test_script.sh" not in given or given["test_script.sh"].content != self.script.encode():
            return None
        done = self.runner.script(self.environment, tree, self.script)
        is_plain = done.timings.script_s >= timeout_s or (not done.error and done.exit_code in PLAIN_STATUSES)
        return done if is_plain and len(done.log) <= self.spec.limits.file_bytes else None

    def write_archive(self, folder: str, tar: bytes) -> None:
        self.box.write_archive(folder, tar)

    def read_archive(self, folder: str, max_bytes: int) -> bytes:
        return self.box.read_archive(folder, max_bytes)

    def close(self) -> None:
        self.box.close()
