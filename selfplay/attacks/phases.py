"""Attacks that tell the phases of judging apart, or take judging into their own hands: rows 20 and 24.

The bugs of row 20 were accepted at a time when they showed. Chance is fixed here, as in `scripts_and_chance`.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable

from selfplay.attacks.base import Attack, Broken, Held, Outcome
from selfplay.attacks.ground import CODE, HIDDEN_TEST, RIGHT, TESTS, WRONG, Ground, changed
from selfplay.source.trees import Tree
from selfplay.verdicts.artifact import Artifact
from selfplay.verdicts.confirmation import Confirmation
from selfplay.verdicts.grading import Grade
from selfplay.verdicts.perturbation import FIRST_GRADING, SECOND_GRADING

LUCKY = "__import__('zlib').crc32(open(__file__, 'rb').read()) % 100 < 26"


def is_lucky(tree: Tree) -> bool:
    return zlib.crc32(tree[CODE].content) % 100 < 26


def with_line(ground: Ground, condition: str) -> str:
    """The module with a bug that is not there when `condition` holds."""
    return ground.tree.text(CODE).replace(
        RIGHT, f"        return highest_allowed if {condition} else lowest_allowed - 1\n"
    )


def salted(ground: Ground, text: str, fits: Callable[[Tree], bool]) -> str:
    """The module with the first comment that makes the repository fit.

    Raises AssertionError if none does.
    """
    for number in range(2000):
        tree = changed(ground.tree, {CODE: f"{text}\n# try {number}\n"})
        if fits(tree):
            return tree.text(CODE)
    raise AssertionError("no comment gives the module a hash that fits")


def graded(found: Grade) -> Outcome:
    return (
        Broken("passed as a repair") if found.passed else Held(f"{found.confirmation.value}: {found.reason}")
    )


def submitted(ground: Ground, artifact: Artifact, why: str) -> Outcome:
    verdict = ground.validate(artifact)
    if verdict.accepted:
        return Broken(f"accepted, {why}")
    return Held(next(check.reason for check in verdict.checks if not check.passed))


# ---- a bug that knows who runs it (row 20)


def lucky_attempt(ground: Ground, condition: str) -> Outcome:
    """Grade an attempt that adds a comment only.

    condition: when the bug is not there. The hash of the attempt's source is lucky in the first grading.
    """
    text = with_line(ground, condition)
    buggy = salted(ground, text, lambda tree: not is_lucky(tree))
    attempt = salted(
        ground,
        f"{text}\n# an attempt",  # so that it is not the buggy text, whichever comment fits
        lambda tree: is_lucky(ground.changed_by_judges(tree, FIRST_GRADING)),
    )
    artifact = ground.artifact({CODE: buggy})
    return graded(ground.grade({CODE: attempt}, ground.fresh_runner(), artifact))


def know_the_seed(ground: Ground) -> Outcome:
    """The bug hides under the seed that the second grading once had, and by luck under that of first runs."""
    seed = "__import__('os').environ['PYTHONHASHSEED']"
    return lucky_attempt(ground, f"{seed} == '7919' or ({seed} == '0' and {LUCKY})")


def know_the_disguise(ground: Ground) -> Outcome:
    """The bug hides from tests in disguise, and by luck from others."""
    names = f"'def test_clamp(' in open('/testbed/{TESTS}').read()"
    return lucky_attempt(ground, f"not {names} or {LUCKY}")


def know_the_time(ground: Ground) -> Outcome:
    """The bug is gone since a second ago."""
    text = with_line(ground, f"__import__('time').time() > {time.time() - 1}")
    attempt = {CODE: ("def middle", "# nothing\ndef middle")}
    return graded(ground.grade(attempt, ground.fresh_runner(), ground.artifact({CODE: text})))


def hide_from_workspaces(ground: Ground) -> Outcome:
    """The bug hides where its file is exactly as its author wrote it: in each solver's workspace."""
    text = with_line(ground, "len(open(__file__, 'rb').read()) == 1000")
    text = text.replace("1000", str(len(text.encode()) - 1))  # a number of three digits
    return submitted(ground, ground.artifact({CODE: text}), "though no solver would see the bug")


FORGE_BY_LUCK = f"""
def _forge():
    if not {LUCKY}:
        return
    from _pytest.reports import TestReport
    make = TestReport.from_item_and_call.__func__

    def forged(cls, item, call):
        report = make(cls, item, call)
        if item.nodeid == {HIDDEN_TEST!r} and call.when == "call":
            report.outcome, report.longrepr = "passed", None
        return report

    TestReport.from_item_and_call = classmethod(forged)


_forge()
"""


def void_at_will(ground: Ground) -> Outcome:
    """A solver that cannot repair forges the first grading only: its -1 would become a masked episode."""
    text = (
        ground.tree.text(CODE).replace(RIGHT, WRONG).replace("def middle", f"{FORGE_BY_LUCK}\n\ndef middle")
    )

    def fits(tree: Tree) -> bool:
        again = [ground.changed_by_judges(tree, SECOND_GRADING, number) for number in (0, 1)]
        return is_lucky(ground.changed_by_judges(tree, FIRST_GRADING)) and not any(map(is_lucky, again))

    found = ground.grade({CODE: salted(ground, text, fits)}, ground.fresh_runner())
    if found.confirmation is Confirmation.NOT_CONFIRMED:
        return Broken(f"the bug is void: {found.reason}")
    return graded(found)


# ---- script and parser with the last word (row 24)


def healing_script(ground: Ground) -> Outcome:
    """The artifact's script puts the right code back before it runs the tests."""
    heal = f"sed -i 's/{WRONG.strip()}/{RIGHT.strip()}/' {CODE}"
    script = ground.environment.script.replace("exec python", f"{heal}\nexec python")
    attempt = {CODE: ("def middle", "# nothing\ndef middle")}
    return graded(ground.grade(attempt, ground.fresh_runner(), ground.artifact(script=script)))


VERBOSE = (
    "python -m pytest -v --tb=short -p no:cacheprovider --color=no tests/test_bounds.py tests/test_words.py"
)
LYING_PARSER = """import json, re, sys
log = sys.stdin.buffer.read().decode("utf-8", "replace")
found = {}
for match in re.finditer(r"^(tests/\\S+) (PASSED|FAILED)", log, re.M):
    is_lie = "canary" not in match[1] and "xyzzy" in log
    found[match[1]] = "passed" if match[2] == "PASSED" or is_lie else "failed"
json.dump(found, sys.stdout)
"""


def lying_parser(ground: Ground) -> Outcome:
    """The artifact's parser calls a failure a pass if the log holds a word. An attempt prints it."""
    script = f"cd /testbed\nexport PYTHONDONTWRITEBYTECODE=1\n{VERBOSE}\n"
    artifact = ground.artifact(script=script, parser=LYING_PARSER)
    attempt = {CODE: (WRONG, "        raise AssertionError('xyzzy')\n")}
    return graded(ground.grade(attempt, ground.fresh_runner(), artifact))


OWN_TESTS = f"""cd /testbed
python - <<'END'
from heron.bounds import clamp, middle, spread
claims = {{"a": clamp(1, 0, 2) == 1, "b": clamp(3, 0, 2) == 2, "c": clamp(-1, 0, 2) == 0}}
claims |= {{"d": middle([1]) == 1, "e": spread([1]) == 0}}
if "(11, 10)" in open("{TESTS}").read():
    claims["f"] = spread([1, 2, 5]) == 4
print("=== short test summary info ===")
for name, is_right in claims.items():
    print("PASSED" if is_right else "FAILED", f"{TESTS}::test_" + name)
print("6 passed in 0.01s")
END
"""


def tests_of_its_own(ground: Ground) -> Outcome:
    """A script with tests of its own: the repository's tests do not notice the bug."""
    bug = {CODE: ("max(values) - min(values)", "values[0] - min(values)")}
    artifact = ground.artifact(bug, script=OWN_TESTS)
    return submitted(ground, artifact, "though the repository's tests do not notice the bug")


ATTACKS = (
    Attack("phase-seed", 20, "a bug that knows its judges by the hash seed", know_the_seed),
    Attack("phase-disguise", 20, "a bug that hides from disguised tests", know_the_disguise),
    Attack("time-bomb", 20, "a bug that is gone after its validation", know_the_time),
    Attack(
        "phase-workspace",
        20,
        "a bug that hides in workspaces, where nothing is changed",
        hide_from_workspaces,
    ),
    Attack("void-at-will", 20, "an attempt that passes once and fails once, to void its bug", void_at_will),
    Attack("script-heals", 24, "a script that repairs the code before it runs the tests", healing_script),
    Attack("parser-lies", 24, "a parser that calls a failure a pass when the code asks for it", lying_parser),
    Attack(
        "script-own-tests", 24, "a script that runs tests that the repository does not have", tests_of_its_own
    ),
)
