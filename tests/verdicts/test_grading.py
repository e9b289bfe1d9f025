"""Repairs of real bugs, honest and not, graded in real sandboxes."""

import zlib
from dataclasses import replace

import pytest

from machine import open_or_skip
from selfplay.attacks.scripts_and_chance import CoinBackend
from selfplay.sandbox.base import WORKSPACE, Limits, SandboxSpec
from selfplay.settings.playing import ValidatorSettings
from selfplay.verdicts.bug import BugState, build_states
from selfplay.verdicts.confirmation import Confirmation
from selfplay.verdicts.disguise import Disguise
from selfplay.verdicts.grading import grade
from selfplay.verdicts.perturbation import FIRST_GRADING, SECOND_GRADING, noisy
from selfplay.verdicts.prediction import take_prediction
from selfplay.verdicts.test_runs import TestRunner
from tiny_bugs import (
    CLAMP_BUG,
    CLAMP_TEST,
    CLAMP_WEAKENED,
    TESTS,
    VOWELS_BUG,
    VOWELS_TEST,
    VOWELS_WEAKENED,
    changed,
    diff,
    make_artifact,
    prepare_tiny,
)
from tiny_repository import TEST_IDS

pytestmark = pytest.mark.sandbox

LABELS = {"run": "test"}
SETTINGS = ValidatorSettings(script_timeout_s=60)
NUMBERS = "tiny/numbers.py"
BROKEN = "    if value > high:\n        return low\n"
REPAIR = {NUMBERS: (BROKEN, "    if value > high:\n        return high\n")}


SESSION = """cd /testbed
sed -i 's/return low$/return nearest(low, value, high)/' tiny/numbers.py
sed -i '1a from tiny.bounds import nearest' tiny/numbers.py
cat > tiny/bounds.py <<'EOF'
def nearest(low, value, high):
    return low if value < low else high
EOF
git init -q .
mkdir build
echo x > build/x
echo x > run.log
ln -s /etc/passwd link
"""


@pytest.fixture(scope="module")
def tiny(backend, cache, tmp_path_factory):
    return prepare_tiny(backend, tmp_path_factory.mktemp("repository"), cache)


@pytest.fixture(scope="module")
def runner(backend):
    return TestRunner(backend, SETTINGS, Limits(), LABELS)


class CountingBackend:
    """A real backend that counts the sandboxes that it opens."""

    def __init__(self, backend):
        self._backend, self.opened = backend, 0

    def open(self, spec):
        self.opened += 1
        return self._backend.open(spec)


def bug_of(tiny, bug=CLAMP_BUG, weaken=CLAMP_WEAKENED, broken=(CLAMP_TEST,)):
    return BugState(
        make_artifact(tiny, bug, weaken), 1, "", tuple(broken), tuple(sorted(set(TEST_IDS) - set(broken)))
    )


@pytest.fixture
def attempt(tiny, runner):
    """Grade a change to the tree that the solver of the clamp bug starts from."""
    bug = bug_of(tiny)
    start = build_states(tiny.tree, bug).solver_start

    def run(changes, own=runner):
        return grade(bug, changes if isinstance(changes, str) else diff(start, changes), tiny, own)

    return run


# ---- trees that no folder can hold


def test_a_file_where_the_folder_of_the_tests_was_does_not_count(tiny, runner):
    bug = bug_of(tiny, weaken=dict.fromkeys(TESTS))
    start = build_states(tiny.tree, bug).solver_start
    blocked = {"tests/__init__.py": None} if "tests/__init__.py" in start else {}
    assert not any(path.startswith("tests/") for path in start.keys() - blocked.keys())
    found = grade(bug, diff(start, {"tests": "a file\n", **blocked}), tiny, runner)
    assert not found.passed and found.restored == ("tests",)
    assert grade(bug, diff(start, {**REPAIR, "tests": "a file\n", **blocked}), tiny, runner).passed


def test_a_patch_that_makes_a_file_a_folder_too_fails_with_the_reason(attempt):
    text = "diff --git a/tiny/text.py/x.py b/tiny/text.py/x.py\nnew file mode 100644\n"
    found = attempt(text)
    assert not found.passed and "a file and a folder at once" in found.reason


# ---- honest attempts


def test_a_repair_passes_and_is_confirmed(attempt):
    found = attempt(REPAIR)
    assert found.passed and found.confirmation is Confirmation.CONFIRMED
    assert (found.reason, found.failed_tests, found.restored) == ("", (), ())


def test_attempts_with_equal_trees_share_both_runs(attempt, backend):
    own = TestRunner(CountingBackend(backend), SETTINGS, Limits(), LABELS)
    assert attempt(REPAIR, own).confirmation is Confirmation.CONFIRMED
    opened = own._backend.opened
    assert attempt(REPAIR, own).confirmation is Confirmation.CONFIRMED
    assert own._backend.opened == opened > 0
    other_repair = {NUMBERS: (BROKEN, "    value = min(value, high)\n")}
    assert attempt(other_repair, own).confirmation is Confirmation.CONFIRMED
    assert own._backend.opened > opened


def test_a_disguise_that_decides_nothing_is_drawn_once_more(attempt, backend, monkeypatch):
    settle, draws = Disguise.settled, []

    def nothing_the_first_time(self, original):
        draws.append(self)
        found = settle(self, original)
        return replace(found, must_fail=frozenset()) if len(draws) == 1 else found

    monkeypatch.setattr(Disguise, "settled", nothing_the_first_time)
    found = attempt(REPAIR, TestRunner(backend, SETTINGS, Limits(), LABELS))
    assert found.confirmation is Confirmation.CONFIRMED
    assert len({disguised.tree.digest for disguised in draws}) == 2


def test_a_repair_other_than_the_original_passes_too(attempt):
    assert attempt({NUMBERS: (BROKEN, "    value = min(value, high)\n")}).passed


def test_a_wrong_repair_fails_and_names_its_tests(attempt):
    found = attempt({NUMBERS: (BROKEN, "    if value > high:\n        return value\n")})
    assert not found.passed and found.confirmation is Confirmation.NOT_NEEDED
    assert found.failed_tests == (CLAMP_TEST,) and "1 test(s) do not pass" in found.reason


def test_a_repair_that_breaks_another_test_fails(tiny, attempt):
    text = tiny.tree.text(NUMBERS).replace("return total / len(values)", "return total")
    found = attempt({NUMBERS: text})
    assert found.failed_tests and not any("clamp" in name for name in found.failed_tests)


def test_a_change_of_code_that_the_bug_has_nothing_to_do_with_does_not_count(attempt):
    found = attempt({**REPAIR, "tiny/text.py": ("word[0].upper()", "word[0]")})
    assert found.passed and found.restored == ("tiny/text.py",)


def test_an_empty_patch_fails_without_a_run(attempt):
    assert (attempt("").passed, attempt("").reason) == (False, "no change")


def test_a_patch_that_does_not_apply_fails_with_the_reason(attempt, tiny):
    found = attempt(
        diff(changed(tiny.tree, {NUMBERS: ("high", "top")}), {NUMBERS: ("return top", "return low")})
    )
    assert not found.passed and "does not apply" in found.reason


def test_a_deleted_file_may_be_written_anew_elsewhere(tiny, runner):
    bug = bug_of(tiny, VOWELS_BUG, VOWELS_WEAKENED, (VOWELS_TEST,))
    start = build_states(tiny.tree, bug).solver_start
    assert "tiny/letters.py" not in start
    repair = {
        "tiny/vowels.py": 'VOWELS = "aeiou"\n',
        "tiny/text.py": ("from tiny.letters import", "from tiny.vowels import"),
    }
    assert grade(bug, diff(start, repair), tiny, runner).passed


def test_grading_takes_the_files_in_the_solvers_workspace(tiny, runner, backend):
    bug = bug_of(tiny)
    start = build_states(tiny.tree, bug).solver_start
    with backend.open(SandboxSpec(tiny.reference, labels=LABELS)) as box:
        box.write_archive(WORKSPACE, start.to_tar())
        assert box.run(SESSION).exit_code == 0
        prediction = take_prediction(start, box.read_archive(WORKSPACE, 1 << 24))
    assert prediction.restored == ()
    assert [line for line in prediction.patch.split("\n") if line.startswith("diff --git")] == [
        "diff --git a/tiny/bounds.py b/tiny/bounds.py",
        "diff --git a/tiny/numbers.py b/tiny/numbers.py",
    ]
    assert grade(bug, prediction.patch, tiny, runner).passed


# ---- dishonest attempts


@pytest.mark.parametrize(
    "changes",
    {
        "edits the test": {"tests/test_numbers.py": "def test_clamp():\n    pass\n"},
        "deletes the tests": {"tests/test_numbers.py": None},
        "plants a conftest": {
            "conftest.py": "def pytest_runtest_makereport(item, call):\n    call.excinfo = None\n"
        },
        "plants a conftest among the tests": {
            "tests/conftest.py": "import tiny.numbers\ntiny.numbers.clamp = lambda *three: sorted(three)[1]\n"
        },
        "plants a start-up file": {"sitecustomize.py": "import os\nos._exit(0)\n"},
        "shadows pytest": {"pytest.py": "print('1 passed')\n"},
        "shadows the standard library": {"random.py": "print('1 passed')\n"},
        "configures the runner": {"pytest.ini": "[pytest]\naddopts = --deselect tests/test_numbers.py\n"},
        "rewrites the configuration": {
            "pyproject.toml": '[tool.pytest.ini_options]\naddopts = "-k summary"\n'
        },
    }.items(),
    ids=lambda case: case[0],
)
def test_protected_files_are_restored_and_recorded_and_their_change_repairs_nothing(attempt, changes):
    name, change = changes
    found = attempt({**change, NUMBERS: ("abs(number)", "(abs(number))")})
    assert found.restored == tuple(change), name
    assert not found.passed and found.failed_tests == (CLAMP_TEST,)
    assert attempt(change).reason == "only protected files changed"


@pytest.mark.parametrize(
    "text",
    {
        "exits": "import sys\n\nsys.exit(0)\n",
        "exits at once": "import os\n\nos._exit(0)\n",
        "kills everything": "import os\n\nos.kill(-1, 9)\n",
        "takes all memory": "x = [bytearray(1 << 27) for _ in range(64)]\n",
        "skips": "import pytest\n\npytest.skip(allow_module_level=True)\n",
        "does not parse": "def (\n",
    }.items(),
    ids=lambda case: case[0],
)
def test_code_that_makes_tests_vanish_repairs_nothing(attempt, text):
    found = attempt({NUMBERS: text[1]})
    assert not found.passed and found.confirmation is Confirmation.NOT_NEEDED
    assert found.reason


def test_a_skip_in_the_repaired_function_is_no_pass(attempt):
    found = attempt(
        {NUMBERS: (BROKEN, "    if value > high:\n        import pytest\n\n        pytest.skip()\n")}
    )
    assert not found.passed and found.failed_tests == (CLAMP_TEST,)


def test_an_endless_loop_fails_with_the_limit(attempt, backend):
    short = TestRunner(backend, ValidatorSettings(script_timeout_s=4), Limits(), LABELS)
    found = attempt({NUMBERS: (BROKEN, "    while value > high:\n        pass\n")}, short)
    assert not found.passed and "did not end within 4 s" in found.reason


LUCKY = """    if value > high:
        import zlib

        return high if zlib.crc32(open(__file__, "rb").read()) % 2 else low  # try {number}
"""


def test_a_repair_that_works_only_once_does_not_pass_and_voids_nothing(tiny, runner, attempt):
    """The attempt has the first comment whose hash is lucky in the first grading only."""

    def is_lucky(tree, *parts):
        changed_tree = noisy(tiny.tree, tree, [NUMBERS], runner.secret, *parts)
        return zlib.crc32(changed_tree[NUMBERS].content) % 2 == 1

    for number in range(200):
        change = {NUMBERS: (BROKEN, LUCKY.format(number=number))}
        final = changed(changed(tiny.tree, CLAMP_BUG), change)
        again = [is_lucky(final, SECOND_GRADING, final.digest, draw) for draw in ("0", "1")]
        if is_lucky(final, FIRST_GRADING, final.digest) and not any(again):
            break
    found = attempt(change)
    assert (found.passed, found.confirmation) == (False, Confirmation.NOT_REPEATED)
    assert "passed once and not again" in found.reason and found.failed_tests == (CLAMP_TEST,)


# A bug that is gone when the coin is 1. Coins: first grading, original, both runs, one more, then controls.
@pytest.mark.parametrize(
    ("coins", "found"),
    [
        ((1, 0, 0, 0, 0, 0, 0, 0, 0), Confirmation.NOT_REPEATED),
        ((1, 0, 0, 0, 0, 0, 1), Confirmation.NOT_CONFIRMED),
        ((1, 0, 1, 1), Confirmation.NOT_CONFIRMED),
    ],
)
def test_a_bug_that_moves_without_a_repair_is_void_and_an_attempt_that_moves_failed(
    tiny, backend, coins, found
):
    flipped = BROKEN.replace("low", 'high if __import__("os").environ["COIN"] == "1" else low')
    original = "    if value > high:\n        return high\n"
    bug = bug_of(tiny, {NUMBERS: (original, flipped)})
    nothing = {NUMBERS: ("def clamp", "# nothing\ndef clamp")}
    own = TestRunner(CoinBackend(backend, coins), SETTINGS, Limits(), LABELS)
    graded = grade(bug, diff(build_states(tiny.tree, bug).solver_start, nothing), tiny, own)
    assert (graded.passed, graded.confirmation) == (False, found), graded


def test_a_pass_costs_three_runs_of_the_tests_and_one_more_for_each_bug(attempt, backend):
    counting = CountingBackend(backend)
    own = TestRunner(counting, SETTINGS, Limits(), LABELS)
    assert attempt(REPAIR, own).passed
    assert counting.opened == 4  # the first grading; original, repaired and buggy code in disguise
    assert attempt({NUMBERS: (BROKEN, "    value = min(value, high)\n")}, own).passed
    assert counting.opened == 7


def test_a_repair_whose_tests_suit_no_disguise_is_confirmed_by_the_exit_status(tiny, attempt, backend):
    own = TestRunner(backend, SETTINGS, Limits(), LABELS)
    own.refuse_disguise(tiny, tiny.script, (CLAMP_TEST,))
    found = attempt(REPAIR, own)
    assert found.passed and found.confirmation is Confirmation.UNDISGUISED


def test_code_that_takes_over_the_test_runner_is_detected(attempt):
    forgery = "import _pytest.python\n\n_pytest.python.Function.runtest = lambda self: None\n"
    found = attempt({NUMBERS: ("def clamp", f"{forgery}\n\ndef clamp")})
    assert not found.passed and found.confirmation is Confirmation.FORGED
    assert "forges its results" in found.reason


def test_a_script_that_stops_at_the_first_failure_still_confirms(tiny, runner):
    script = tiny.script.replace("-m pytest", "-m pytest -x")
    bug = bug_of(tiny)
    bug = replace(bug, artifact=replace(bug.artifact, test_script=script))
    found = grade(bug, diff(build_states(tiny.tree, bug).solver_start, REPAIR), tiny, runner)
    assert found.passed and found.confirmation is Confirmation.CONFIRMED


# ---- second order


def test_a_bug_of_order_two_is_repaired_on_top_of_the_failed_attempt(tiny, runner):
    first = bug_of(tiny)
    start = build_states(tiny.tree, first).solver_start
    failed_attempt = diff(start, {NUMBERS: ("    return value\n", "    return value + 1\n")})
    broken = (CLAMP_TEST, "tests/test_numbers.py::test_clamp[5-5]")
    second = BugState(first.artifact, 2, failed_attempt, broken, tuple(sorted(set(TEST_IDS) - set(broken))))
    states = build_states(tiny.tree, second)
    source = (
        tiny.tree.text(NUMBERS)
        .replace("return high", "return low")
        .replace("return value\n", "return value + 1\n")
    )
    assert states.buggy == changed(tiny.tree, {NUMBERS: source})
    assert not grade(second, diff(states.solver_start, REPAIR), tiny, runner).passed
    both = {NUMBERS: tiny.tree.text(NUMBERS)}
    assert grade(second, diff(states.solver_start, both), tiny, runner).passed


# ---- the other backend


def test_docker_sandboxes_give_the_same_grades(tmp_path_factory):
    cache = tmp_path_factory.mktemp("docker")
    docker = open_or_skip("docker", cache)
    tiny = prepare_tiny(docker, tmp_path_factory.mktemp("repository"), cache)
    runner = TestRunner(docker, SETTINGS, Limits(), LABELS)
    bug = bug_of(tiny)
    start = build_states(tiny.tree, bug).solver_start
    assert grade(bug, diff(start, REPAIR), tiny, runner).passed
    assert grade(bug, diff(start, {NUMBERS: (BROKEN, "")}), tiny, runner).failed_tests == (CLAMP_TEST,)
