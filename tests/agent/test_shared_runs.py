"""The sandbox in which the given test script runs when the agent calls it. With real sandboxes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bare_environment import an_environment
from selfplay.agent.shared_tests import SharedTests
from selfplay.repositories.environment import open_workspace
from selfplay.sandbox import open_backend
from selfplay.sandbox.base import SUBMIT, Limits, Sandbox
from selfplay.settings.playing import ValidatorSettings
from selfplay.source.trees import FileEntry, Tree
from selfplay.verdicts.test_runs import TestRunner

pytestmark = pytest.mark.sandbox

LABELS = {"run": "test"}
COMMAND = f"bash {SUBMIT}/test_script.sh"


@contextmanager
def shared(script: str, cache: Path, script_timeout_s: float = 20.0) -> Iterator[tuple[Sandbox, SharedTests]]:
    """(a sandbox whose workspace holds a.txt, the same sandbox with shared runs of the script)"""
    environment = an_environment(script)
    backend = open_backend("bubblewrap", cache)[0]
    runner = TestRunner(backend, ValidatorSettings(script_timeout_s=script_timeout_s), Limits(), LABELS)
    with open_workspace(backend, environment, environment.tree, LABELS) as box:
        box.write_archive(SUBMIT, Tree({"test_script.sh": FileEntry(script.encode())}).to_tar())
        yield box, SharedTests(box, runner, environment, script)


def test_the_script_runs_elsewhere_and_its_output_goes_through_the_pipe_here(tmp_path: Path) -> None:
    with shared("cat a.txt; touch ran.txt\n", tmp_path) as (box, tests):
        box.run("echo two >> a.txt")
        assert tests.run(f"{COMMAND} | tail -n 1").text == "two\n"
        assert box.run("ls").text == "a.txt\n"


def test_a_script_that_times_out_elsewhere_is_not_run_again_here(tmp_path: Path) -> None:
    with shared("touch ran.txt; echo begun; sleep 30\n", tmp_path, script_timeout_s=1.0) as (box, tests):
        done = tests.run(COMMAND, timeout_s=1.0)
        assert (done.exit_code, done.timed_out, done.text) == (124, True, "begun\n")
        assert tests.run(f"{COMMAND} | tail -n 1", timeout_s=1.0).timed_out
        assert box.run("ls").text == "a.txt\n"


def test_an_injector_whose_tests_time_out_still_has_its_diff_stored(tmp_path: Path) -> None:
    with shared("sleep 30\n", tmp_path, script_timeout_s=1.0) as (box, tests):
        assert tests.run(f"git diff > {SUBMIT}/bug_inject.diff; {COMMAND}", timeout_s=1.0).timed_out
        assert box.run(f"ls {SUBMIT}").text == "bug_inject.diff\ntest_script.sh\n"
