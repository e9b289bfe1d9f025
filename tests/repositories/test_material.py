"""What tests rest on outside of their own files, from a tree and a record: pure, so no sandbox is needed."""

from selfplay.repositories.material import find_material
from selfplay.repositories.targets import Target
from selfplay.source.trees import FileEntry, Tree

FILES = {
    "pyproject.toml": '[project]\nname = "heron"\n',
    "heron/__init__.py": "from heron.core import *\nfrom heron.testing import near\n",
    "heron/core.py": "def f():\n    return 1\n",
    "heron/words.py": "from heron.core import f\n\n\ndef g():\n    return f()\n",
    "heron/checks.py": "def same(a, b):\n    assert a == b\n",
    "heron/plugin.py": "import pytest\n\n\n@pytest.fixture\ndef nest():\n    return 1\n",
    "heron/testing.py": "def near(a, b):\n    return abs(a - b) < 1\n",
    "heron/truth.py": "def raises(error, f):\n    return True\n",
    "heron/inner.py": "def invariant(a):\n    assert a\n",
    "heron/data.py": "from . import inner\n",
    "heron/rules.json": "{}\n",
    "golden/f.txt": "1\n",
    "golden/case.py": "x = 1\n",
    "handed/by_code.txt": "1\n",
    "notes.txt": "\n",
    "tests/test_all.py": (
        "from heron import checks, core, data, truth, words\nfrom heron.testing import near\n"
        "pytest_plugins = ['heron.plugin']\n"
    ),
}
TREE = Tree({path: FileEntry(text.encode()) for path, text in FILES.items()})
TEST = "tests/test_all.py"
RECORD = {
    "opened": [
        ["golden/f.txt", TEST],
        ["golden/case.py", TEST],
        ["handed/by_code.txt", "heron/core.py"],
        ["heron/rules.json", "heron/core.py"],
        ["heron/core.py", TEST],
        ["heron/__init__.py", TEST],
        ["elsewhere.txt", TEST],
        ["golden/f.txt"],
        "golden/f.txt",
    ],
    "imported": [["heron.truth", "heron/words.py"], [1, 2]],
}


def targets(*paths):
    return [Target(path, "f", 1, 2, TEST, "") for path in paths]


def material(record=RECORD, tree=TREE, covered=("heron/core.py",)):
    return find_material(tree, record, (TEST,), targets(*covered))


def test_data_that_tests_open_and_modules_that_only_tests_use_are_material():
    assert material().files == (
        "golden/case.py",
        "golden/f.txt",
        "handed/by_code.txt",
        "heron/checks.py",
        "heron/plugin.py",
        "heron/testing.py",
    )


def test_what_code_imports_is_no_helper_even_if_it_asserts():
    tree = TREE.replace({"heron/words.py": FileEntry(b"from .checks import same\n")})
    assert "heron/checks.py" not in material(tree=tree).files
    assert "heron/inner.py" not in material().files


def test_a_repository_about_tests_has_no_helpers():
    assert material(covered=("heron/plugin.py", "heron/testing.py", "heron/core.py")).files == (
        "golden/case.py",
        "golden/f.txt",
        "handed/by_code.txt",
    )


def test_code_that_neither_uses_a_bug_nor_is_used_by_it_is_not_related():
    found = material({})
    assert found.unrelated(["heron/core.py"]) == ("heron/data.py", "heron/truth.py")
    assert found.unrelated(["heron/data.py"]) == ("heron/core.py", "heron/truth.py", "heron/words.py")
    assert found.unrelated(["heron/rules.json"]) == ()  # nobody knows what uses it
    assert found.unrelated(["heron/words.py"]) == ("heron/data.py", "heron/truth.py")
    assert material().unrelated(["heron/words.py"]) == ("heron/data.py",)  # as the recorded run imported


def test_a_record_of_any_form_is_read():
    for record in (None, [], {"opened": 1}, {"opened": [[1, 2, 3]], "imported": {"a": "b"}}):
        assert material(record).files == ("heron/checks.py", "heron/plugin.py", "heron/testing.py")
