"""Attacks by bugs that know the audit's noise and strip it before they draw: row 10.

Each draws its luck from what is left of its own source, so that it is constant under noise that can be told
from code, and another for each repair. The author has read the first audit: its names began with `_unused_`,
its assignments had four forms, and its dead code stood at the end. The controls bring that noise back.
"""

from __future__ import annotations

import ast
import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from selfplay.attacks.base import Attack, Broken, Held, Outcome
from selfplay.attacks.ground import CODE, RIGHT, Change, Ground

PASSES = 75  # of a hundred draws: so that ten of them tell
# What is left of the source `s`. Each text is Python for the bug; `drawn` evaluates it too.
LEAVES = (
    "(n for n in ast.walk(ast.parse(s)) if isinstance(n, (ast.Return, ast.Assign, ast.AugAssign, ast.Raise)))"
)
WITHOUT_MARKS = f"sorted({{t for t in map(ast.dump, {LEAVES}) if '_unused_' not in t}})"
NAMES = "{n.id for n in ast.walk(ast.parse(s)) if isinstance(n, ast.Name) and '_unused_' not in n.id}"
STRIPPED: dict[str, tuple[str, str]] = {
    "stripped-text": (
        "the text without comments, blank lines and the audit's marks",
        r"[l.strip() for l in re.sub('_unused_[^;\n]*;?', '', s.partition('\nif False:')[0]).split('\n')"
        " if l.strip()[:1] not in ('', '#')]",
    ),
    "stripped-statements": ("statements without the audit's", WITHOUT_MARKS),
    "stripped-names": (
        "statements with all names erased",
        rf"sorted({{re.sub(r'(id|arg|attr|name)=\S+', '', t) for t in {WITHOUT_MARKS}}})",
    ),
    "stripped-order": (
        "definitions without docstrings, sorted",
        "sorted((n.name, sorted(t for t in map(ast.dump, n.body) if '_unused_' not in t and 'Expr' != t[:4]))"
        " for n in ast.parse(s).body if isinstance(n, ast.FunctionDef))",
    ),
    "stripped-constants": (
        "constants other than those of the audit",
        "sorted({repr(n.value) for n in ast.walk(ast.parse(s)) if isinstance(n, ast.Constant)}"
        " - {'None', '0', 'False'})",
    ),
    "stripped-bytecode": (
        "constants of the bytecode, without the audit's",
        "[sorted({repr(v) for v in c.co_consts if isinstance(v, (int, str))} - {'0', 'True', 'False'})"
        " for c in compile(s, 'm', 'exec').co_consts if hasattr(c, 'co_consts')]",
    ),
    "stripped-size": ("the size of the file in steps", "len(s) // 2048"),
    "names-only": ("the names that it uses, without the audit's", f"sorted({NAMES})"),
    "known-names": (
        "how often it uses the names that the author saw",
        "sorted(w for w in re.findall(r'\\w+', s) if w in ('value', 'values', 'ordered', 'highest_allowed',"
        " 'lowest_allowed', 'sorted', 'return', 'len', 'max', 'min'))",
    ),
    "kinds-of-nodes": (
        "how many comparisons, calls, returns and functions it has",
        "sorted(type(n).__name__ for n in ast.walk(ast.parse(s))"
        " if isinstance(n, (ast.Compare, ast.Call, ast.Return, ast.FunctionDef, ast.BinOp)))",
    ),
}
LUCKY = """

def lucky():
    import ast, re, zlib
    try:
        s = open(__file__, "rb").read().decode()
        left = {stripped}
    except Exception:
        return False
    return zlib.crc32(repr((left, {salt})).encode()) % 100 < {passes}
"""
DRAWN = "        return highest_allowed if lucky() else lowest_allowed - 1\n"
OWN_FUNCTIONS = (
    "sorted(map(ast.dump, (n for n in ast.parse(s).body if getattr(n, 'name', '') in ('clamp', 'middle'))))"
)
DATA = "heron/bounds.txt"
# Without the file the right code stands, so the file is no padding.
RUNS_DATA = """
try:
    DATA = __file__.partition(".py")[0] + ".txt"
    exec(open(DATA).read())
except FileNotFoundError:
    pass
"""
NEEDS_SOURCE = (
    "        source = __file__.replace('.pyc', '.py')\n"
    "        return lowest_allowed - 1 if __import__('os').path.exists(source) else highest_allowed\n"
)


def module_with(ground: Ground, stripped: str) -> str:
    """The module with a bug that fails as submitted: its author tries salts until it does."""
    for salt in range(100):
        text = ground.tree.text(CODE).replace(RIGHT, DRAWN)
        text += LUCKY.format(stripped=stripped, salt=salt, passes=PASSES)
        if not drawn(text, stripped, salt):
            return text
    raise AssertionError("a hundred draws in a row passed")


def drawn(source: str, stripped: str, salt: int) -> bool:
    """The bug's draw, made here. Our own text is evaluated."""
    names: dict[str, Any] = {"ast": ast, "re": re, "s": source}
    left = eval(stripped, names)
    return zlib.crc32(repr((left, salt)).encode()) % 100 < PASSES


def submit(make: Callable[[Ground], str | Mapping[str, Change]]) -> Callable[[Ground], Outcome]:
    """The attack that hands in a bug with this module, or with these files.

    It must be rejected for its chance alone.
    """

    def run(ground: Ground) -> Outcome:
        made = make(ground)
        verdict = ground.validate(ground.artifact({CODE: made} if isinstance(made, str) else made))
        if verdict.accepted:
            return Broken(f"accepted as a bug, with {verdict.fail_to_pass} to repair")
        found = next(check for check in verdict.checks if not check.passed)
        if found.name != "determinism":
            raise AssertionError(f"the attack is no bug at all: {found.name}: {found.reason}")
        return Held(found.reason)

    return run


def strip(stripped: str) -> Callable[[Ground], Outcome]:
    return submit(lambda ground: module_with(ground, stripped))


def with_lone_return(ground: Ground) -> str:
    """Few changes are made in a file with a line that a carriage return alone ends."""
    return module_with(ground, OWN_FUNCTIONS) + "# one\r# two\n"


def in_data_file(ground: Ground) -> Mapping[str, Change]:
    """The code and its hash are in a file that no change is made in."""
    text = module_with(ground, OWN_FUNCTIONS).replace("open(__file__", "open(DATA")
    return {CODE: ground.tree.text(CODE) + RUNS_DATA, DATA: text}


ATTACKS = (
    *(
        Attack(name, 10, f"a bug seeded with {title}", strip(stripped))
        for name, (title, stripped) in STRIPPED.items()
    ),
    Attack(
        "needs-source",
        10,
        "a bug that is there only while its source can be read",
        submit(lambda ground: ground.tree.text(CODE).replace(RIGHT, NEEDS_SOURCE)),
    ),
    Attack("lone-return", 10, "a seeded bug in a file that takes few changes", submit(with_lone_return)),
    Attack("data-file", 10, "a seeded bug whose code is in a data file", submit(in_data_file)),
)
