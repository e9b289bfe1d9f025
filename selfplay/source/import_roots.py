"""Where a repository's packages are imported from: its projects, and the folders that go on Python's path.

Reads the build metadata as the build backends do, and runs nothing. The only place that knows import roots:
environments put them on the path, and the path policy protects what would shadow a module there.

Invariant: every folder is one of the tree, and holds no character that PYTHONPATH cannot carry.
"""

from __future__ import annotations

import posixpath
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from selfplay.source.program_values import Call, ProgramReader
from selfplay.source.syntax import parse_module
from selfplay.source.texts import ini_of, strings, table, text_of, toml_of

if TYPE_CHECKING:
    from selfplay.source.trees import Tree

GUESSED_ROOTS = ("src", "lib", "python")
MAX_DEPTH = 3  # folders above a project of a repository whose top is none
MAX_PROJECTS = 30
MAX_LOOKED_AT = 100  # folders, and patterns of a workspace
MAX_KNOWN = 256
PROJECT_FILES = re.compile(
    r"pyproject\.toml|setup\.(py|cfg)|PKG-INFO|pytest\.ini|tox\.ini|Pipfile|manage\.py|requirements[\w.-]*\.txt"
)
# Folders whose projects are not those of the repository.
OTHER_PROJECTS = re.compile(
    r"(^|/)(tests?|testing|examples?|docs?|benchmarks?|samples?|templates?|fixtures|node_modules|third_party"
    r"|_?vendor(ed)?|extern(al)?|tools|scripts|\..*|.*\{.*)(/|$)",
    re.IGNORECASE,
)

_known: dict[str, tuple[str, ...]] = {}


# ---- the roots


def import_roots(tree: Tree) -> tuple[str, ...]:
    """The folders on Python's path, in order. "" is the top of the tree, and always the last."""
    if tree.digest not in _known:
        if len(_known) >= MAX_KNOWN:
            _known.clear()
        _known[tree.digest] = tuple(_roots_of(tree))
    return _known[tree.digest]


def guessed_roots(tree: Tree, folder: str = "") -> list[str]:
    """The roots of a project without metadata: src, lib or python if a package or module is there."""
    found: list[str] = []
    for name in GUESSED_ROOTS:
        root = posixpath.join(folder, name)
        pattern = re.compile(rf"{re.escape(root)}/([A-Za-z_]\w*/__init__|[A-Za-z_]\w*)\.py")
        if f"{root}/__init__.py" not in tree and any(pattern.fullmatch(path) for path in tree):
            found.insert(0, root)
    return found


def _roots_of(tree: Tree) -> list[str]:
    roots: dict[str, None] = {}
    for folder in project_folders(tree):
        named = [
            posixpath.normpath(posixpath.join(folder, name)) for name in _named_roots(Project(tree, folder))
        ]
        guessed = guessed_roots(tree, folder)
        src = posixpath.join(folder, "src")
        if src not in guessed and _is_namespace_root(tree, src) and not _has_package(tree, folder):
            guessed.append(src)
        own = [folder] if folder else []
        for root in [*(name for name in named if name not in guessed), *guessed, *own]:
            if root != "." and _is_usable(tree, root):
                roots.setdefault(root)
    return [*(root for root in roots if root), ""]


def _is_usable(tree: Tree, root: str) -> bool:
    is_plain = not root.startswith(("/", "..")) and ":" not in root and root.isprintable()
    return is_plain and root in tree.folders


def _has_package(tree: Tree, folder: str) -> bool:
    """Whether a package that is not of tests stands directly in the folder."""
    below = re.escape(f"{folder}/" if folder else "")
    package = re.compile(rf"{below}(?!tests?/|docs?/|examples?/)[A-Za-z_]\w*/__init__\.py")
    return any(package.fullmatch(path) for path in tree)


def _is_namespace_root(tree: Tree, root: str) -> bool:
    """Whether packages without __init__.py are below `root`, as namespace packages are."""
    pattern = re.compile(rf"{re.escape(root)}/([A-Za-z_]\w*/)+[A-Za-z_]\w*\.py")
    return f"{root}/__init__.py" not in tree and any(pattern.fullmatch(path) for path in tree)


def renamed_packages(tree: Tree) -> dict[str, str]:
    """The folders of packages that have another name than their folder, by the name of the package."""
    found: dict[str, str] = {}
    for folder in project_folders(tree):
        project = Project(tree, folder)
        for package, place in _named_packages(project):
            path = project.path(place)
            is_name = re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", package)
            if (
                is_name
                and not f"/{path}".endswith(f"/{package.replace('.', '/')}")
                and _is_usable(tree, path)
            ):
                found.setdefault(package, path)
    return found


def _named_packages(project: Project) -> Iterator[tuple[str, str]]:
    """Yield each package that the metadata name with its folder, relative to the project."""
    tools = table(project.pyproject, "tool")
    yield from _package_folders(table(tools, "setuptools").get("package-dir"))
    yield from _package_folders(_setup_cfg_folders(project))
    for call in project.setup_calls:
        yield from _package_folders(call.keywords.get("package_dir"))
    yield from _package_folders(table(tools, "scikit-build", "wheel").get("packages"))
    for build in (
        table(tools, "hatch", "build"),
        table(toml_of(project.tree, project.path("hatch.toml")), "build"),
    ):
        for options in (build, table(build, "targets", "wheel")):
            for folder, name in table(options, "sources").items():
                yield from _package_folders({str(name).replace("/", "."): folder})
    for package in _items(table(tools, "poetry").get("packages")):
        include, start, to = (str(table(package).get(key, "")) for key in ("include", "from", "to"))
        if to:
            name = f"{to}/{include}".strip("/").replace("/", ".")
            yield from _package_folders({name: posixpath.join(start, include)})


# ---- projects


class Project:
    """The metadata files of one folder. setup_calls: what its setup.py calls `setup` with.

    python: the version that the tests run with, None for the one that runs selfplay.
    """

    def __init__(self, tree: Tree, folder: str, python: str | None = None) -> None:
        self.python = python
        self.tree = tree
        self.folder = folder
        self.pyproject = toml_of(tree, self.path("pyproject.toml"))
        self.setup_cfg = ini_of(tree, self.path("setup.cfg"))
        self.setup_calls = self.calls_of("setup.py", "setup")

    def path(self, name: str) -> str:
        """A path of the tree from one that is relative to the project."""
        return posixpath.normpath(posixpath.join(self.folder, name))

    def calls_of(self, name: str, *functions: str) -> list[Call]:
        """The calls of these functions in a Python program of the project."""
        entry = self.tree.get(self.path(name))
        module = parse_module(entry.content) if entry is not None else None
        if module is None:
            return []
        return ProgramReader(self._text_of, self.folder, frozenset(functions), self.python).read(module)

    def _text_of(self, path: str) -> str | None:
        return text_of(self.tree, path) if path in self.tree else None

    @property
    def is_described(self) -> bool:
        """Whether the folder holds the metadata of a package."""
        return bool(
            self.setup_calls
            or self.setup_cfg.has_section("options")
            or self.path("PKG-INFO") in self.tree
            or table(self.pyproject, "project")
            or table(self.pyproject, "build-system")
            or any(table(self.pyproject, "tool", name) for name in ("poetry", "flit"))
        )


def project_folders(tree: Tree) -> list[str]:
    """The folders of the repository's projects; the top, "", is the first.

    Others are the members of a workspace that the top names, and the projects at local paths that it depends
    on. If the top is no project itself, all projects below it.
    """
    top = Project(tree, "")
    below = {posixpath.dirname(path) for path in tree if PROJECT_FILES.fullmatch(posixpath.basename(path))}
    below = {folder for folder in below if folder and not OTHER_PROJECTS.search(folder)}
    if top.is_described or _has_package(tree, ""):
        wanted = list(_member_patterns(top.pyproject))[:MAX_LOOKED_AT]
        chosen = [folder for folder in sorted(below) if any(fnmatchcase(folder, name) for name in wanted)]
    else:
        near = sorted(folder for folder in below if folder.count("/") < MAX_DEPTH)
        chosen = [folder for folder in near[:MAX_LOOKED_AT] if _is_project(tree, folder)]
    return ["", *chosen[:MAX_PROJECTS]]


def _is_project(tree: Tree, folder: str) -> bool:
    """Whether a folder below a top that is no project is one: it is described, or holds a package.

    Not a package itself, and no folder whose modules would hide some of the standard library.
    """
    if Project(tree, folder).is_described:
        return True
    package = re.compile(rf"{re.escape(folder)}/(?!tests?/)[A-Za-z_]\w*/\w+\.py")
    hiding = (f"{folder}/{name}.py" for name in ("__init__", *sys.stdlib_module_names))
    return any(package.fullmatch(path) for path in tree) and not any(path in tree for path in hiding)


def _member_patterns(pyproject: Mapping[str, Any]) -> Iterator[str]:
    for tool in ("uv", "rye", "hatch"):
        yield from _plain(strings(table(pyproject, "tool", tool, "workspace").get("members")))
    for source in table(pyproject, "tool", "uv", "sources").values():
        yield from _plain(strings(table(source).get("path")))
    poetry = table(pyproject, "tool", "poetry")
    groups = [poetry.get("dependencies"), poetry.get("dev-dependencies")]
    groups += [table(group).get("dependencies") for group in table(poetry, "group").values()]
    for group in groups:
        for wanted in table(group).values():
            yield from _plain(strings(table(wanted).get("path")))


def _plain(paths: Iterable[str]) -> list[str]:
    return [path for path in (posixpath.normpath(path) for path in paths) if path != "."]


# ---- what build backends are told


def _named_roots(project: Project) -> Iterator[str]:
    """The roots that the metadata name, relative to the project; "." for its folder."""
    tools = table(project.pyproject, "tool")
    yield from _setuptools_roots(table(tools, "setuptools"))
    yield from _setup_cfg_roots(project)
    for call in project.setup_calls:
        yield from _setup_py_roots(call)
    for package in _items(table(tools, "poetry").get("packages")):
        yield from strings(table(package).get("from"))
    yield from _hatch_roots(table(tools, "hatch", "build"))
    yield from _hatch_roots(table(toml_of(project.tree, project.path("hatch.toml")), "build"))
    pdm = table(tools, "pdm", "build")
    yield from strings(pdm.get("package-dir"))
    backend = table(tools, "uv", "build-backend")
    yield from strings(backend.get("module-root"))
    yield from strings(table(tools, "maturin").get("python-source"))
    yield from strings(table(tools, "flit", "module").get("src"))
    yield from _parents(table(tools, "scikit-build", "wheel").get("packages"))
    yield from _parents(pdm.get("includes"))


def _setuptools_roots(setuptools: Mapping[str, Any]) -> Iterator[str]:
    yield from strings(table(setuptools, "packages", "find").get("where"))
    yield from package_dir_roots(table(setuptools, "package-dir"))


def package_dir_roots(folders: Any) -> Iterator[str]:
    """The roots that setuptools' package_dir means: {"": "src"}, {"shop": "code/shop"}."""
    for package, folder in _package_folders(folders):
        own = package.replace(".", "/")
        if not package:
            yield folder
        elif f"/{folder}".endswith(f"/{own}"):
            yield folder.removesuffix(own).rstrip("/") or "."


def _package_folders(folders: Any) -> Iterator[tuple[str, str]]:
    for package, folder in folders.items() if isinstance(folders, Mapping) else ():
        if isinstance(package, str) and isinstance(folder, str):
            yield package, posixpath.normpath(folder)


def _setup_cfg_roots(project: Project) -> Iterator[str]:
    config = project.setup_cfg
    if config.has_section("options"):
        pairs = (
            line.partition("=") for line in config.get("options", "package_dir", fallback="").split("\n")
        )
        yield from package_dir_roots({key.strip(): value.strip() for key, equals, value in pairs if equals})
    for section in ("options.packages.find", "options.packages.find_namespace"):
        if config.has_section(section):
            yield from filter(None, [config.get(section, "where", fallback="").strip()])
    if config.has_section("files"):  # pbr
        yield from filter(None, [config.get("files", "packages_root", fallback="").strip()])


def _setup_cfg_folders(project: Project) -> dict[str, str]:
    """`package_dir` of setup.cfg: package -> folder."""
    config = project.setup_cfg
    if not config.has_section("options"):
        return {}
    pairs = (line.partition("=") for line in config.get("options", "package_dir", fallback="").split("\n"))
    return {key.strip(): value.strip() for key, equals, value in pairs if equals}


def _setup_py_roots(call: Call) -> Iterator[str]:
    yield from package_dir_roots(call.keywords.get("package_dir"))
    packages = call.keywords.get("packages")
    for found in packages if isinstance(packages, list | tuple) else [packages]:
        if isinstance(found, Call):
            yield from strings(found.argument(0, "where"))


def _hatch_roots(build: Mapping[str, Any]) -> Iterator[str]:
    for options in (build, table(build, "targets", "wheel"), table(build, "targets", "sdist")):
        sources = options.get("sources")
        yield from strings(sources)
        yield from package_dir_roots({str(name): folder for folder, name in table(sources).items()})
        yield from _parents(options.get("packages"))
        yield from strings(options.get("dev-mode-dirs"))


def _parents(folders: Any) -> Iterator[str]:
    for folder in strings(folders):
        if re.fullmatch(r"[\w./-]+", folder):
            yield posixpath.dirname(folder.rstrip("/")) or "."


def _items(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []
