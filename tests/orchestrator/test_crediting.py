"""Credit in the database: which groups are rewarded, when, and what becomes of their bug."""

import pytest

from selfplay.agent.episode import Role
from selfplay.config import build_config
from selfplay.curriculum.rows import AttemptRow, VerdictRow
from selfplay.curriculum.store import Store
from selfplay.orchestrator.crediting import Crediting, changed_lines
from selfplay.orchestrator.run_state import RunState
from selfplay.verdicts.confirmation import Confirmation
from store_rows import a_bug, a_group, an_episode


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "selfplay.db") as store:
        yield store


def crediting(store, **settings):
    return Crediting(store, RunState(store), build_config(settings))


def injectors(store, *accepted):
    """An open group of an admitted wave. accepted: of each member's artifact; None if the machine failed."""
    group = a_group("i", "injector", size=len(accepted))
    store.add_group(group)
    for member, verdict in enumerate(accepted):
        row = an_episode(group, member, masked=verdict is None)
        store.record_episode(row)
        if verdict is not None:
            failed = "" if verdict else "parser"
            store.record_verdict(VerdictRow(row.episode_id, verdict, failed, "", "[]", 1.0, 1, 0))
    RunState(store).set_planned(1, Role.SOLVER)


def solvers(store, *attempts):
    """An open group that played `bug`. attempts: (passed, confirmation)."""
    group = a_group("s", "solver", bug_id="bug", size=len(attempts))
    store.add_group(group)
    for member, (passed, confirmation) in enumerate(attempts):
        store.record_episode(an_episode(group, member, masked=passed is None))
        if passed is not None:
            store.record_attempt(AttemptRow(f"s-m{member}", "bug", passed, "", (), confirmation, (), "", 1.0))
    return group


def rewards(store, group_id):
    return [(row.reward, row.note) for row in store.episodes(group_id=group_id)]


PASS = (True, Confirmation.CONFIRMED)
FAIL = (False, Confirmation.NOT_NEEDED)
UNSURE = (False, Confirmation.NOT_CONFIRMED)
SPOILED = (None, Confirmation.NOT_NEEDED)


def test_an_injector_group_waits_until_each_of_its_bugs_is_measured(store):
    injectors(store, True, False, True, None)
    store.add_bug(a_bug("i-m0-bug", "i-m0"))
    crediting(store).credit_injectors()
    assert rewards(store, "i") == [(None, "")] * 4
    store.set_solve_rate("i-m0-bug", 0.5, 4, 2)
    crediting(store).credit_injectors()
    assert rewards(store, "i") == [
        (pytest.approx(0.1), "solve rate 0.50"),
        (-1.0, "rejected: parser"),
        (-0.8, "duplicate"),
        (None, "machine failure"),
    ]
    assert [group.status for group in store.groups(role="injector")] == ["complete"]


def test_an_artifact_is_no_duplicate_before_its_wave_is_admitted(store):
    group = a_group("j", "injector", size=1, update=2)
    store.add_group(group)
    store.record_episode(an_episode(group))
    store.record_verdict(VerdictRow("j-m0", True, "", "", "[]", 1.0, 1, 0))
    crediting(store).credit_injectors()
    assert rewards(store, "j") == [(None, "")]
    assert [each.status for each in store.groups(role="injector")] == ["open"]


def test_a_bug_that_is_played_again_keeps_its_injectors_first_solve_rate(store):
    injectors(store, True, False)
    store.add_bug(a_bug("i-m0-bug", "i-m0"))
    store.set_solve_rate("i-m0-bug", 0.5, 4, 2)
    store.set_solve_rate("i-m0-bug", 1.0, 4, 4)
    crediting(store).credit_injectors()
    assert rewards(store, "i")[0] == (pytest.approx(0.1), "solve rate 0.50")


def test_solvers_earn_by_their_own_grade_and_measure_the_bug(store):
    store.add_bug(a_bug("bug", ""))
    group = solvers(store, PASS, FAIL, FAIL, SPOILED)
    crediting(store).credit_solvers(group)
    assert rewards(store, "s") == [
        (1.0, "repaired"),
        (-1.0, "not repaired"),
        (-1.0, "not repaired"),
        (None, "machine failure"),
    ]
    bug = store.bug("bug")
    assert (bug.status, bug.solve_rate, bug.attempts, bug.passes) == ("measured", pytest.approx(1 / 3), 3, 1)
    assert [each.status for each in store.groups(role="solver")] == ["complete"]


def test_a_pass_that_is_not_confirmed_voids_the_bug_and_masks_its_group(store):
    store.add_bug(a_bug("bug", ""))
    crediting(store).credit_solvers(solvers(store, PASS, UNSURE))
    assert rewards(store, "s") == [(None, "void bug")] * 2
    assert all(row.masked for row in store.episodes(group_id="s"))
    assert (store.bug("bug").status, store.groups(role="solver")[0].status) == ("void", "void")


def test_the_lines_of_a_diff_count_in_any_encoding():
    diff = "diff --git a/m.py b/m.py\n--- a/m.py\n+++ b/m.py\n@@ -1 +1 @@\n-# caf\udce9\n+# café\n"
    assert changed_lines(diff) == 2
    assert changed_lines(diff.replace("\udce9", "\ud83d")) == changed_lines("nonsense") == 0
