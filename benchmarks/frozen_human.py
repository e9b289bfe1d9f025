"""The frozen set of human bugs: fixes of maintainers, undone in a later release and proven by execution.

`--search PROJECT A B` prints candidates. A person decides which of them are bug fixes, by an entry in FIXES.
Invariant: every record comes only from source distributions and accepted verdicts. So it can be made again.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import itertools
import json
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.options import at_least_one
from selfplay.agent.chat import ChatFormat, load_tokenizer
from selfplay.agent.solver import spec_tokens
from selfplay.agent.workspaces import sandbox_limits
from selfplay.config import Config, load_config
from selfplay.errors import RunError, SelfplayError
from selfplay.repositories.build import prepare_environment
from selfplay.repositories.checkouts import cache_root
from selfplay.repositories.environment import Environment
from selfplay.repositories.fetching import fetch
from selfplay.repositories.specs import parse_spec, read_repository_list
from selfplay.runtime.resources import resource
from selfplay.sandbox import open_backend
from selfplay.sandbox.base import SandboxBackend
from selfplay.source.apply import diff_trees
from selfplay.source.diffs import reverse_patch
from selfplay.source.path_policy import is_protected_path, is_test_path
from selfplay.source.trees import FileEntry, Tree
from selfplay.verdicts.artifact import Artifact
from selfplay.verdicts.bug import BugState
from selfplay.verdicts.checks import Thresholds, broken_tests
from selfplay.verdicts.test_logs import short_failure
from selfplay.verdicts.test_runs import TestRun, TestRunner
from selfplay.verdicts.validator import validate
from selfplay.verdicts.verdict import Verdict
from selfplay.warm_start.settings import CORPUS

LABELS = {"selfplay.run": "frozen-human"}
THRESHOLDS = Thresholds(min_passing_tests=3, min_failing_tests=1, min_changed_files=1)
SCRIPT_TIMEOUT_S = 90  # long enough for a busy machine
MAX_SPEC_TOKENS = 600  # the most that the quickstart's solver sees
MAX_FUNCTION_LINES = 40
MAX_CHANGED_LINES = 6
CONTEXTS = (3, 2, 1, 0)  # lines around a hunk that must match too; tried in this order
SOURCE_FOLDERS = ("", "src/", "lib/")
EXPECTS = re.compile(r"raises|warns", re.IGNORECASE)


@dataclass(frozen=True)
class Fix:
    """A fix of one function between the releases `before` and `after`, and the release where it is undone.

    version: the release, as a repository list writes it.
    path: of the file, in `version`.
    function: the qualified name, such as "Class.method".
    hunk: the number of the function's change, from its top; None for all changes.
    why: what was wrong, in our words. changelog: in the project's words.
    tests: the files to run, () for those that the release touched.
    """

    project: str
    before: str
    after: str
    version: str
    path: str
    function: str
    hunk: int | None
    licence: str
    why: str
    changelog: str = ""
    tests: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        return f"pypi:{self.project}=={self.version}"

    @property
    def last(self) -> str:
        """The release that is tested: the last one, if `version` is a range."""
        return self.version.rpartition("..")[2]


MIT, BSD = "MIT", "BSD-3-Clause"
GRAMMAR = "sqlparse/engine/grouping.py"
MARKDOWN = "tests/test_syntax/"

# fmt: off
FIXES: tuple[Fix, ...] = (
    Fix("humanize", "4.11.0", "4.12.0", "4.12.3", "src/humanize/i18n.py", "activate", 2, MIT,
        "activating English crashed: the language that the texts are written in has no translation file",
        tests=("tests/test_i18n.py",)),
    Fix("inflection", "0.3.1", "0.4.0", "0.5.1", "inflection/__init__.py", "titleize", 1, MIT,
        "a word that begins with an accented letter stayed as it was",
        tests=("test_inflection.py",)),
    Fix("jmespath", "1.0.0", "1.0.1", "1.0.1", "jmespath/parser.py", "Parser._free_cache_entries", 0, MIT,
        "emptying a full cache crashed: newer Pythons draw no sample from a view of keys",
        tests=("tests/test_parser.py",)),
    Fix("markdown", "3.7", "3.8", "3.8", "markdown/extensions/smarty.py", "SmartyExtension.educateQuotes",
        0, BSD,
        "two closing quotes in a row, one nested in the other, became opening ones",
        "Ensure `smarty` extension correctly renders nested closing quotes (#1514).",
        (MARKDOWN + "extensions/test_smarty.py",)),
    Fix("markdown", "3.5.2", "3.6", "3.8", "markdown/extensions/smarty.py",
        "SmartyExtension.extendMarkdown", 0, BSD,
        "the table of contents was made before quotes and dashes were replaced",
        "Give smarty tree processor higher priority than toc (#1440).",
        (MARKDOWN + "extensions/test_smarty.py",)),
    Fix("markdown", "3.4.3", "3.4.4", "3.8", "markdown/inlinepatterns.py",
        "HtmlInlineProcessor.handleMatch", 0, BSD,
        "an escaped character inside a raw tag came out as a placeholder",
        "Unescape any backslash escaped inline raw HTML (#1358).",
        (MARKDOWN + "inline/test_raw_html.py", MARKDOWN + "inline/test_autolinks.py")),
    Fix("markdown", "3.3", "3.3.1", "3.8", "markdown/htmlparser.py", "HTMLExtractor.handle_starttag", 0, BSD,
        "a script tag that a code span names swallowed what followed",
        "Correctly parse raw `script` and `style` tags (#1036).",
        (MARKDOWN + "blocks/test_html_blocks.py",)),
    Fix("parse", "1.20.1", "1.20.2", "1.20.2", "parse.py", "Parser._to_group_name", None, MIT,
        "a field name with a hyphen made a group name that no regular expression can have",
        "Template field names can now contain - character i.e. HYPHEN-MINUS",
        ("tests/test_parse.py",)),
    Fix("python-dotenv", "0.20.0", "0.21.0", "1.1.1", "src/dotenv/main.py",
        "DotEnv.set_as_environment_variables", 0, BSD,
        "loading a file that is missing or empty was told as a success",
        tests=("tests/test_main.py",)),
    Fix("schema", "0.7.0", "0.7.1", "0.7.7", "schema.py", "Optional.__init__", 0, MIT,
        "the default of a key given as a Literal was filled in under the Literal, not under its text",
        tests=("test_schema.py",)),
    Fix("simpleeval", "0.9.12", "0.9.13", "1.0.3", "simpleeval.py", "safe_lshift", 0, MIT,
        "a huge number could be shifted on, which takes all memory",
        tests=("test_simpleeval.py",)),
    Fix("simpleeval", "0.9.12", "0.9.13", "1.0.3", "simpleeval.py", "safe_rshift", 0, MIT,
        "a huge number could be shifted, which takes all memory",
        tests=("test_simpleeval.py",)),
    Fix("simpleeval", "0.9.12", "0.9.13", "1.0.3", "simpleeval.py", "SimpleEval._eval_unaryop", 0, MIT,
        "an unknown operator came out as a KeyError",
        tests=("test_simpleeval.py",)),
    Fix("simpleeval", "0.9.12", "0.9.13", "1.0.3", "simpleeval.py", "SimpleEval._eval_binop", 0, MIT,
        "an unknown operator came out as a KeyError",
        tests=("test_simpleeval.py",)),
    Fix("sqlparse", "0.5.0", "0.5.1", "0.5.3", GRAMMAR, "group_comments", 0, BSD,
        "a comment swallowed every blank after it, not only line ends",
        "The strip comments filter was a bit greedy and removed too much whitespace (issue772).",
        ("tests/test_format.py",)),
    Fix("sqlparse", "0.5.0", "0.5.1", "0.5.3", "sqlparse/filters/others.py",
        "StripWhitespaceFilter._stripws_parenthesis", 0, BSD,
        "blanks at the end of a group before a closing parenthesis stayed",
        "Fix whitespace removal with nested expressions (issue782).",
        ("tests/test_format.py",)),
    Fix("sqlparse", "0.4.4", "0.5.0", "0.5.3", "sqlparse/tokens.py", "_TokenType.__getattr__", 0, BSD,
        "asking a token type for a special method made a new token type, so that copying crashed",
        "Ignore dunder attributes when creating Tokens (issue672).",
        ("tests/test_regressions.py",)),
    Fix("sqlparse", "0.4.2", "0.4.3", "0.5.3", "sqlparse/utils.py", "remove_quotes", 0, BSD,
        "names in backticks kept their quotes",
        "Handle backtick as valid quote char (issue628).",
        ("tests/test_utils.py",)),
    Fix("sqlparse", "0.3.1", "0.4.0", "0.5.3", "sqlparse/filters/reindent.py",
        "ReindentFilter._process_parenthesis", 0, BSD,
        "a group without an opening parenthesis crashed the formatter",
        "Stabilize formatting of invalid SQL statements.",
        ("tests/test_regressions.py",)),
    Fix("sqlparse", "0.3.0", "0.3.1", "0.5.3", GRAMMAR, "group_as", 0, BSD,
        "AS before a common table expression was taken for an alias",
        "Enhance formatting of AS keyword (issue507).",
        ("tests/test_grouping.py",)),
    Fix("sqlparse", "0.2.3", "0.2.4", "0.5.3", GRAMMAR, "group_aliased", 0, BSD,
        "an alias after a comparison was not seen as one",
        "Fix detection of identifiers using comparisons (issue327).",
        ("tests/test_grouping.py",)),
    Fix("sqlparse", "0.2.2", "0.2.3", "0.5.3", GRAMMAR, "_group", 0, BSD,
        "an operator without anything before it crashed",
        "Fix some edge-cases when parsing invalid SQL statements.",
        ("tests/test_regressions.py",)),
    Fix("sqlparse", "0.2.2", "0.2.3", "0.5.3", "sqlparse/filters/reindent.py",
        "ReindentFilter._next_token", 0, BSD,
        "LIMIT did not begin a line of its own",
        "Fix indentation of LIMIT (issue320).",
        ("tests/test_regressions.py",)),
    Fix("sqlparse", "0.2.1", "0.2.2", "0.5.3", GRAMMAR, "group_as", 0, BSD,
        "AS at the end of a statement crashed",
        "Fix parsing of incomplete AS (issue284).",
        ("tests/test_regressions.py",)),
    Fix("tinydb", "4.8.1", "4.8.2", "4.8.2", "tinydb/utils.py", "LRUCache.set", 0, MIT,
        "setting a key again kept its old value",
        tests=("tests/test_utils.py",)),
    Fix("toolz", "0.10.0", "0.11.0", "0.12.0..1.0.0", "toolz/dicttoolz.py", "merge", 0, BSD,
        "a single mapping that is no dict was taken for a list of mappings",
        tests=("toolz/tests/test_dicttoolz.py",)),
    Fix("toolz", "0.10.0", "0.11.0", "0.12.0..1.0.0", "toolz/dicttoolz.py", "merge_with", 0, BSD,
        "a single mapping that is no dict was taken for a list of mappings",
        tests=("toolz/tests/test_dicttoolz.py",)),
    Fix("toolz", "0.9.0", "0.10.0", "0.12.0..1.0.0", "toolz/itertoolz.py", "nth", 0, BSD,
        "a name was read from `collections` that newer Pythons took out of it",
        tests=("toolz/tests/test_itertoolz.py",)),
    Fix("toolz", "0.8.0", "0.8.1", "0.12.0..1.0.0", "toolz/itertoolz.py", "partition_all", 0, BSD,
        "an empty sequence crashed: StopIteration inside of a generator is an error",
        tests=("toolz/tests/test_itertoolz.py",)),
    Fix("toolz", "0.7.4", "0.8.0", "0.12.0..1.0.0", "toolz/itertoolz.py", "topk", 1, BSD,
        "the key 0, the first of each element, was taken for no key",
        tests=("toolz/tests/test_itertoolz.py",)),
    Fix("toolz", "0.7.4", "0.8.0", "0.12.0..1.0.0", "toolz/itertoolz.py", "pluck", 0, BSD,
        "whether there is a default was asked by identity, which no copy of the marker has",
        tests=("toolz/tests/test_itertoolz.py",)),
    Fix("validators", "0.28.1", "0.28.2", "0.35.0", "src/validators/ip_address.py", "_check_private_ip",
        None, MIT,
        "asked for addresses that are not private, it refused every one",
        "fix(ip_address): properly handle private is false",
        ("tests/test_ip_address.py",)),
    Fix("validators", "0.28.1", "0.28.2", "0.35.0", "src/validators/url.py", "_path_regex", 0, MIT,
        "a path with a pictograph was refused",
        "chore(url): allow symbols and pictographs in url",
        ("tests/test_url.py",)),
    Fix("voluptuous", "0.12.1", "0.12.2", "0.15.2", "voluptuous/validators.py", "Maybe", 0, BSD,
        "what the inner validator refused was told with the message of the other alternative",
        "Revert Breaking `Maybe` change in 0.12.1 (#439)",
        ("voluptuous/tests/tests.py",)),
    Fix("voluptuous", "0.11.7", "0.12.0", "0.15.2", "voluptuous/validators.py",
        "_WithSubValidators.__voluptuous_compile__", 1, BSD,
        "what one validator required stayed required for its neighbours",
        "Fixed issue with 'required' not being set properly (#420)",
        ("voluptuous/tests/tests.py",)),
    Fix("w3lib", "2.0.1", "2.1.0", "2.3.1", "w3lib/html.py", "get_base_url", 0, BSD,
        "a base address inside of a comment was obeyed",
        "get_base_url now ignores HTML comments. (#70, #77)",
        ("tests/test_html.py",)),
    Fix("xmltodict", "0.14.1", "0.14.2", "0.14.2", "xmltodict.py", "_DictSAXHandler.endElement", 0, MIT,
        "blanks around the text of an element without children were kept",
        tests=("tests/test_xmltodict.py",)),
    Fix("xmltodict", "0.13.0", "0.14.1", "0.14.2", "xmltodict.py", "_DictSAXHandler.startElement", 0, MIT,
        "streaming lost the attributes of the elements that it handed out",
        tests=("tests/test_xmltodict.py",)),
    Fix("xmltodict", "0.12.0", "0.13.0", "0.14.2", "xmltodict.py", "_DictSAXHandler._build_name", None, MIT,
        "a map of namespaces that is empty or has a default of its own was ignored",
        tests=("tests/test_xmltodict.py",)),
)
# fmt: on


# ---- releases


def releases(project: str, first: str, last: str, cache: Path) -> dict[str, Tree]:
    """Version -> the release's Python files, in order."""
    import git

    checkout = fetch(parse_spec(f"pypi:{project}=={first}..{last}"), cache)
    found: dict[str, Tree] = {}
    with git.Repo(str(checkout.git_dir)) as repository:
        for commit in reversed(list(repository.iter_commits(checkout.commit))):
            blobs = [
                blob
                for blob in commit.tree.traverse()
                if isinstance(blob, git.Blob) and str(blob.path).endswith(".py")
            ]
            found[str(commit.message).split()[-1]] = Tree(
                {str(blob.path): FileEntry(blob.data_stream.read()) for blob in blobs}
            )
    return found


def find_file(tree: Tree, path: str) -> str | None:
    """The path in `tree` of another release's `path`.

    Packages move below src/, and modules become packages.
    """
    bare = re.sub(r"^(src|lib)/", "", path)
    names = [bare, re.sub(r"/__init__\.py$", ".py", bare)]
    return next((folder + name for name in names for folder in SOURCE_FOLDERS if folder + name in tree), None)


# ---- functions and their changes


def parsed(text: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(text)
    except (SyntaxError, ValueError):
        return None


def function_lines(text: str) -> dict[str, tuple[int, int]]:
    """Qualified name -> (first, last) line of every function that is defined once.

    Inner functions are left out.
    """
    found: dict[str, list[tuple[int, int]]] = {}

    def visit(nodes: Sequence[ast.stmt], prefix: str) -> None:
        for node in nodes:
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found.setdefault(prefix + node.name, []).append((node.lineno, node.end_lineno or node.lineno))
            elif isinstance(node, ast.If | ast.Try):
                visit([child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)], prefix)

    module = parsed(text)
    visit(module.body if module else [], "")
    return {name: spans[0] for name, spans in found.items() if len(spans) == 1}


class _Meaning(ast.NodeTransformer):
    """Removes docstrings and annotations. The rest decides what the code does."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        node.returns = None
        if isinstance(node.body[0], ast.Expr) and isinstance(node.body[0].value, ast.Constant):
            node.body[0].value = ast.Constant("")
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node


def meaning(text: str) -> str | None:
    module = parsed(text)
    return None if module is None else ast.dump(_Meaning().visit(module))


@dataclass(frozen=True)
class Change:
    """One function's lines before and after a release."""

    before: tuple[str, ...]
    after: tuple[str, ...]

    @cached_property
    def hunks(self) -> tuple[tuple[int, int, int, int], ...]:
        """(start, end, start after, end after) of each run of changed lines.

        Runs with one equal line between them are joined.
        """
        joined: list[tuple[int, int, int, int]] = []
        for tag, a, b, c, d in difflib.SequenceMatcher(
            None, self.before, self.after, autojunk=False
        ).get_opcodes():
            if tag == "equal":
                continue
            if joined and a - joined[-1][1] <= 1:
                start, _, after_start, _ = joined.pop()
                a, c = start, after_start
            joined.append((a, b, c, d))
        return tuple(joined)

    def size(self, chosen: Sequence[int]) -> int:
        hunks = [self.hunks[number] for number in chosen]
        return sum(max(b - a, d - c) for a, b, c, d in hunks)

    def undo(self, text: str, function: str, chosen: Sequence[int]) -> str | None:
        """`text` with these hunks of `function` undone. None if a hunk is not there exactly once."""
        for number in sorted(chosen, reverse=True):
            start, end, after_start, after_end = self.hunks[number]
            undone = self._undo_one(text, function, self.before[start:end], after_start, after_end)
            if undone is None:
                return None
            text = undone
        return text

    def _undo_one(self, text: str, function: str, old: Sequence[str], start: int, end: int) -> str | None:
        lines = text.split("\n")
        span = function_lines(text).get(function)
        if span is None:
            return None
        first, last = span[0] - 1, span[1]
        for around in CONTEXTS:
            low, high = max(0, start - around), min(len(self.after), end + around)
            block = list(self.after[low:high])
            if not any(line.strip() for line in block) or low == high:
                continue
            found = [at for at in range(first, last - len(block) + 1) if lines[at : at + len(block)] == block]
            if len(found) == 1:
                at = found[0] + start - low
                return "\n".join([*lines[:at], *old, *lines[at + end - start :]])
        return None


def change_of(before: Tree, after: Tree, path: str, function: str) -> Change | None:
    """The change of `function` between two releases. None if one of them lacks the function."""
    sides = []
    for tree in (before, after):
        found = find_file(tree, path)
        span = function_lines(tree.text(found)).get(function) if found else None
        if found is None or span is None:
            return None
        sides.append(tuple(tree.text(found).split("\n")[span[0] - 1 : span[1]]))
    return Change(*sides)


# ---- from a change to an artifact


@dataclass(frozen=True)
class Tools:
    """The values that every step needs."""

    backend: SandboxBackend
    config: Config
    runner: TestRunner
    chat: ChatFormat
    cache: Path

    def environment(self, line: str) -> Environment:
        checkout = fetch(parse_spec(line), self.cache)
        settings, limits = self.config.environment, sandbox_limits(self.config)
        return prepare_environment(
            checkout, self.backend, settings, limits, self.cache, lambda words: print(words, file=sys.stderr)
        )

    def run(self, environment: Environment, tree: Tree, test_files: Sequence[str]) -> TestRun:
        return self.runner.run(environment, tree, environment.script_for(test_files), environment.parser)


def statement_at(text: str, line: int) -> tuple[int, int]:
    """(first, last) line of the smallest statement on `line`.

    If a block around it expects an exception, the whole block is meant: a `return` inside it fails the test.
    """
    module = parsed(text)
    around = [
        node
        for node in ast.walk(module or ast.Module([], []))
        if isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or node.lineno)
    ]
    expecting = [
        node
        for node in around
        if isinstance(node, ast.With) and EXPECTS.search(ast.unparse(node.items[0].context_expr))
    ]
    spans = [(node.lineno, node.end_lineno or node.lineno) for node in expecting or around]
    return min(spans, key=lambda span: span[1] - span[0], default=(line, line))


def weaken(tree: Tree, log: bytes, failing: Sequence[str]) -> Tree:
    """`tree` where each failing test returns before its first failing statement.

    No smaller change hides the bug.
    """
    frames = re.findall(r"^(\S+\.py):(\d+): in (\w+)", log.decode("utf-8", "replace"), re.MULTILINE)
    for path in sorted({test.partition("::")[0] for test in failing}):
        names = {
            test.partition("[")[0].split("::", 1)[1].replace("::", ".")
            for test in failing
            if test.startswith(f"{path}::")
        }
        lines = tree.text(path).split("\n")
        for name, (first, last) in sorted(
            function_lines(tree.text(path)).items(), key=lambda item: -item[1][0]
        ):
            if name not in names:
                continue
            inside = [
                int(n)
                for file, n, where in frames
                if file == path and where == name.split(".")[-1] and first < int(n) <= last
            ]
            start, end = statement_at(tree.text(path), min(inside) if inside else first + 1)
            head = lines[start - 1]
            lines[start - 1 : end] = [head[: len(head) - len(head.lstrip())] + "return"]
        tree = tree.replace({path: FileEntry("\n".join(lines).encode(), tree[path].executable)})
    return tree


@dataclass(frozen=True)
class Bug:
    """An undone fix: the artifact, the tests that fail, the specification's tokens."""

    artifact: Artifact
    failing: tuple[str, ...]
    passing: int
    tokens: int
    failure: str


def passing_in(test_files: Sequence[str], run: TestRun) -> list[str]:
    return [test for test in run.outcomes.passed if test.partition("::")[0] in test_files]


def make_bug(tools: Tools, environment: Environment, buggy: Tree, test_files: Sequence[str]) -> Bug | str:
    """The bug of the tree `buggy` with the test files that fail, or the reason why it is none."""
    before, after = (
        tools.run(environment, environment.tree, test_files),
        tools.run(environment, buggy, test_files),
    )
    if before.error or after.error:
        return before.error or after.error
    failing = tuple(sorted(broken_tests(before.outcomes, after.outcomes) & after.outcomes.failed))
    if not failing:
        return "no test notices"
    noticing = tuple(sorted({test.partition("::")[0] for test in failing}))
    if len(passing_in(noticing, before)) < THRESHOLDS.min_passing_tests:
        noticing = tuple(test_files)
    weakened = weaken(environment.tree, after.log, failing)
    artifact = Artifact(
        diff_trees(environment.tree, buggy),
        diff_trees(environment.tree, weakened),
        noticing,
        environment.script_for(noticing),
        environment.parser,
    )
    passing = len(passing_in(noticing, after))
    tokens = spec_tokens(tools.chat, BugState(artifact, 1, "", failing, ()))
    return Bug(artifact, failing, passing, tokens, short_failure(after.log, failing[0]))


# ---- searching


@dataclass(frozen=True)
class Candidate:
    fix: Fix
    changed_lines: int
    buggy: Tree
    test_files: tuple[str, ...]


def candidates(
    project: str, first: str, last: str, environment: Environment, cache: Path
) -> Iterator[Candidate]:
    """Every small change of a function since `first` that can be undone in `last`.

    Each candidate has the test files that its release touched.
    """
    trees = releases(project, first, last, cache)
    tree, seen = environment.tree, set[str]()
    versions = list(trees)
    for before, after in reversed(list(itertools.pairwise(versions))):
        tests = _changed_tests(trees[before], trees[after], environment)
        for path in sorted(tree):
            if not path.endswith(".py") or is_protected_path(path, tree) or not tests:
                continue
            for function, span in function_lines(tree.text(path)).items():
                change = change_of(trees[before], trees[after], path, function)
                too_long = span[1] - span[0] >= MAX_FUNCTION_LINES
                if (
                    change is None
                    or too_long
                    or len(change.before) > MAX_FUNCTION_LINES
                    or change.before[0] != change.after[0]
                ):
                    continue
                numbers = range(len(change.hunks))
                for hunk in [*numbers, None] if len(numbers) > 1 else numbers:
                    chosen = tuple(numbers) if hunk is None else (hunk,)
                    text = (
                        change.undo(tree.text(path), function, chosen)
                        if change.size(chosen) <= MAX_CHANGED_LINES
                        else None
                    )
                    if text is None or text in seen or meaning(text) in (None, meaning(tree.text(path))):
                        continue
                    seen.add(text)
                    buggy = tree.replace({path: FileEntry(text.encode(), tree[path].executable)})
                    fix = Fix(project, before, after, last, path, function, hunk, "", "")
                    yield Candidate(fix, change.size(chosen), buggy, tests)


def _changed_tests(before: Tree, after: Tree, environment: Environment) -> tuple[str, ...]:
    """The environment's test files that a release touched."""
    names = {path.rpartition("/")[2] for path in before.changed_paths(after) if is_test_path(path)}
    return tuple(path for path in environment.test_files if path.rpartition("/")[2] in names)


def search(project: str, first: str, last: str, tools: Tools) -> None:
    """Print each candidate that fails a test, with its diff and the failure."""
    environment = tools.environment(f"pypi:{project}=={last}")
    tried = found = 0
    for candidate in candidates(project, first, last, environment, tools.cache):
        tried += 1
        bug = make_bug(tools, environment, candidate.buggy, candidate.test_files)
        if isinstance(bug, str) or bug.tokens > MAX_SPEC_TOKENS or bug.passing < THRESHOLDS.min_passing_tests:
            continue
        found += 1
        fix = candidate.fix
        print(
            f"\n=== {fix.project} {fix.before} -> {fix.after} in {fix.version}: "
            f"{fix.path} {fix.function} hunk={fix.hunk}"
        )
        print(
            f"    {candidate.changed_lines} lines, {len(bug.failing)} failing, "
            f"{bug.passing} passing, {bug.tokens} tokens"
        )
        print(reverse_patch(bug.artifact.bug_inject).partition("\n@@")[2])
        print("  spec: " + "\n        ".join(reverse_patch(bug.artifact.test_weaken).splitlines()[3:][:14]))
        print("  " + "\n  ".join(bug.failure.splitlines()[-4:]), flush=True)
    print(f"\n{project}: {found} of {tried} changes fail a test", flush=True)


# ---- records


def record_of(
    fix: Fix, number: int, verdict: Verdict, artifact: Artifact, environment: Environment
) -> dict[str, Any]:
    """The record in the shape of SWE-bench, with our own fields under `selfplay`."""
    return {
        "instance_id": f"human-{fix.project}-{number}",
        "repo": fix.line,
        "base_commit": environment.base_commit,
        "patch": reverse_patch(artifact.bug_inject),
        "test_patch": reverse_patch(artifact.test_weaken),
        "FAIL_TO_PASS": list(verdict.fail_to_pass),
        "PASS_TO_PASS": list(verdict.pass_to_pass),
        "selfplay": {
            "artifact": artifact.to_files(),
            "attempt_patch": "",
            "failure": verdict.failure,
            "order": 1,
            "set": "human",
            "part": "seen repository" if is_trained_on(fix.project) else "unseen repository",
            "function": fix.function,
            "path": fix.path,
            "release_before": fix.before,
            "release_after": fix.after,
            "changelog": fix.changelog,
            "why": fix.why,
            "licence": fix.licence,
            "trained_on": is_trained_on(fix.project),
        },
    }


def is_trained_on(project: str) -> bool:
    """True if the carried policy trained on some release of the project. It never trained on these bugs."""
    played = read_repository_list(resource("recipes") / "quickstart-repos.txt")
    return project in {line.partition("==")[0] for line in CORPUS} | {spec.location for spec in played}


def prove(fix: Fix, number: int, tools: Tools) -> dict[str, Any]:
    """The fix's record.

    Raises RunError if its releases do not show the bug, or if the validator rejects it.
    """
    environment = tools.environment(fix.line)
    trees = releases(fix.project, fix.before, fix.last, tools.cache)
    name = f"{fix.project} {fix.path} {fix.function}, fixed in {fix.after}"
    change = change_of(trees[fix.before], trees[fix.after], fix.path, fix.function)
    chosen = () if change is None else tuple(range(len(change.hunks))) if fix.hunk is None else (fix.hunk,)
    text = change.undo(environment.tree.text(fix.path), fix.function, chosen) if change else None
    if text is None:
        raise RunError(f"{name}: {fix.version} does not contain the change. Give another `version`.")
    buggy = environment.tree.replace(
        {fix.path: FileEntry(text.encode(), environment.tree[fix.path].executable)}
    )
    tests = fix.tests or _changed_tests(trees[fix.before], trees[fix.after], environment)
    bug = make_bug(tools, environment, buggy, tests or environment.test_files)
    if isinstance(bug, str):
        raise RunError(f"{name}: {bug}. Remove it from FIXES.")
    if bug.tokens > MAX_SPEC_TOKENS:
        raise RunError(
            f"{name}: its specification has {bug.tokens} tokens, more than {MAX_SPEC_TOKENS}. "
            "Remove it from FIXES."
        )
    verdict = validate(bug.artifact, environment, THRESHOLDS, tools.runner, tools.config.validator)
    if not verdict.accepted:
        reason = next(check.reason for check in verdict.checks if check.name == verdict.failed_check)
        raise RunError(f"{name}: rejected, {verdict.failed_check}: {reason}")
    return record_of(fix, number, verdict, bug.artifact, environment)


def rebuild(tools: Tools, output: Path, wanted: str, workers: int) -> int:
    """Write the proven records, in the order of FIXES. Prints the others to stderr and returns their number.

    wanted: a project, "" for all. workers: fixes that are proven at the same time.
    """
    counts: Counter[str] = Counter()
    jobs: list[tuple[Fix, int]] = []
    for fix in FIXES:
        counts[fix.project] += 1
        if wanted in ("", fix.project):
            jobs.append((fix, counts[fix.project]))

    def prove_one(job: tuple[Fix, int]) -> dict[str, Any] | None:
        try:
            record = prove(*job, tools)
        except SelfplayError as error:
            print(f"rejected: {error}", file=sys.stderr)
            return None
        failing, passing = len(record["FAIL_TO_PASS"]), len(record["PASS_TO_PASS"])
        print(
            f"{record['instance_id']}: {job[0].function}, {failing} failing, {passing} passing",
            file=sys.stderr,
        )
        return record

    with ThreadPoolExecutor(workers, thread_name_prefix="prove") as pool:
        records = [record for record in pool.map(prove_one, jobs) if record is not None]
    partial = output.with_suffix(".partial")
    partial.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    partial.rename(output)
    print(f"{len(records)} records in {output}, {len(jobs) - len(records)} rejected", file=sys.stderr)
    return len(jobs) - len(records)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="prove every fix and write the records here")
    parser.add_argument("--project", default="", help="with --output: only this project")
    parser.add_argument(
        "--search", nargs=3, metavar=("PROJECT", "A", "B"), help="print candidates between two releases"
    )
    parser.add_argument(
        "--workers", type=at_least_one, default=2, help="with --output: fixes proven at the same time"
    )
    parser.add_argument("--sandbox", default="auto", choices=["auto", "docker", "bubblewrap"])
    parser.add_argument("--tokenizer", default="carried", help="the tokenizer that measures a specification")
    options = parser.parse_args()
    if (options.output is None) == (options.search is None):
        parser.error("give either --output FILE or --search PROJECT A B")
    config = load_config(
        resource("recipes") / "quickstart.toml", [f"validator.script_timeout_s={SCRIPT_TIMEOUT_S}"]
    )
    cache = cache_root()
    backend = open_backend(options.sandbox, cache)[0]
    runner = TestRunner(backend, config.validator, sandbox_limits(config), LABELS)
    tools = Tools(backend, config, runner, ChatFormat(load_tokenizer(options.tokenizer)), cache)
    if options.search:
        project, first, last = options.search
        search(project, first, last, tools)
        return 0
    return 1 if rebuild(tools, options.output, options.project, options.workers) else 0


if __name__ == "__main__":
    raise SystemExit(main())
