"""docs/commands.md has a section for each command, with the options that the command has today."""

import re
from pathlib import Path

import pytest

from commands_page import TABLE, commands, with_tables

PAGE = (Path(__file__).parents[1] / "docs" / "commands.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## ([a-z-]+)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
EXAMPLE = re.compile(r"^    selfplay ([a-z-]+)(.*?)(?:  +#.*)?$", re.MULTILINE)


def test_the_tables_are_made_from_the_options():
    assert with_tables(PAGE) == PAGE, "run `make docs`"


def test_a_table_that_lacks_an_option_or_has_one_too_many_is_made_anew():
    row = next(line for line in PAGE.splitlines(keepends=True) if line.startswith("| `--dry-run`"))
    for changed in (PAGE.replace(row, ""), PAGE.replace(row, row + row.replace("--dry-run", "--other"))):
        assert changed != PAGE and with_tables(changed) == PAGE


def test_each_command_has_a_section_with_its_table():
    assert list(SECTIONS) and set(SECTIONS) == set(commands())
    for name, text in SECTIONS.items():
        assert [found["name"] for found in TABLE.finditer(text)] == [name]


@pytest.mark.parametrize("name", SECTIONS)
def test_examples_use_options_that_the_command_has(name):
    known = {option for param in commands()[name].params for option in (*param.opts, *param.secondary_opts)}
    examples = EXAMPLE.findall(SECTIONS[name])
    assert examples
    for command, words in examples:
        assert command == name
        assert set(re.findall(r"(?<!\S)--?[a-z][a-z-]*", words)) <= known, words
