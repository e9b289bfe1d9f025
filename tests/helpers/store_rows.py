"""Rows of a small curriculum, for tests."""

import json
from dataclasses import replace
from pathlib import Path

from selfplay.agent.episode import Episode, FinishReason, Role, Turn
from selfplay.curriculum.rows import AttemptRow, BugRow, EnvironmentRow, EpisodeRow, GroupRow, VerdictRow
from selfplay.curriculum.store import Store
from selfplay.verdicts.confirmation import Confirmation

INJECT = "diff --git a/m.py b/m.py\n--- a/m.py\n+++ b/m.py\n@@ -1 +1 @@\n-x = 1\n+x = 2\n"
WEAKEN = (
    "diff --git a/test_m.py b/test_m.py\n--- a/test_m.py\n+++ b/test_m.py\n"
    "@@ -1 +1 @@\n-assert x == 1\n+pass\n"
)


def a_group(group_id: str = "g", role: str = "injector", bug_id: str = "", **values) -> GroupRow:
    return GroupRow(
        group_id,
        values.pop("update", 1),
        role,
        "toolz",
        "removal",
        "",
        bug_id,
        values.pop("size", 4),
        **values,
    )


def an_episode(group: GroupRow, member: int = 0, **values) -> EpisodeRow:
    row = EpisodeRow(
        episode_id=f"{group.group_id}-m{member}",
        group_id=group.group_id,
        member=member,
        update=group.update,
        role=group.role,
        repository=group.repository,
        strategy=group.strategy,
        bug_id=group.bug_id,
        finish="submitted",
        path=f"episodes/{group.group_id}-m{member}.json.gz",
        turns=3,
        action_tokens=40,
        total_tokens=400,
        weight_version_min=0,
    )
    return replace(row, **values)


def a_bug(bug_id: str = "bug", episode_id: str = "g-m0", **values) -> BugRow:
    row = BugRow(
        bug_id=bug_id,
        repository="toolz",
        environment_key="env",
        base_commit="0" * 40,
        order=1,
        parent_bug_id=None,
        parent_episode_id=None,
        injector_episode_id=episode_id,
        strategy="removal",
        target="",
        artifact={"bug_inject.diff": INJECT, "test_weaken.diff": WEAKEN, "test_files.txt": "test_m.py\n"},
        attempt_patch="",
        fail_to_pass=("test_m.py::test_x",),
        pass_to_pass=("test_m.py::test_y",),
        failure="AssertionError",
        tree_digest=f"tree of {bug_id}",
    )
    return replace(row, **values)


def with_bug(store: Store, **values) -> BugRow:
    store.add_group(a_group())
    store.record_episode(an_episode(a_group()))
    assert store.add_bug(a_bug(**values))
    return store.bug("bug")


def recorded_run(folder: Path) -> Path:
    """Write a run folder with two updates and one episode file, and return it.

    Its curriculum has two measured bugs, a bug of order two, and rejected artifacts.
    """
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "repositories.txt").write_text("pypi:toolz==1.0.0\n")
    with Store.open(folder / "selfplay.db", clock=lambda: 1_700_000_000.0) as store:
        store.record_environment(EnvironmentRow("toolz", "0" * 40, "env", "BSD", 120, (), "ready"))
        injectors = a_group("u0001-inj0", size=5)
        store.add_group(injectors)
        for member in range(5):
            store.record_episode(an_episode(injectors, member, started_at=1e9, duration_s=12.5))
        for member, (check, reason) in enumerate(
            [("", ""), ("", ""), ("parser", "the output [is] not JSON: \x1b[2J"), ("parser", "")]
        ):
            checks = [{"name": "readable", "passed": True, "reason": "five files"}]
            if check:
                checks.append({"name": check, "passed": False, "reason": reason})
            episode_id = f"u0001-inj0-m{member}"
            store.record_verdict(
                VerdictRow(episode_id, not check, check, reason, json.dumps(checks), 3.0, 6, 2)
            )
        store.record_verdict(
            VerdictRow("u0001-inj0-m4", False, "inverse_mutation", "m.py is padding", "[]", 1.0, 3, 0)
        )
        store.add_bug(a_bug("u0001-inj0-m0-bug", "u0001-inj0-m0", failure="E  assert 2 == 1"))
        store.add_bug(
            a_bug("u0001-inj0-m1-bug", "u0001-inj0-m1", strategy="history", repository="[red]evil[/red]")
        )
        solvers = a_group("u0001-sol0", "solver", "u0001-inj0-m0-bug")
        store.add_group(solvers)
        for member, passed in enumerate((True, False, False, None)):
            store.record_episode(an_episode(solvers, member, masked=passed is None))
            if passed is not None:
                why = "repaired" if passed else "1 test(s) fail"
                attempt = AttemptRow(
                    episode_id=f"u0001-sol0-m{member}",
                    bug_id="u0001-inj0-m0-bug",
                    passed=passed,
                    reason=why,
                    failed_tests=() if passed else ("t",),
                    confirmed=Confirmation.CONFIRMED if passed else Confirmation.NOT_NEEDED,
                    restored=(),
                    patch=INJECT,
                    duration_s=2.0,
                )
                store.record_attempt(attempt)
                store.set_reward(f"u0001-sol0-m{member}", 1.0 if passed else -1.0, why)
        store.set_solve_rate("u0001-inj0-m0-bug", 1 / 3, 3, 1)
        store.set_solve_rate("u0001-inj0-m1-bug", 1.0, 4, 4)
        store.set_group_status("u0001-sol0", "complete")
        second = {
            "order": 2,
            "parent_bug_id": "u0001-inj0-m0-bug",
            "parent_episode_id": "u0001-sol0-m1",
            "attempt_patch": INJECT,
        }
        store.add_bug(a_bug("u0001-sol0-m1-bug2", "u0001-inj0-m0", **second))
        for update in (1, 2):
            row = {
                "update": update,
                "injector/reward": -0.4,
                "solver/reward": 0.25,
                "curriculum/bugs": 3,
                "seconds/injecting": 60.5,
            }
            store.begin_update(update)
            store.commit_update(
                update,
                f"update-{update:05d}",
                update,
                update == 1,
                json.dumps({**row, "seconds/solving": 90.0}),
            )
            with (folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({**row, "seconds/solving": 90.0}) + "\n")
        store.record_failure(2, "playing solver", "no sandbox")
    an_episode_value().write(folder / "episodes")
    return folder


def an_episode_value() -> Episode:
    """A solver's episode whose text contains terminal escapes and markup."""
    hostile = "x = 2\n\x1b]0;owned\x07\x1b[2J[bold]not markup[/bold]\n[exit 0]"
    edit = "<tool: edit>\nm.py:1\n<<<<<<< SEARCH\n2\n=======\n1\n>>>>>>> REPLACE\n</tool>"
    turns = (
        Turn("Look first.\n<tool: bash>\ncat m.py\n</tool>", "bash", hostile, (5, 9), 0, 1.5, 0.2),
        Turn(edit, "edit", "no such file", (9, 12), None, 1.0, 0.1, True),
        Turn("<tool: submit>\n</tool>", "submit", "", (12, 14), None, 0.5, 0.0, rejected=2),
    )
    return Episode(
        episode_id="u0001-sol0-m0",
        role=Role.SOLVER,
        repository="toolz",
        update=1,
        group="u0001-sol0",
        member=0,
        seed=7,
        finish=FinishReason.SUBMITTED,
        messages=(
            {"role": "system", "content": "You repair bugs."},
            {"role": "user", "content": "Mend \x1b[31mthis."},
        ),
        turns=turns,
        token_ids=tuple(range(14)),
        loss_mask=(0,) * 5 + (1,) * 9,
        logprobs=(0.0,) * 14,
        strategy="removal",
        bug_id="u0001-inj0-m0-bug",
        submission={"patch": INJECT},
        started_at=1_700_000_000.0,
        duration_s=3.5,
    )
