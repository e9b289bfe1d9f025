"""Collects what one project of a repository declares that it needs, from the metadata of all build backends.

`tool_declarations` reads the tables of tools that build nothing. `dependencies` chooses from all of it.

Invariants: nothing of the repository runs. The first source that gives a name or a version wins. What only
the build backend knows is named in `unread`.
"""

from __future__ import annotations

import contextlib
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from email.parser import HeaderParser
from typing import Any

from packaging.dependency_groups import DependencyGroupResolver
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from selfplay.repositories.markers import applies
from selfplay.repositories.requirement_text import (
    plain_lines,
    read_requirement_file,
    read_requirement_lines,
)
from selfplay.repositories.versions import literal_version, version_files
from selfplay.source.import_roots import Project
from selfplay.source.program_values import UNKNOWN, Call, OpenedFile
from selfplay.source.texts import strings, table, text_of

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
# Any other file of requirements, at most one folder down.
OTHER_FILES = re.compile(
    r"^([\w.-]+/)?[\w.-]*(requirements?|reqs|deps)[\w.-]*\.(txt|in)$|^(requirements|deps)/[\w.-]+\.txt$",
    re.IGNORECASE,
)


class Declared:
    """The requirements of one project, by how much its tests need them.

    runtime  of the package
    test     of its tests by their name
    more     of development
    other    of anything else, such as optional features
    extras   requirements by the name of the extra, for requirements such as `shop[test]`
    unread   what only the build backend knows: "dependencies", "extras", "version"
    """

    def __init__(self, project: Project) -> None:
        self.project = project
        self.tree = project.tree
        self.name = ""
        self.version = ""
        self.runtime: list[str] = []
        self.test: list[str] = []
        self.more: list[str] = []
        self.other: list[str] = []
        self.extras: dict[str, list[str]] = {}
        self.unread: set[str] = set()

    def path(self, name: str) -> str:
        return self.project.path(name)

    def identify(self, name: Any, version: Any) -> None:
        """Take a name and a version if they are valid and none was found before."""
        if not self.name and isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            self.name = name
        if not self.version and isinstance(version, str):
            with contextlib.suppress(InvalidVersion):
                self.version = str(Version(version))

    def add_group(self, name: str, requirements: Iterable[str]) -> None:
        """Take the requirements of an extra or a group, and decide by its name what they are for."""
        name = canonicalize_name(name)
        found = list(requirements)
        chosen = self.other
        if TEST_EXTRAS.match(name):
            chosen = self.test
        elif MORE_EXTRAS.match(name):
            chosen = self.more
        chosen += found
        self.extras.setdefault(name, []).extend(found)

    def lines(self, value: Any) -> list[str]:
        """The requirements in a value of metadata: a text with lines, a list of texts, or an opened file."""
        if isinstance(value, OpenedFile):
            return read_requirement_file(self.tree, value.path, self.project.python)
        texts = [line for text in strings(value) for line in plain_lines(text)]
        return read_requirement_lines(self.tree, texts, self.project.folder, self.project.python)

    def files(self, names: Any) -> list[str]:
        """The requirements in files of the project."""
        paths, python = map(self.path, strings(names)), self.project.python
        return [text for path in paths for text in read_requirement_file(self.tree, path, python)]


def read_declarations(declared: Declared) -> None:
    """Read core metadata, pyproject.toml, setup.cfg, setup.py, requires.txt and requirement files."""
    _read_core_metadata(declared)
    is_built = bool(declared.runtime or declared.version)
    _read_pyproject(declared)
    _read_setup_cfg(declared)
    _read_setup_py(declared)
    _read_egg_info(declared)
    if is_built:  # by a build backend, which knew everything
        declared.unread.clear()


def read_requirement_files(declared: Declared) -> None:
    """Read the files that are named as requirement files are."""
    folder, python = declared.project.folder, declared.project.python
    for path in sorted(declared.tree):
        if folder and not path.startswith(f"{folder}/"):
            continue
        name = posixpath.relpath(path, folder) if folder else path
        if TEST_FILES.match(name):
            declared.test += read_requirement_file(declared.tree, path, python)
        elif MORE_FILES.match(name):
            declared.more += read_requirement_file(declared.tree, path, python)
        elif OTHER_FILES.match(name):
            declared.other += read_requirement_file(declared.tree, path, python)


# ---- core metadata


def _read_core_metadata(declared: Declared) -> None:
    folder = declared.project.folder
    below = f"{folder}/" if folder else ""
    egg_infos = sorted(p for p in declared.tree if p.startswith(below) and p.endswith(".egg-info/PKG-INFO"))
    for path in (declared.path("PKG-INFO"), *egg_infos):
        if path in declared.tree:
            add_core_metadata(declared, text_of(declared.tree, path))


def add_core_metadata(declared: Declared, text: str) -> None:
    """Take the headers of a PKG-INFO or METADATA file."""
    headers = HeaderParser().parsestr(text)
    declared.identify(headers.get("Name"), headers.get("Version"))
    extras = [str(extra) for extra in headers.get_all("Provides-Extra") or []]
    for requirement in headers.get_all("Requires-Dist") or []:
        _add_conditional(declared, str(requirement), extras)


def _add_conditional(declared: Declared, text: str, extras: Sequence[str]) -> None:
    try:
        requirement = Requirement(text)
    except InvalidRequirement:
        return
    python = declared.project.python
    if applies(requirement, python):
        declared.runtime.append(text)
        return
    wanted = [extra for extra in extras if applies(requirement, python, extra)]
    requirement.marker = None
    for extra in wanted:
        declared.add_group(extra, [str(requirement)])


# ---- pyproject.toml


def _read_pyproject(declared: Declared) -> None:
    document = declared.project.pyproject
    project, poetry, flit = (
        table(document, *keys) for keys in (("project",), ("tool", "poetry"), ("tool", "flit", "metadata"))
    )
    declared.identify(project.get("name"), project.get("version"))
    declared.identify(poetry.get("name"), poetry.get("version"))
    declared.identify(flit.get("dist-name", flit.get("module")), None)
    declared.runtime += declared.lines(project.get("dependencies"))
    for extra, texts in table(project, "optional-dependencies").items():
        declared.add_group(extra, declared.lines(texts))
    for group, texts in read_dependency_groups(table(document, "dependency-groups")).items():
        declared.add_group(group, texts)
    _read_poetry(declared, poetry)
    declared.runtime += declared.lines(flit.get("requires"))
    for extra, texts in table(flit, "requires-extra").items():
        if extra == ".none":  # flit's name for none
            declared.runtime += declared.lines(texts)
        else:
            declared.add_group(extra, declared.lines(texts))
    declared.more += declared.lines(flit.get("dev-requires"))
    _read_dynamic(declared, strings(project.get("dynamic")))


def read_dependency_groups(groups: Mapping[str, Any]) -> dict[str, list[str]]:
    """The requirements of each group (PEP 735), those of included groups among them.

    A group that is not valid keeps the requirements that can be read.
    """
    found: dict[str, list[str]] = {}
    try:
        resolver: DependencyGroupResolver | None = DependencyGroupResolver(dict(groups))
    except (ValueError, TypeError, AttributeError, ExceptionGroup):
        resolver = None
    for name, entries in groups.items():
        try:
            found[name] = [] if resolver is None else [str(wanted) for wanted in resolver.resolve(name)]
        except (ValueError, TypeError, LookupError, RecursionError, ExceptionGroup):
            found[name] = []
        found[name] = found[name] or _reachable(groups, name, set()) if isinstance(entries, list) else []
    return found


def _reachable(groups: Mapping[str, Any], name: str, seen: set[str]) -> list[str]:
    """The texts of a group and of the groups that it includes, as far as they exist."""
    by_name = {canonicalize_name(group): entries for group, entries in groups.items()}
    name = canonicalize_name(name)
    entries = by_name.get(name)
    if name in seen or not isinstance(entries, list):
        return []
    seen.add(name)
    found: list[str] = []
    for entry in entries:
        included = table(entry).get("include-group")
        if isinstance(entry, str):
            found.append(entry)
        elif isinstance(included, str):
            found += _reachable(groups, included, seen)
    return found


def _read_poetry(declared: Declared, poetry: Mapping[str, Any]) -> None:
    wanted = table(poetry, "dependencies")
    if not table(declared.project.pyproject, "project").get("dependencies"):
        declared.runtime += poetry_requirements(wanted)
    declared.more += poetry_requirements(table(poetry, "dev-dependencies"), with_versions=False)
    for group, content in table(poetry, "group").items():
        texts = poetry_requirements(table(content, "dependencies"), with_versions=False)
        declared.add_group(group, texts)
    for extra, names in table(poetry, "extras").items():
        optional = {name: {**_poetry_options(wanted.get(name)), "optional": False} for name in strings(names)}
        declared.add_group(extra, poetry_requirements(optional))


def poetry_requirements(entries: Mapping[str, Any], with_versions: bool = True) -> list[str]:
    """The requirements of a table of Poetry, without Python itself and optional, local and remote sources.

    with_versions: false for what tests need, where the newest version that can be installed serves better.
    """
    found = []
    for name, entry in entries.items():
        options = _poetry_options(entry)
        if name.lower() == "python" or options.get("optional") or {"path", "git", "url"} & options.keys():
            continue
        extras = ",".join(strings(options.get("extras")))
        version = poetry_versions(str(options.get("version", "*"))) if with_versions else ""
        found.append(f"{name}[{extras}]{version}" if extras else f"{name}{version}")
    return found


def _poetry_options(entry: Any) -> dict[str, Any]:
    if isinstance(entry, list):  # one entry for each platform or Python
        entry = {key: item for part in entry for key, item in table(part).items() if key != "version"}
    return {"version": entry} if isinstance(entry, str) else dict(table(entry))


def poetry_versions(text: str) -> str:
    """Poetry's version operators as those of packaging; "" if packaging has no word for them."""
    parts = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        found = re.fullmatch(r"(\^|~(?!=))\s*(\d+(?:\.\d+)*)[\w.]*", part)
        if found:
            numbers = [int(number) for number in found[2].split(".")]
            position = min(1, len(numbers) - 1)
            if found[1] == "^":
                position = next((i for i, number in enumerate(numbers) if number), len(numbers) - 1)
            above = ".".join(map(str, [*numbers[:position], numbers[position] + 1]))
            parts.append(f">={found[2]},<{above}")
        elif re.fullmatch(r"\d[\w.]*(\.\*)?", part):
            parts.append(f"=={part}")
        elif re.fullmatch(r"(>=|<=|>|<|==|!=|~=)\s*\d[\w.]*(\.\*)?", part):
            parts.append(part.replace(" ", ""))
        elif part != "*":
            return ""
    return ",".join(parts)


def _read_dynamic(declared: Declared, dynamic: Sequence[str]) -> None:
    """Read what [project] leaves to the build backend: setuptools' and hatch's files."""
    document = declared.project.pyproject
    setuptools = table(document, "tool", "setuptools", "dynamic")
    before = len(declared.runtime)
    declared.runtime += declared.files(table(setuptools, "dependencies").get("file"))
    declared.runtime += declared.files(
        table(document, "tool", "hatch", "metadata", "hooks", "requirements_txt").get("files")
    )
    for extra, source in table(setuptools, "optional-dependencies").items():
        declared.add_group(extra, declared.files(table(source).get("file")))
    hooks = table(document, "tool", "hatch", "metadata", "hooks", "requirements_txt")
    for extra, files in table(hooks, "optional-dependencies").items():
        declared.add_group(extra, declared.files(files))
    if "dependencies" in dynamic and len(declared.runtime) == before:
        declared.unread.add("dependencies")
    if "optional-dependencies" in dynamic and not declared.extras:
        declared.unread.add("extras")
    if "version" in dynamic or table(setuptools, "version"):
        declared.identify(None, literal_version(declared.tree, version_files(declared.project)))
        declared.unread |= set() if declared.version else {"version"}


# ---- setuptools


def _read_setup_cfg(declared: Declared) -> None:
    config = declared.project.setup_cfg
    if config.has_section("metadata"):
        version = config.get("metadata", "version", fallback="")
        declared.identify(config.get("metadata", "name", fallback=None), version)
        if version.startswith(("attr:", "file:")):
            declared.identify(None, literal_version(declared.tree, version_files(declared.project)))
            declared.unread |= set() if declared.version else {"version"}
    if config.has_section("options"):
        declared.runtime += _listed(declared, config.get("options", "install_requires", fallback=""))
        declared.test += _listed(declared, config.get("options", "tests_require", fallback=""))
    for section in ("options.extras_require", "extras"):  # of setuptools and of pbr
        if config.has_section(section):
            for extra, text in config.items(section):
                declared.add_group(extra, _listed(declared, text))


def _listed(declared: Declared, text: str) -> list[str]:
    """The requirements of an option of setup.cfg: lines, or `file:` and names."""
    if text.strip().startswith("file:"):
        return declared.files([name.strip() for name in text.strip()[5:].split(",")])
    return declared.lines([part for line in plain_lines(text) for part in _parts(line)])


def _parts(line: str) -> list[str]:
    """setup.cfg separates requirements by lines, or by `;` where that begins no marker."""
    parts = [part.strip() for part in line.split(";")]
    is_list = len(parts) > 1 and all(re.fullmatch(r"[\w.\[\]-]+([<>=!~]=?[\w.]+)?", part) for part in parts)
    return parts if is_list else [line]


def _read_setup_py(declared: Declared) -> None:
    for call in declared.project.setup_calls:
        values = call.keywords
        declared.identify(values.get("name"), _text(declared, values.get("version")))
        if not declared.version and values.get("version") is not None:
            declared.identify(None, literal_version(declared.tree, version_files(declared.project)))
        declared.runtime += declared.lines(values.get("install_requires"))
        declared.test += declared.lines(values.get("tests_require"))
        extras = values.get("extras_require")
        for extra, texts in extras.items() if isinstance(extras, dict) else ():
            declared.add_group(str(extra).partition(":")[0], declared.lines(texts))
        _note_unread(declared, call)
    calls_pbr = any(call.keywords.get("pbr") for call in declared.project.setup_calls)
    if calls_pbr:
        declared.runtime += declared.files("requirements.txt")


def _note_unread(declared: Declared, call: Call) -> None:
    """Note which arguments of `setup` were not understood."""
    extras = call.keywords.get("extras_require")
    parts = {"dependencies": call.keywords.get("install_requires"), "extras": extras}
    for name, value in parts.items():
        inner = list(value.values()) if isinstance(value, dict) else value
        flat = inner if isinstance(inner, list | tuple) else [inner]
        if any(item is UNKNOWN for item in flat) or "**" in call.keywords:
            declared.unread.add(name)
    if not declared.version and call.keywords.get("version") is not None:
        declared.unread.add("version")


def _text(declared: Declared, value: Any) -> Any:
    return text_of(declared.tree, value.path).strip() if isinstance(value, OpenedFile) else value


def _read_egg_info(declared: Declared) -> None:
    folder = declared.project.folder
    below = f"{folder}/" if folder else ""
    for path in sorted(
        p for p in declared.tree if p.startswith(below) and p.endswith(".egg-info/requires.txt")
    ):
        section = ""
        for line in plain_lines(text_of(declared.tree, path)):
            if line.startswith("["):
                section = line.strip("[]")
                continue
            extra, _, marker = section.partition(":")
            text = f"{line}; {marker}" if marker else line
            if extra:
                declared.add_group(extra, [text])
            else:
                declared.runtime.append(text)
