"""Finds what tests rest on outside of their own files. `source.test_material` says what follows from it.

Works on a tree and the record of a run. The record comes out of a sandbox, so each part of it that has
another form than expected is left out.

Which module is a helper of the tests? No other module may import it, and there must be a sign besides: its
name, a test library that it imports, or functions most of which hold assertions. Being imported by tests
alone is no sign, since the modules of an interface are, too.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator, Mapping

from selfplay.repositories.targets import Target
from selfplay.source.import_roots import import_roots
from selfplay.source.module_imports import find_module, module_paths, read_imports
from selfplay.source.path_policy import is_code_path, is_protected_path
from selfplay.source.syntax import parse_module
from selfplay.source.test_material import TestMaterial
from selfplay.source.trees import Tree

# Modules and folders that are helpers by their name, unless other code imports them.
HELPER_NAME = re.compile(
    r"(^|/)_?(testing|test_?(utils?|helpers?|support|lib|tools?|cases?|base|data)|assertions?)(\.py$|/)"
)
TEST_LIBRARIES = frozenset({"pytest", "_pytest", "unittest", "nose", "hypothesis", "doctest", "testtools"})


def find_material(
    tree: Tree, record: object, test_files: Collection[str], targets: Collection[Target]
) -> TestMaterial:
    """The material of the tests in `test_files`. record: of data/pytest/call_recorder.py.

    If most functions that tests call would lie in helpers, the repository itself is about tests, and none of
    its modules is taken for a helper.
    """
    modules = module_paths(tree)
    imports = {path: set(found) for path, found in read_imports(tree, modules).items()}
    for name, importer in _pairs(record, "imported"):
        target = find_module(name, modules)
        # Python loads the packages on the way too, which is no import that somebody states.
        if importer in imports and target and not target.endswith("__init__.py"):
            imports[importer].add(target)
    tests = {path for path in tree if path in test_files or is_protected_path(path, tree)}
    helpers = _helpers(tree, imports, tests)
    if 2 * sum(target.path in helpers for target in targets) > len(targets):
        helpers = set()
    users = tests | helpers
    opened = _opened(tree, record, users, {path for found in imports.values() for path in found})
    code = {path: tuple(sorted(found - users)) for path, found in imports.items() if path not in users}
    covered = {target for path in users & imports.keys() for target in imports[path]} & code.keys()
    return TestMaterial(tuple(sorted(helpers | opened)), tuple(sorted(covered)), code)


# ---- helpers


def _helpers(tree: Tree, imports: Mapping[str, set[str]], tests: Collection[str]) -> set[str]:
    """The modules that only tests and other helpers import, and that show a sign of being helpers."""
    users: dict[str, set[str]] = {}
    for path, targets in imports.items():
        for target in targets - {path}:
            users.setdefault(target, set()).add(path)
    helpers: set[str] = set()
    signs = {path: _sign(tree, path) for path in imports if path not in tests and users.get(path)}
    while True:
        known = helpers.union(tests)
        found = {
            path
            for path, sign in signs.items()
            if path not in helpers and sign and _only_used_by(known, users[path], sign == "name")
        }
        if not found:
            return helpers
        helpers |= found


def _only_used_by(known: Collection[str], users: set[str], even_exported: bool) -> bool:
    """Whether tests use it, and no code. even_exported: that an `__init__.py` imports it does not count."""
    others = {path for path in users if path not in known}
    if even_exported:
        others = {path for path in others if not path.endswith("/__init__.py")}
    return not others and any(path in known for path in users)


def _sign(tree: Tree, path: str) -> str:
    """What shows that a module may be a helper of tests; "" if nothing does."""
    if path.endswith("/__init__.py"):
        return "name" if HELPER_NAME.search(path) else ""
    if HELPER_NAME.search(path):
        return "name"
    module = parse_module(tree[path].content)
    if module is None:
        return ""
    if TEST_LIBRARIES.intersection(_top_imports(module)):
        return "library"
    functions = [node for node in module.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    asserting = sum(_asserts(function) for function in functions)
    return "assertions" if asserting and 2 * asserting >= len(functions) else ""


def _top_imports(module: ast.Module) -> Iterator[str]:
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").partition(".")[0]


def _asserts(function: ast.AST) -> bool:
    for node in ast.walk(function):
        if isinstance(node, ast.Assert):
            return True
        name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
        if name.startswith("assert") or name == "AssertionError":
            return True
    return False


# ---- opened files


def _opened(tree: Tree, record: object, users: Collection[str], imported: Collection[str]) -> set[str]:
    """The files that decide what tests say, because they were opened.

    What tests, helpers and pytest open is theirs. What code opens is its own if it lies in a package or
    beside a module of code; anywhere else tests have handed it over. A module of a package, and one that
    somebody imports, stays code, even if a test reads its text.
    """
    packages = {path.rpartition("/")[0] for path in tree if path.endswith("/__init__.py")}
    beside = {path.rpartition("/")[0] for path in tree if is_code_path(path) and path not in users}
    roots = import_roots(tree)
    found = set()
    for path, opener in _pairs(record, "opened"):
        if path not in tree or path in users:
            continue
        folder = path.rpartition("/")[0]
        is_packaged = _is_below(folder, packages, roots)
        if is_code_path(path):
            is_material = opener in users and not is_packaged and path not in imported
        else:
            is_material = not opener or opener in users or not (is_packaged or folder in beside)
        if is_material:
            found.add(path)
    return found


def _is_below(folder: str, packages: Collection[str], roots: Collection[str]) -> bool:
    """Whether a folder is a package, or lies in one."""
    while folder and folder not in roots:
        if folder in packages:
            return True
        folder = folder.rpartition("/")[0]
    return False


def _pairs(record: object, name: str) -> Iterator[tuple[str, str]]:
    listed = record.get(name) if isinstance(record, dict) else None
    for item in listed if isinstance(listed, list) else ():
        if isinstance(item, list) and len(item) == 2 and all(isinstance(part, str) for part in item):
            yield item[0], item[1]
