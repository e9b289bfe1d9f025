"""Reads requirement files as pip does, from a tree instead of a disk.

pip's own reader opens any path and any URL of this machine, so it is not used on files of a repository.

Invariant: an include reaches files of the tree only, and each file once.
"""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name

from selfplay.repositories.markers import applies
from selfplay.source.texts import text_of
from selfplay.source.trees import Tree

# The repository itself with extras, as in `-e .[test]`: an entry with this name.
ITSELF = "selfplay-itself"
OPTION = re.compile(r"^(-r|--requirement|-c|--constraint|-e|--editable)(?:[\s=]+|(?<=-[rce]))(.*)$")
OWN_FOLDER = re.compile(
    r"^(?:[\w.-]+\s*@\s*)?(?:file:(?://)?)?(?:\.|\$?\{\w+\}|\{tox_root\})/?(?:\[([\w\s,.-]+)\])?$"
)
FILE_OPTIONS = ("-r", "--requirement", "-c", "--constraint", "-e", "--editable")
# Options of `pip install`. One that is not known here may take a value, which is no requirement.
VALUE_OPTION = re.compile(r"-[a-z]|--[a-z-]+")
FLAG_NAMES = """
    -q --quiet -v --verbose -y -U --upgrade -I --ignore-installed --no-deps --pre --user --no-input
    --no-cache-dir --no-index --force-reinstall --prefer-binary --require-hashes
    --no-build-isolation --use-pep517 --system --disable-pip-version-check --no-warn-script-location
    --break-system-packages --no-compile --isolated
    --no-python-version-warning --exact --strict --dry-run --reinstall --no-cache
"""
FLAGS = frozenset(FLAG_NAMES.split())
NAMED_URL = re.compile(r"^((?:git|hg|svn|bzr)\+[a-z]+://[^\s#]+)#(?:[^\s]*&)?egg=([\w.-]+)")
# Files that an `install` hint may refer to.
REQUIREMENT_FILES = re.compile(
    r"^([\w.-]*requirements?[\w.-]*|[\w.-]*constraints?[\w.-]*|(requirements|reqs)/[\w./-]+"
    r"|tests?/requirements[\w.-]*)\.(txt|in)$"
)


def requirement_files(tree: Tree) -> dict[str, str]:
    """The files that an `install` hint may refer to: requirements and constraints, nothing that can run."""
    return {path: tree.text(path) for path in sorted(tree) if REQUIREMENT_FILES.match(path)}


def plain_lines(text: str) -> list[str]:
    """The lines without comments and blanks. A backslash at the end joins a line with the next one."""
    joined = re.sub(r"\\\r?\n", " ", text)
    return [line for raw in joined.splitlines() if (line := re.sub(r"(^|\s)#.*$", "", raw).strip())]


@dataclass
class RequirementFile:
    """What a requirement file and its includes say.

    wanted       requirements in order; the repository itself is ITSELF with extras
    constraints  versions, by canonical name
    python       the version that markers are compared with, see `markers.applies`
    """

    wanted: list[str] = field(default_factory=list)
    constraints: dict[str, SpecifierSet] = field(default_factory=dict)
    python: str | None = None

    def requirements(self) -> list[str]:
        """The requirements, each with the versions that the constraints allow."""
        return [_constrained(text, self.constraints) for text in self.wanted]


def read_requirement_file(tree: Tree, path: str, python: str | None = None) -> list[str]:
    """The requirements of a file and of all files that it includes."""
    found = RequirementFile(python=python)
    _read_file(tree, path, found, set(), False)
    return found.requirements()


def read_requirement_lines(
    tree: Tree, lines: Iterable[str], folder: str = "", python: str | None = None
) -> list[str]:
    """The requirements of lines that stand in no requirement file, as in tox.ini. folder: for includes."""
    found = RequirementFile(python=python)
    _read_lines(tree, lines, folder, found, set(), False)
    return found.requirements()


def read_install_arguments(tree: Tree, words: Iterable[str], python: str | None = None) -> list[str]:
    """The requirements among the arguments of `pip install`."""
    lines: list[str] = []
    waiting = ""
    for word in words:
        if waiting:
            if waiting in FILE_OPTIONS:
                lines.append(f"{waiting} {word}")
            waiting = ""
        elif word in FILE_OPTIONS or (VALUE_OPTION.fullmatch(word) and word not in FLAGS):
            waiting = word
        elif word.startswith(("-r", "-c", "-e", "--requirement=", "--constraint=", "--editable=")) or (
            not word.startswith("-")
        ):
            lines.append(word)
    return read_requirement_lines(tree, lines, python=python)


def _read_file(tree: Tree, path: str, found: RequirementFile, seen: set[str], constrains: bool) -> None:
    path = posixpath.normpath(path)
    if path in seen or path not in tree:
        return
    seen.add(path)
    _read_lines(tree, plain_lines(text_of(tree, path)), posixpath.dirname(path), found, seen, constrains)


def _read_lines(
    tree: Tree,
    lines: Iterable[str],
    folder: str,
    found: RequirementFile,
    seen: set[str],
    constrains: bool,
) -> None:
    for line in lines:
        option = OPTION.match(line)
        if option is None:
            _take(line, found, constrains)
        elif option[1] in ("-e", "--editable"):
            _take(option[2].strip().strip("\"'"), found, constrains)
        else:
            is_constraint = constrains or option[1] in ("-c", "--constraint")
            for name in _unquoted(option[2]):
                name = re.sub(r"^\{toxinidir\}/", "", name)
                _read_file(tree, posixpath.join(folder, name), found, seen, is_constraint)


def _unquoted(text: str) -> Iterator[str]:
    try:
        yield from shlex.split(text)[:1]
    except ValueError:
        yield text.strip()


def _take(text: str, found: RequirementFile, constrains: bool) -> None:
    """Keep a requirement. Per-requirement options, such as hashes, are left out."""
    text = re.split(r"\s--?[a-z]", text, maxsplit=1)[0].strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1]
    itself = OWN_FOLDER.match(text)
    if text and itself:
        if itself[1]:
            found.wanted.append(f"{ITSELF}[{itself[1]}]")
        return
    named = NAMED_URL.match(text)
    text = f"{named[2]} @ {named[1]}" if named else text
    try:
        requirement = Requirement(text)
    except InvalidRequirement:
        return
    if not constrains:
        found.wanted.append(text)
    elif applies(requirement, found.python):
        name = canonicalize_name(requirement.name)
        found.constraints[name] = found.constraints.get(name, SpecifierSet()) & requirement.specifier


def _constrained(text: str, constraints: dict[str, SpecifierSet]) -> str:
    requirement = Requirement(text)
    limits = constraints.get(canonicalize_name(requirement.name))
    if not limits or requirement.url:
        return text
    try:
        requirement.specifier &= limits
    except (InvalidSpecifier, ValueError):
        return text
    return str(requirement)
