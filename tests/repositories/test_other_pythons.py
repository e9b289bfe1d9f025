"""Repositories with another Python than the one that runs selfplay: `python=3.9` on a list's line."""

from __future__ import annotations

import ast
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from docker import DockerClient

import selfplay
from machine import open_or_skip
from selfplay.errors import MissingPythonError, SandboxUnavailable
from selfplay.repositories.dependencies import read_dependencies
from selfplay.repositories.environment import open_workspace
from selfplay.repositories.installation import PYTEST, pytest_for
from selfplay.sandbox import interpreters
from selfplay.sandbox.base import Sandbox, SandboxBackend, SandboxSpec
from selfplay.sandbox.interpreters import Interpreter, find_interpreter, interpreter_of, present_interpreter
from selfplay.source.trees import FileEntry, Tree
from shop_repository import PACKAGE, prepared_shop, shop_checkout

OWN = f"{sys.version_info.major}.{sys.version_info.minor}"
VERSIONS = ("3.9", "3.10", "3.12", "3.13")
SETUP = "[project]\nname = 'shop'\nversion = '1'\ndependencies = [\"tomli; python_version == '@'\"]\n"
TEST = """
import importlib.util, shop, sys
def test_python():
    assert sys.version_info[:2] == (@)
    assert importlib.util.find_spec("tomli")
    assert sys.prefix == "/opt/env"
"""


@pytest.fixture(scope="module")
def other() -> Interpreter:
    """A second Python of this machine."""
    found = [present_interpreter(version) for version in VERSIONS if version != OWN]
    chosen = next(filter(None, found), None)
    if chosen is None:
        pytest.skip(f"no second Python here: none of {', '.join(VERSIONS)} is in uv, on PATH or in pyenv")
    return chosen


@pytest.mark.sandbox
def test_the_tests_of_a_repository_run_with_the_python_that_its_line_names(
    other: Interpreter, backend: SandboxBackend, cache: Path, tmp_path: Path
) -> None:
    files = {
        **PACKAGE,
        "pyproject.toml": SETUP.replace("@", other.version),
        "tests/test_python.py": TEST.replace("@", other.version.replace(".", ", ")),
    }
    checkout = shop_checkout(files, tmp_path, cache, f"python={other.version}")
    environment = prepared_shop(checkout, backend, cache, baselines=2)
    assert "tests/test_python.py::test_python" in environment.baseline.passed
    assert environment.targets  # the calls were recorded, too
    with open_workspace(backend, environment, environment.tree, {}) as box:
        assert_is_the_python_of(box, other)


@pytest.mark.sandbox
def test_docker_gets_an_image_with_the_python(other: Interpreter, tmp_path: Path) -> None:
    backend = open_or_skip("docker")
    key = f"other-python-{os.getpid()}"
    log = tmp_path / "log.txt"
    script = "/opt/env/bin/python -m pip --version"
    reference = backend.build_environment(key, script, 300, log, python=other.version)
    try:
        with backend.open(SandboxSpec(reference)) as box:
            assert_is_the_python_of(box, other)
    finally:
        DockerClient.from_env().images.remove(reference)


def assert_is_the_python_of(box: Sandbox, other: Interpreter) -> None:
    asked = "import sys; print('%d.%d' % sys.version_info[:2])"
    for name in ("python", "python3", f"python{other.version}"):
        assert box.run(f'{name} -c "{asked}"').text.strip() == other.version
    assert box.run(f"touch {other.place}/bin/mine").exit_code != 0
    assert box.run(f"find {other.place} -path '*-packages/*' | head -3").text == ""


@pytest.mark.sandbox
def test_an_environment_whose_python_is_gone_is_said_to_be(other: Interpreter, tmp_path: Path) -> None:
    backend = open_or_skip("bubblewrap", tmp_path)
    (tmp_path / "key" / "env").mkdir(parents=True)
    gone = replace(other, prefix=str(tmp_path / "gone"))
    (tmp_path / "key" / "python").write_text(gone.to_text())
    with (
        pytest.raises(SandboxUnavailable, match=f"needs Python {other.release} at .*gone"),
        backend.open(SandboxSpec(str(tmp_path / "key" / "env"))),
    ):
        pass


def test_an_interpreter_is_found_by_what_it_says_of_itself(
    other: Interpreter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert interpreter_of(other.to_text()) == other
    assert other.is_there
    assert interpreter_of("cpython-311 3.11.7 x86_64\n") is None
    liar = tmp_path / f"python{other.version}"  # another Python under this name
    liar.symlink_to(sys.executable)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    assert present_interpreter(other.version) is None
    monkeypatch.setenv("PYENV_ROOT", str(Path(other.prefix).parents[1]))
    if Path(other.prefix).parent.name == "versions":
        assert present_interpreter(other.version) == other


def test_a_python_that_is_nowhere_is_an_error_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreters, "_uv", list)
    with pytest.raises(
        MissingPythonError, match=r"no Python 3\.77 .*uv python install 3\.77.*docker:IMAGE"
    ) as caught:
        find_interpreter("3.77")
    assert caught.value.of_machine  # so the answer is not kept
    interpreters._search.cache_clear()


def test_uv_is_asked_to_fetch_what_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = tmp_path / "calls"
    uv = tmp_path / "uv"
    uv.write_text(f'#!/bin/sh\necho "$@" >> {calls}\necho "error: no such download" >&2\nexit 1\n')
    uv.chmod(0o755)
    monkeypatch.setattr(interpreters, "_uv", lambda: [str(uv)])
    with pytest.raises(MissingPythonError, match="uv cannot fetch it: error: no such download"):
        find_interpreter("3.78")
    with pytest.raises(MissingPythonError):
        find_interpreter("3.78")
    said = calls.read_text().splitlines()
    assert said.count("python install 3.78") == 1  # a second repository does not wait for the same answer
    interpreters._search.cache_clear()


def test_markers_and_setup_py_are_read_for_the_python_of_the_line() -> None:
    files = {
        "setup.py": (
            "import sys\nfrom setuptools import setup\n"
            "needed = ['old'] if sys.version_info < (3, 10) else ['new']\n"
            "setup(name='shop', install_requires=needed + ['tomli; python_version < \"3.11\"'])\n"
        ),
        "requirements-test.txt": "mock; python_full_version < '3.10'\nresponses\n",
    }
    tree = Tree({path: FileEntry(text.encode()) for path, text in files.items()})
    found = read_dependencies(tree, "shop", python="3.9")
    assert (found.runtime, found.test) == (("old", "tomli"), ("mock", "responses"))
    found = read_dependencies(tree, "shop", python="3.12")
    assert (found.runtime, found.test) == (("new",), ("responses",))


PROGRAMS = sorted((Path(selfplay.__file__).parent / "data").rglob("*.py"))


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_programs_for_sandboxes_can_be_read_by_the_oldest_python(path: Path) -> None:
    assert ast.parse(path.read_text(), feature_version=interpreters.OLDEST)


def test_pytest_is_the_last_one_that_the_python_can_run() -> None:
    assert pytest_for(None) == pytest_for("3.12") == PYTEST
    assert pytest_for("3.9") == "pytest==8.4.2"
