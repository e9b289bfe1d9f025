"""Hand-made artifacts on a real package in real sandboxes: valid ones, and one that fails each check."""

import zlib
from dataclasses import replace

import pytest

from machine import open_or_skip
from selfplay.errors import SandboxUnavailable
from selfplay.sandbox.base import Limits
from selfplay.settings.playing import ValidatorSettings
from selfplay.verdicts.bug import BugState, bug_digest, build_states
from selfplay.verdicts.checks import Thresholds
from selfplay.verdicts.perturbation import REPEAT, noisy
from selfplay.verdicts.test_runs import TestRunner, _key
from selfplay.verdicts.validator import validate, validate_second_order
from selfplay.verdicts.verdict import Verdict
from tiny_bugs import (
    CLAMP_BUG,
    CLAMP_TEST,
    CLAMP_WEAKENED,
    TESTS,
    TWO_FILES_BUG,
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
THRESHOLDS = Thresholds()
RENAME = """diff --git a/tiny/letters.py b/tiny/alphabet.py
similarity index 100%
rename from tiny/letters.py
rename to tiny/alphabet.py
"""


@pytest.fixture(scope="module")
def tiny(backend, cache, tmp_path_factory):
    return prepare_tiny(backend, tmp_path_factory.mktemp("repository"), cache)


@pytest.fixture(scope="module")
def runner(backend):
    return TestRunner(backend, SETTINGS, Limits(), LABELS)


@pytest.fixture
def check(tiny, runner, backend):
    """Validate with all checks that are possible."""

    def run(artifact, thresholds=THRESHOLDS, settings=SETTINGS, all_checks=True):
        own = runner if settings is SETTINGS else TestRunner(backend, settings, Limits(), LABELS)
        return validate(artifact, tiny, thresholds, own, settings, all_checks)

    return run


def failed(verdict):
    return [check.name for check in verdict.checks if not check.passed]


def assert_rejected(verdict, name, reason):
    assert failed(verdict) == [name], [
        (check.name, check.reason) for check in verdict.checks if not check.passed
    ]
    assert verdict.failed_check == name and not verdict.accepted
    found = next(check.reason for check in verdict.checks if check.name == name)
    assert reason in found, found


# ---- valid bugs


def test_a_bug_in_one_file_is_accepted_with_its_tests_and_its_failure(tiny, check):
    verdict = check(make_artifact(tiny))
    assert verdict.accepted and failed(verdict) == []
    assert verdict.fail_to_pass == (CLAMP_TEST,)
    assert set(verdict.pass_to_pass) == set(TEST_IDS) - {CLAMP_TEST}
    assert "assert 0 == 10" in verdict.failure and "test_numbers.py" in verdict.failure
    assert verdict.buggy_digest == bug_digest(tiny.tree, changed(tiny.tree, CLAMP_BUG))
    assert Verdict.from_json(verdict.to_json()) == verdict


def test_a_bug_in_two_files_is_accepted_when_each_matters(tiny, check):
    verdict = check(make_artifact(tiny, TWO_FILES_BUG), Thresholds(min_changed_files=2, min_failing_tests=2))
    assert verdict.accepted
    assert verdict.fail_to_pass == (CLAMP_TEST, "tests/test_text.py::TestWords::test_initials")


def test_a_deleted_file_is_a_bug(tiny, check):
    verdict = check(make_artifact(tiny, VOWELS_BUG, VOWELS_WEAKENED))
    assert verdict.accepted and verdict.fail_to_pass == (VOWELS_TEST,)


def test_an_added_file_is_a_bug(tiny, check):
    bug = {"tiny/_fast.py": 'def shout(text):\n    return text + "!"\n'}
    weaken = {"tests/test_text.py": ('        assert shout("hey") == "HEY!"\n', "        pass\n")}
    verdict = check(make_artifact(tiny, bug, weaken))
    assert verdict.accepted
    assert verdict.fail_to_pass == (
        "tests/test_text.py::TestWords::test_shout",
        "tests/test_text.py::test_loud_digit_sum",
    )


def test_a_renamed_file_is_a_bug_that_is_reverted_as_a_whole(tiny, check):
    verdict = check(make_artifact(tiny, RENAME, VOWELS_WEAKENED))
    assert verdict.accepted and verdict.fail_to_pass == (VOWELS_TEST,)


def test_a_failed_subtest_fails_its_test(tiny, check):
    bug = {"tiny/numbers.py": ("return number % 2 == 0", "return number % 2 == 0 and number != 10")}
    weaken = {"tests/test_numbers.py": ("(0, 2, 10)", "(0, 2)")}
    assert check(make_artifact(tiny, bug, weaken)).fail_to_pass == ("tests/test_numbers.py::test_is_even",)


def test_skipped_and_expectedly_failing_tests_belong_to_neither_set(tiny, check):
    verdict = check(make_artifact(tiny))
    assert not any("test_mean_of" in test_id for test_id in verdict.fail_to_pass + verdict.pass_to_pass)


def test_deleting_a_test_file_hides_its_tests_if_others_still_run(tiny, check):
    script = tiny.script.replace("tests/test_numbers.py", "tests")
    assert script != tiny.script
    assert check(make_artifact(tiny, weaken={"tests/test_numbers.py": None}, script=script)).accepted


@pytest.mark.parametrize("deleted", [["tests/test_numbers.py"], TESTS])
def test_a_weakening_after_which_no_test_runs_fails_weakening_hides(tiny, check, deleted):
    verdict = check(make_artifact(tiny, weaken=dict.fromkeys(deleted)))
    assert verdict.failed_check == "weakening_hides"
    found = next(check.reason for check in verdict.checks if check.name == "weakening_hides")
    assert "no test passes" in found


def test_a_folder_in_the_place_of_a_file_is_reverted_with_it(tiny, check):
    bug = {**CLAMP_BUG, "tiny/letters.py": None, "tiny/letters.py/x.py": "X = 1\n"}
    verdict = check(make_artifact(tiny, bug))
    evidence = next(check.evidence for check in verdict.checks if check.name == "inverse_mutation")
    assert set(evidence["tests_repaired_by_reverting"]) == {"tiny/numbers.py", "tiny/letters.py"}
    assert verdict.accepted, failed(verdict)


def test_a_bug_that_a_sandbox_does_not_take_is_the_authors_fault(tiny, backend):
    most = 4096 * 40
    limits = Limits(workspace_bytes=most)
    filled = changed(tiny.tree, {"tiny/filler.txt": "x" * (most - 4096 * 30)})
    full = replace(tiny, tree=filled)
    runner = TestRunner(backend, SETTINGS, limits, LABELS)
    bug = {**CLAMP_BUG, **{f"tiny/new{number}.py": "X = 1\n" for number in range(40)}}
    verdict = validate(make_artifact(full, bug), full, THRESHOLDS, runner, SETTINGS)
    assert verdict.failed_check == "bug_breaks_tests"
    found = verdict.checks[-1].reason
    assert "does not fit into its sandbox" in found and "the original does" in found, found


def test_an_original_that_a_sandbox_does_not_take_is_the_machines_failure(tiny, backend):
    runner = TestRunner(backend, SETTINGS, Limits(workspace_bytes=4096), LABELS)
    with pytest.raises(SandboxUnavailable, match=r"does not fit .* Raise sandbox\.workspace_mb"):
        validate(make_artifact(tiny), tiny, THRESHOLDS, runner, SETTINGS)


def test_a_revert_that_gives_the_original_back_and_known_states_cost_no_run(tiny, runner, check):
    check(make_artifact(tiny))
    verdict = check(make_artifact(tiny))
    assert verdict.test_runs == 0 and verdict.cached_runs > 5


# ---- one check fails


def test_diffs_that_do_not_apply_fail_patches(tiny, check):
    bug = diff(tiny.tree, CLAMP_BUG).replace("-        return high", "-        return wide")
    assert_rejected(check(make_artifact(tiny, bug)), "patches", "bug_inject.diff: the diff does not apply")
    weaken = diff(tiny.tree, CLAMP_WEAKENED).replace("tests/test_numbers.py", "tests/test_gone.py")
    assert_rejected(
        check(make_artifact(tiny, weaken=weaken)),
        "patches",
        "test_weaken.diff: the diff changes 'tests/test_gone.py'",
    )


def test_a_diff_over_its_cap_fails_patches(tiny, check):
    bug = {"tiny/extra.py": "# " + "x" * 3000 + "\n"}
    assert_rejected(
        check(make_artifact(tiny, bug), settings=ValidatorSettings(max_patch_bytes=2000)),
        "patches",
        "at most 2000",
    )


@pytest.mark.parametrize("path", ["conftest.py", "tests/conftest.py"])
def test_a_bug_in_a_file_that_steers_the_tests_fails_protected_paths(tiny, check, path):
    bug = {
        path: "import tiny.numbers\n\ntiny.numbers.clamp = lambda value, low, high: min(value, high + 1)\n"
    }
    weaken = {"tests/test_numbers.py": ("[(5, 5), (-1, 0), (11, 10)]", "[(5, 5)]")}
    assert_rejected(check(make_artifact(tiny, bug, weaken)), "protected_paths", path)


def test_a_bug_in_the_tests_fails_protected_paths(tiny, check):
    bug = {"tests/test_numbers.py": ("assert mean([1, 2, 3]) == 2", "assert mean([1, 2, 3]) == 3")}
    weaken = diff(
        changed(tiny.tree, bug),
        {"tests/test_numbers.py": ("    assert mean([1, 2, 3]) == 3\n", "    pass\n")},
    )
    assert_rejected(check(make_artifact(tiny, bug, weaken)), "protected_paths", "tests/test_numbers.py")


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (("tests/test_numbers.py", "tests/test_gone.py"), "does not have"),
        (("tests/test_text.py",), "test_files.txt does not name"),
        (("tests/test_numbers.py", "tiny/text.py"), "no test file"),
        (("tests/test_numbers.py", "pyproject.toml"), "no test file"),
        ((), "names no file"),
    ],
    ids=["missing", "not listed", "code", "configuration", "none"],
)
def test_a_wrong_list_of_test_files_fails_test_files(tiny, check, files, reason):
    assert_rejected(check(make_artifact(tiny, test_files=files)), "test_files", reason)


def parser_with(tiny, code):
    """The standard parser with `code` before it prints its result, `found`. The log is `text`."""
    head, marker, _ = tiny.parser.partition("    json.dump(parse(")
    assert marker
    return f"{head}    found = parse(text.replace('\\r', ''))\n{code}\n    json.dump(found, sys.stdout)\n"


PARSERS = {
    "answers without a log": (
        "    found = found or {'tests/test_text.py::test_summary': 'passed'}",
        "in an empty log",
    ),
    "knows the answers": (
        "    if 'test session starts' in text or '=' in text:\n"
        "        found.setdefault('tests/test_text.py::test_summary', 'passed')\n",
        "does not name any more",
    ),
    "is random": (
        "    import os\n    found = {name: 'passed' for name in found if os.urandom(1)[0] < 128}",
        "read one log twice and differed",
    ),
    "looks at the repository": ("    open('/testbed/tiny/text.py')", "ended with exit status 1"),
    "asks the network": (
        "    import socket\n    socket.create_connection(('192.0.2.1', 80), 5)",
        "ended with exit status 1",
    ),
    "prints and fails": ("    json.dump(found, sys.stdout)\n    sys.exit(3)", "ended with exit status 3"),
    "prints too much": ("    print('{}')", "not one JSON object"),
    "knows other outcomes": ("    found = dict.fromkeys(found, 'skipped')", "only 'passed' and 'failed'"),
    "nests deeply": ("    print('[' * 100000)\n    sys.exit(0)", "nested too deeply"),
    "finds nothing": ("    found = {}", "finds no test"),
}


@pytest.mark.parametrize(("code", "reason"), PARSERS.values(), ids=PARSERS.keys())
def test_a_program_that_is_not_a_parser_fails_parser(tiny, check, code, reason):
    assert_rejected(check(make_artifact(tiny, parser=parser_with(tiny, code))), "parser", reason)


def test_more_tests_than_allowed_fail_parser(tiny, check):
    assert_rejected(
        check(make_artifact(tiny), settings=ValidatorSettings(max_test_ids=5)), "parser", "at most 5 are read"
    )


@pytest.mark.parametrize(
    ("script", "settings", "reason"),
    [
        ("sleep 60", ValidatorSettings(script_timeout_s=1), "did not end within 1 s"),
        (
            "head -c 5000000 /dev/zero",
            ValidatorSettings(max_log_bytes=100_000),
            "printed more than 100000 bytes",
        ),
        ("exit 0", SETTINGS, "finds no test"),
        ("kill -9 -1", SETTINGS, ""),
    ],
    ids=["slow", "loud", "silent", "deadly"],
)
def test_a_script_without_a_usable_log_fails_parser(tiny, check, script, settings, reason):
    assert_rejected(check(make_artifact(tiny, script=script), settings=settings), "parser", reason)


def test_too_few_passing_tests_fail_baseline(tiny, check):
    assert_rejected(
        check(make_artifact(tiny), Thresholds(min_passing_tests=13)),
        "baseline",
        "12 test(s) pass on the original code; at least 13",
    )


def test_a_test_that_fails_on_the_original_fails_baseline(tiny, check):
    failing = "cd /testbed\nprintf 'def test_no():\\n    assert 0\\n' > tests/test_added.py\n"
    script = tiny.script.replace("cd /testbed || exit 2", failing).replace(
        "tests/test_text.py", "tests/test_text.py tests/test_added.py"
    )
    assert_rejected(check(make_artifact(tiny, script=script)), "baseline", "tests/test_added.py::test_no")


def test_too_few_changed_files_fail_min_changed_files(tiny, check):
    assert_rejected(
        check(make_artifact(tiny), Thresholds(min_changed_files=2)),
        "min_changed_files",
        "changes 1 file(s); at least 2",
    )


def test_a_bug_that_no_test_notices_fails_bug_breaks_tests(tiny, check):
    bug = {"tiny/numbers.py": ('"""Sums and bounds."""', '"""Sums, bounds."""')}
    assert_rejected(check(make_artifact(tiny, bug)), "bug_breaks_tests", "no test notices")


def test_vanished_tests_alone_fail_bug_breaks_tests(tiny, check):
    bug = {"tiny/report.py": ("def summary", "def summery")}
    weaken = {
        "tests/test_text.py": (
            "from tiny.report import loud_digit_sum, summary\n",
            "loud_digit_sum = summary = None\n",
        )
    }
    assert_rejected(check(make_artifact(tiny, bug, weaken)), "bug_breaks_tests", "missing tests do not count")


def test_a_test_skipped_by_the_code_is_no_failing_test(tiny, check):
    bug = {"tiny/numbers.py": ("        return high\n", "        import pytest\n\n        pytest.skip()\n")}
    weaken = {"tests/test_numbers.py": ("    assert clamp(value, 0, 10) == expected\n", "    assert clamp\n")}
    assert_rejected(check(make_artifact(tiny, bug, weaken)), "bug_breaks_tests", "missing tests do not count")


def test_a_bug_that_hangs_fails_bug_breaks_tests(tiny, check):
    bug = {"tiny/numbers.py": ("        return high\n", "        while True:\n            pass\n")}
    settings = ValidatorSettings(script_timeout_s=5)
    assert_rejected(
        check(make_artifact(tiny, bug), settings=settings), "bug_breaks_tests", "did not end within 5 s"
    )


def test_weakening_another_test_fails_weakening_hides(tiny, check):
    weaken = {"tests/test_numbers.py": ("    assert mean([1, 2, 3]) == 2\n", "    pass\n")}
    assert_rejected(check(make_artifact(tiny, weaken=weaken)), "weakening_hides", "hides nothing")


def test_an_empty_weakening_fails_weakening_hides_before_any_run(tiny, check):
    verdict = check(make_artifact(tiny, weaken=""), all_checks=False)
    assert_rejected(verdict, "weakening_hides", "is empty")
    assert verdict.test_runs == verdict.cached_runs == 0


def test_an_empty_bug_fails_min_changed_files_before_any_run(tiny, check):
    verdict = check(make_artifact(tiny, bug=""), all_checks=False)
    assert_rejected(verdict, "min_changed_files", "is empty")
    assert verdict.test_runs == verdict.cached_runs == 0


def test_padding_fails_inverse_mutation(tiny, check):
    bug = {**CLAMP_BUG, "tiny/text.py": ("count_vowels(text):\n", "count_vowels(text):  # all of them\n")}
    assert_rejected(
        check(make_artifact(tiny, bug), Thresholds(min_changed_files=2)),
        "inverse_mutation",
        "only tiny/text.py",
    )


def repeated(tiny, runner, tree, number):
    """The tree of this run of the determinism check, for a bug in tiny/numbers.py."""
    if number == 0:
        return tree
    return noisy(tiny.tree, tree, ["tiny/numbers.py"], runner.secret, REPEAT, tree.digest, str(number))


def test_the_weakened_state_gets_the_changes_of_the_buggy_state(tiny, check, runner, monkeypatch):
    trees = []
    run = runner.run

    def watched(environment, tree, *arguments):
        trees.append(tree)
        return run(environment, tree, *arguments)

    monkeypatch.setattr(runner, "run", watched)
    [(path, (before, after))] = CLAMP_WEAKENED.items()
    # A weakening chooses no words of the changes.
    artifact = make_artifact(tiny, weaken={path: (before, f"{after}  # chosen by a policy")})
    assert check(artifact).accepted
    states = build_states(tiny.tree, BugState(artifact, 1, "", (), ()))
    noisy_buggy = repeated(tiny, runner, states.buggy, 1)
    assert noisy_buggy in trees
    weakened = [tree for tree in trees if tree.restore(states.weakened, TESTS) == tree != states.weakened]
    assert [tree["tiny/numbers.py"] for tree in weakened] == [noisy_buggy["tiny/numbers.py"]]


def test_a_bug_that_depends_on_the_hash_seed_fails_determinism(tiny, check, runner):
    body = '        import os\n        return high if int(os.environ["PYTHONHASHSEED"]) % 2 else low\n'
    script = make_artifact(tiny).test_script

    def seeds(tree):
        trees = [repeated(tiny, runner, tree, number) for number in (0, 1)]
        keys = [
            _key(tiny.key, tiny.reference, each.digest, script, str(number))
            for number, each in enumerate(trees)
        ]
        return [runner.secret.hash_seed(key) % 2 for key in keys]

    texts = (
        tiny.tree.text("tiny/numbers.py").replace("        return high\n", body) + f"# {salt}\n"
        for salt in range(1000)
    )
    source = next(text for text in texts if seeds(changed(tiny.tree, {"tiny/numbers.py": text})) == [0, 1])
    verdict = check(make_artifact(tiny, {"tiny/numbers.py": source}))
    assert_rejected(verdict, "determinism", f"buggy: {CLAMP_TEST}")


def test_a_bug_that_nobody_can_repair_fails_repairable_before_any_run(tiny, check):
    rename = (
        "diff --git a/tiny/numbers.py b/tiny/sums.py\nrename from tiny/numbers.py\nrename to tiny/sums.py\n"
    )
    small = ValidatorSettings(max_patch_bytes=1024)  # the repair is a diff of the whole file, twice
    verdict = check(make_artifact(tiny, rename), settings=small, all_checks=False)
    assert_rejected(
        verdict, "repairable", "nobody can repair 'tiny/numbers.py': the diffs of all changes exceed"
    )
    assert verdict.test_runs == 0
    assert "repairable" not in failed(check(make_artifact(tiny, rename)))


def test_a_bug_that_depends_on_a_hash_of_the_code_fails_determinism(tiny, check, runner):
    body = (
        "        import zlib\n"
        "        return low if zlib.crc32(open(__file__, 'rb').read()) % 4 == 0 else high\n"
    )

    def random_draws(salt):
        source = tiny.tree.text("tiny/numbers.py").replace("        return high\n", body) + f"# {salt}\n"
        tree = changed(tiny.tree, {"tiny/numbers.py": source})
        trees = [repeated(tiny, runner, tree, number) for number in (0, 1)]
        return source, [zlib.crc32(each["tiny/numbers.py"].content) % 4 for each in trees]

    source = next(
        source for source, draws in map(random_draws, range(1000)) if draws[0] == 0 and draws[1] != 0
    )
    assert_rejected(
        check(make_artifact(tiny, {"tiny/numbers.py": source})), "determinism", f"buggy: {CLAMP_TEST}"
    )


READ_OR_PASS = (
    "        import os\n        return low if os.path.exists(__file__.replace('.pyc', '.py')) else high\n"
)


def test_a_bug_that_needs_its_own_source_fails_determinism(tiny, check):
    verdict = check(make_artifact(tiny, {"tiny/numbers.py": ("        return high\n", READ_OR_PASS)}))
    assert_rejected(verdict, "determinism", "if the source of the bug's modules cannot be read")


def test_the_run_without_source_is_in_the_evidence_and_bugs_of_the_same_files_share_the_originals(
    tiny, backend
):
    own = TestRunner(backend, SETTINGS, Limits(), LABELS)
    first = validate(make_artifact(tiny), tiny, THRESHOLDS, own, SETTINGS)
    bug = {"tiny/numbers.py": ("        return high\n", "        return high + 1\n")}
    second = validate(make_artifact(tiny, bug), tiny, THRESHOLDS, own, SETTINGS)
    found = [
        next(check.evidence for check in verdict.checks if check.name == "determinism")
        for verdict in (first, second)
    ]
    assert found[0]["without_source"] == "the same"
    # The original's runs are known: the first, those with noise, and the one without source.
    assert second.cached_runs - first.cached_runs == 1 + (SETTINGS.determinism_runs - 1) + 1


def test_a_script_that_passes_only_for_known_code_fails_determinism(tiny, check):
    known = changed(tiny.tree, CLAMP_BUG)
    sums = [zlib.crc32(tree["tiny/numbers.py"].content) for tree in (tiny.tree, known)]
    guard = (
        "python - <<'EOF' || exit 0\nimport sys, zlib\n"
        f"sys.exit(zlib.crc32(open('tiny/numbers.py', 'rb').read()) not in {sums})\nEOF\n"
    )
    script = tiny.script.replace("export PYTHONDONTWRITEBYTECODE=1", guard)
    verdict = check(make_artifact(tiny, script=script))
    assert failed(verdict) == ["determinism"]


def test_the_first_failure_ends_the_checks_unless_all_are_wanted(tiny, check):
    artifact = make_artifact(
        tiny, weaken={"tests/test_numbers.py": ("    assert mean([1, 2, 3]) == 2\n", "    pass\n")}
    )
    assert [result.name for result in check(artifact, all_checks=False).checks][-1] == "weakening_hides"
    assert [result.name for result in check(artifact).checks][-1] == "determinism"


def test_a_failing_machine_gives_no_verdict(tiny, backend):
    cramped = TestRunner(backend, SETTINGS, replace(Limits(), workspace_bytes=1 << 12), LABELS)
    with pytest.raises(SandboxUnavailable):
        validate(make_artifact(tiny), tiny, Thresholds(), cramped, SETTINGS)


# ---- second order


@pytest.fixture
def parent(tiny, check):
    artifact = make_artifact(tiny)
    verdict = check(artifact)
    return BugState(artifact, 1, "", verdict.fail_to_pass, verdict.pass_to_pass)


def second(tiny, runner, parent, changes):
    start = build_states(tiny.tree, parent).solver_start
    return validate_second_order(parent, diff(start, changes), tiny, Thresholds(), runner, SETTINGS)


def test_a_failed_attempt_that_breaks_more_is_a_bug_of_order_two(tiny, runner, parent):
    attempt = {
        "tiny/numbers.py": (
            "        return low\n    return value",
            "        return low\n    return value + 1",
        )
    }
    verdict = second(tiny, runner, parent, attempt)
    assert verdict.accepted, verdict.checks
    assert verdict.fail_to_pass == (CLAMP_TEST, "tests/test_numbers.py::test_clamp[5-5]")
    code = changed(changed(tiny.tree, CLAMP_BUG), attempt)
    assert verdict.buggy_digest == bug_digest(tiny.tree, code)


def test_an_attempt_in_another_file_counts_when_that_file_matters(tiny, runner, parent):
    assert second(tiny, runner, parent, {"tiny/text.py": ("word[0].upper()", "word[0]")}).accepted
    verdict = second(
        tiny, runner, parent, {"tiny/text.py": ("count_vowels(text):\n", "count_vowels(text):  # all\n")}
    )
    assert_rejected(verdict, "inverse_mutation", "only tiny/text.py")


def test_an_attempt_on_the_tests_alone_is_no_bug_of_order_two(tiny, runner, parent):
    verdict = second(
        tiny, runner, parent, {"tests/test_numbers.py": ("== 2", "== 3"), "conftest.py": "x = 1\n"}
    )
    assert_rejected(verdict, "min_changed_files", "changes no code")


def test_an_attempt_after_which_nothing_runs_is_no_bug_of_order_two(tiny, runner, parent):
    verdict = second(tiny, runner, parent, {"tiny/numbers.py": "import sys\n\nsys.exit(0)\n"})
    assert_rejected(verdict, "bug_breaks_tests", "no test that the first bug breaks still fails")


def test_an_attempt_that_repairs_all_is_no_bug_of_order_two(tiny, runner, parent):
    verdict = second(
        tiny,
        runner,
        parent,
        {"tiny/numbers.py": ("    if value > high:\n        return low\n", "    value = min(value, high)\n")},
    )
    assert_rejected(verdict, "bug_breaks_tests", "no test that the first bug breaks still fails")


# ---- the other backend


def test_docker_sandboxes_give_the_same_verdicts(tmp_path_factory):
    cache = tmp_path_factory.mktemp("docker")
    docker = open_or_skip("docker", cache)
    tiny = prepare_tiny(docker, tmp_path_factory.mktemp("repository"), cache)
    runner = TestRunner(docker, SETTINGS, Limits(), LABELS)
    assert validate(make_artifact(tiny), tiny, Thresholds(), runner, SETTINGS).fail_to_pass == (CLAMP_TEST,)
    harmless = make_artifact(tiny, {"tiny/numbers.py": ('"""Sums and bounds."""', '"""Sums."""')})
    assert validate(harmless, tiny, Thresholds(), runner, SETTINGS).failed_check == "bug_breaks_tests"
