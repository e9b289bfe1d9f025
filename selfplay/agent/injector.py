"""The injector: what it is shown, the sandbox that it finds, and the artifact that is taken from it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from selfplay.agent.episode import Episode, FinishReason, Role
from selfplay.agent.prompting import Prompt, find_strategy, render, system_prompt
from selfplay.agent.shared_tests import SharedTests
from selfplay.agent.tools import toolbox
from selfplay.agent.workspaces import (
    EpisodeContext,
    EpisodeKey,
    Record,
    read_submission,
    take_history,
)
from selfplay.config import Config
from selfplay.errors import RepositoryError, SandboxUnavailable
from selfplay.repositories.environment import Environment, open_workspace
from selfplay.repositories.history import History, history_of
from selfplay.repositories.targets import Target
from selfplay.sandbox.base import SUBMIT, Sandbox
from selfplay.source.trees import FileEntry, Tree
from selfplay.verdicts.checks import Thresholds


@dataclass(frozen=True)
class InjectorTask:
    environment: Environment
    strategy: str
    target: Target | None
    thresholds: Thresholds


def injector_prompts(task: InjectorTask, config: Config, is_listed: bool = False) -> tuple[Prompt, Prompt]:
    """(system, user). Every template gets every variable, so that styles can use different ones.

    is_listed: the chat template describes the tools.
    """
    tools = toolbox(config.agent)
    given = config.injector.help
    style = config.agent.prompt_style
    strategy = find_strategy(task.strategy)
    user = render(
        strategy.template,
        style,
        strategy.folder,
        repository=task.environment.repository,
        given=given,
        target=task.target if "target" in given else None,
        test_files=_given_test_files(task),
        min_passing_tests=task.thresholds.min_passing_tests,
        min_failing_tests=task.thresholds.min_failing_tests,
        min_changed_files=task.thresholds.min_changed_files,
        script_timeout_s=config.validator.script_timeout_s,
        call=tools.write,
    )
    return system_prompt(style, config.agent.tool_format, tools, is_listed), user


def _given_test_files(task: InjectorTask) -> tuple[str, ...]:
    return (task.target.test_file,) if task.target else task.environment.test_files


# ---- playing


def play_injector(task: InjectorTask, key: EpisodeKey, context: EpisodeContext) -> Episode:
    """Play one injector episode. `submission` holds the files that the submit call named; it is empty without
    one.

    Raises EngineError and PromptError. A failing sandbox is a finish reason.
    """
    config = context.config
    record = Record(
        Role.INJECTOR, task.environment, key, *injector_prompts(task, config, context.chat.lists_tools)
    )
    with record.machine_failures(), ExitStack() as stack:
        history = _history_for(task)
        limits = history.added_to(context.limits) if history else context.limits
        with context.opening:
            workspace = open_workspace(
                context.backend, task.environment, task.environment.tree, key.labels, limits, key.hash_seed
            )
            box = stack.enter_context(workspace)
            prepare_injector(box, task, config, history)
        script = task.environment.script_for(_given_test_files(task))
        runner = context.runner
        shown: Sandbox = SharedTests(box, runner, task.environment, script) if runner else box
        record.result = record.play(shown, context)
        if record.result.finish is FinishReason.SUBMITTED:
            with record.losses():
                record.submission = read_submission(box, limits, record.result.submitted or ())
    return record.episode(
        strategy=task.strategy, target=f"{task.target.path}::{task.target.name}" if task.target else ""
    )


def _history_for(task: InjectorTask) -> History | None:
    """Raises SandboxUnavailable if git cannot read it: the cache or the disk is at fault."""
    if not find_strategy(task.strategy).needs_history:
        return None
    try:
        return history_of(task.environment.checkout)
    except RepositoryError as error:
        raise SandboxUnavailable(f"the history of {task.environment.repository}: {error}") from error


def prepare_injector(
    box: Sandbox, task: InjectorTask, config: Config, history: History | None = None
) -> None:
    """Put the history into the workspace if there is one to put, and the help into /submit."""
    if history is not None:
        take_history(box, history)
    if "tests" in config.injector.help:
        test_files = _given_test_files(task)
        given = {
            "test_files.txt": "".join(f"{path}\n" for path in test_files),
            "test_script.sh": task.environment.script_for(test_files),
            "test_parser.py": task.environment.parser,
        }
        box.write_archive(
            SUBMIT, Tree({name: FileEntry(text.encode()) for name, text in given.items()}).to_tar()
        )
