"""Which Python files of a tree import which others. Reads source and runs nothing.

Invariant: an edge is an import that a file states itself. That Python also runs the `__init__.py` of each
package on the way does not count: it would join all modules of a package.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping

from selfplay.source.import_roots import import_roots
from selfplay.source.syntax import parse_module
from selfplay.source.trees import Tree

LOADERS = ("import_module", "__import__")
PLUGINS = "pytest_plugins"  # the variable that names modules for pytest to load

Imports = Mapping[str, frozenset[str]]  # path -> the paths that it imports


def module_paths(tree: Tree) -> dict[str, str]:
    """Dotted names of modules and packages -> their files, as Python finds them in the import roots."""
    found: dict[str, str] = {}
    # A package wins over a module of its name.
    paths = sorted(tree, key=lambda path: (not path.endswith("/__init__.py"), path))
    for root in import_roots(tree):
        start = f"{root}/" if root else ""
        for path in paths:
            if path.startswith(start) and path.endswith(".py"):
                name = path[len(start) : -len(".py")].removesuffix("/__init__").replace("/", ".")
                found.setdefault(name, path)
    return found


def read_imports(tree: Tree, modules: Mapping[str, str]) -> dict[str, frozenset[str]]:
    """The imports of each Python file that parses. modules: of `module_paths`."""
    names = {path: name for name, path in reversed(list(modules.items()))}
    found: dict[str, frozenset[str]] = {}
    for path in sorted(tree):
        module = parse_module(tree[path].content) if path.endswith(".py") else None
        if module is not None:
            package = names.get(path, "")
            if not path.endswith("/__init__.py"):
                package = package.rpartition(".")[0]
            targets = {target for name in _named(module, package) if (target := find_module(name, modules))}
            found[path] = frozenset(targets - {path})
    return found


def find_module(name: str, modules: Mapping[str, str]) -> str:
    """The file of a dotted name, or of the module that holds it; "" if there is none."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return modules.get(name, "")


def _named(module: ast.Module, package: str) -> Iterator[str]:
    """Yield the dotted names that a module imports. package: what its relative imports start from."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".") if package else []
                kept = parts[: len(parts) - node.level + 1]
                base = ".".join([*kept, *([base] if base else [])])
            yield from (base if alias.name == "*" else f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in LOADERS:
                yield from _texts(node.args[0])
        elif isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == PLUGINS for target in node.targets
        ):
            yield from _texts(node.value)


def _texts(node: ast.expr) -> Iterator[str]:
    parts = node.elts if isinstance(node, ast.List | ast.Tuple | ast.Set) else [node]
    yield from (
        part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)
    )


def related(imports: Mapping[str, frozenset[str] | tuple[str, ...]], paths: set[str]) -> set[str]:
    """The paths, what they import, and what imports them, at any distance."""
    users: dict[str, set[str]] = {}
    for path, targets in imports.items():
        for target in targets:
            users.setdefault(target, set()).add(path)
    return _reached(imports, paths) | _reached(users, paths)


def _reached(edges: Mapping[str, frozenset[str] | tuple[str, ...] | set[str]], start: set[str]) -> set[str]:
    seen, waiting = set(start), list(start)
    while waiting:
        for target in edges.get(waiting.pop(), ()):
            if target not in seen:
                seen.add(target)
                waiting.append(target)
    return seen
