"""New bugs: their ids, and what they take over from where they come from."""

from selfplay.curriculum.rows import AttemptRow
from selfplay.orchestrator.bug_rows import given_bug_id, injected_bug, second_order_bug
from selfplay.verdicts.confirmation import Confirmation
from selfplay.verdicts.verdict import Verdict
from simulated_game import an_environment
from store_rows import INJECT, WEAKEN, a_group

SUBMISSION = {
    "bug_inject.diff": INJECT,
    "test_weaken.diff": WEAKEN,
    "test_files.txt": "test_m.py\n",
    "test_script.sh": "pytest\n",
    "test_parser.py": "pass\n",
}


def accepted(digest: str) -> Verdict:
    return Verdict(True, (), "", ("t::a",), ("t::b",), digest, "it failed", 1.0, 1, 0)


def an_injected_bug():
    group = a_group("u0003-inj0", update=3)
    return injected_bug("u0003-inj0-m1", SUBMISSION, accepted("tree"), group, 1, an_environment())


def test_an_injected_bug_is_named_after_its_episode_and_is_fresh():
    bug = an_injected_bug()
    assert (bug.bug_id, bug.injector_episode_id) == ("u0003-inj0-m1-bug", "u0003-inj0-m1")
    assert (bug.order, bug.status, bug.created_update, bug.strategy) == (1, "fresh", 3, "removal")
    assert (bug.fail_to_pass, bug.failure, bug.tree_digest) == (("t::a",), "it failed", "tree")
    assert dict(bug.artifact) == SUBMISSION


def test_a_second_order_bug_is_named_after_the_repair_and_keeps_its_parents_artifact():
    parent = an_injected_bug()
    attempt = AttemptRow(
        "u0004-sol0-m2", parent.bug_id, False, "", (), Confirmation.NOT_NEEDED, (), "a patch", 1.0
    )
    bug = second_order_bug(parent, attempt, accepted("another tree"), wave=4)
    assert (bug.bug_id, bug.parent_bug_id) == ("u0004-sol0-m2-bug2", "u0003-inj0-m1-bug")
    assert (bug.parent_episode_id, bug.injector_episode_id) == ("u0004-sol0-m2", "u0003-inj0-m1")
    assert (bug.order, bug.status, bug.created_update) == (2, "fresh", 4)
    assert (bug.artifact, bug.attempt_patch) == (parent.artifact, "a patch")
    assert bug.tree_digest == "another tree"


def test_a_given_bug_is_named_after_its_record():
    assert given_bug_id("toolz__1") == "given-toolz__1"
