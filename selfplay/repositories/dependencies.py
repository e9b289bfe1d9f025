"""Reads a repository's metadata for the dependencies of its tests. `installation` installs them.

Invariants: nothing of the repository runs. The repository itself, pytest and tools that no test run needs are
never among them. A copy of the repository would give repairs away, and `installation` pins pytest.
"""

from __future__ import annotations

import ast
import configparser
import contextlib
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from email.parser import HeaderParser
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from selfplay.source.syntax import parse_module
from selfplay.source.trees import Tree

TEST_EXTRAS = re.compile(
    r"^(unit)?-?(test|tests|testing|pytest)(s?-(extra|deps|dependencies|requirements|base|min|minimal|core))?$"
)
MORE_EXTRAS = re.compile(r"^(dev|develop|development|all|full|ci|.*test.*)$")
TEST_FILES = re.compile(
    r"^((requirements|reqs)[-_./](unit)?tests?(ing)?|tests?[-_/]requirements|(unit)?tests?[-_]reqs)\.(txt|in)$"
)
MORE_FILES = re.compile(
    r"^((requirements|reqs)([-_./](dev|develop|development|all|ci|base))?|dev[-_]requirements)\.(txt|in)$"
)
REQUIREMENT_FILES = re.compile(
    r"^([\w.-]*requirements?[\w.-]*|[\w.-]*constraints?[\w.-]*|(requirements|reqs)/[\w./-]+"
    r"|tests?/requirements[\w.-]*)\.(txt|in)$"
)

# Packages that no test run needs, or that make runs differ: random order, reruns, parallel processes,
# coverage.
UNWANTED_NAMES = """
    pytest pytest-cov pytest-xdist pytest-randomly pytest-random-order pytest-rerunfailures pytest-sugar
    pytest-ruff pytest-black pytest-mypy pytest-flake8 pytest-checkdocs pytest-enabler pytest-perf
    pytest-pylint pytest-pep8 pytest-isort pytest-codspeed pytest-github-actions-annotate-failures
    coverage coveralls codecov tox nox flake8 black isort ruff mypy pylint pyright pyflakes pycodestyle
    bandit pre-commit twine build wheel sphinx furo docutils mkdocs ipython jupyter towncrier bump2version
    bumpversion zest-releaser check-manifest codespell rstcheck pyroma pip hatch flit poetry cython-lint
    interrogate safety
"""
UNWANTED = frozenset(UNWANTED_NAMES.split())

# Missing module or fixture -> package. Only well-known test libraries: a guessed name could be anybody's
# package.
MODULES = {
    "attr": "attrs",
    "dateutil": "python-dateutil",
    "freezegun": "freezegun",
    "hypothesis": "hypothesis",
    "mock": "mock",
    "parameterized": "parameterized",
    "pkg_resources": "setuptools<81",
    "pytz": "pytz",
    "requests": "requests",
    "setuptools": "setuptools<81",
    "simplejson": "simplejson",
    "six": "six",
    "sortedcontainers": "sortedcontainers",
    "typing_extensions": "typing_extensions",
    "tzdata": "tzdata",
    "yaml": "PyYAML",
}
FIXTURES = {
    "mocker": "pytest-mock",
    "benchmark": "pytest-benchmark",
    "httpserver": "pytest-httpserver",
    "freezer": "pytest-freezer",
}


@dataclass(frozen=True)
class Dependencies:
    """The requirements of a repository.

    runtime  must be installed
    test     should be installed
    more     development extras and the like, for a module that tests still miss
    """

    name: str
    version: str
    runtime: tuple[str, ...]
    test: tuple[str, ...]
    more: tuple[str, ...]

    def wanted_by(self, log: str) -> tuple[str, ...]:
        """Well-known test libraries, and requirements of `more`, that the log of a collection misses."""
        missing = set(re.findall(r"No module named ['\"]?([A-Za-z_]\w*)", log))
        wanted = {MODULES[module] for module in missing & MODULES.keys()}
        wanted |= {
            FIXTURES[name] for name in re.findall(r"fixture '(\w+)' not found", log) if name in FIXTURES
        }
        for text in self.more:
            name = canonicalize_name(Requirement(text).name).replace("-", "_")
            if missing & {name, name.removeprefix("python_"), name.removeprefix("py")}:
                wanted.add(text)
        known = {canonicalize_name(Requirement(text).name) for text in (*self.runtime, *self.test)}
        return tuple(
            sorted(
                text
                for text in wanted
                if canonicalize_name(Requirement(text).name) not in {*known, canonicalize_name(self.name)}
            )
        )


def read_dependencies(tree: Tree, fallback_name: str) -> Dependencies:
    """Read the dependencies; fallback_name is for a repository whose metadata has no name.

    Reads PKG-INFO, pyproject.toml, setup.cfg, literals of setup.py, requires.txt, tox.ini and requirement
    files. Skips damaged ones.
    """
    reader = _Reader(tree)
    reader.read_metadata()
    reader.read_pyproject()
    reader.read_setup_cfg()
    reader.read_setup_py()
    reader.read_egg_info()
    reader.read_requirement_files()
    name = reader.name or fallback_name
    runtime = _chosen(name, reader.runtime)
    test = _chosen(name, reader.test, runtime)
    return Dependencies(
        name, reader.version or "0.0.0", runtime, test, _chosen(name, reader.more, (*runtime, *test))
    )


def requirement_files(tree: Tree) -> dict[str, str]:
    """The files that an `install` hint may refer to: requirements and constraints, nothing that can run."""
    return {path: tree.text(path) for path in sorted(tree) if REQUIREMENT_FILES.match(path)}


def _chosen(own_name: str, texts: Iterable[str], taken: Sequence[str] = ()) -> tuple[str, ...]:
    """The usable requirements of `texts`, each name once, without markers.

    Not usable: URLs, UNWANTED, names in `taken`, the repository itself, and markers that exclude this Python.
    """
    names = (
        {canonicalize_name(Requirement(text).name) for text in taken}
        | UNWANTED
        | {canonicalize_name(own_name)}
    )
    chosen: list[str] = []
    for text in texts:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        name = canonicalize_name(requirement.name)
        if name in names or requirement.url or name.startswith(("sphinx", "types-", "flake8-", "mkdocs-")):
            continue
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        requirement.marker = None
        names.add(name)
        chosen.append(str(requirement))
    return tuple(chosen)


class _Reader:
    """Collects requirements from each source in turn.

    The first source that gives a name or a version wins.
    """

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.name = ""
        self.version = ""
        self.runtime: list[str] = []
        self.test: list[str] = []
        self.more: list[str] = []

    def _group(self, extra: str) -> list[str]:
        name = canonicalize_name(extra)
        return self.test if TEST_EXTRAS.match(name) else self.more if MORE_EXTRAS.match(name) else []

    def _identify(self, name: Any, version: Any) -> None:
        if not self.name and isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            self.name = name
        if not self.version and isinstance(version, str):
            with contextlib.suppress(InvalidVersion):
                self.version = str(Version(version))

    def read_metadata(self) -> None:
        for path in ("PKG-INFO", *sorted(p for p in self.tree if p.endswith(".egg-info/PKG-INFO"))):
            if path not in self.tree:
                continue
            headers = HeaderParser().parsestr(self.tree.text(path))
            self._identify(headers.get("Name"), headers.get("Version"))
            extras = [str(extra) for extra in headers.get_all("Provides-Extra") or []]
            for text in headers.get_all("Requires-Dist") or []:
                self._conditional(str(text), extras)

    def _conditional(self, text: str, extras: Sequence[str]) -> None:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            return
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            self.runtime.append(text)
            return
        for extra in extras:
            if requirement.marker.evaluate({"extra": extra}):
                requirement.marker = None
                self._group(extra).append(str(requirement))
                return

    def read_pyproject(self) -> None:
        document: Any = {}
        with contextlib.suppress(tomllib.TOMLDecodeError, KeyError):
            document = tomllib.loads(self.tree.text("pyproject.toml"))
        project, groups, poetry = (
            _table(document, *keys) for keys in (("project",), ("dependency-groups",), ("tool", "poetry"))
        )
        self._identify(project.get("name"), project.get("version"))
        self._identify(poetry.get("name"), poetry.get("version"))
        self.runtime += _texts(project.get("dependencies"))
        for extra, texts in {**_table(project, "optional-dependencies"), **groups}.items():
            self._group(extra).extend(_texts(texts))
        self.runtime += _poetry(_table(poetry, "dependencies"))
        self.more += _poetry(_table(poetry, "dev-dependencies"))
        for extra, group in _table(poetry, "group").items():
            self._group(extra).extend(
                _poetry(_table(group, "dependencies") if isinstance(group, Mapping) else {})
            )
        for environment in _table(document, "tool", "hatch", "envs").values():
            if isinstance(environment, Mapping):
                self.more += _texts(environment.get("dependencies")) + _texts(
                    environment.get("extra-dependencies")
                )

    def read_setup_cfg(self) -> None:
        config = _ini(self.tree, "setup.cfg")
        if config.has_section("metadata"):
            self._identify(
                config.get("metadata", "name", fallback=None),
                config.get("metadata", "version", fallback=None),
            )
        if config.has_section("options"):
            self.runtime += _lines(config.get("options", "install_requires", fallback=""))
            self.test += _lines(config.get("options", "tests_require", fallback=""))
        if config.has_section("options.extras_require"):
            for extra, text in config.items("options.extras_require"):
                self._group(extra).extend(_lines(text))
        tox = _ini(self.tree, "tox.ini")
        if tox.has_section("testenv"):
            self.more += [
                re.sub(r"^[\w,{}!.-]+:\s+", "", line)
                for line in _lines(tox.get("testenv", "deps", fallback=""))
            ]

    def read_setup_py(self) -> None:
        """Read the literal arguments of setup(). Evaluates nothing else."""
        if "setup.py" not in self.tree:
            return
        module = parse_module(self.tree["setup.py"].content)
        if module is None:
            return
        for node in ast.walk(module):
            if (
                not isinstance(node, ast.Call)
                or getattr(node.func, "id", getattr(node.func, "attr", "")) != "setup"
            ):
                continue
            values: dict[str, Any] = {}
            for keyword in node.keywords:
                with contextlib.suppress(ValueError, TypeError, SyntaxError, RecursionError):
                    values[keyword.arg or ""] = ast.literal_eval(keyword.value)
            self._identify(values.get("name"), values.get("version"))
            self.runtime += _texts(values.get("install_requires"))
            self.test += _texts(values.get("tests_require"))
            extras = values.get("extras_require")
            for extra, texts in extras.items() if isinstance(extras, dict) else ():
                self._group(str(extra)).extend(_texts(texts))

    def read_egg_info(self) -> None:
        for path in sorted(p for p in self.tree if p.endswith(".egg-info/requires.txt")):
            section = ""
            for line in _lines(self.tree.text(path)):
                if line.startswith("["):
                    section = line.strip("[]")
                    continue
                extra, _, marker = section.partition(":")
                text = f"{line}; {marker}" if marker else line
                (self._group(extra) if extra else self.runtime).append(text)

    def read_requirement_files(self) -> None:
        for path in sorted(self.tree):
            group = self.test if TEST_FILES.match(path) else self.more if MORE_FILES.match(path) else None
            if group is not None:
                group += [line for line in _lines(self.tree.text(path)) if not line.startswith("-")]


def _table(document: Any, *keys: str) -> Mapping[str, Any]:
    for key in keys:
        document = document.get(key) if isinstance(document, Mapping) else None
    return document if isinstance(document, Mapping) else {}


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return _lines(value)
    return [item for item in value if isinstance(item, str)] if isinstance(value, list | tuple) else []


def _lines(text: str) -> list[str]:
    return [line for raw in text.splitlines() if (line := re.sub(r"(^|\s)#.*$", "", raw).strip())]


def _poetry(table: Mapping[str, Any]) -> list[str]:
    """Names only: the version operators are Poetry's own, and its lock file pins for other machines."""
    return [
        name
        for name, wanted in table.items()
        if name != "python" and not (isinstance(wanted, Mapping) and wanted.get("optional"))
    ]


def _ini(tree: Tree, path: str) -> configparser.RawConfigParser:
    config = configparser.RawConfigParser(strict=False)
    if path in tree:
        with contextlib.suppress(configparser.Error):
            config.read_string(tree.text(path))
    return config
