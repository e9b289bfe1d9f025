"""The ids and the rows of new bugs: from an injector's artifact, from a failed repair, from a task record.

Pure. It decides neither what becomes a bug nor whether the bug is new.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from selfplay.curriculum.rows import AttemptRow, BugRow, GroupRow
from selfplay.verdicts.artifact import Artifact

if TYPE_CHECKING:
    from selfplay.evaluation.tasks import Task
    from selfplay.repositories.environment import Environment
    from selfplay.verdicts.bug import BugState
    from selfplay.verdicts.verdict import Verdict

GIVEN_STRATEGY = "given"


def injected_bug_id(episode_id: str) -> str:
    """The bug that this injector episode may have made."""
    return f"{episode_id}-bug"


def second_order_bug_id(episode_id: str) -> str:
    """The bug that this solver episode may have made."""
    return f"{episode_id}-bug2"


def given_bug_id(instance_id: str) -> str:
    """The bug of this task record."""
    return f"given-{instance_id}"


def injected_bug(
    episode_id: str,
    submission: Mapping[str, str],
    verdict: Verdict,
    group: GroupRow,
    member: int,
    environment: Environment,
) -> BugRow:
    """The bug of an accepted artifact. submission: file name -> text. group, member: of the injector."""
    return BugRow(
        bug_id=injected_bug_id(episode_id),
        repository=group.repository,
        environment_key=environment.key,
        base_commit=environment.base_commit,
        order=1,
        parent_bug_id=None,
        parent_episode_id=None,
        injector_episode_id=episode_id,
        strategy=group.strategy,
        target=group.target_of(member),
        artifact=Artifact.from_files(submission).to_files(),
        attempt_patch="",
        fail_to_pass=verdict.fail_to_pass,
        pass_to_pass=verdict.pass_to_pass,
        failure=verdict.failure,
        tree_digest=verdict.buggy_digest,
        status="fresh",
        created_update=group.update,
    )


def second_order_bug(parent: BugRow, attempt: AttemptRow, verdict: Verdict, wave: int) -> BugRow:
    """The bug of a failed repair of `parent` that the validator accepted.

    wave: the wave that played the repair.
    """
    return BugRow(
        bug_id=second_order_bug_id(attempt.episode_id),
        repository=parent.repository,
        environment_key=parent.environment_key,
        base_commit=parent.base_commit,
        order=2,
        parent_bug_id=parent.bug_id,
        parent_episode_id=attempt.episode_id,
        injector_episode_id=parent.injector_episode_id,
        strategy=parent.strategy,
        target=parent.target,
        artifact=parent.artifact,
        attempt_patch=attempt.patch,
        fail_to_pass=verdict.fail_to_pass,
        pass_to_pass=verdict.pass_to_pass,
        failure=verdict.failure,
        tree_digest=verdict.buggy_digest,
        status="fresh",
        created_update=wave,
    )


def given_bug(
    task: Task, bug: BugState, environment: Environment, tree_digest: str, is_too_long: bool
) -> BugRow:
    """The bug of a task record.

    tree_digest: what records of one bug have in common (`bug_digest`).
    is_too_long: True if its specification exceeds `solver.max_spec_tokens`, so that nobody plays it.
    """
    return BugRow(
        bug_id=given_bug_id(task.instance_id),
        repository=environment.repository,
        environment_key=environment.key,
        base_commit=environment.base_commit,
        order=1,
        parent_bug_id=None,
        parent_episode_id=None,
        injector_episode_id="",
        strategy=GIVEN_STRATEGY,
        target="",
        artifact=bug.artifact.to_files(),
        attempt_patch="",
        fail_to_pass=task.fail_to_pass,
        pass_to_pass=task.pass_to_pass,
        failure=task.failure,
        tree_digest=tree_digest,
        status="spec_too_long" if is_too_long else "fresh",
    )
