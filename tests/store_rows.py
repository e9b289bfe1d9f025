"""Rows of a small curriculum, for tests."""

from dataclasses import replace

from selfplay.curriculum.store import BugRow, EpisodeRow, GroupRow, Store

INJECT = "diff --git a/m.py b/m.py\n--- a/m.py\n+++ b/m.py\n@@ -1 +1 @@\n-x = 1\n+x = 2\n"
WEAKEN = "diff --git a/test_m.py b/test_m.py\n--- a/test_m.py\n+++ b/test_m.py\n@@ -1 +1 @@\n-assert x == 1\n+pass\n"


def a_group(group_id: str = "g", role: str = "injector", bug_id: str = "", **values) -> GroupRow:
    return GroupRow(group_id, values.pop("update", 1), role, "toolz", "removal", "", bug_id, values.pop("size", 4), **values)


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
