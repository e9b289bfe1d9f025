"""Which paths neither a bug nor a repair may change: tests, runner configuration, start-up files.

A security policy. It decides by names alone, so that nothing inside a file can talk it round. It reads one
thing: where the packages of the original are imported from. Neither a bug nor a repair changes the original.
It restores nothing: the validator and the grading do.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection
from typing import TYPE_CHECKING

from selfplay.source.import_roots import GUESSED_ROOTS, import_roots

if TYPE_CHECKING:
    from selfplay.source.trees import Tree

RUNNER_FILES = frozenset(
    {
        "conftest.py",
        "pytest.ini",
        ".pytest.ini",
        "pytest.toml",
        ".pytest.toml",
        "tox.ini",
        "tox.toml",
        "setup.cfg",
        "pyproject.toml",
        "noxfile.py",
    }
)
# Files of other languages that build the tests or choose which ones run.
OTHER_RUNNERS = re.compile(
    r"(gnu)?makefile|cmakelists\.txt|meson\.build|configure|package(-lock)?\.json|\.npmrc|tsconfig\.json"
    r"|cargo\.(toml|lock)|build\.rs|go\.(mod|sum)|(jest|vitest|karma)\.config\.[cm]?[jt]s|\.mocharc\.[a-z]{2,5}"
    r"|pom\.xml|build\.gradle(\.kts)?|rakefile|gemfile(\.lock)?"
)
OTHER_CODE = (
    *(".c", ".h", ".cc", ".cpp", ".cxx", ".hh", ".hpp", ".rs", ".go", ".java", ".kt", ".swift", ".cs"),
    *(".rb", ".php", ".lua"),
    *(".js", ".mjs", ".cjs", ".jsx", ".ts", ".mts", ".cts", ".tsx", ".sh", ".bash", ".pl", ".pm"),
)
PYTHON_CODE = (".py", ".pyi", ".pyx", ".pxd", ".pxi")
# The names of their test files, without the suffix.
OTHER_TEST = re.compile(r"test[_-].*|tests?|.*[._-](test|tests|spec)|.*[a-z0-9]Tests?")
START_FILES = frozenset(
    {"sitecustomize.py", "usercustomize.py", ".gitignore", ".gitattributes", ".gitmodules"}
)
START_SUFFIXES = (".pth", ".egg-link", ".pyc", ".pyo", ".so", ".pyd")
INSTALLED_FOLDERS = (".dist-info", ".egg-info")
RUNNER_MODULES = frozenset(
    {"pytest", "_pytest", "py", "pluggy", "iniconfig", "packaging", "pygments", "exceptiongroup", "tomli"}
    | {"selfplay_ids"}  # the recorder of the standard script
)
# Every Python imports them at its start, from a file or a folder.
START_MODULES = frozenset({"sitecustomize", "usercustomize"})


def is_test_path(path: str) -> bool:
    """Whether `path` is a test by its name.

    Tests are test_*.py, *_test.py, and all files below a folder `test`, `tests` or `__tests__`. In other
    languages: test_*.c, *_test.go, *.test.js, *.spec.ts, *Test.java and the like.
    """
    *folders, name = path.split("/")
    if any(folder.lower() in ("test", "tests", "__tests__") for folder in folders) or name.endswith(
        (".bats", ".t")
    ):
        return True
    if is_other_code(name) and OTHER_TEST.fullmatch(name.rpartition(".")[0]):
        return True
    return name.endswith(".py") and (
        name.startswith("test_")
        or name.endswith("_test.py")
        or name in ("test.py", "tests.py", "conftest.py")
    )


def is_other_code(path: str) -> bool:
    """Whether the suffix of `path` is that of code in a language other than Python."""
    return path.endswith(OTHER_CODE)


def is_code_path(path: str) -> bool:
    """Whether the suffix of `path` is that of code. A repair may change other files only if its bug did."""
    return path.endswith((*PYTHON_CODE, *OTHER_CODE))


def is_runner_path(path: str) -> bool:
    """Whether `path` controls the test run: configuration, conftest, start-up files of Python, plugins."""
    *folders, name = path.split("/")
    if (
        name.lower() in RUNNER_FILES | START_FILES
        or name.lower().endswith(START_SUFFIXES)
        or OTHER_RUNNERS.fullmatch(name.lower())
    ):
        return True
    return any(folder.lower().endswith(INSTALLED_FOLDERS) for folder in folders)


def is_protected_path(path: str, original: Tree | None = None) -> bool:
    """Whether neither a bug nor a repair may touch `path`.

    Protected are tests, files that control the test run, and modules that would shadow pytest or the standard
    library. A module that `original` has itself shadows nothing: a repository may be called `packaging`.
    """
    if is_test_path(path) or is_runner_path(path):
        return True
    roots = {*GUESSED_ROOTS, *(import_roots(original) if original is not None else ())}
    # Each root counts, because Python looks for a module in all of them.
    return any(
        _shadows_module(path, f"{root}/", original) for root in roots if path.startswith(f"{root}/")
    ) or _shadows_module(path, "", original)


def shadows(path: str, files: Collection[str], original: Tree) -> bool:
    """Whether a new `path` would be imported instead of one of `files`, or instead of its package."""
    if path in original or not path.endswith(PYTHON_CODE):
        return False
    roots = import_roots(original)
    names = {name for file in files if file in original for name in _module_names(file, roots)}
    own = _module_names(path, roots)
    return any(name == new or name.startswith(f"{new}.") for name in names for new in own)


def _module_names(path: str, roots: Collection[str]) -> list[str]:
    """The dotted names under which Python finds `path`, from each root that it is below."""
    starts = [f"{root}/" if root else "" for root in roots]
    stem = path.rpartition(".")[0].removesuffix("/__init__")
    return [stem.removeprefix(start).replace("/", ".") for start in starts if stem.startswith(start)]


def _shadows_module(path: str, root: str, original: Tree | None) -> bool:
    """Whether `path`, below the import root `root`, is a module that Python or pytest would load instead."""
    top = path.removeprefix(root).split("/")[0]
    is_module = top.endswith(".py") or "/" in path.removeprefix(root)
    module = top.removesuffix(".py")
    if not is_module or module not in sys.stdlib_module_names | RUNNER_MODULES | START_MODULES:
        return False
    if original is None:
        return True
    return f"{root}{module}.py" not in original and f"{root}{module}" not in original.folders
