"""The solver: what it is shown, the sandbox that it finds, and the patch that is taken from it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from selfplay.agent.chat import ChatFormat
from selfplay.agent.episode import Episode, FinishReason, Role
from selfplay.agent.prompting import Prompt, render, system_prompt
from selfplay.agent.shared_tests import SharedTests
from selfplay.agent.tools import toolbox
from selfplay.agent.workspaces import (
    ARCHIVE_OVERHEAD_BYTES,
    EpisodeContext,
    EpisodeKey,
    Record,
    as_submission,
)
from selfplay.config import Config
from selfplay.repositories.environment import Environment, open_workspace
from selfplay.repositories.suspects import Suspect, failure_first, find_suspects
from selfplay.sandbox.base import SUBMIT, WORKSPACE, Sandbox
from selfplay.source.diffs import reverse_patch, shown_diff
from selfplay.source.trees import FileEntry, Tree
from selfplay.verdicts.bug import BugState, build_states
from selfplay.verdicts.repairs import take_repair


@dataclass(frozen=True)
class SolverTask:
    """One bug to repair.

    failure: a short traceback of the original tests on the buggy code. It and `suspects` are shown if
    `solver.help` names them. issue: what is wrong, in words. A solver with an issue gets it in place of the
    tests, which stay hidden: no help that comes from them is given.
    """

    environment: Environment
    bug_id: str
    bug: BugState
    failure: str
    suspects: tuple[Suspect, ...] = ()
    issue: str = ""

    def help_of(self, config: Config) -> tuple[str, ...]:
        """What `solver.help` gives on this task."""
        return () if self.issue else config.solver.help


def solver_task(
    environment: Environment, bug_id: str, bug: BugState, failure: str, config: Config
) -> SolverTask:
    """The task of a solver that is told the tests, with suspects if `solver.help` names them.

    Raises PatchError if the bug is of another environment.
    """
    suspects: tuple[Suspect, ...] = ()
    if "suspects" in config.solver.help:
        code = build_states(environment.tree, bug).buggy
        suspects = failure_first(
            find_suspects(environment.calls, bug.fail_to_pass, code, config.solver.max_suspects), failure
        )
    return SolverTask(environment, bug_id, bug, failure, suspects)


def solver_prompts(task: SolverTask, config: Config, is_listed: bool = False) -> tuple[Prompt, Prompt]:
    """(system, user). Every template gets every variable, so that styles can use different ones.

    is_listed: the chat template describes the tools.
    """
    tools = toolbox(config.agent)
    given = task.help_of(config)
    style = config.agent.prompt_style
    user = render(
        "solver/repair",
        style,
        repository=task.environment.repository,
        given=given,
        issue=task.issue.strip("\n"),
        specification="" if task.issue else spec_text(task.bug).rstrip("\n"),
        failure=task.failure.strip("\n") if "failure" in given else "",
        suspects=task.suspects if "suspects" in given else (),
        call=tools.write,
    )
    return system_prompt(style, config.agent.tool_format, tools, is_listed), user


def spec_text(bug: BugState) -> str:
    """A solver's specification: the change that undoes the weakening of the tests, as readers see it."""
    return shown_diff(reverse_patch(bug.artifact.test_weaken))


def spec_tokens(chat: ChatFormat, bug: BugState) -> int:
    return len(chat.encode(spec_text(bug)))


def play_solver(task: SolverTask, key: EpisodeKey, context: EpisodeContext) -> Episode:
    """Play one solver episode. `submission["patch"]` is the change of the workspace, however the episode
    ended.

    `submission["restored"]` names paths whose change does not count, one on each line, if there are any.
    Raises EngineError and PromptError, and PatchError if the bug is of another environment.
    """
    config, limits = context.config, context.limits
    record = Record(
        Role.SOLVER, task.environment, key, *solver_prompts(task, config, context.chat.lists_tools)
    )
    record.submission = {"patch": ""}
    states = build_states(task.environment.tree, task.bug)
    start = states.buggy if "tests" in task.help_of(config) else states.solver_start
    with record.machine_failures(), ExitStack() as stack:
        with context.opening:
            workspace = open_workspace(
                context.backend, task.environment, start, key.labels, limits, key.hash_seed
            )
            box = stack.enter_context(workspace)
            prepare_solver(box, task, config)
        runner, script = context.runner, task.bug.artifact.test_script
        shown: Sandbox = SharedTests(box, runner, task.environment, script) if runner else box
        record.result = record.play(shown, context)
        if record.result.finish not in (FinishReason.SANDBOX_LOST, FinishReason.ENV_ERROR):
            with record.losses():
                archive = box.read_archive(WORKSPACE, limits.workspace_bytes + ARCHIVE_OVERHEAD_BYTES)
                fixed = task.environment.fixed_files(states.original.changed_paths(states.buggy))
                most = config.validator.max_patch_bytes
                record.submission = as_submission(take_repair(states, start, archive, fixed, most))
    return record.episode(bug_id=task.bug_id)


def prepare_solver(box: Sandbox, task: SolverTask, config: Config) -> None:
    """Put the bug's test script into /submit if `solver.help` has "tests"."""
    if "tests" in task.help_of(config):
        box.write_archive(
            SUBMIT, Tree({"test_script.sh": FileEntry(task.bug.artifact.test_script.encode())}).to_tar()
        )
