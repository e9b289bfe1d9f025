"""Which files get changes without meaning, in each phase of judging. `noise` makes the changes.

They change the outcome of tests that depend on a hash of the code. A phase is validation, first grading or
second grading. Invariants: no phase can be told by its changes. All have changes of the same kind, in files
that are chosen in the same way. A run of a tree as a policy has it in its workspace has none; validation
makes one for each state too, so that no bug can hide there. Equal seeds make equal changes, and a file that
does not parse stays as it is.
"""

from __future__ import annotations

import ast
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from keyword import iskeyword

from selfplay.source.path_policy import is_other_code, is_protected_path
from selfplay.source.syntax import parse_module, source_encoding
from selfplay.source.trees import FileEntry, Tree
from selfplay.verdicts.noise.passes import takes_all_changes, with_noise
from selfplay.verdicts.noise.source import own_nodes, reads_locals
from selfplay.verdicts.noise.words import Vocabulary
from selfplay.verdicts.randomness import Secret

# What a run's changes are derived from, first of all.
REPEAT, FIRST_GRADING, SECOND_GRADING = "repeat", "first grading", "second grading"
MOST_BLANK_LINES = 61
MAX_COMPARED_LINES = 400
# What programs draw at random from, and how they read themselves or run text.
DRAWS = re.compile(
    r"\b(random\w*|randint|shuffle|urandom|secrets|uuid\d?|perf_counter\w*|monotonic\w*|\w*time_ns|getpid)\b"
    r"|\btime\.time\b|\bimport time\b|\bfrom time\b|\.(utc)?now\b|/proc/"
)
READS = re.compile(
    r"\b(inspect|linecache|marshal|hashlib|zlib|crc32|gc|dis|_getframe|globals|vars|eval|exec|co_\w+)\b"
    r"|__(file|code|spec|loader|cached|dict|import|builtins)__|\b(hash|id|open|stat|getsize)\s*\("
)
TOKEN = re.compile(r"(\.\s*)?([^\W\d]\w*)(\s*\()?|[(\[{@]")


def noisy(original: Tree, tree: Tree, touched: Iterable[str], secret: Secret, *parts: str) -> Tree:
    """`tree` with changes without meaning in the `touched` code files and in one other of the `original`.

    parts: what the changes are derived from. Trees that are compared have the same parts. The words are those
    of the original, so that no policy chooses them, and equal files get equal changes.
    """
    chosen = sorted(set(touched))
    paths = [*chosen, *_one_other(original, chosen, secret, parts)]
    return perturb(tree, paths, secret.noise_seed(*parts), _vocabulary(original))


def _one_other(tree: Tree, touched: Sequence[str], secret: Secret, parts: Sequence[str]) -> list[str]:
    """A code file that is not touched, preferably Python."""
    left = sorted(tree.keys() - frozenset(touched))
    untouched = [path for path in left if not is_protected_path(path, tree)]
    others = [path for path in untouched if path.endswith(".py")] or [
        path for path in untouched if is_other_code(path)
    ]
    return [secret.generator("other file", *parts).choice(others)] if others else []


def perturb(tree: Tree, paths: Iterable[str], seed: int, vocabulary: Vocabulary | None = None) -> Tree:
    """Change the files among `paths` without changing their meaning.

    A Python file gets other comments, docstrings, names of locals, spellings and order of definitions, and
    code that does nothing, in the words of the repository (`noise`). A file in another language gets blank
    lines at its end. `seed` and the source select the changes: text, size, line numbers, syntax tree,
    constants and bytecode all change, whatever fixed rule strips of them. So code that draws at random from
    any of them draws again.
    vocabulary: None for that of `tree`.
    """
    changes: dict[str, FileEntry | None] = {}
    for path in paths:
        entry = tree.files.get(path)
        if entry is not None and path.endswith(".py"):
            vocabulary = vocabulary or _vocabulary(tree)
            changes[path] = FileEntry(with_noise(entry.content, seed, vocabulary), entry.executable)
        elif entry is not None and is_other_code(path):
            count = random.Random(b"%d:" % seed + entry.content).randint(1, MOST_BLANK_LINES)
            changes[path] = FileEntry(entry.content + b"\n" * count, entry.executable)
    return tree.replace(changes)


def _vocabulary(tree: Tree) -> Vocabulary:
    suffixes = (".py", ".cfg", ".toml", ".ini")
    return Vocabulary.of(tree[path].content for path in sorted(tree) if path.endswith(suffixes))


def perturb_source(source: bytes, seed: int) -> bytes:
    """Change a Python file as `perturb` does, with no words but its own."""
    return with_noise(source, seed, Vocabulary.of([source]))


def may_be_random(before: Tree, after: Tree, paths: Iterable[str]) -> bool:
    """True unless each change in `paths` is plain: other operators, constants and known names, or less code.

    A changed part of a file is plain if it calls, imports, brackets and takes attributes only as the lines
    did that it replaces, and has no name that is new to the file. So nothing is random that was not before.
    What was random before may be so in another way after any change. So no change is plain in a file that
    draws at random, or in a function that reads itself or runs text.
    """
    return any(_may_be_random(_text(before, path), _text(after, path)) for path in paths if path in after)


def beyond_changes(before: Tree, after: Tree, paths: Iterable[str]) -> list[str]:
    """The files in `paths` that a bug in Python code has put out of reach of changes without meaning.

    They are Python files that no longer take all changes (a carriage return alone, an odd encoding, newer
    syntax, a great size), those with a changed function that may see its own locals, whose names stay, and
    files that are not Python, if the Python code beside them may be random: it can run or hash what they
    hold. Files that took no changes before do not count.
    """
    present = [path for path in paths if path in after]
    code = [path for path in present if path.endswith(".py")]
    if not may_be_random(before, after, code):
        return []
    return [path for path in present if path not in code or _is_put_beyond(before, after, path)]


def _is_put_beyond(before: Tree, after: Tree, path: str) -> bool:
    was_in_reach = path not in before or takes_all_changes(before[path].content)
    if not was_in_reach:
        return False
    return not takes_all_changes(after[path].content) or _sees_locals(_text(before, path), _text(after, path))


def _sees_locals(before: str, after: str) -> bool:
    """Whether a function with changed or new lines may see its own locals."""
    module = parse_module(after)
    parts = _changed_parts(before.splitlines(), after.splitlines())
    if module is None:
        return False
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and reads_locals(list(own_nodes(node))):
            lines = range(node.lineno - 1, node.end_lineno or node.lineno)
            if parts is None or any(
                start < lines.stop and lines.start < start + len(new) for _, (start, new) in parts
            ):
                return True
    return False


def _may_be_random(before: str, after: str) -> bool:
    if before == after:
        return False
    parts = _changed_parts(before.splitlines(), after.splitlines())
    if parts is None or DRAWS.search(before) or DRAWS.search(after):
        return True
    functions = {text: _functions(text) for text in (before, after)}
    known = _names(before)
    for sides in parts:
        old, new = (lines for _, lines in sides)
        if _uses("\n".join(new)) - _uses("\n".join(old)) or not _names("\n".join(new)) <= known:
            return True
        for text, (start, lines) in zip((before, after), sides, strict=True):
            near = [function for function in functions[text] if start in function]
            around = text.splitlines()[near[-1].start : near[-1].stop] if near else lines
            if READS.search("\n".join(around)):
                return True
    return False


def _functions(text: str) -> list[range]:
    """The lines of each function, counted from 0; an inner one comes after those around it."""
    module = parse_module(text)
    found = [
        range(node.lineno - 1, node.end_lineno or node.lineno)
        for node in ast.walk(module or ast.Module([], []))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return sorted(found, key=lambda lines: (lines.start, -lines.stop))


Part = tuple[tuple[int, list[str]], tuple[int, list[str]]]  # (first line, lines) before and after


def _changed_parts(before: list[str], after: list[str]) -> list[Part] | None:
    """The parts that differ. None if there is too much to compare."""
    shorter = min(len(before), len(after))
    head = next((n for n in range(shorter) if before[n] != after[n]), shorter)
    tail = next((n for n in range(shorter - head) if before[-1 - n] != after[-1 - n]), shorter - head)
    old, new = before[head : len(before) - tail], after[head : len(after) - tail]
    if max(len(old), len(new)) > MAX_COMPARED_LINES:
        return None
    matcher = SequenceMatcher(None, old, new, autojunk=False)
    return [
        ((head + a, old[a:b]), (head + c, new[c:d]))
        for kind, a, b, c, d in matcher.get_opcodes()
        if kind != "equal"
    ]


def _text(tree: Tree, path: str) -> str:
    """The source as Python reads it, "" if the tree has no such file."""
    return tree[path].content.decode(*source_encoding(path, tree[path].content)) if path in tree else ""


def _uses(text: str) -> Counter[str]:
    """How often each name is called, imported or used as an attribute, and how often each bracket appears."""
    found: Counter[str] = Counter()
    for match in TOKEN.finditer(text):
        dot, name, call = match.groups()
        if not name:
            found[match[0]] += 1
        elif name in ("import", "from") or (not iskeyword(name) and (dot or call or name.startswith("__"))):
            found[f"{'.' if dot else ''}{name}"] += 1
        if call:
            found["("] += 1
    return found


def _names(text: str) -> set[str]:
    return {match[2] for match in TOKEN.finditer(text) if match[2] and not iskeyword(match[2])}
