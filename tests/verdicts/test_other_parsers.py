"""The parsers that parser= can name, on logs as real runners print them."""

import importlib.util
from types import ModuleType

import pytest

from selfplay.runtime.resources import resource


def shipped(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        name.replace("-", "_"), str(resource("data/parsers") / f"{name}.py")
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


NODE = """TAP version 13
# Subtest: queue
    # Subtest: is empty at first
    ok 1 - is empty at first
      ---
      duration_ms: 0.5
      ...
    # Subtest: gives back what came first
    not ok 2 - gives back what came first
      ---
      error: |-
        ok 7 - a message that looks like a result
      ...
    1..2
not ok 1 - queue
  ---
  type: 'suite'
  ...
# Subtest: waits
ok 2 - waits # SKIP no clock
# Subtest: later
not ok 3 - later # TODO
1..3
# tests 3
"""


def test_tap_names_subtests_with_the_names_of_their_parents() -> None:
    assert shipped("tap").parse(NODE) == {
        "queue": "failed",
        "queue > is empty at first": "passed",
        "queue > gives back what came first": "failed",
    }


@pytest.mark.parametrize(
    ("log", "outcomes"),
    [
        ("1..2\nok 1 - adds\nnot ok 2 - subtracts\n", {"adds": "passed", "subtracts": "failed"}),
        ("ok 1 adds\nok\nok 3\n", {"adds": "passed", "test 2": "passed", "test 3": "passed"}),
        ("ok 1 - adds\nnot ok 2 - adds\nok 3 - adds\n", {"adds": "failed"}),  # once failed is failed
        ("ok 1 - counts #1 first\n", {"counts #1 first": "passed"}),
        ("ok 1 # skip\nokay\nnot okay\n  ok\x07 1\n", {}),
        ("", {}),
    ],
)
def test_tap_reads_plain_lines(log: str, outcomes: dict[str, str]) -> None:
    assert shipped("tap").parse(log) == outcomes


def test_pass_fail_reads_automake_and_go() -> None:
    automake = "PASS: tests/add\nFAIL: tests/sub\nXFAIL: known\nSKIP: slow\nXPASS: surprise\n"
    log = automake + "--- PASS: TestAdd (0.00s)\n    --- FAIL: TestAdd/zero (0.01s)\nPASS\n"
    assert shipped("pass-fail").parse(log) == {
        "TestAdd": "passed",
        "TestAdd/zero": "failed",
        "surprise": "failed",
        "tests/add": "passed",
        "tests/sub": "failed",
    }
