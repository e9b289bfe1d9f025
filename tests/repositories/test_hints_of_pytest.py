"""Which options a run of pytest keeps, from the hint `test=` and from a repository's own configuration."""

import pytest

from selfplay.errors import EnvironmentBuildError
from selfplay.repositories.dependencies import Dependencies
from selfplay.repositories.test_hints import PytestArguments, read_pytest_hint
from selfplay.source.trees import FileEntry, Tree

FILES = {"tests/test_a.py": "", "tests/unit/test_b.py": "", "shop/__init__.py": ""}


def read(hint: str | None = None, **files: str) -> PytestArguments:
    texts = FILES | {path.replace("__", "/"): text for path, text in files.items()}
    return read_pytest_hint(hint, Tree({path: FileEntry(text.encode()) for path, text in texts.items()}))


def own(text: str, path: str = "pytest.ini", hint: str | None = None) -> PytestArguments:
    return read(hint, **{path: text})


def test_without_hint_and_configuration_only_default_options_are_switched_off() -> None:
    assert read() == PytestArguments()
    assert read().options == "-o addopts="


@pytest.mark.parametrize(
    "options",
    [
        "-q",
        "-ra",
        "-v",
        "-rA --color=yes",
        "--no-summary",
        "-x",
        "-xvs",
        "-vv --tb=long",
        "-rfEx --tb short",
        "-n auto",
        "-n4 --dist loadfile",
        "--cov shop --cov-report term",
        "--maxfail=1 -l",
        "--durations 10",
        "--lf --ff",
        "-p xdist",
        "--capture=no",
        "--junitxml out.xml",
        "--pdb",
        "-o log_cli=true",
        "--rootdir=tests",
        "--basetemp /tmp/x",
        "-p no:cacheprovider",
        "-p no:terminal",
        "--strict-config",
    ],
)
def test_options_that_change_the_report_or_the_runs_are_left_out(options: str) -> None:
    for found in (read(f"pytest {options} tests"), own(f"[pytest]\naddopts = {options} tests\n")):
        assert (found.options, found.roots) == ("-o addopts=", ("tests",))
        assert " ".join(" ".join(words) for words in found.left_out)


@pytest.mark.parametrize(
    "options",
    [
        "-k 'not slow'",
        "-m 'not slow'",
        "-p tests.shared",
        "-p no:doctest",
        "--import-mode=importlib",
        "--import-mode importlib",
        "--ignore=tests/old",
        "--ignore tests/old --deselect tests/test_a.py::x",
        "--doctest-modules",
        "--doctest-glob '*.rst'",
        "--strict-markers",
        "-W error",
        "-o xfail_strict=true",
        "--asyncio-mode=auto",
        "--run-slow",
        "--capture=sys",
        "--assert=plain",
        "--runxfail",
    ],
)
def test_options_that_choose_or_configure_tests_stay(options: str) -> None:
    for found in (read(f"pytest {options} tests"), own(f"[pytest]\naddopts = {options} tests\n")):
        assert (found.options, found.roots) == (f"-o addopts= {options}", ("tests",))
        assert found.left_out == ()


def test_one_word_of_short_options_is_taken_apart() -> None:
    assert read("pytest -xvk 'not slow' -rA tests").options == "-o addopts= -k 'not slow'"


def test_options_of_the_hint_come_after_the_repository_s_own() -> None:
    found = own("[pytest]\naddopts = -m 'not slow' --weird\n", hint="pytest -m slow tests")
    assert found.options == "-o addopts= -m 'not slow' --weird -m slow"


def test_a_hint_can_replace_the_repository_s_own_options() -> None:
    assert own("[pytest]\naddopts = --weird\n", hint="pytest -o addopts=").options == "-o addopts="


def test_options_that_pytest_refuses_leave_only_the_repository_s_own() -> None:
    found = own("[pytest]\naddopts = --weird --strange=1 -m slow\n", hint="pytest --odd tests")
    less = found.without({"--weird", "--strange=1", "--odd"})
    assert less.options == "-o addopts= -m slow --odd"
    assert less.left_out == (("--weird",), ("--strange=1",))


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("pytest.ini", "[pytest]\naddopts =\n  -m\n  slow\n"),
        (".pytest.ini", "[pytest]\naddopts: -m slow\n"),
        ("tox.ini", "[tox]\nx = 1\n[pytest]\naddopts = -m slow\n"),
        ("setup.cfg", "[tool:pytest]\naddopts = -m slow\n"),
        ("pyproject.toml", "[tool.pytest.ini_options]\naddopts = '-m slow'\n"),
        ("pyproject.toml", "[tool.pytest.ini_options]\naddopts = ['-m', 'slow']\n"),
        ("pyproject.toml", "[tool.pytest]\naddopts = ['-m', 'slow']\n"),
        ("pytest.toml", "[pytest]\naddopts = ['-m', 'slow']\n"),
        (".pytest.toml", "[pytest]\naddopts = ['-m', 'slow']\n"),
    ],
)
def test_each_file_that_configures_pytest_counts(path: str, text: str) -> None:
    assert own(text, path).options == "-o addopts= -m slow"


def test_the_file_that_pytest_finds_first_counts_alone() -> None:
    later = "[tool.pytest.ini_options]\naddopts = '-m slow'\n"
    assert read(**{"pytest.ini": "", "pyproject.toml": later}).options == "-o addopts="
    assert read(**{"tox.ini": "[tox]\n", "pyproject.toml": later}).options == "-o addopts= -m slow"


def test_one_configuration_counts_for_all_files_though_a_folder_has_another() -> None:
    files = {"setup.cfg": "[tool:pytest]\naddopts = -m slow\n", "tests__pytest.ini": "[pytest]\n"}
    assert read(**files).options == "-o addopts= -c setup.cfg -m slow"
    assert read("pytest tests", **files).options == "-o addopts="
    assert read("pytest -c tests/pytest.ini", **files).options == "-o addopts= -c tests/pytest.ini"


def test_damaged_files_give_no_options() -> None:
    for path in ("pytest.ini", "pyproject.toml", "setup.cfg", "pytest.toml"):
        assert own("[[[ =\n\x00", path).options == "-o addopts="
    assert own('[pytest]\naddopts = "unbalanced\n').options == "-o addopts="


def test_plugins_that_options_and_settings_need_are_installed() -> None:
    text = "[pytest]\naddopts = --benchmark-disable -p pytest_mock\n"
    text += "required_plugins = pytest-django>=4 'pytest-odd @ https://host/odd.whl'\n"
    found = own(f"{text}asyncio_mode = auto\n")
    assert set(found.requirements) == {
        "pytest-django>=4",
        "pytest-asyncio",
        "pytest-benchmark",
        "pytest-mock",
    }
    named = Dependencies("shop", "1", ("pytest-mock",), ("pytest-asyncio>=0.20",), ())
    assert set(found.missing_in(named)) == {"pytest-django>=4", "pytest-benchmark"}


def test_required_plugins_that_disturb_runs_are_not_needed() -> None:
    found = own("[pytest]\nrequired_plugins = pytest-cov pytest-xdist\naddopts = -n auto --cov=shop\n")
    assert found.options == "-o addopts= -o required_plugins="
    assert found.requirements == ()


def test_strict_settings_do_not_fail_for_what_is_not_installed() -> None:
    assert own("[pytest]\nstrict = true\n").options == "-o addopts= -o strict_config=false"


def test_paths_can_be_patterns_modules_or_end_in_a_slash() -> None:
    assert read("pytest ./tests/unit/ tests/test_*.py").roots == ("tests/unit", "tests/test_a.py")
    assert read("python3.11 -m pytest --pyargs shop").roots == ("shop",)
    assert read("pytest .").roots == read("pytest").roots == ()


@pytest.mark.parametrize(
    ("hint", "reason"),
    [
        ("tox", "the command must be pytest"),
        ("pytest -k 'open", "No closing quotation"),
        ("pytest test", "the repository has no file or folder test"),
        ("pytest tests/test_a.py::test_x", "is one test; name its file, and choose tests with -k"),
        ("pytest --collect-only", "--collect-only runs no test"),
        ("pytest -h", "-h runs no test"),
        ("pytest -c no.ini", r"the repository has no file no\.ini"),
    ],
)
def test_a_hint_that_cannot_be_used_is_refused_with_its_reason(hint: str, reason: str) -> None:
    with pytest.raises(EnvironmentBuildError, match=reason):
        read(hint)


def test_a_configuration_that_a_repair_could_change_is_refused() -> None:
    with pytest.raises(EnvironmentBuildError, match=r"a repair could change ci/runs\.ini"):
        read("pytest -c ci/runs.ini", **{"ci__runs.ini": "[pytest]\n"})
