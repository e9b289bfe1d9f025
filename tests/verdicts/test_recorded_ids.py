"""The parser of a script that prints ids in full: on real logs, and on forged ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from selfplay.repositories.build import prepare_environment
from selfplay.repositories.fetching import fetch
from selfplay.repositories.scripts import (
    RECORDS_IDS,
    is_standard_parser,
    shipped_text,
    standard_parser,
    standard_script,
)
from selfplay.repositories.specs import parse_spec
from selfplay.sandbox.base import Limits, SandboxBackend
from selfplay.settings.playing import EnvironmentSettings, ValidatorSettings
from selfplay.source.path_policy import is_protected_path
from selfplay.verdicts.bug import BugState, build_states
from selfplay.verdicts.checks import Thresholds
from selfplay.verdicts.confirmation import Confirmation
from selfplay.verdicts.grading import grade
from selfplay.verdicts.test_runs import TestRunner, run_standard_parser
from selfplay.verdicts.validator import validate
from tiny_bugs import diff, make_artifact

HEADER = "=========================== short test summary info ============================"
RECORD = "=========================== selfplay: ids in full =============================="
END = "3 passed in 0.10s"


def parse(log: str, options: str = RECORDS_IDS) -> dict[str, str]:
    found: dict[str, str] = json.loads(run_standard_parser(standard_parser(options), log.encode()))
    return found


def entry(status: str, name: str) -> str:
    return json.dumps({"status": status, "id": name})


def log(record: list[str], *lines: str) -> str:
    return "\n".join(["....  [100%]", RECORD, *record, HEADER, *lines, END]) + "\n"


def real_log(folder: Path, files: dict[str, str]) -> str:
    """What the standard script with the recorder prints, its paths those of `folder`."""
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    script = standard_script([path for path in files if "test_" in path], f"-o addopts= {RECORDS_IDS}")
    script = script.replace("/testbed", str(folder)).replace("/tmp/selfplay_plugins", str(folder / "plugins"))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script],
        env={"PATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        timeout=120,
    )
    return (done.stdout + done.stderr).decode()


ODD = (
    "import pytest, unittest\n"
    "IDS = ['a', 'a] - b', 'a - b', 'c\\nd', 'c', '\\nPASSED test_odd.py::test_forged']\n"
    "IDS += ['e - f\\ng - h', '\\x1b[1m']\n"
    "@pytest.mark.parametrize('x', range(len(IDS)), ids=IDS)\n"
    "def test_passes(x): pass\n"
    "@pytest.mark.parametrize('x', range(len(IDS)), ids=IDS)\n"
    "def test_fails(x): assert x < 0, 'i] - j\\nPASSED test_odd.py::test_forged'\n"
    "@pytest.fixture\n"
    "def broken():\n"
    "    yield\n"
    "    raise KeyError('k] - l]')\n"
    "@pytest.mark.parametrize('x', [1], ids=['a] - b'])\n"
    "def test_errs(x, broken): pass\n"
    "@pytest.mark.parametrize('x', [1, 2], ids=['m] - n', 'q'])\n"
    "def test_sub(x, subtests):\n"
    "    with subtests.test('o - p', i=x):\n"
    "        assert x == 2\n"
)
INI = "[pytest]\ndisable_test_id_escaping_and_forfeit_all_rights_to_community_support = true\n"


def test_each_odd_id_of_a_real_log_is_whole(tmp_path: Path) -> None:
    printed = real_log(tmp_path, {"test_odd.py": ODD, "pytest.ini": INI})
    names = ["a", "a] - b", "a - b", r"c\nd", "c", r"\nPASSED test_odd.py::test_forged", r"e - f\ng - h"]
    names.append(r"\x1b[1m")
    expected = {f"test_odd.py::test_passes[{name}]": "passed" for name in names}
    expected |= {f"test_odd.py::test_fails[{name}]": "failed" for name in names}
    expected |= {"test_odd.py::test_errs[a] - b]": "failed"}
    expected |= {"test_odd.py::test_sub[m] - n]": "failed", "test_odd.py::test_sub[q]": "passed"}
    assert parse(printed) == expected, printed


def test_without_the_recorder_such_ids_are_guessed(tmp_path: Path) -> None:
    printed = "\n".join([HEADER, "FAILED a.py::x[a] - b] - assert 0", END])
    assert parse(printed) == parse(printed, "") == {"a.py::x[a]": "failed"}


def test_a_record_says_where_an_id_ends() -> None:
    record = [entry("FAILED", "a.py::x[a] - b]"), entry("PASSED", "a.py::y - z::t")]
    found = parse(
        log(record, "FAILED a.py::x[a] - b] - assert", "PASSED a.py::y - z::t", "PASSED a.py::x[a]")
    )
    assert found == {"a.py::x[a] - b]": "failed", "a.py::x[a]": "passed", "a.py::y - z::t": "passed"}


def test_a_record_alone_gives_no_pass() -> None:
    record = [entry("PASSED", "a.py::x - y"), entry("FAILED", "a.py::z - y")]
    assert parse(log(record, "PASSED a.py::x", "SKIPPED [1] a.py:3: a.py::x - y")) == {"a.py::x": "passed"}


def test_a_record_of_another_outcome_counts_for_nothing() -> None:
    record = [entry("PASSED", "a.py::x - assert 0")]
    assert parse(log(record, "FAILED a.py::x - assert 0")) == {"a.py::x": "failed"}


def test_a_second_record_voids_the_log() -> None:
    forged = "\n".join([RECORD, entry("FAILED", "a.py::x - y")])
    assert parse(f"{forged}\n{log([], 'PASSED a.py::x', 'FAILED a.py::x - y')}") == {}


def test_a_forged_record_hides_no_error_of_a_passed_test() -> None:
    record = [entry("ERROR", "a.py::x[1] - KeyError: 'b]"), entry("ERROR", "a.py::y - KeyError")]
    lines = [
        "PASSED a.py::x[1]",
        "PASSED a.py::y",
        "ERROR a.py::x[1] - KeyError: 'b]",
        "ERROR a.py::y - KeyError",
    ]
    found = parse(log(record, *lines))
    assert {found["a.py::x[1]"], found["a.py::y"]} == {"failed"}
    assert "passed" not in found.values()


def test_a_forged_record_hides_no_failed_subtest() -> None:
    record = [entry("FAILED", "b.py::T::other")]
    lines = ["PASSED a.py::T::x", "SUBFAILED[m] (i=1) a.py::T::x - AssertionError: b.py::T::other - "]
    assert parse(log(record, *lines))["a.py::T::x"] == "failed"


def test_a_forged_record_joins_lines_only_to_lose_them() -> None:
    record = [entry("PASSED", "a.py::x\nPASSED a.py::y")]
    found = parse(log(record, "PASSED a.py::x", "PASSED a.py::y", "FAILED a.py::z - no"))
    assert found == {r"a.py::x\nPASSED a.py::y": "passed", "a.py::z": "failed"}


@pytest.mark.parametrize("line", ["[]", "{}", '{"status": [], "id": {}}', "[" * 5000, '{"id": 1}', "\x00"])
def test_a_damaged_record_leaves_the_summary_as_it_is(line: str) -> None:
    assert parse(log([line], "PASSED a.py::x", "FAILED a.py::y - no")) == {
        "a.py::x": "passed",
        "a.py::y": "failed",
    }


def test_names_that_stand_for_ids_cannot_be_forged() -> None:
    record = [entry("FAILED", "a.py::x - y")]
    found = parse(log(record, "FAILED a.py::x - y", "PASSED id.py::0", "PASSED id_.py::0"))
    assert found == {"a.py::x - y": "failed", "id.py::0": "passed", "id_.py::0": "passed"}


def test_scripts_and_parsers_without_recorder_are_those_of_older_artifacts() -> None:
    assert standard_parser() == shipped_text("test_parser.py")
    assert "selfplay" not in standard_script(["tests/test_a.py"], "-o addopts=")
    assert is_standard_parser(standard_parser()) and is_standard_parser(standard_parser(RECORDS_IDS))
    assert not is_standard_parser(standard_parser() + "\n")


def test_no_repair_may_bring_the_recorder_along() -> None:
    assert is_protected_path("selfplay_ids.py") and is_protected_path("src/selfplay_ids/__init__.py")


SHOP = {
    "shop.py": "def total(prices):\n    return sum(prices)\n\n\ndef last(prices):\n    return prices[-1]\n",
    "tests/test_shop.py": (
        "import pytest\nfrom shop import last, total\n\n\n"
        "@pytest.mark.parametrize('x', [1, 2, 3, 4], ids=['a] - b', 'a', 'c - d', 'plain'])\n"
        "def test_total(x):\n    assert total([x, x]) == 2 * x, 'a] - b] - c'\n\n\n"
        "@pytest.mark.parametrize('x', [1, 2], ids=['a] - b', 'a'])\n"
        "def test_last(x):\n    assert last([x]) == x\n"
    ),
}


@pytest.mark.sandbox
def test_a_bug_with_such_ids_is_accepted_and_its_repair_is_confirmed(
    backend: SandboxBackend, cache: Path, tmp_path: Path
) -> None:
    for path, text in SHOP.items():
        (tmp_path / "shop" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "shop" / path).write_text(text)
    checkout = fetch(parse_spec(str(tmp_path / "shop")), cache)
    environment = prepare_environment(
        checkout, backend, EnvironmentSettings(baselines=2), Limits(), cache, lambda _: None
    )
    right, wrong = "return sum(prices)", "return sum(prices[1:])"
    weakened = {"tests/test_shop.py": ("    assert total([x, x]) == 2 * x, 'a] - b] - c'\n", "    pass\n")}
    artifact = make_artifact(environment, {"shop.py": (right, wrong)}, weakened, ["tests/test_shop.py"])
    settings = ValidatorSettings(script_timeout_s=60)
    runner = TestRunner(backend, settings, Limits(), {"run": "test"})
    verdict = validate(artifact, environment, Thresholds(), runner, settings)
    assert verdict.accepted, verdict
    broken = {f"tests/test_shop.py::test_total[{name}]" for name in ("a] - b", "a", "c - d", "plain")}
    assert set(verdict.fail_to_pass) == broken
    assert set(verdict.pass_to_pass) == {f"tests/test_shop.py::test_last[{name}]" for name in ("a] - b", "a")}
    bug = BugState(artifact, 1, "", verdict.fail_to_pass, verdict.pass_to_pass)
    start = build_states(environment.tree, bug).solver_start
    repaired = grade(bug, diff(start, {"shop.py": (wrong, right)}), environment, runner)
    assert repaired.passed and repaired.confirmation is Confirmation.CONFIRMED
    wrong_again = grade(bug, diff(start, {"shop.py": (wrong, "return prices[-1]")}), environment, runner)
    assert not wrong_again.passed and set(wrong_again.failed_tests) == broken
    older = standard_script(environment.test_files, "-o addopts=")
    assert older != environment.script
    run = runner.run(environment, environment.tree, older, standard_parser())
    assert {name.partition("::")[2] for name in run.outcomes.passed} == {
        *("test_total[a]", "test_total[plain]", "test_last[a]")
    }
