"""Repositories of other layouts, in a real sandbox. Needs a package index that pip can reach."""

import subprocess
from pathlib import Path

import pytest

from selfplay.repositories.build import prepare_environment
from selfplay.repositories.environment import Environment
from selfplay.repositories.fetching import fetch
from selfplay.repositories.specs import parse_spec
from selfplay.sandbox.base import Limits, SandboxBackend
from selfplay.settings.playing import EnvironmentSettings

pytestmark = pytest.mark.sandbox

PRICES = (
    "def total(prices):\n    result = 0\n    for price in prices:\n"
    "        result += price\n    return result\n"
)
TEST = (
    "import pytest\nfrom shop.prices import total\n\n\n"
    "@pytest.mark.parametrize('prices', [[1], [1, 2], [3, 4, 5]])\n"
    "def test_total(prices):\n    assert total(prices) == sum(prices)\n"
)
USES_SIX = "import six\n" + TEST
PACKAGE = {"shop/__init__.py": "", "shop/prices.py": PRICES, "tests/test_total.py": TEST}


def prepare(
    files: dict[str, str], folder: Path, backend: SandboxBackend, cache: Path, tag: str = ""
) -> tuple[Environment, list[str]]:
    """The environment of a folder, and what was said while it was made. tag: makes it a git repository."""
    folder = folder / "shop"
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    if tag:
        name = ["-c", "user.name=a", "-c", "user.email=a@b"]
        for words in (["init", "-q"], ["add", "-A", "-f"], [*name, "commit", "-qm", "one"], ["tag", tag]):
            subprocess.run(["git", *words], cwd=folder, check=True)
    said: list[str] = []
    found = fetch(parse_spec(str(folder)), cache)
    settings = EnvironmentSettings(baselines=2)
    return prepare_environment(found, backend, settings, Limits(), cache, said.append), said


@pytest.mark.parametrize(
    ("files", "path"),
    [
        (
            {
                "pyproject.toml": '[project]\nname = "corp-shop"\nversion = "1"\n',
                "src/corp/shop/prices.py": PRICES,
                "tests/test_total.py": TEST.replace("shop.prices", "corp.shop.prices"),
            },
            "src/corp/shop/prices.py",
        ),
        (
            {
                "pyproject.toml": '[tool.setuptools.packages.find]\nwhere = ["code"]\n',
                "code/shop/__init__.py": "",
                "code/shop/prices.py": PRICES,
                "tests/test_total.py": TEST,
            },
            "code/shop/prices.py",
        ),
        (
            {
                "README.md": "A project in a folder.\n",
                "backend/pyproject.toml": '[project]\nname = "shop"\nversion = "1"\n'
                '[dependency-groups]\ntest = ["six"]\n',
                "backend/shop/__init__.py": "",
                "backend/shop/prices.py": PRICES,
                "backend/tests/test_total.py": USES_SIX,
            },
            "backend/shop/prices.py",
        ),
        (
            {
                "setup.py": "from setuptools import setup\nsetup(name='shop', version='1', "
                "package_dir={'shop': 'source', 'corp.web': 'web'}, packages=['shop', 'corp.web'])\n",
                "source/__init__.py": "",
                "source/prices.py": PRICES,
                "web/page.py": "title = 'shop'\n",
                "tests/test_total.py": f"import corp.web.page\n{TEST}",
            },
            "source/prices.py",
        ),
    ],
    ids=["namespace", "where", "monorepo", "renamed"],
)
def test_a_package_is_imported_from_where_its_metadata_say(
    files: dict[str, str], path: str, backend: SandboxBackend, cache: Path, tmp_path: Path
) -> None:
    found, _ = prepare(files, tmp_path, backend, cache)
    assert len(found.baseline.passed) == 3
    assert {target.path for target in found.targets} == {path}


def test_the_version_of_a_tag_is_installed_and_in_the_key(
    backend: SandboxBackend, cache: Path, tmp_path: Path
) -> None:
    files = {
        **PACKAGE,
        "pyproject.toml": '[build-system]\nrequires = ["setuptools", "setuptools_scm"]\n[project]\n'
        'name = "shop"\ndynamic = ["version"]\n[tool.setuptools_scm]\nversion_file = "shop/_version.py"\n',
        "shop/__init__.py": "from shop._version import version\n",
        "tests/test_version.py": "from importlib.metadata import version\nimport shop\n\n\n"
        "def test_version():\n    assert version('shop') == shop.version\n",
    }
    first, _ = prepare(files, tmp_path / "a", backend, cache, "v2.5.0")
    assert "tests/test_version.py::test_version" in first.baseline.passed
    second, _ = prepare(files, tmp_path / "b", backend, cache, "v2.6.0")
    assert first.key != second.key


def test_a_build_backend_is_asked_for_what_the_files_do_not_state(
    backend: SandboxBackend, cache: Path, tmp_path: Path
) -> None:
    files = {
        **PACKAGE,
        "setup.py": "import sys\nsys.path.insert(0, '.')\nfrom setuptools import setup\nimport needs\n"
        "setup(name='shop', version=needs.version(), install_requires=needs.compute())\n",
        "needs.py": "def compute():\n    return ['s' + 'ix']\n\n\ndef version():\n    return '2.' + '5'\n",
        "tests/test_total.py": "from importlib.metadata import version\n"
        + USES_SIX.replace("== sum(prices)", "== sum(prices) and version('shop') == '2.5'"),
    }
    found, said = prepare(files, tmp_path, backend, cache)
    assert "shop: asking its build backend what it depends on" in said
    assert "shop: installing pytest==9.2.0, six" in said
    assert len(found.baseline.passed) == 3


def test_a_build_backend_that_fails_is_named_and_the_files_are_read(
    backend: SandboxBackend, cache: Path, tmp_path: Path
) -> None:
    files = {
        **PACKAGE,
        "setup.py": "from setuptools import setup\nsetup(name='shop', install_requires=compute())\n",
    }
    found, said = prepare(files, tmp_path, backend, cache)
    assert any("gives no metadata (log: " in line for line in said)
    assert len(found.baseline.passed) == 3


def test_what_cannot_be_installed_is_named_and_kept(
    backend: SandboxBackend, cache: Path, tmp_path: Path
) -> None:
    files = {
        **PACKAGE,
        "requirements-test.txt": "selfplay-has-no-such-package==9.9\nsix\n",
        "tests/test_total.py": USES_SIX,
    }
    found, _ = prepare(files, tmp_path, backend, cache)
    assert found.left_out == ("selfplay-has-no-such-package==9.9",)
    again, said = prepare(files, tmp_path, backend, cache)
    assert (again, said) == (found, [])


def test_facts_of_an_older_reading_are_used_until_something_else_is_read(
    backend: SandboxBackend, cache: Path, tmp_path: Path
) -> None:
    found, _ = prepare(PACKAGE, tmp_path, backend, cache)
    facts = cache / "environments" / "facts" / f"{found.key}.json"
    as_before = facts.read_text().replace('"reading"', '"nothing"')
    facts.write_text(as_before)
    again, said = prepare(PACKAGE, tmp_path, backend, cache)
    assert (again, said) == (found, [])
    facts.write_text(as_before.replace('"PYTHONPATH": "/testbed"', '"PYTHONPATH": "/testbed/old:/testbed"'))
    anew, said = prepare(PACKAGE, tmp_path, backend, cache)
    assert anew == found
    assert said


def test_functions_are_found_although_tests_import_them_by_a_path_with_dots(
    backend: SandboxBackend, cache: Path, tmp_path: Path
) -> None:
    files = PACKAGE | {
        "tests/conftest.py": "import os, sys\n"
        "sys.path.insert(0, os.path.join(os.path.dirname(__file__), os.pardir))\n"
    }
    found, _ = prepare(files, tmp_path, backend, cache)
    assert [(target.path, target.name) for target in found.targets] == [("shop/prices.py", "total")]
