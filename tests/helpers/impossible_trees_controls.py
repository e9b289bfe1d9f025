"""How each attack of `attacks.impossible_trees` gets through: one defence is removed from the real code."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest

from selfplay.attacks import Ground
from selfplay.errors import SandboxUnavailable
from selfplay.source.trees import Tree
from selfplay.verdicts import test_runs
from selfplay.verdicts.checks import Finding

Patch = pytest.MonkeyPatch
# What `test_parser.py` was before it was linear in the length of a line.
SLOW_NAMES = """
TEST_FILE = re.compile(r"(?<=[\\s\\])])[^\\s:]+\\.py::")
def test_files(text):
    return [found.start() for found in TEST_FILE.finditer(text)]
"""


def any_tree(patch: Patch, _: Ground) -> None:
    """A tree takes any paths, each is restored alone, and one that does not fit is the machine's failure."""

    def restore(self: Tree, original: Tree, paths: Iterable[str]) -> Tree:
        return self.replace({path: original.files.get(path) for path in paths})

    def alone(files: object, changed: Iterable[str]) -> list[tuple[str, tuple[str, ...]]]:
        return [(path, (path,)) for path in sorted(changed)]

    patch.setattr(Tree, "__post_init__", lambda _: None)
    patch.setattr(Tree, "restore", restore)
    patch.setattr("selfplay.verdicts.validator.revert_units", alone)
    blame_the_machine(patch, _)


def blame_the_machine(patch: Patch, _: Ground) -> None:
    def misfit(*arguments: Any) -> str:
        raise SandboxUnavailable(f"the repository does not fit into its sandbox: {arguments[-1]}")

    patch.setattr(test_runs.TestRunner, "_misfit", misfit)


def any_weakening(patch: Patch, ground: Ground) -> None:
    patch.setattr("selfplay.verdicts.validator.judge_weakening", lambda *_: Finding(True))


def any_path(patch: Patch, ground: Ground) -> None:
    """No length or depth is too much."""
    for module in ("diffs", "trees"):
        patch.setattr(f"selfplay.source.{module}.is_too_long", lambda *_: False)


def read_slowly(patch: Patch, _: Ground) -> None:
    current = test_runs.current_parser

    def slow(text: str) -> str:
        head, main, tail = current(text).partition('if __name__ == "__main__":')
        return f"{head}{SLOW_NAMES}{main}{tail}"

    patch.setattr(test_runs, "current_parser", slow)


def search_the_tree(patch: Patch, _: Ground) -> None:
    """Look through the whole tree for each path, as often as the policy did."""

    def folders(self: Tree) -> Any:
        class Searched:
            def __contains__(searched, folder: str) -> bool:
                return any(path.startswith(f"{folder}/") for path in self.files)

            def __and__(searched, other: object) -> frozenset[str]:
                return frozenset()

            __rand__ = __and__

        return Searched()

    patch.setattr(Tree, "folders", property(folders))


def close_reasoning_early(patch: Patch, _: Ground) -> None:
    from selfplay.agent import tool_format

    def end_of_reasoning(text: str) -> int:
        end = 0
        while opened := tool_format._open_reasoning(text, end):
            mark = dict(tool_format.REASONING)[opened[1]]
            closed = text.find(mark, end)
            if closed < 0:
                break
            end = closed + len(mark)
        return end

    patch.setattr(tool_format, "end_of_reasoning", end_of_reasoning)


def keep_a_cut_log(patch: Patch, _: Ground) -> None:
    script_log = test_runs.TestRunner._script_log

    def uncut(self: test_runs.TestRunner, box: Any) -> tuple[bytes, int, str]:
        log, exit_code, _ = script_log(self, box)
        return log, exit_code, ""

    patch.setattr(test_runs.TestRunner, "_script_log", uncut)


def limit_anything(patch: Patch, _: Ground) -> None:
    patch.setattr("selfplay.sandbox.bubblewrap_sandbox.seccomp_filter", lambda: b"")


def digest_of_the_tree(patch: Patch, _: Ground) -> None:
    def digest(original: Tree, buggy: Tree) -> str:
        return buggy.digest

    for module in ("verdicts.validator", "attacks.impossible_trees"):
        patch.setattr(f"selfplay.{module}.bug_digest", digest)


def digest_with_the_weakening(patch: Patch, _: Ground) -> None:
    from selfplay.verdicts.validator import _Judgement

    patch.setattr(_Judgement, "_digest", lambda self, buggy: self.artifact.digest)


def digest_with_the_tests(patch: Patch, _: Ground) -> None:
    from selfplay.verdicts.validator import _Judgement

    patch.setattr(_Judgement, "_digest", lambda self, buggy: f"{buggy.digest} {sorted(self.broken)}")


def write_any_number(patch: Patch, _: Ground) -> None:
    patch.setattr("selfplay.verdicts.noise.expressions.MOST_DIGITS", 5000)


CONTROLS: Mapping[str, Callable[[Patch, Ground], Ground | None]] = {
    "slow-parser": read_slowly,
    "many-new-files": search_the_tree,
    "slow-reply": close_reasoning_early,
    "cut-log": keep_a_cut_log,
    "folder-for-file": any_tree,
    "file-for-folder": any_weakening,
    "stop-a-run": any_tree,
    "full-workspace": blame_the_machine,
    "long-name": any_path,
    "deep-folders": any_path,
    "limit-server": limit_anything,
    "spell-anew": digest_of_the_tree,
    "hide-anew": digest_with_the_weakening,
    "name-tests-anew": digest_with_the_tests,
    "long-numbers": write_any_number,
}
