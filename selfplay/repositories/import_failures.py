"""Why a module cannot be imported, from the text of one error: whose module is missing, and what brings it.

Pure functions. They read a repository's files and run nothing.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from selfplay.source.path_policy import is_protected_path
from selfplay.source.syntax import parse_module

if TYPE_CHECKING:
    from selfplay.repositories.dependencies import Dependencies
    from selfplay.repositories.specs import RepositorySpec
    from selfplay.source.trees import Tree

SHOWN = 3  # reasons that are shown

MISSING_MODULE = re.compile(r"No module named ['\"]([\w.]+)['\"]")
MISSING_NAME = re.compile(r"cannot import name '(\w+)' from (?:partially initialized module )?'([\w.]+)'")
MISSING_METADATA = re.compile(r"No package metadata was found for ([\w.-]+)")

# Imported name -> project, where they differ.
PROJECTS = {
    "attr": "attrs",
    "bs4": "beautifulsoup4",
    "Crypto": "pycryptodome",
    "cv2": "opencv-python-headless",
    "dateutil": "python-dateutil",
    "dotenv": "python-dotenv",
    "git": "GitPython",
    "google.protobuf": "protobuf",
    "jose": "python-jose",
    "jwt": "PyJWT",
    "magic": "python-magic",
    "markdown": "Markdown",
    "OpenSSL": "pyOpenSSL",
    "PIL": "Pillow",
    "pkg_resources": "'setuptools<81'",
    "ruamel": "ruamel.yaml",
    "serial": "pyserial",
    "setuptools": "'setuptools<81'",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "slugify": "python-slugify",
    "xdist": "pytest-xdist",
    "yaml": "PyYAML",
    "zmq": "pyzmq",
}
WITHOUT_IN_3_13 = """
    aifc audioop cgi cgitb chunk crypt imghdr lib2to3 mailcap msilib nis nntplib ossaudiodev pipes sndhdr spwd
    sunau telnetlib uu xdrlib
"""
MOVED_TO_ABC = """
    Callable Hashable Iterable Iterator Mapping MutableMapping MutableSequence MutableSet Sequence Sized
"""
# Modules of the standard library -> the first Python without them, or the first with them.
REMOVED_MODULES = {
    **dict.fromkeys(("asynchat", "asyncore", "distutils", "imp", "smtpd"), "3.12"),
    **dict.fromkeys(
        WITHOUT_IN_3_13.split(),
        "3.13",
    ),
    **dict.fromkeys(("__builtin__", "ConfigParser", "cPickle", "cStringIO", "Queue", "StringIO"), "3.0"),
    **dict.fromkeys(("urllib2", "urlparse", "httplib", "formatter", "parser", "symbol"), "3.10"),
}
ADDED_MODULES = {"tomllib": "3.11", "zoneinfo": "3.9", "graphlib": "3.9"} | dict.fromkeys(
    ("annotationlib", "compression", "string.templatelib"), "3.14"
)
ADDED_NAMES = {
    **dict.fromkeys(("override", "TypeAliasType", "batched"), "3.12"),
    **dict.fromkeys(("Self", "LiteralString", "assert_never", "assert_type", "StrEnum", "UTC"), "3.11"),
    **dict.fromkeys(("TypeIs", "ReadOnly", "NoDefault", "deprecated"), "3.13"),
}
REMOVED_NAMES = {
    **dict.fromkeys(
        MOVED_TO_ABC.split(),
        "3.10",
    ),
    **dict.fromkeys(("getargspec", "formatargspec"), "3.11"),
}


@dataclass(frozen=True)
class Hints:
    """The commands that a remedy extends: those of a repository's line, or what selfplay does without them.

    install: "" if nothing can be installed, because an image holds everything
    """

    install: str = "pip install"
    test: str = "pytest"

    def installing(self, projects: Sequence[str]) -> str:
        """What installs these projects too."""
        names = " ".join(projects)
        if not names:
            return ""
        return (
            f'Use the hint install="{self.install} {names}"' if self.install else f"The image needs {names}"
        )

    def searching(self, folders: Sequence[str]) -> str:
        """What makes Python search these folders for modules."""
        words = f"pythonpath={' '.join(folders)}"
        shown = f"'{words}'" if len(folders) > 1 else words
        return f'Use the hint test="{self.test} -o {shown}"' if folders else ""


def hints_to_extend(spec: RepositorySpec, dependencies: Dependencies) -> Hints:
    """The hints of a line. Without an `install` hint: a command that installs what selfplay installs."""
    test = spec.test or "pytest"
    if spec.kind == "docker":
        return Hints("", test)
    if spec.install:
        return Hints(f"{spec.install} && pip install", test)
    found = [*dependencies.runtime, *dependencies.test]
    known = [f"'{text}'" if re.search(r"[<>;! ]", text) else text for text in found]
    return Hints(" ".join(["pip install", *known]), test)


@dataclass(frozen=True)
class Cause:
    """Why no test counts.

    remedy    what a user can do, "" if nothing is known or what follows says it
    folders   of the repository, which Python must search for modules
    projects  that must be installed, as a shell reads them
    """

    reason: str
    remedy: str = ""
    folders: tuple[str, ...] = ()
    projects: tuple[str, ...] = ()

    def text(self, given: Hints | None = None) -> str:
        """Reason and remedy. given: the hints that a remedy extends."""
        given = given or Hints()
        parts = (self.reason, self.remedy, given.searching(self.folders), given.installing(self.projects))
        return ". ".join(part.rstrip(".") for part in parts if part)


def all_causes(causes: Iterable[Cause]) -> Cause:
    """One cause for several, the most frequent ones first: their reasons, and the hints that help all."""
    common = [cause for cause, _ in Counter(causes).most_common()]
    return Cause(
        "; ".join(cause.reason for cause in common[:SHOWN]),
        next((cause.remedy for cause in common if cause.remedy), ""),
        tuple(dict.fromkeys(folder for cause in common for folder in cause.folders)),
        tuple(dict.fromkeys(project for cause in common for project in cause.projects)),
    )


def cause_of_import(error: str, tree: Tree) -> Cause | None:
    """The cause of one error of an import, by its text."""
    missing = MISSING_MODULE.search(error)
    if missing:
        return cause_of_missing_module(missing[1], tree)
    name = MISSING_NAME.search(error)
    if name:
        return _of_missing_name(name[1], name[2], tree)
    attribute = re.search(r"module '([\w.]+)' has no attribute '(\w+)'", error)
    if attribute and attribute[2] in REMOVED_NAMES:
        return _too_new(f"{attribute[1]}.{attribute[2]}", REMOVED_NAMES[attribute[2]])
    metadata = MISSING_METADATA.search(error)
    if metadata:
        return Cause(f"no metadata of {metadata[1]} is installed", projects=(metadata[1],))
    undefined = re.match(r"NameError: name '(\w+)' is not defined", error)
    modules = _guarded_modules(undefined[1], tree) if undefined else ()
    if undefined and modules:
        return Cause(
            f"{undefined[1]!r} is not defined, since a guarded import fails: {', '.join(modules)}",
            projects=tuple(PROJECTS.get(module) or module.replace("_", "-") for module in modules),
        )
    if error.startswith(("SyntaxError", "IndentationError", "TabError")):
        return Cause(
            f"this Python cannot read a file ({error})",
            "If the code is for another Python, name it with the hint python=3.9, or give an image: "
            "docker:IMAGE:TAG#/FOLDER",
        )
    if re.match(r"(Module|File)NotFoundError|ImportError", error):
        library = re.search(r"(lib\w+\.so[.\d]*): cannot open shared object", error)
        if library:
            return Cause(f"the library {library[1]} is missing", "Give an image: docker:IMAGE:TAG#/FOLDER")
    if "ImproperlyConfigured" in error:
        return Cause(
            f"Django has no settings ({error})",
            'Name them with the hint test="pytest --ds=MODULE", and install pytest-django',
        )
    return None


def _guarded_modules(name: str, tree: Tree) -> tuple[str, ...]:
    """The modules that a `try: import …` of a test file needs, if it binds `name`; () if there is none."""
    for path in sorted(path for path in tree if is_protected_path(path, tree) and path.endswith(".py")):
        module = parse_module(tree[path].content)
        for node in ast.walk(module) if module is not None else ():
            if not isinstance(node, ast.Try):
                continue
            imports = [part for part in node.body if isinstance(part, ast.Import | ast.ImportFrom)]
            bound = {alias.asname or alias.name for part in imports for alias in part.names}
            if name not in bound:
                continue
            tops = dict.fromkeys(name.partition(".")[0] for part in imports for name in _imported(part))
            return tuple(top for top in tops if top and top not in sys.stdlib_module_names)
    return ()


def _imported(part: ast.Import | ast.ImportFrom) -> list[str]:
    """The modules of an import statement."""
    return [part.module or ""] if isinstance(part, ast.ImportFrom) else [alias.name for alias in part.names]


def cause_of_missing_module(module: str, tree: Tree) -> Cause:
    """A module is missing: one of the project, of the standard library, or of another project."""
    top = module.partition(".")[0]
    missing = f"No module named {module!r}"
    folders = _folders_of(module, tree)
    if folders:
        return Cause(
            f"{missing}, which is the project's own, in {folders[0] or '.'}",
            folders=(folders[0] or ".",),
        )
    if _folders_of(top, tree):
        stem = module.replace(".", "/")
        sources = [path for path in tree if re.search(rf"(^|/){re.escape(stem)}\.(c|cc|cpp|pyx|rs)$", path)]
        how = "must be compiled" if sources else "is made when the project is installed"
        return Cause(
            f"{missing}, a module of the project that {how}; selfplay does not install the project",
            "Give an image that holds it in the repository's folder: docker:IMAGE:TAG#/FOLDER",
        )
    if module in REMOVED_MODULES or top in REMOVED_MODULES:
        return _too_new(f"the module {top}", REMOVED_MODULES.get(module) or REMOVED_MODULES[top])
    if module in ADDED_MODULES or top in ADDED_MODULES:
        return _too_old(f"the module {module}", ADDED_MODULES.get(module) or ADDED_MODULES[top])
    project = PROJECTS.get(module) or PROJECTS.get(top) or top.replace("_", "-")
    return Cause(missing, projects=(project,))


def _of_missing_name(name: str, module: str, tree: Tree) -> Cause | None:
    if module in ("collections", "inspect") and name in REMOVED_NAMES:
        return _too_new(f"{module}.{name}", REMOVED_NAMES[name])
    if module in ("typing", "warnings", "enum", "datetime", "itertools") and name in ADDED_NAMES:
        return _too_old(f"{module}.{name}", ADDED_NAMES[name])
    reason = f"cannot import name {name!r} from {module!r}"
    if _folders_of(module, tree):
        return Cause(f"{reason}, a module of the project")
    if module.partition(".")[0] in sys.stdlib_module_names:
        return Cause(
            f"{reason}: the code is for another version of Python",
            "Name it with the hint python=3.9, or give an image that has it: docker:IMAGE:TAG#/FOLDER",
        )
    project = PROJECTS.get(module.partition(".")[0]) or module.partition(".")[0].replace("_", "-")
    return Cause(
        f"{reason}: another version of {project} is needed",
        f"Choose it with the hint install=\"pip install '{project}==VERSION' …\"",
    )


def _too_new(what: str, version: str) -> Cause:
    return Cause(
        f"this Python is too new: Python {version} removed {what}",
        f"Name one before {version} with the hint python=3.9, or give an image: docker:IMAGE:TAG#/FOLDER",
    )


def _too_old(what: str, version: str) -> Cause:
    return Cause(
        f"this Python is too old: {what} is new in Python {version}",
        f"Name it with the hint python={version}, or give an image: docker:IMAGE:TAG#/FOLDER",
    )


def _folders_of(module: str, tree: Tree) -> list[str]:
    """The folders that hold a module of the project, "" for the top; those of tests last."""
    stem = module.replace(".", "/")
    ends = (f"{stem}.py", f"{stem}/__init__.py")
    found = {path.removesuffix(end).rstrip("/") for path in tree for end in ends if _ends_with(path, end)}
    if not found:  # a namespace package, whose folder has no __init__.py
        for path in tree:
            folders = [str(parent) for parent in PurePosixPath(path).parents] if path.endswith(".py") else []
            found |= {folder.removesuffix(stem).rstrip("/") for folder in folders if _ends_with(folder, stem)}
    return sorted(found, key=lambda folder: ("test" in folder, folder.count("/"), folder))


def _ends_with(path: str, end: str) -> bool:
    return path == end or path.endswith(f"/{end}")
