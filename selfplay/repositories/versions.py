"""The version of a repository that states none: from git's tags, or from a file of the package.

Invariants: nothing of the repository runs. A version file that a build would write, and that git does not
hold, is made here with the same names as the build gives it.
"""

from __future__ import annotations

import contextlib
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from packaging.version import InvalidVersion, Version

from selfplay.source.import_roots import Project
from selfplay.source.program_values import UNKNOWN
from selfplay.source.texts import strings, table, text_of, toml_of
from selfplay.source.trees import FileEntry, Tree, is_safe_path

UNKNOWN_VERSION = "0.0.0"
MAX_CHARACTERS = 100_000  # of a file that may state a version
# Tools that take the version from git's tags. Names of build requirements.
TAG_TOOLS = re.compile(
    r"^(setuptools[-_.]scm|hatch[-_.]vcs|versioningit|poetry[-_.]dynamic[-_.]versioning|versioneer"
    r"|setuptools[-_.]git[-_.]versioning|dunamai|flit[-_.]scm|pbr|pdm[-_.]backend|uv[-_.]dynamic[-_.]versioning"
    r"|setuptools[-_.]vcs[-_.]version|vcversioner|katver|miniver|incremental)\b",
    re.IGNORECASE,
)
VERSION_LITERAL = re.compile(
    r"^(?:__version__|version|VERSION|__VERSION__|_version)\b[^=\n]*(?:=\s*\w+\s*)*=\s*[\"'](v?\d[^\"'\n]*)[\"']",
    re.MULTILINE,
)
VERSION_IMPORT = re.compile(
    r"^[ \t]*(from[ \t]+(?P<start>[\w.]*\.)(?P<module>_version|_scm_version|__version__)[ \t]+import\b)",
    re.MULTILINE,
)
DESCRIPTION = re.compile(r"^(?P<tag>.+)-(?P<distance>\d+)-g(?P<commit>[0-9a-f]+)$")
# Settings of the tools that write a version file: its name, and its text with {version}.
FILE_KEYS = ("write_to", "version_file", "version-file", "path", "file")
TEMPLATE_KEYS = ("version_file_template", "write_to_template", "template")
GENERATED = """\
# Made by selfplay, as the build of the package makes it: the version comes from git's tags.
__version__ = version = {version!r}
__version_tuple__ = version_tuple = {parts!r}
__commit_id__ = commit_id = None
"""


# ---- from git's tags


def version_of_description(description: str) -> str:
    """The version that `git describe --tags --long` means, as setuptools-scm gives it. "" for none.

    v2.5.0-0-gabc is 2.5.0. v2.5.0-3-gabc is 2.5.1.dev3: before the next release.
    """
    found = DESCRIPTION.match(description.strip())
    version = _version_in(found["tag"]) if found else None
    if found is None or version is None:
        return ""
    distance = int(found["distance"])
    if not distance:
        return str(version)
    if version.pre is not None or version.dev is not None:
        return f"{version.base_version}{_pre(version)}.dev{distance}"
    numbers = version.base_version.split(".")
    return ".".join([*numbers[:-1], str(int(numbers[-1]) + 1)]) + f".dev{distance}"


def archived_version(tree: Tree) -> str:
    """The version that `git archive` wrote into .git_archival.txt, "" for none."""
    found = re.search(r"^describe-name: *([^$\s]+)$", text_of(tree, ".git_archival.txt"), re.MULTILINE)
    if found is None:
        return ""
    return version_of_description(found[1] if DESCRIPTION.match(found[1]) else f"{found[1]}-0-g0")


def _version_in(tag: str) -> Version | None:
    """The version at the end of a tag such as v1.2, shop-v1.2, release/1.2."""
    for start in re.finditer(r"(?<![\d.])\d", tag[:200]):
        with contextlib.suppress(InvalidVersion):
            return Version(tag[start.start() :].partition("+")[0])
    return None


def _pre(version: Version) -> str:
    return "" if version.pre is None else f"{version.pre[0]}{version.pre[1] + 1}"


def takes_version_from_tags(project: Project) -> bool:
    """Whether a build of the project would ask git for the version."""
    tools = table(project.pyproject, "tool")
    requires = strings(table(project.pyproject, "build-system").get("requires"))
    requires += [
        text for call in project.setup_calls for text in strings(call.keywords.get("setup_requires"))
    ]
    if project.setup_cfg.has_section("options"):
        requires += project.setup_cfg.get("options", "setup_requires", fallback="").split("\n")
    named = any(TAG_TOOLS.match(text.strip()) and not text.startswith("pdm") for text in requires)
    calls = any(
        {"use_scm_version", "pbr", "use_incremental"} & call.keywords.keys() for call in project.setup_calls
    )
    return (
        named
        or calls
        or table(tools, "pdm", "version").get("source") == "scm"
        or table(tools, "hatch", "version").get("source") == "vcs"
        or any(name in tools for name in ("setuptools_scm", "versioningit", "poetry-dynamic-versioning"))
        or project.setup_cfg.has_section("versioneer")
        or project.path("versioneer.py") in project.tree
    )


# ---- from files


def literal_version(tree: Tree, paths: Iterable[str]) -> str:
    """The first version that one of these files states, as a literal or as its only text. "" for none."""
    for path in paths:
        text = text_of(tree, path)[:MAX_CHARACTERS]
        found = VERSION_LITERAL.search(text) if path.endswith(".py") else None
        stated = found[1] if found else "" if path.endswith(".py") else text.strip()[:100]
        try:
            return str(Version(stated))
        except InvalidVersion:
            continue
    return ""


def version_files(project: Project) -> list[str]:
    """The files that may state a project's version: those that the metadata name, then the usual ones."""
    tree, tools = project.tree, table(project.pyproject, "tool")
    named = strings(table(tools, "hatch", "version").get("path"))
    named += strings(table(toml_of(tree, project.path("hatch.toml")), "version").get("path"))
    named += strings(table(tools, "pdm", "version").get("path"))
    dynamic = table(tools, "setuptools", "dynamic", "version")
    stated = project.setup_cfg.get("metadata", "version", fallback="") if _has_metadata(project) else ""
    named += strings(dynamic.get("file"))
    named += [stated[5:].strip()] if stated.startswith("file:") else []
    attributes = strings(dynamic.get("attr")) + ([stated[5:].strip()] if stated.startswith("attr:") else [])
    for attribute in attributes:
        module = attribute.rpartition(".")[0].replace(".", "/")
        for root in ("", "src/", "lib/"):
            named += [f"{root}{module}.py", f"{root}{module}/__init__.py"]
    below = f"{project.folder}/" if project.folder else ""
    usual = re.compile(
        rf"{re.escape(below)}((src|lib|python)/)?(?!tests?/)\w+"
        r"(/(__init__|__about__|__version__|_version|version)\.py|\.py)|VERSION"
    )
    found = [path for path in map(project.path, named) if path in tree]
    return list(dict.fromkeys([*found, *sorted(path for path in tree if usual.fullmatch(path))]))


def _has_metadata(project: Project) -> bool:
    return project.setup_cfg.has_section("metadata")


# ---- files that a build writes


def missing_version_files(tree: Tree, project: Project, version: str) -> dict[str, FileEntry]:
    """The version files that a build of the project would write and that the tree lacks, by path."""
    made = {}
    imported = [(name, "") for name in _imported_version_files(tree, project)]
    for name, template in (*_written_files(project), *imported):
        path = project.path(name)
        if path in made:
            continue
        folder = posixpath.dirname(path)
        is_there = not folder or folder in tree.folders
        if (
            path not in tree
            and path not in tree.folders
            and is_safe_path(path)
            and path.isprintable()
            and is_there
        ):
            made[path] = FileEntry(_generated(path, template, version or UNKNOWN_VERSION).encode())
    return made


def _generated(path: str, template: str, version: str) -> str:
    parts = tuple(int(part) if part.isdigit() else part for part in re.split(r"[.+]", version))
    if template:
        values = {"": version, "!s": version, "!r": repr(version), "_tuple": repr(parts)}
        return re.sub(r"\{version(_tuple|!r|!s|)\}", lambda found: values[found[1]], template)
    return GENERATED.format(version=version, parts=parts) if path.endswith(".py") else f"{version}\n"


def _written_files(project: Project) -> Iterator[tuple[str, str]]:
    """Yield each file that the metadata say a build writes, relative to the project, and its template."""
    tools = table(project.pyproject, "tool")
    hatch = [
        table(tools, "hatch", "build"),
        table(toml_of(project.tree, project.path("hatch.toml")), "build"),
    ]
    tables: list[Mapping[str, Any]] = [
        table(tools, "setuptools_scm"),
        table(tools, "pdm", "version"),
        table(tools, "versioningit", "write"),
        *(table(build, "hooks", "vcs") for build in hatch),
        *(table(build, "hooks", "version") for build in hatch),
    ]
    for call in project.setup_calls:
        scm = call.keywords.get("use_scm_version")
        tables.append({name: item for name, item in table(scm).items() if item is not UNKNOWN})
    generated = table(tools, "scikit-build").get("generate")
    tables += [table(entry) for entry in generated] if isinstance(generated, list) else []
    for options in tables:
        if options.get("source", "scm") != "scm":  # PDM reads the version from such a file
            continue
        templates = strings([options.get(key) for key in TEMPLATE_KEYS])
        for name in strings([options.get(key) for key in FILE_KEYS]):
            place = f"src/{name}" if _is_below_src(project, name) else name
            yield place, templates[0] if templates else ""


def _imported_version_files(tree: Tree, project: Project) -> Iterator[str]:
    """Yield the version modules beside modules that import them, if the version comes from git's tags."""
    if not takes_version_from_tags(project):
        return
    below = f"{project.folder}/" if project.folder else ""
    for path in tree:
        if path.startswith(below) and path.endswith("/__init__.py"):
            folder = posixpath.dirname(path)
            for found in VERSION_IMPORT.finditer(text_of(tree, path)[:MAX_CHARACTERS]):
                if found["start"].strip(".") in ("", posixpath.basename(folder)):
                    yield posixpath.join(folder, f"{found['module']}.py").removeprefix(below)


def _is_below_src(project: Project, name: str) -> bool:
    """Whether a file's folder is only below src: pdm and versioningit count from the package's root."""
    folder = posixpath.dirname(name)
    below = [project.path(f"{root}{folder}") + "/" for root in ("", "src/")]
    is_there = [any(path.startswith(start) for path in project.tree) for start in below]
    return bool(folder) and not is_there[0] and is_there[1]
