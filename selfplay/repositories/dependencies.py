"""Reads a repository's metadata for the dependencies of its tests. `installation` installs them.

Invariants: nothing of the repository runs. The repository itself, pytest and tools that no test run needs are
never among them. A copy of the repository would give repairs away, and `installation` pins pytest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from selfplay.repositories.declarations import (
    Declared,
    add_core_metadata,
    read_declarations,
    read_requirement_files,
)
from selfplay.repositories.markers import applies
from selfplay.repositories.requirement_text import ITSELF
from selfplay.repositories.tool_declarations import read_tools
from selfplay.repositories.versions import (
    UNKNOWN_VERSION,
    literal_version,
    takes_version_from_tags,
    version_files,
)
from selfplay.source.import_roots import Project, project_folders
from selfplay.source.texts import table
from selfplay.source.trees import Tree

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


# Modules of packages with another name. Only for packages that the repository declares.
DECLARED_MODULES = {
    "bs4": "beautifulsoup4",
    "Crypto": "pycryptodome",
    "cv2": "opencv-python",
    "docx": "python-docx",
    "dotenv": "python-dotenv",
    "fitz": "pymupdf",
    "flask_sqlalchemy": "flask-sqlalchemy",
    "git": "gitpython",
    "google": "protobuf",
    "jose": "python-jose",
    "jwt": "pyjwt",
    "ldap": "python-ldap",
    "magic": "python-magic",
    "MySQLdb": "mysqlclient",
    "OpenSSL": "pyopenssl",
    "PIL": "pillow",
    "psycopg2": "psycopg2-binary",
    "rest_framework": "djangorestframework",
    "ruamel": "ruamel-yaml",
    "serial": "pyserial",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "slugify": "python-slugify",
    "snappy": "python-snappy",
    "socks": "pysocks",
    "usb": "pyusb",
    "websocket": "websocket-client",
    "yaml": "pyyaml",
    "zmq": "pyzmq",
}

# Plugins of pytest that tests need, and miss without an error that names them when tests are collected.
PLUGIN_NAMES = """
    anyio pytest-aiohttp pytest-aioresponses pytest-anyio pytest-arraydiff pytest-asyncio pytest-bdd
    pytest-benchmark pytest-cases pytest-check pytest-click pytest-console-scripts pytest-datadir
    pytest-datafiles pytest-dependency pytest-django pytest-env pytest-factoryboy
    pytest-flask pytest-freezegun pytest-freezer pytest-golden pytest-helpers-namespace
    pytest-httpbin pytest-httpserver pytest-httpx pytest-insta pytest-lazy-fixture
    pytest-lazy-fixtures pytest-localserver pytest-mock pytest-mock-resources pytest-order
    pytest-parametrization pytest-pyodide pytest-qt pytest-recording pytest-regressions
    pytest-responses pytest-sanic
    pytest-snapshot pytest-socket pytest-structlog pytest-subprocess pytest-subtests pytest-time-machine
    pytest-tornado pytest-tornasync pytest-trio pytest-twisted pytest-unordered pytest-vcr pytest-xprocess
    syrupy
"""
PLUGINS = frozenset(PLUGIN_NAMES.split())

# How an error says in words which package it misses.
ASKS_FOR = (
    re.compile(r"^E .*\bpip install ['\"]?([A-Za-z][\w-]{0,60})", re.MULTILINE),
    re.compile(
        r"^E .*\b(?:requires?|needs?) (?:the )?[`'\"]?([A-Za-z][\w-]{0,60})[`'\"]? package", re.MULTILINE
    ),
)


@dataclass(frozen=True)
class Dependencies:
    """The requirements of a repository.

    runtime  must be installed
    test     should be installed
    more     development extras and the like, for a module that tests still miss
    others   name and version of the repository's other projects
    unread   what only the build backend knows: "dependencies", "extras", "version"
    urls     requirements at URLs, which are not installed
    """

    name: str
    version: str
    runtime: tuple[str, ...]
    test: tuple[str, ...]
    more: tuple[str, ...]
    others: tuple[tuple[str, str], ...] = ()
    unread: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()

    def wanted_by(self, log: str) -> tuple[str, ...]:
        """Well-known test libraries, and requirements of `more`, that the log of a collection misses."""
        missing = set(re.findall(r"No module named ['\"]?([A-Za-z_]\w*)", log))
        missing |= {name.replace("-", "_") for pattern in ASKS_FOR for name in pattern.findall(log)}
        fixtures = set(re.findall(r"fixture '(\w+)' not found", log))
        wanted = {MODULES[module] for module in missing & MODULES.keys()}
        wanted |= {FIXTURES[name] for name in fixtures & FIXTURES.keys()}
        named = {canonicalize_name(Requirement(text).name) for text in wanted}
        declared = {DECLARED_MODULES.get(module, "") for module in missing}
        for text in self.more:
            package = canonicalize_name(Requirement(text).name)
            name = package.replace("-", "_")
            spellings = {name, name.removeprefix("python_"), name.removeprefix("py")}
            is_missing = package in declared or spellings & {module.lower() for module in missing}
            if is_missing and package not in named:
                wanted.add(text)
        known = {canonicalize_name(Requirement(text).name) for text in (*self.runtime, *self.test)}
        known |= {canonicalize_name(name) for name, _ in self.others}
        return tuple(
            sorted(
                text
                for text in wanted
                if canonicalize_name(Requirement(text).name) not in {*known, canonicalize_name(self.name)}
            )
        )


def read_dependencies(
    tree: Tree, fallback_name: str, tag_version: str = "", metadata: str = "", python: str | None = None
) -> Dependencies:
    """Read the dependencies of a repository.

    fallback_name  for a repository whose metadata has no name
    tag_version    the version that git's tags mean, for a repository that takes it from there
    metadata       the core metadata of the top project, if its build backend was asked for them
    python         the version that the tests run with, None for the one that runs selfplay

    Files and tables that are damaged are skipped.
    """
    found = [
        _read_project(Project(tree, folder, python), tag_version, "" if folder else metadata)
        for folder in project_folders(tree)
    ]
    found[0].name = found[0].name or ("" if any(declared.name for declared in found) else fallback_name)
    main = next(declared for declared in found if declared.name)
    names = {canonicalize_name(declared.name) for declared in found} | _local_names(found)
    runtime = _chosen(names, _gathered(found, "runtime"), python)
    wanted = _gathered(found, "test")
    more = _gathered(found, "more")
    test = _chosen(names, [*wanted, *filter(_is_plugin, more)], python, runtime)
    return Dependencies(
        main.name,
        main.version or UNKNOWN_VERSION,
        runtime,
        test,
        _chosen(names, [*more, *_gathered(found, "other")], python, (*runtime, *test)),
        tuple(
            (declared.name, declared.version or UNKNOWN_VERSION)
            for declared in found
            if declared.name and declared is not main
        ),
        tuple(sorted(main.unread)),
        _at_urls(names, [*_gathered(found, "runtime"), *wanted], python),
    )


def _read_project(project: Project, tag_version: str, metadata: str) -> Declared:
    declared = Declared(project)
    if metadata:
        add_core_metadata(declared, metadata)
    read_declarations(declared)
    read_requirement_files(declared)
    read_tools(declared)
    if takes_version_from_tags(project):
        stated = tag_version or literal_version(project.tree, version_files(project))
        if declared.version.strip("0.") == "":  # none, or a place holder
            declared.version = stated or declared.version
        declared.unread.discard("version")
    if metadata:
        declared.unread.clear()
    return declared


def _local_names(found: Sequence[Declared]) -> set[str]:
    """The names that stand for other projects of the repository, which are imported from the workspace."""
    return {
        canonicalize_name(name)
        for declared in found
        for name, source in table(declared.project.pyproject, "tool", "uv", "sources").items()
        if {"workspace", "path"} & table(source).keys()
    }


def _gathered(found: Sequence[Declared], kind: str) -> list[str]:
    """The requirements of one kind, with those of extras in place of the projects that name them."""
    return [text for declared in found for text in _expanded(declared, getattr(declared, kind), set())]


def _expanded(declared: Declared, texts: Iterable[str], seen: set[str]) -> list[str]:
    expanded: list[str] = []
    own = {canonicalize_name(declared.name), ITSELF}
    for text in texts:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        if canonicalize_name(requirement.name) not in own:
            expanded.append(text)
            continue
        for extra in sorted(map(canonicalize_name, requirement.extras)):
            if extra not in seen:
                expanded += _expanded(declared, declared.extras.get(extra, []), {*seen, extra})
    return expanded


def _at_urls(own: set[str], texts: Iterable[str], python: str | None) -> tuple[str, ...]:
    """The requirements at URLs that this Python needs: any program could be behind one, or the repository."""
    found = {}
    for requirement in map(Requirement, texts):
        name = canonicalize_name(requirement.name)
        if requirement.url and applies(requirement, python) and name not in own:
            found[name] = f"{requirement.name} @ {requirement.url}"
    return tuple(found.values())


def _is_plugin(text: str) -> bool:
    return canonicalize_name(Requirement(text).name) in PLUGINS


def _chosen(
    own: set[str], texts: Iterable[str], python: str | None, taken: Sequence[str] = ()
) -> tuple[str, ...]:
    """The usable requirements of `texts`, each name once, without markers.

    Not usable: URLs, UNWANTED, names in `taken`, the projects of the repository itself (`own`), and markers
    that exclude this Python.
    """
    names = {canonicalize_name(Requirement(text).name) for text in taken} | UNWANTED | own
    chosen: list[str] = []
    for text in texts:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        name = canonicalize_name(requirement.name)
        if name in names or requirement.url or name.startswith(("sphinx", "types-", "flake8-", "mkdocs-")):
            continue
        if not applies(requirement, python):
            continue
        requirement.marker = None
        names.add(name)
        chosen.append(str(requirement))
    return tuple(chosen)
