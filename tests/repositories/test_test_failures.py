"""Why no test was found or passed, read from logs that pytest prints in small projects."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from selfplay.repositories.dependencies import Dependencies
from selfplay.repositories.import_failures import Cause, Hints, cause_of_missing_module, hints_to_extend
from selfplay.repositories.specs import parse_spec
from selfplay.repositories.suites import COLLECT_OPTIONS
from selfplay.repositories.test_failures import explain, refused_options
from selfplay.source.trees import FileEntry, Tree

RUN_OPTIONS = COLLECT_OPTIONS.replace("--collect-only ", "").replace("-rsE", "-rap")
ONE = "def test_a():\n    assert 1\n"


def pytest_log(folder: Path, files: dict[str, str], *options: str, runs: bool = False) -> str:
    """What pytest prints in a project of these files, as in a build. Of plugins it has its own only."""
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    words = (RUN_OPTIONS if runs else COLLECT_OPTIONS).split(" ")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "CI"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, *options],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(folder), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return (done.stdout + done.stderr).replace(f"{folder}/", "/testbed/")


def cause(
    folder: Path, files: dict[str, str], *options: str, runs: bool = False, given: Hints | None = None
) -> str:
    log = pytest_log(folder, files, *options, runs=runs)
    found = explain(log, Tree({path: FileEntry(text.encode()) for path, text in files.items()}))
    assert found is not None, log
    return found.text(given)


def test_a_module_of_the_project_is_missing(tmp_path: Path) -> None:
    files = {"code/py/shop/__init__.py": "", "tests/test_a.py": "import shop\n", "tests/test_b.py": ONE}
    assert cause(tmp_path, files) == (
        "1 of its test files cannot be imported: No module named 'shop', which is the project's own, "
        'in code/py. Use the hint test="pytest -o pythonpath=code/py"'
    )


def test_modules_of_two_folders_are_missing(tmp_path: Path) -> None:
    files = {
        "a/one/__init__.py": "",
        "b/two.py": "",
        "tests/test_a.py": "import one\n",
        "tests/test_b.py": "import two\n",
    }
    said = cause(tmp_path, files)
    assert "2 of its test files" in said
    assert said.endswith("Use the hint test=\"pytest -o 'pythonpath=a b'\"")


def test_a_module_that_an_installation_makes_is_missing(tmp_path: Path) -> None:
    files = {"shop/__init__.py": "from shop._version import version\n", "test_a.py": "import shop\n"}
    assert "shop._version', a module of the project that is made when the project is installed" in cause(
        tmp_path, files
    )
    files = {
        "shop/__init__.py": "from shop import _fast\n",
        "shop/_fast.pyx": "",
        "test_a.py": "import shop\n",
    }
    files["shop/__init__.py"] = "import shop._fast\n"
    assert "that must be compiled" in cause(tmp_path, files)


def test_another_module_is_missing(tmp_path: Path) -> None:
    spec = parse_spec("pypi:shop==1.0.0")
    given = hints_to_extend(spec, Dependencies("shop", "1", ("six",), ("attrs>=20",), ()))
    said = cause(tmp_path, {"test_a.py": "import no_body.x\n"}, given=given)
    assert said.startswith("1 of its test files cannot be imported: No module named 'no_body'")
    assert said.endswith("Use the hint install=\"pip install six 'attrs>=20' no-body\"")
    assert cause_of_missing_module("bs4.element", Tree()).projects == ("beautifulsoup4",)


def test_a_remedy_extends_the_hints_of_the_line() -> None:
    none = Dependencies("shop", "1", (), (), ())
    cause = Cause("Why", folders=("lib/py",), projects=("six", "attrs"))
    line = parse_spec("pypi:shop==1.0.0 install='make deps' test='pytest -k fast'")
    assert cause.text(hints_to_extend(line, none)) == (
        'Why. Use the hint test="pytest -k fast -o pythonpath=lib/py". '
        'Use the hint install="make deps && pip install six attrs"'
    )
    image = hints_to_extend(parse_spec("docker:shop:1#/testbed"), none)
    assert cause.text(image).endswith(". The image needs six attrs")


def test_errors_of_collection_are_counted_and_the_most_frequent_come_first(tmp_path: Path) -> None:
    files = {f"test_{number}.py": "import nowhere.at_all\n" for number in range(3)}
    said = cause(tmp_path, {**files, "test_x.py": "1 / 0\n"})
    reasons = "No module named 'nowhere'; ZeroDivisionError: division by zero"
    assert said.startswith(f"4 of its test files cannot be imported: {reasons}")


def test_a_conftest_cannot_be_loaded(tmp_path: Path) -> None:
    said = cause(tmp_path, {"conftest.py": "import nowhere\n", "test_a.py": ONE})
    assert said == (
        "conftest.py cannot be loaded: No module named 'nowhere'. "
        'Use the hint install="pip install nowhere"'
    )


def test_an_unknown_option_is_named_with_the_plugin_that_brings_it(tmp_path: Path) -> None:
    log = pytest_log(tmp_path, {"test_a.py": ONE}, "--asyncio-mode=auto", "--weird")
    assert refused_options(log) == {"--asyncio-mode=auto", "--weird"}
    said = cause(tmp_path, {"test_a.py": ONE}, "--timeout=3")
    assert "does not know the option --timeout=3, which pytest-timeout brings" in said
    assert 'install="pip install pytest-timeout"' in said
    assert "Leave it out of the hint" in cause(tmp_path, {"test_a.py": ONE}, "--weird")


def test_a_plugin_cannot_be_imported(tmp_path: Path) -> None:
    said = cause(tmp_path, {"test_a.py": ONE}, "-p", "tests.nowhere")
    assert said.startswith("the plugin tests.nowhere (option -p, or pytest_plugins) cannot be imported")


def test_settings_that_cannot_be_met_are_named(tmp_path: Path) -> None:
    ini = {"test_a.py": ONE, "pytest.ini": "[pytest]\nminversion = 99.0\n"}
    assert cause(tmp_path, ini).startswith("minversion in pytest.ini asks for pytest 99.0, and ")
    ini["pytest.ini"] = "[pytest]\nrequired_plugins = pytest-nowhere\n"
    assert cause(tmp_path, ini).startswith("its required_plugins are missing: pytest-nowhere")
    ini["pytest.ini"] = "[pytest\nx\n"
    assert cause(tmp_path, ini).startswith("pytest refuses its configuration: pytest.ini")


def test_a_marker_of_a_missing_plugin_is_named(tmp_path: Path) -> None:
    text = f"import pytest\n@pytest.mark.order(1)\n{ONE}"
    log = pytest_log(tmp_path, {"test_a.py": text}, "--strict-markers")
    assert refused_options(log) == {"--strict-markers"}
    assert cause(tmp_path, {"test_a.py": text}, "--strict-markers").startswith("strict markers: order is")


def test_equal_module_names_ask_for_another_import_mode(tmp_path: Path) -> None:
    said = cause(tmp_path, {"a/test_a.py": ONE, "b/test_a.py": ONE})
    assert said.endswith('Use the hint test="pytest --import-mode=importlib"')


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "from collections import Mapping\n",
            "this Python is too new: Python 3.10 removed collections.Mapping",
        ),
        ("import imp_of_old, asynchat\n", "No module named 'imp_of_old'"),
        ("import ConfigParser\n", "this Python is too new: Python 3.0 removed the module ConfigParser"),
        (
            "from typing import Form3000\n",
            "'Form3000' from 'typing': the code is for another version of Python",
        ),
        ("print 'old'\n", "this Python cannot read a file (SyntaxError"),
        ("raise ImportError('libmagic.so.1: cannot open shared object file')\n", "the library libmagic.so.1"),
    ],
)
def test_python_or_the_system_does_not_fit(tmp_path: Path, text: str, said: str) -> None:
    assert said in cause(tmp_path, {"test_a.py": text})


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="Python 3.14 has this module")
def test_python_is_too_old(tmp_path: Path) -> None:
    said = cause(tmp_path, {"test_a.py": "import annotationlib\n"})
    assert "this Python is too old: the module annotationlib is new in Python 3.14" in said
    assert "Name it with the hint python=3.14" in said


def test_no_file_and_no_test_match(tmp_path: Path) -> None:
    assert cause(tmp_path, {"check.py": ONE}).startswith("no file or function matches pytest's patterns")
    assert cause(tmp_path, {}, "no/such").startswith("pytest does not find no/such")
    assert "leave out all of its tests" in cause(tmp_path, {"test_a.py": ONE}, "-k", "nothing")


def test_skipped_files_show_what_they_miss(tmp_path: Path) -> None:
    text = "import pytest\npytest.importorskip('yaml_of_nobody')\n"
    said = cause(tmp_path, {"test_a.py": text})
    assert said.startswith("its test files are skipped: could not import 'yaml_of_nobody'")
    assert said.endswith('Use the hint install="pip install yaml-of-nobody"')


def test_all_tests_fail_for_one_reason(tmp_path: Path) -> None:
    files = {"test_a.py": "def test_a(mocker):\n    pass\n"}
    said = cause(tmp_path, files, runs=True)
    assert "a fixture that no installed plugin has: mocker" in said
    assert said.endswith('Use the hint install="pip install pytest-mock"')
    said = cause(tmp_path, {"test_a.py": "async def test_a():\n    pass\n"}, runs=True)
    assert said.startswith("its tests are coroutines, and no installed plugin runs them")
    said = cause(tmp_path, {"test_a.py": "def test_a():\n    raise KeyError('odd')\n"}, runs=True)
    assert said == "all tests fail (1 failed): KeyError: 'odd'"
    skipped = "import pytest\n@pytest.mark.skip(reason='needs a screen')\ndef test_a():\n    pass\n"
    assert cause(tmp_path, {"test_a.py": skipped}, runs=True).startswith("all tests were skipped (1 skipped)")


def test_what_hides_the_report_is_named(tmp_path: Path) -> None:
    hides = "def pytest_configure(config):\n    config.option.no_summary = True\n"
    said = cause(tmp_path, {"conftest.py": hides, "test_a.py": ONE}, runs=True)
    assert said.startswith(
        "its tests ran (1 passed), but pytest printed no summary of them: conftest.py changes no_summary"
    )
    colours = "def pytest_configure(config):\n    config.option.color = 'yes'\n"
    said = cause(tmp_path, {"conftest.py": colours, "test_a.py": ONE}, runs=True)
    assert said.startswith(
        "its tests ran (1 passed), but the summary has colours or another form: conftest.py"
    )


def test_code_that_ends_pytest_is_named(tmp_path: Path) -> None:
    said = cause(tmp_path, {"test_a.py": "x = 1\nimport sys\nsys.exit(3)\n"})
    assert said.startswith("a test file ends Python when it is imported: SystemExit: 3 (test_a.py, line 3)")
    main = "import unittest\nclass TestA(unittest.TestCase):\n    def test_a(self): pass\nunittest.main()\n"
    said = cause(tmp_path, {"test_a.py": main})
    assert said.startswith("a test file ends Python when it is imported: SystemExit: 2 (test_a.py, line 4)")
    assert 'if __name__ == "__main__"' in said
    assert cause(tmp_path, {"test_a.py": "import os\nos._exit(0)\n"}).startswith("pytest printed nothing")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--import-mode=odd", "pytest refuses an option: argument --import-mode: invalid choice: 'odd'"),
        (
            "-Wa:b:c:d:e:f",
            "pytest ends with an error: while parsing the following warning configuration: a:b:c",
        ),
    ],
)
def test_a_value_that_pytest_refuses_is_named(tmp_path: Path, option: str, said: str) -> None:
    assert cause(tmp_path, {"test_a.py": ONE}, option).startswith(said)


def test_a_hostile_log_has_no_cause_and_ends_soon() -> None:
    assert explain("odd", Tree()) is None
    assert explain("_" * 200_000 + "\n" + "E   " * 50_000 + "\n" + "1 passed, " * 20_000, Tree()) is None
    found = explain(
        "ERROR: usage\nx: error: unrecognized arguments: --a\x1b]0;title\x07" + "b" * 10_000, Tree()
    )
    assert found is not None and found.reason.isprintable() and len(found.reason) < 1000


def test_skipped_tests_do_not_hide_that_the_others_fail_for_a_missing_extension(tmp_path: Path) -> None:
    files = {
        "test_a.py": "import pytest\n@pytest.fixture(autouse=True)\ndef mode():\n"
        "    assert 0, 'C extension not loaded'\n"
        "def test_a():\n    pass\n@pytest.mark.skip(reason='no data')\ndef test_b():\n    pass\n"
    }
    said = cause(tmp_path, files, runs=True)
    assert said.startswith("all tests fail (1 skipped, 1 error): AssertionError: C extension not loaded")
    assert said.endswith("an image may have them: docker:IMAGE#/FOLDER")


def test_a_name_is_not_defined_since_a_guarded_import_failed(tmp_path: Path) -> None:
    files = {
        "test_a.py": "try:\n    import tool_of_nobody\n    from hypothesis_of_nobody import given, settings\n"
        "except ImportError:\n    tool_of_nobody = None\n@settings()\ndef test_a():\n    pass\n"
    }
    assert cause(tmp_path, files) == (
        "1 of its test files cannot be imported: 'settings' is not defined, since a guarded import fails: "
        'tool_of_nobody, hypothesis_of_nobody. Use the hint install="pip install tool-of-nobody '
        'hypothesis-of-nobody"'
    )
