"""The order of the packages: a module imports only from its own package and from those above it."""

import ast
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import selfplay

PACKAGE = Path(selfplay.__file__).parent

ROOT = PACKAGE.parent
# From the ground up. Modules of one package may import each other, without a circle (tests/test_layout.py).
ORDER = [
    "errors",
    "outcomes",
    "runtime",
    "parts",
    "metrics",
    "settings",
    "config",
    "source",
    "sandbox",
    "repositories",
    "verdicts",
    "engines",
    "weights",
    "agent",
    "algorithm",
    "curriculum",
    "teacher",
    "evaluation",
    "training",
    "warm_start",
    "orchestrator",
    "cluster",
    "planning",
    "viewing",
    "exports",
    "attacks",
    "commands",
    "cli",
]


def test_the_page_on_architecture_shows_the_same_order():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page[page.index("| package | what it is |") :].split("\n\n")[0]
    assert re.findall(r"^\| `(\w+)(?:/|\.py)` \|", table, re.MULTILINE) == ORDER


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def position(module: str) -> int:
    """The index in ORDER of a module: of the longest entry that is the module or a parent of it."""
    fitting = [name for name in ORDER if module == name or module.startswith(f"{name}.")]
    assert fitting, f"selfplay.{module} is not in the order; add it to ORDER and to docs/architecture.md"
    return ORDER.index(max(fitting, key=len))


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.startswith("selfplay."):
                candidate = name.removeprefix("selfplay.")
                as_path = PACKAGE / candidate.replace(".", "/")
                if as_path.with_suffix(".py").exists() or as_path.is_dir():
                    found.add(candidate)
    return found


MODULES = sorted(
    p
    for p in PACKAGE.rglob("*.py")
    if "data" not in p.relative_to(PACKAGE).parts and "_resources" not in p.parts
)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: module_name(p) or "selfplay")
def test_a_module_imports_only_from_its_own_package_and_from_those_above(path: Path):
    name = module_name(path)
    if not name:
        return
    wrong = {other for other in imports_of(path) if position(other) > position(name)}
    assert not wrong, f"selfplay.{name} imports {sorted(wrong)}, which come after it in ORDER"


def test_help_loads_nothing_heavy():
    heavy = ("torch", "transformers", "docker", "git", "networkx", "pydantic")
    code = f"import sys, selfplay.cli; print([m for m in {heavy} if m in sys.modules])"
    started = time.monotonic()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]", f"loaded after {time.monotonic() - started:.1f} s"
