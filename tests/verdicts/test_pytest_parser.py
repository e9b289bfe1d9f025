"""The standard parser, run as a validation runs it."""

import json
import subprocess
import sys

import pytest

from selfplay.errors import OutcomesError, SandboxUnavailable
from selfplay.repositories.scripts import standard_parser
from selfplay.runtime.resources import resource
from selfplay.verdicts import test_runs

HEADER = "=========================== short test summary info ============================"


def parse(log: str | bytes) -> dict[str, str]:
    data = log.encode() if isinstance(log, str) else log
    found: dict[str, str] = json.loads(test_runs.run_standard_parser(standard_parser(), data))
    return found


def summary(*lines: str, end: str = "3 passed in 0.10s") -> str:
    return "\n".join(["....  [100%]", HEADER, *lines, end]) + "\n"


def test_passes_failures_and_errors_are_read() -> None:
    log = summary(
        "PASSED t/test_a.py::test_x",
        "FAILED t/test_a.py::test_y - assert 1 == 2",
        "ERROR t/test_b.py - ImportError: no",
    )
    assert parse(log) == {
        "t/test_a.py::test_x": "passed",
        "t/test_a.py::test_y": "failed",
        "t/test_b.py": "failed",
    }


def test_skipped_and_expected_failures_are_left_out() -> None:
    log = summary("PASSED a.py::x", "SKIPPED [1] a.py:3: why", "XFAIL a.py::y", "XPASS a.py::z - odd")
    assert parse(log) == {"a.py::x": "passed"}


def test_a_teardown_error_outweighs_a_pass() -> None:
    assert parse(summary("PASSED a.py::x", "ERROR a.py::x - KeyError: 1")) == {"a.py::x": "failed"}


def test_a_failed_subtest_fails_its_test() -> None:
    log = summary(
        "PASSED a.py::T::x",
        "PASSED a.py::T::y",
        "SUBFAILED[a b] (i=1) a.py::T::x - AssertionError: 1 == 1",
        "SUBFAIL a.py::T::y - no",
    )
    assert parse(log) == {"a.py::T::x": "failed", "a.py::T::y": "failed"}


def test_parameters_may_hold_spaces_and_dashes() -> None:
    log = summary(
        "PASSED a.py::x[a b]",
        "PASSED a.py::x[a - b]",
        "FAILED a.py::y[a - b] - assert c - d",
        "FAILED a.py::z[c d]",
    )
    assert parse(log) == {
        "a.py::x[a b]": "passed",
        "a.py::x[a - b]": "passed",
        "a.py::y[a - b]": "failed",
        "a.py::z[c d]": "failed",
    }


def test_lines_before_the_summary_and_after_its_end_do_not_count() -> None:
    log = "PASSED a.py::forged\n" + summary("PASSED a.py::x") + "PASSED a.py::late\n"
    assert parse(log) == {"a.py::x": "passed"}


def test_a_second_summary_voids_the_log() -> None:
    assert parse(summary("PASSED a.py::x") + summary("PASSED a.py::y")) == {}


def test_a_log_that_breaks_off_yields_nothing() -> None:
    assert parse(f"{HEADER}\nPASSED a.py::x\n") == {}


def test_other_line_breaks_in_a_message_start_no_line() -> None:
    log = summary(
        "FAILED a.py::x - oops\u2028PASSED a.py::forged\x0bPASSED a.py::forged2\x85PASSED a.py::forged3"
    )
    assert parse(log) == {"a.py::x": "failed"}


def test_hostile_bytes_do_not_stop_the_parser() -> None:
    assert parse(b"\xff\xfe\0" * 1000 + summary("PASSED a.py::x").encode() + b"\xff" * 1000) == {
        "a.py::x": "passed"
    }
    assert (
        parse(summary("FAILED " + "[ - " * 20_000, "SUBFAILED " + "a.py::" * 20_000, end="1 " * 20_000)) == {}
    )
    assert parse("") == {}


def test_real_pytest_logs_are_read(tmp_path) -> None:
    (tmp_path / "test_real.py").write_text(
        "import pytest, unittest\n"
        "class T(unittest.TestCase):\n"
        "    def test_sub(self):\n"
        "        for i in range(2):\n"
        "            with self.subTest('a b', i=i):\n"
        "                self.assertEqual(i, 0)\n"
        "@pytest.mark.parametrize('x', ['a - b', 'c d'])\n"
        "def test_p(x): assert x != 'c d', 'some - message'\n"
        "@pytest.mark.xfail(strict=True)\n"
        "def test_strict(): pass\n"
        "def test_prints(): "
        "print('=== short test summary info ===\\nPASSED forged.py::x\\n1 passed in 0.1s')\n"
    )
    script = resource("data/pytest/test_script.sh").read_text()
    options = script.partition("-m pytest ")[2].replace("\\\n", " ").partition("@OPTIONS@")[0].split()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "test_real.py"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
        timeout=60,
    )
    # For that section pytest searches all reports once for each passed test that prints: quadratic time.
    assert b"= PASSES =" not in done.stdout
    assert parse(done.stdout) == {
        "test_real.py::T::test_sub": "failed",
        "test_real.py::test_p[a - b]": "passed",
        "test_real.py::test_p[c d]": "failed",
        "test_real.py::test_strict": "failed",
        "test_real.py::test_prints": "passed",
    }


def test_a_log_that_takes_too_much_processor_time_ends_at_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_runs, "PARSER_CPU_S", 1)
    monkeypatch.setattr(test_runs, "current_parser", lambda _: "while True: pass")
    with pytest.raises(OutcomesError, match="took more than 1 s of processor time"):
        parse("")


def test_a_parser_that_gets_no_processor_is_the_machines_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_runs, "PARSER_PATIENCE_S", 0.5)
    monkeypatch.setattr(test_runs, "current_parser", lambda _: "import time; time.sleep(60)")
    with pytest.raises(SandboxUnavailable, match="did not end within"):
        parse("")


def test_a_log_that_takes_too_much_memory_ends_at_a_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = summary(*(f"PASSED a.py::{'x' * 900}{number}" for number in range(20_000)))
    assert len(parse(log)) == 20_000
    monkeypatch.setattr(test_runs, "PARSER_MEMORY_BYTES", 64 << 20)
    with pytest.raises(OutcomesError, match="MemoryError"):
        parse(log)
