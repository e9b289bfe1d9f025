"""Spellings of one program have one normal form, and other programs have another."""

import ast
from pathlib import Path

import pytest

from selfplay.source.normal_form import UNREADABLE, normal_form

SOURCE = '''"""Words."""
import os
import sys
from a import b


def first(words, most=3):
    """The first words."""
    found = []
    for number, word in enumerate(words):
        if number < most and (length := len(word)):
            found.append([letter for letter in word if letter != "x"][:length])

    def inner():
        return found, most

    return inner() + tuple(str(number) for number in range(3))


class Shelf:
    size = 3

    def put(self, book, *rest, **named):
        try:
            size = book.size
        except AttributeError as error:
            raise KeyError(book) from error
        match rest:
            case [one, *others] if others:
                return lambda x, y=size: (x, y, one)
        return self.size + size

    def take(self):
        return self.size
'''
ALIKE = {
    "a comment": ("    found = []\n", "    found = []  # none yet\n"),
    "a blank line": ("    found = []\n", "\n    found = []\n\n"),
    "a docstring": ('    """The first words."""\n', '    """Others."""\n'),
    "no docstring": ('"""Words."""\n', ""),
    "a string without use": ("    found = []\n", '    "nothing"\n    found = []\n'),
    "pass": ("    found = []\n", "    pass\n    found = []\n"),
    "quotes": ('"x"', "'x'"),
    "brackets": ("    found = []\n", "    found = ([])\n"),
    "a broken line": ("number < most and", "number < most \\\n            and"),
    "indentation": ("    return self.size\n", "      return self.size\n"),
    "a local variable": ("found", "seen"),
    "a parameter": ("words", "text"),
    "a variable of a comprehension": ("letter", "sign"),
    "an exception's name": (" error", " fault"),
    "a captured name": ("others", "more"),
    "a parameter of a lambda": ("lambda x, y=size: (x, y, one)", "lambda p, q=size: (p, q, one)"),
    "a nested function": ("inner", "nested"),
    "annotations": ("def first(words, most=3):", "def first(words: list, most: int = 3) -> tuple:"),
    "an annotated variable": ("    found = []\n", "    found: list = []\n"),
    "the order of imports": ("import os\nimport sys\n", "import sys\nimport os\n"),
    "line ends": ("\n", "\r\n"),
}
OTHER = {
    "a constant": ("range(3)", "range(4)"),
    "an operator": ("number < most", "number <= most"),
    "another variable": ("return found, most", "return most, found"),
    "an attribute": ("self.size", "self.length"),
    "a name of a class": ("    size = 3\n", "    length = 3\n"),
    "a function": ("def first", "def last"),
    "an import": ("from a import b", "from a import c"),
    "a keyword's name": ("enumerate(words)", "enumerate(words, start=1)"),
    "a statement less": ("            found.append", "            found and found.append"),
    "a default": ("most=3", "most=2"),
    "a global variable": ("len(word)", "max(word)"),
    "a local variable made global": ("    found = []\n", "    global found\n    found = []\n"),
}


def form(change: tuple[str, str] = ("", ""), source: str = SOURCE) -> str:
    assert change[0] in source
    return normal_form("a.py", (source.replace(*change) if change[0] else source).encode())


@pytest.mark.parametrize("change", ALIKE.values(), ids=ALIKE)
def test_the_spelling_of_a_program_does_not_count(change):
    old, new = change
    changed = SOURCE.replace(old, new)
    ast.parse(changed)
    assert changed != SOURCE and normal_form("a.py", changed.encode()) == form()


@pytest.mark.parametrize("change", OTHER.values(), ids=OTHER)
def test_another_program_has_another_form(change):
    ast.parse(SOURCE.replace(*change))
    assert form(change) != form()


def test_the_order_of_definitions_does_not_count():
    one, two = "def a():\n    return 1\n", "class B:\n    x = 1\n"
    assert form(source=one + two) == form(source=two + one) != form(source=one)


def test_names_of_locals_count_in_the_exact_form():
    renamed, commented = SOURCE.replace("found", "seen"), SOURCE.replace("[]\n", "[]  # none\n")
    exact = [normal_form("a.py", text.encode(), exact=True) for text in (SOURCE, renamed, commented)]
    assert exact[0] == exact[2] != exact[1]
    undocumented = SOURCE.replace('    """The first words."""\n', "")
    assert normal_form("a.py", undocumented.encode(), exact=True) != exact[0]


def test_swapped_names_are_another_program_only_where_they_are_used_otherwise():
    assert form(source="def f(a, b):\n    return a - b\n") == form(source="def f(b, a):\n    return b - a\n")
    assert form(source="def f(a, b):\n    return a - b\n") != form(source="def f(a, b):\n    return b - a\n")


def test_text_in_another_language_loses_blank_lines_and_trailing_blanks():
    assert normal_form("a.js", b"let x  \n\n\n  f(x)\n") == normal_form("a.js", b"let x\n  f(x)")
    assert normal_form("a.js", b"let x") != normal_form("a.js", b"let  x")


def test_a_file_that_python_cannot_read_has_one_form():
    assert normal_form("a.py", b"def (") == normal_form("a.py", b"# x\nclass") == UNREADABLE


@pytest.mark.parametrize(
    "source",
    [
        "x = " + "-" * 900 + "1",
        "x = " + "1+" * 5000 + "1",
        "x = 0x" + "f" * 9000,
        "x = 1e999",
        "a.b" + ".c" * 3000,
    ],
    ids=["signs", "a long sum", "a large number", "infinity", "attributes"],
)
def test_deep_and_large_source_has_a_form(source: str):
    assert normal_form("a.py", source.encode())


def test_the_work_grows_with_the_size_of_the_source():
    def steps(copies: int) -> int:
        return len(normal_form("a.py", SOURCE.encode() * copies))

    assert steps(40) < 2.2 * steps(20)


def test_every_module_of_this_package_has_a_form_that_comments_do_not_change():
    import selfplay

    for path in sorted(Path(selfplay.__file__).parent.rglob("*.py"))[::12]:
        content = path.read_bytes()
        assert normal_form("a.py", content) == normal_form("a.py", content + b"\n# the end\n") != UNREADABLE
