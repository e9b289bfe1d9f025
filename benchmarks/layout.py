"""Figures of the source tree: import chains and circles, long files and functions, parameters, wide lines.

    python -m benchmarks.layout

It reads the files and does not run them. `tests/test_layout.py` checks the limits below.
"""

from __future__ import annotations

import argparse
import ast
import io
import sys
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "selfplay"
NOT_OURS = ("data", "_resources")  # folders of files that are not modules of the package

MAX_CHAIN = 11  # modules on the longest path of module-level imports
MAX_FILE_LINES = 450  # without blank lines and comments
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 7  # self and cls counted
MAX_COLUMNS = 110
MAX_WIDE_SHARE = 0.02  # of the lines that are not blank


@dataclass(frozen=True)
class Module:
    """One file of the package. name: dotted, without `selfplay.`; "" for the package itself."""

    name: str
    path: Path
    text: str

    @property
    def room(self) -> str:
        return self.name.partition(".")[0]

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def functions(self) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
        return (
            node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        )

    @property
    def code_lines(self) -> int:
        """Number of lines that are neither blank nor only a comment. Lines of docstrings count."""
        skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
        lines: set[int] = set()
        for token in tokenize.generate_tokens(io.StringIO(self.text).readline):
            if token.type not in skipped and token.type != tokenize.ENDMARKER:
                lines.update(range(token.start[0], token.end[0] + 1))
        return sum(
            bool(line.strip()) for number, line in enumerate(self.text.splitlines(), 1) if number in lines
        )


def read_modules(package: Path = PACKAGE) -> dict[str, Module]:
    """Every module by its dotted name below the package."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        if not set(parts) & set(NOT_OURS):
            name = ".".join(part for part in parts if part != "__init__")
            found[name] = Module(name, path, path.read_text(encoding="utf-8"))
    return found


def imports_of(module: Module, modules: Mapping[str, Module], everywhere: bool = False) -> set[str]:
    """Names of modules that `module` imports when it is loaded.

    everywhere: also imports inside functions and for type checkers.
    """
    nodes = list(ast.walk(module.tree)) if everywhere else list(_loaded(module.tree.body))
    found: set[str] = set()
    for node in nodes:
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.partition(".")[0] == PACKAGE.name:
                found.add(_module_of(name.partition(".")[2], modules))
    return found - {module.name, ""}


def _module_of(name: str, modules: Mapping[str, Module]) -> str:
    """The longest prefix of a dotted name that is a module, "" if there is none."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name


def _loaded(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run when the module is imported."""
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        for block in ("body", "orelse", "finalbody"):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _loaded(getattr(node, block, []))


def longest_chain(modules: Mapping[str, Module]) -> list[str]:
    """The longest path of module-level imports, starting with the importer.

    Raises ValueError, which names a circle.
    """
    edges = {name: imports_of(module, modules) for name, module in modules.items()}
    known: dict[str, list[str]] = {}
    path: list[str] = []

    def below(name: str) -> list[str]:
        if name in path:
            raise ValueError(f"circle of imports: {' -> '.join([*path[path.index(name) :], name])}")
        if name not in known:
            path.append(name)
            known[name] = [name, *max((below(other) for other in sorted(edges[name])), key=len, default=[])]
            path.pop()
        return known[name]

    return max((below(name) for name in sorted(edges)), key=len)


def long_files(modules: Mapping[str, Module]) -> list[str]:
    return [
        f"{module.path.relative_to(ROOT)}: {module.code_lines} lines"
        for module in modules.values()
        if module.code_lines > MAX_FILE_LINES
    ]


def long_functions(modules: Mapping[str, Module]) -> list[str]:
    found = []
    for module in modules.values():
        for node in module.functions:
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                found.append(f"{module.path.relative_to(ROOT)}:{node.lineno} {node.name}: {length} lines")
    return found


def many_parameters(modules: Mapping[str, Module]) -> list[str]:
    """Functions with more than MAX_PARAMETERS. cli.py is left out: its parameters are options of commands."""
    found = []
    for module in modules.values():
        for node in module.functions:
            names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            count = len(names)
            if count > MAX_PARAMETERS and module.name != "cli":
                found.append(f"{module.path.relative_to(ROOT)}:{node.lineno} {node.name}: {count} parameters")
    return found


def wide_lines(folder: Path) -> tuple[int, int]:
    """(lines over MAX_COLUMNS, lines that are not blank) of all Python files in a folder."""
    paths = [path for path in folder.rglob("*.py") if not set(path.parts) & {".venv", "build", "dist"}]
    lines = [line for path in paths for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return sum(len(line) > MAX_COLUMNS for line in lines), len(lines)


def main() -> int:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    modules = read_modules()
    chain = longest_chain(modules)
    rooms = sorted(
        {module.room for module in modules.values() if (PACKAGE / module.room).is_dir() and module.room}
    )
    in_root = [name for name in modules if name and "." not in name and name not in rooms]
    wide, lines = wide_lines(ROOT)
    print(f"{len(modules)} modules in {len(rooms)} packages; in the root: {', '.join(in_root)}")
    print(f"longest chain of imports: {len(chain)} ({' -> '.join(chain)})")
    print(f"lines over {MAX_COLUMNS} columns: {wide} of {lines} ({wide / lines:.2%})")
    for title, found in (
        (f"files over {MAX_FILE_LINES} lines", long_files(modules)),
        (f"functions over {MAX_FUNCTION_LINES} lines", long_functions(modules)),
        (f"functions with more than {MAX_PARAMETERS} parameters", many_parameters(modules)),
    ):
        print(f"{title}: {len(found)}", *found, sep="\n  ")
    return 0


if __name__ == "__main__":
    sys.exit(main())
