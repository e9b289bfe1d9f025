"""The parsers of SWE-bench's projects that pytest does not run: Django and sympy."""

import json
import subprocess
import sys

import pytest

from selfplay.evaluation.records import RUNNERS
from selfplay.runtime.resources import resource

UNITTEST = """test_plain (admin.tests.A) ... ok
test_wrong (admin.tests.A) ... FAIL
test_broken (admin.tests.A) ... ERROR
test_noisy (admin.tests.A) ... System check identified no issues (0 silenced).
ok
test_described (admin.tests.A)
A described test. ... ok
test_skipped (admin.tests.A) ... skipped 'no database'
test_expected (admin.tests.A) ... expected failure
test_sub (admin.tests.A) ... ok

======================================================================
FAIL: test_sub (admin.tests.A) (number=2)
----------------------------------------------------------------------
"""
SYMPY = """sympy/core/tests/test_a.py[4]
test_good ok
test_bad F
test_error E
test_slow s
test_later f                                                              [FAIL]
test_last ok                                                                [OK]
"""


def parsed(name: str, log: str) -> dict[str, str]:
    program = resource("data/parsers") / f"{name}.py"
    done = subprocess.run(
        [sys.executable, "-I", program], input=log, text=True, capture_output=True, check=True
    )
    return json.loads(done.stdout)


def test_a_log_of_unittest_is_read_with_the_ids_of_swe_bench():
    assert parsed("unittest", UNITTEST) == {
        "A described test.": "passed",
        "test_broken (admin.tests.A)": "failed",
        "test_noisy (admin.tests.A)": "passed",
        "test_plain (admin.tests.A)": "passed",
        "test_sub (admin.tests.A)": "failed",
        "test_wrong (admin.tests.A)": "failed",
    }


def test_a_log_of_sympy_is_read_with_the_ids_of_swe_bench():
    expected = {"test_bad": "failed", "test_error": "failed", "test_good": "passed", "test_last": "passed"}
    assert parsed("sympy", SYMPY) == expected


@pytest.mark.parametrize("parser", sorted({parser for _, parser in RUNNERS.values()}))
def test_every_runner_has_its_parser_and_an_empty_log_has_no_test(parser):
    assert parsed(parser, "") == {}
