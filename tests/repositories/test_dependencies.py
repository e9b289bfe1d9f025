"""What tests need installed, read from metadata of every age without running anything."""

from selfplay.repositories.dependencies import Dependencies, read_dependencies
from selfplay.source.trees import FileEntry, Tree


def read(files: dict[str, str]) -> Dependencies:
    return read_dependencies(
        Tree({path: FileEntry(text.encode()) for path, text in files.items()}), "fallback"
    )


def test_core_metadata_gives_name_version_runtime_and_test_extras() -> None:
    found = read(
        {
            "PKG-INFO": "Metadata-Version: 2.1\nName: Thing\nVersion: 1.0\n"
            "Provides-Extra: tests\nProvides-Extra: docs\n"
            "Requires-Dist: six>=1.0\n"
            "Requires-Dist: pywin32; sys_platform == 'win32'\nRequires-Dist: hypothesis; extra == 'tests'\n"
            "Requires-Dist: sphinx; extra == 'docs'\n"
        }
    )
    assert found == Dependencies("Thing", "1.0", ("six>=1.0",), ("hypothesis",), ())


def test_pyproject_groups_are_sorted_into_test_and_more() -> None:
    found = read(
        {
            "pyproject.toml": '[project]\nname = "thing"\nversion = "2"\ndependencies = ["attrs"]\n'
            '[project.optional-dependencies]\ntest = ["mock", "thing[extra]", "pytest-cov"]\n'
            'dev = ["numpy", "mypy"]\n'
            '[dependency-groups]\ntesting = ["pytz", {include-group = "x"}]\n'
        }
    )
    assert (found.runtime, found.test, found.more) == (("attrs",), ("mock", "pytz"), ("numpy",))


def test_older_sources_are_read_too() -> None:
    found = read(
        {
            "setup.py": "from setuptools import setup\nsetup(name='old', version='0.1',\n"
            "      install_requires=['six'], tests_require=open('x').read())\n",
            "setup.cfg": "[options]\ntests_require =\n    mock>=1\n",
            "old.egg-info/requires.txt": "[:python_version < '3']\nenum34\n\n[test]\nfreezegun\n",
            "requirements-test.txt": "-r base.txt\nparameterized  # why\n"
            "git+https://host/x\nx @ https://host/x.zip\n",
            "tox.ini": "[testenv]\ndeps =\n    py311: sortedcontainers\n    -rother.txt\n",
        }
    )
    assert (found.name, found.version, found.runtime) == ("old", "0.1", ("six",))
    assert set(found.test) == {"mock>=1", "freezegun", "parameterized"}
    assert found.more == ("sortedcontainers",)


def test_a_repository_never_depends_on_itself_or_on_pytest() -> None:
    found = read(
        {
            "pyproject.toml": '[project]\nname = "Some.Thing"\n'
            'dependencies = ["some-thing", "pytest>=3", "pytest-randomly"]\n'
        }
    )
    assert (found.runtime, found.test) == ((), ())


def test_a_failed_collection_asks_for_known_test_libraries_only() -> None:
    found = Dependencies("thing", "1", (), ("mock",), ("python-something>=2",))
    log = (
        "E   ModuleNotFoundError: No module named 'yaml'\nNo module named 'mock'\n"
        "No module named 'something'\nNo module named 'anybodys'\n"
    )
    assert found.wanted_by(log + "E  fixture 'mocker' not found") == (
        "PyYAML",
        "pytest-mock",
        "python-something>=2",
    )


def test_an_error_that_says_in_words_which_package_it_misses_is_understood() -> None:
    found = Dependencies("thing", "1", (), (), ("httpx-two>=2", "rich", "tablib"))
    log = (
        "E   RuntimeError: thing.client requires the httpx-two package to be installed.\n"
        "E       $ pip install rich\n"
        "pip install tablib\nE   pip install anybodys\n"
    )
    assert found.wanted_by(log) == ("httpx-two>=2", "rich")


def test_damaged_metadata_is_skipped() -> None:
    broken = {
        "pyproject.toml": "[[[",
        "setup.cfg": "x",
        "setup.py": "def (",
        "PKG-INFO": "Version: x y\nRequires-Dist: ]]\nName: ../../x\n",
    }
    assert read(broken) == Dependencies("fallback", "0.0.0", (), (), ())
