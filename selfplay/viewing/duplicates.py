"""Which accepted artifacts are duplicates: their bug is another bug of the run already.

A duplicate passes all checks, so it is no rejection, and it makes no bug. Its verdict has the bug's digest.
"""

from __future__ import annotations

import json

from selfplay.curriculum.rows import BugRow, VerdictRow
from selfplay.curriculum.store import Store


def repeated_bugs(store: Store) -> dict[str, str]:
    """Episode id of each duplicate -> id of the bug that it repeats."""
    bugs = {bug.tree_digest: bug for bug in store.bugs()}
    found = {}
    for verdict in store.verdicts(accepted=True):
        bug = bugs.get(_buggy_digest(verdict))
        if bug is not None and not _is_its_own(bug, verdict):
            found[verdict.episode_id] = bug.bug_id
    return found


def duplicated_bug(store: Store, verdict: VerdictRow | None) -> str:
    """The id of the bug that the artifact of this verdict repeats, "" if it is no duplicate."""
    digest = _buggy_digest(verdict) if verdict is not None and verdict.accepted else ""
    if verdict is None or not digest:
        return ""
    bug = store.bug_with_digest(digest)
    return bug.bug_id if bug is not None and not _is_its_own(bug, verdict) else ""


def duplicates_text(store: Store) -> str:
    """`23 of 40 accepted artifacts are duplicates`, "" if none is."""
    count = len(repeated_bugs(store))
    return (
        f"{count} of {len(store.verdicts(accepted=True))} accepted artifacts are duplicates" if count else ""
    )


def _is_its_own(bug: BugRow, verdict: VerdictRow) -> bool:
    return bug.order == 1 and bug.injector_episode_id == verdict.episode_id


def _buggy_digest(verdict: VerdictRow) -> str:
    """ "" in verdicts of older versions, which keep only the list of checks."""
    recorded = json.loads(verdict.checks_json)
    return str(recorded.get("buggy_digest", "")) if isinstance(recorded, dict) else ""
