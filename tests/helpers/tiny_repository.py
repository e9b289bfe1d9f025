"""A small Python package with tests that pass, are skipped, are expected to fail, and have subtests.

`build_tiny_repository(folder)` writes it, with a git history if wanted. Its texts are constants, so that
tests can refer to them. The texts are part of environment keys, prompts and recordings: do not change them.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

NUMBERS = '''"""Sums and bounds."""


def clamp(value, low, high):
    """`value`, but not below `low` and not above `high`."""
    if value < low:
        return low
    if value > high:
        return high
    return value


def mean(values):
    total = 0
    for value in values:
        total += value
    return total / len(values)


def digits(number):
    return [int(char) for char in str(abs(number))]


def is_even(number):
    return number % 2 == 0
'''

TEXT = '''"""Words and letters."""

try:
    from tiny._fast import shout
except ImportError:

    def shout(text):
        return text.upper() + "!"


def initials(name):
    words = name.split()
    return "".join(word[0].upper() for word in words)


def is_palindrome(text):
    letters = [char.lower() for char in text if char.isalpha()]
    return letters == letters[::-1]


def count_vowels(text):
    from tiny.letters import VOWELS

    return sum(char in VOWELS for char in text.lower())
'''

LETTERS = '''"""Kinds of letters."""

VOWELS = "aeiou"
'''

REPORT = '''"""Text about numbers: uses both other modules."""

from tiny.numbers import digits, mean
from tiny.text import shout


def summary(values):
    return f"{len(values)} values, mean {mean(values):.1f}"


def loud_digit_sum(number):
    return shout(f"sum {sum(digits(number))}")
'''

TEST_NUMBERS = """import pytest

from tiny.numbers import clamp, digits, is_even, mean


@pytest.mark.parametrize(("value", "expected"), [(5, 5), (-1, 0), (11, 10)])
def test_clamp(value, expected):
    assert clamp(value, 0, 10) == expected


def test_mean():
    assert mean([1, 2, 3]) == 2


def test_digits():
    assert digits(-120) == [1, 2, 0]


def test_is_even(subtests):
    for number in (0, 2, 10):
        with subtests.test(number=number):
            assert is_even(number)
    assert not is_even(3)


@pytest.mark.skip(reason="needs big numbers")
def test_mean_of_many():
    assert mean(range(10**9)) > 0


@pytest.mark.xfail(reason="an empty list has no mean", strict=True)
def test_mean_of_nothing():
    assert mean([]) == 0
"""

TEST_TEXT = """from tiny.report import loud_digit_sum, summary
from tiny.text import count_vowels, initials, is_palindrome, shout


class TestWords:
    def test_initials(self):
        assert initials("ada king lovelace") == "AKL"

    def test_shout(self):
        assert shout("hey") == "HEY!"


def test_is_palindrome():
    assert is_palindrome("Was it a car") is False
    assert is_palindrome("Never odd or even")


def test_count_vowels():
    assert count_vowels("Education") == 5


def test_summary():
    assert summary([1, 2]) == "2 values, mean 1.5"


def test_loud_digit_sum():
    assert loud_digit_sum(-12) == "SUM 3!"
"""

PYPROJECT = """[project]
name = "tiny"
version = "0.4.0"
description = "A small package to break and to mend"
license = "MIT"

[tool.pytest.ini_options]
testpaths = ["tests"]
"""

FILES = {
    "README.md": "# tiny\n\nA small package to break and to mend.\n",
    "LICENSE": (
        "MIT License\n\n"
        "Permission is hereby granted, free of charge, to any person obtaining a copy of this software.\n"
    ),
    "pyproject.toml": PYPROJECT,
    ".gitignore": "__pycache__/\n*.log\nbuild/\n",
    "tiny/__init__.py": '"""A small package to break and to mend."""\n\n__version__ = "0.4.0"\n',
    "tiny/numbers.py": NUMBERS,
    "tiny/text.py": TEXT,
    "tiny/letters.py": LETTERS,
    "tiny/report.py": REPORT,
    "tests/test_numbers.py": TEST_NUMBERS,
    "tests/test_text.py": TEST_TEXT,
}
TEST_IDS = (
    "tests/test_numbers.py::test_clamp[5-5]",
    "tests/test_numbers.py::test_clamp[-1-0]",
    "tests/test_numbers.py::test_clamp[11-10]",
    "tests/test_numbers.py::test_mean",
    "tests/test_numbers.py::test_digits",
    "tests/test_numbers.py::test_is_even",
    "tests/test_text.py::TestWords::test_initials",
    "tests/test_text.py::TestWords::test_shout",
    "tests/test_text.py::test_is_palindrome",
    "tests/test_text.py::test_count_vowels",
    "tests/test_text.py::test_summary",
    "tests/test_text.py::test_loud_digit_sum",
)


def build_tiny_repository(folder: Path, git: bool = False) -> Path:
    """Write the package into `folder`. git: as four commits, of which the third fixes a bug."""
    folder.mkdir(parents=True, exist_ok=True)
    if git:
        _git(folder, "init", "-q", "-b", "main")
        without_report = {path: text for path, text in FILES.items() if path != "tiny/report.py"}
        old_tests = (
            TEST_TEXT.replace("from tiny.report import loud_digit_sum, summary\n", "").partition(
                "\n\ndef test_summary"
            )[0]
            + "\n"
        )
        broken = {
            "tiny/numbers.py": NUMBERS.replace("str(abs(number))", "str(number)"),
            "tests/test_numbers.py": TEST_NUMBERS.replace("digits(-120)", "digits(120)"),
            "tests/test_text.py": old_tests.rstrip("\n") + "\n",
        }
        _commit(folder, without_report | broken, "Numbers and words")
        _commit(
            folder,
            {"tiny/text.py": TEXT, "README.md": FILES["README.md"] + "\nIt counts vowels, too.\n"},
            "The readme mentions vowels",
        )
        _commit(
            folder,
            {"tiny/numbers.py": NUMBERS, "tests/test_numbers.py": TEST_NUMBERS},
            "Fix digits of negative numbers",
        )
        _commit(folder, FILES, "Reports")
    else:
        _write(folder, FILES)
    return folder


def _write(folder: Path, files: dict[str, str]) -> None:
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")


def _commit(folder: Path, files: dict[str, str], message: str) -> None:
    _write(folder, files)
    _git(folder, "add", "-A")
    _git(folder, "commit", "-q", "-m", message)


def _git(folder: Path, *arguments: str) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    variables = kept | {
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_NAME": "Tiny",
        "GIT_AUTHOR_EMAIL": "tiny@localhost",
        "GIT_COMMITTER_NAME": "Tiny",
        "GIT_COMMITTER_EMAIL": "tiny@localhost",
        "GIT_AUTHOR_DATE": "2020-01-01T00:00:00Z",
        "GIT_COMMITTER_DATE": "2020-01-01T00:00:00Z",
    }
    subprocess.run(["git", *arguments], cwd=folder, env=variables, check=True, capture_output=True)
