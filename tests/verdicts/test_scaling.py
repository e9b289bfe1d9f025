"""Reading hostile text takes linear time: with 8 times the text, much less than 64 times the time."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from selfplay.agent.editing import EditError, apply_edit
from selfplay.agent.tool_format import TAGS, BadFormat
from selfplay.attacks.growth import is_linear
from selfplay.attacks.impossible_trees import hostile_logs
from selfplay.repositories.scripts import RECORDS_IDS, standard_parser
from selfplay.runtime.resources import resource
from selfplay.source.apply import apply_patch
from selfplay.source.diffs import reverse_patch
from selfplay.source.normal_form import normal_form
from selfplay.source.path_policy import is_protected_path
from selfplay.source.trees import FileEntry, Tree
from selfplay.verdicts.perturbation import may_be_random, perturb_source
from selfplay.verdicts.test_logs import short_failure, without_lines_naming

PARSERS = {
    "pytest": standard_parser(),
    "pytest with records": standard_parser(RECORDS_IDS),
    **{path.stem: path.read_text() for path in sorted(resource("data/parsers").glob("*.py"))},
}
LINES = {
    "brackets": "]",
    "blanks": " ",
    "dots": " ... ",
    "dashes": " - ",
    "ok": "test_a ok",
    "in": "1 failed in 1",
    "equals": "=",
    "digits": "1",
    "words": "ok 1 - a\n",
    "subtests": "# Subtest: a\n",
}


def parser(text: str) -> Callable[[str], object]:
    names: dict[str, Any] = {"__name__": "parser"}
    exec(compile(text, "test_parser.py", "exec"), names)
    return names["parse_recorded"] if "parse_recorded" in names else names["parse"]


@pytest.mark.parametrize("name", PARSERS)
@pytest.mark.parametrize("line", LINES)
def test_a_parser_reads_long_lines_in_linear_time(name: str, line: str) -> None:
    parse = parser(PARSERS[name])

    def work(size: int) -> object:
        text = LINES[line] * (size // len(LINES[line]))
        starts = ("", "SUBFAILED(", "FAILED a[", "1 failed", "not ok 1 # ", "FAIL: ", "test_a ")
        rows = [f"=== short test summary info ===\n{start}{text}\n1 failed in 1s\n" for start in starts]
        return [parse(row) for row in rows]

    assert is_linear(work, 4000)


@pytest.mark.parametrize("name", ["pytest", "pytest with records"])
@pytest.mark.parametrize("log", hostile_logs(100))
def test_the_standard_parser_reads_hostile_logs_in_linear_time(name: str, log: str) -> None:
    parse = parser(PARSERS[name])
    texts: dict[int, str] = {}

    def work(size: int) -> object:
        return parse(texts.setdefault(size, hostile_logs(size)[log]))

    assert is_linear(work, 40_000)


def reply(text: str, size: int) -> None:
    with pytest.raises(BadFormat):
        TAGS.parse(text * (size // len(text)) + "\n<think>", ["bash"])


@pytest.mark.parametrize("text", ["</think>", "<think>", "<tool", "</tool>\n", "<tool: bash>\n", " \n", "\t"])
def test_a_reply_is_read_in_linear_time(text: str) -> None:
    assert is_linear(partial(reply, text), 4000)


@pytest.mark.parametrize("end", ["", "\r\n"])
@pytest.mark.parametrize("line", [None, 1])
def test_an_edit_is_looked_for_in_linear_time(end: str, line: int | None) -> None:
    def work(size: int) -> None:
        with pytest.raises(EditError):
            apply_edit("a" * size + end, "a" * (size // 2), "b", line)

    assert is_linear(work, 4000)


def one_function(size: int) -> bytes:
    return b"def f(a):\n" + b"    a = a.b(c)(  1 )\n" * (size // 20)


def functions(size: int) -> bytes:
    return b"".join(b"def f%d(a):\n    return [a for a in (1, 2)]\n" % number for number in range(size // 40))


SOURCES: dict[str, Callable[[int], bytes]] = {
    "one function": one_function,
    "functions": functions,
    "blanks": lambda size: b"a = b." + b" " * size + b"c\n",
    "names": lambda size: b"a" * size,
    "nested": lambda size: b"x = " + b"a.b + " * (size // 6) + b"c\n",
}


@pytest.mark.parametrize("source", SOURCES)
def test_source_is_changed_and_compared_in_linear_time(source: str) -> None:
    def work(size: int) -> None:
        content = SOURCES[source](size)
        perturb_source(content, 1)
        normal_form("a.py", content)
        may_be_random(Tree(), Tree({"a.py": FileEntry(content)}), ["a.py"])

    assert is_linear(work, 4000)


@pytest.mark.parametrize("text", [b"=", b"_ ", b"\x1b[", b"a b\n", b"1", b"__ a __\n", b"\x1b[0"])
def test_a_log_is_shortened_in_linear_time(text: bytes) -> None:
    def work(size: int) -> None:
        log = text * (size // len(text))
        short_failure(log, "a.py::b")
        without_lines_naming(log, ["a.py::b", "1-1"])

    assert is_linear(work, 4000)


def test_a_diff_is_read_reversed_and_applied_in_linear_time() -> None:
    def work(size: int) -> None:
        rows = size // 4
        hunks = "".join(f"@@ -{2 * n + 1},1 +{2 * n + 1},1 @@\n-a\n+b\n" for n in range(rows))
        text = f"diff --git a/x b/x\n--- a/x\n+++ b/x\n{hunks}"
        apply_patch(Tree({"x": FileEntry(b"a\n" * (2 * rows))}), text)
        reverse_patch(text)

    assert is_linear(work, 4000)


def test_the_path_policy_takes_as_long_for_a_path_in_a_large_tree() -> None:
    def work(size: int) -> None:
        tree = Tree({f"p{n}/a.py": FileEntry(b"") for n in range(size // 8)})
        assert all(is_protected_path(f"json/n{n}.py", tree) for n in range(size // 8))

    assert is_linear(work, 4000)


def test_a_tree_is_made_and_restored_in_linear_time() -> None:
    def work(size: int) -> None:
        one = Tree({f"p{n}/a.py": FileEntry(b"") for n in range(size // 8)})
        other = Tree({f"p{n}/a.py/b/c.py": FileEntry(b"") for n in range(size // 8)})
        assert other.restore(one, one).keys() == one.keys()

    assert is_linear(work, 4000)
