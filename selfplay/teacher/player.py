"""Scripted players of both roles: small mutations of a function, their reverse as the repair, in the order a terse episode takes.

Leaves judging to the validator and formats to tools. Invariant: an edit names one line, and its old text occurs there exactly once.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from selfplay.agent.tools import format_action
from selfplay.repositories.suspects import FRAME
from selfplay.source.path_policy import is_protected_path, is_test_path
from selfplay.source.trees import Tree
from selfplay.teacher.mutations import (
    Function,
    Mutation,
    choose_mutation,
    functions_of,
    mutations_of_file,
    smallest_edit,
    statement_at,
)
from selfplay.teacher.phrases import (
    BUDGET,
    PY_PATH,
    SHOWN,
    SPEC_FILES,
    STILL_FAILING,
    SUSPECT,
    Exchange,
    Turn,
    break_command,
    edit_reply,
    listed,
    read_conversation,
    show_command,
    shown_lines,
    try_command,
    weaken_command,
)

MAX_EDITS = 3
MAX_LOOKS = 5
GUESSES_AT_LAST = 0.8  # guesses that are made in the function that was shown last


@dataclass(frozen=True)
class TeacherPlayer:
    """Plays both roles on repositories whose original trees it knows; call it with a scripted engine's turn.

    As solver it looks at the suspects in turn, compares with the original, puts back what differs and runs the tests; what they refuse
    is taken back, and the next suspect shown. So in a `skill` share of its episodes; in the others it submits nothing, so that groups
    hold both. Equal turns get equal replies.
    `first` is the mutation that an injector begins with, in place of one that the turn's seed draws.
    `guesses` is how often it edits what does not mend: in place of mending what it sees, and in place of looking on.
    """

    trees: Sequence[Tree]
    skill: float = 0.6
    max_lines: int = 30
    first: Mutation | None = None
    guesses: float = 0.0
    _functions: dict[tuple[str, str], list[tuple[Function, list[Mutation]]]] = field(
        default_factory=dict, repr=False
    )

    def __call__(self, turn: Turn) -> str:
        role = turn.tag.partition("/")[0]
        exchange = read_conversation(turn.text)
        # One generator an episode: what it does in turn 3 must agree with what it meant in turn 1.
        generator = random.Random(turn.tag.rpartition("/")[0])
        chance = random.Random(turn.seed)
        return (
            self._inject(exchange, chance) if role == "injector" else self._solve(exchange, generator, chance)
        )

    # -- injector

    def _inject(self, exchange: Exchange, generator: random.Random) -> str:
        last = exchange.replies[-1] if exchange.replies else ""
        output = BUDGET.sub("", exchange.observations[-1]) if exchange.observations else ""
        tree, path, test_file, line = self._target(exchange)
        edits = [reply for reply in exchange.replies if "<tool: edit>\n" in reply]
        if not last:
            return self._break(tree, path, line, (), generator)
        if "<tool: edit>\n" in last:
            return _call("bash", break_command(test_file))
        if break_command(test_file) in last:
            failing = [
                int(number)
                for name, number in re.findall(r"^(\S+\.py):(\d+): ", output, re.MULTILINE)
                if name == test_file
            ]
            if failing:
                return _call("bash", self._weaken(tree, test_file, failing))
            if len(edits) < MAX_EDITS:
                return self._break(tree, path, line, edits, generator)
        return _call("submit", "\n".join(SPEC_FILES))

    def _target(self, exchange: Exchange) -> tuple[Tree, str, str, int]:
        """(tree, file, test file, line of its `def`). Without a target in the prompt: any function that the test file names."""
        named = [name.removeprefix("./") for name in PY_PATH.findall(exchange.task)]
        tree = max(self.trees, key=lambda t: sum(name in t for name in named))
        tests = [name for name in named if name in tree and is_test_path(name)]
        sources = [name for name in named if name in tree and not is_test_path(name)]
        test_file = (
            tests[0]
            if tests
            else next((p for p in sorted(tree) if is_test_path(p) and p.endswith(".py")), "")
        )
        shown = re.search(r"^(\d+):\s*(?:async )?def ", exchange.task, re.MULTILINE)
        if sources and shown:
            return tree, sources[0], test_file, int(shown[1])
        called = set(re.findall(r"(\w+)\(", tree.text(test_file))) if test_file in tree else set()
        known = [
            (path, function.first_line)
            for path in sorted(tree)
            if path.endswith(".py") and not is_protected_path(path, tree)
            for function, _ in self._mutable(tree, path)
            if function.short_name in called
        ]
        if not known:
            return tree, "", test_file, 0
        path, line = random.Random(exchange.task).choice(known)
        return tree, path, test_file, line

    def _mutable(self, tree: Tree, path: str) -> list[tuple[Function, list[Mutation]]]:
        key = (tree.digest, path)
        if key not in self._functions:
            self._functions[key] = mutations_of_file(path, tree.text(path), self.max_lines)
        return self._functions[key]

    def _break(self, tree: Tree, path: str, line: int, edits: Sequence[str], generator: random.Random) -> str:
        done = {
            int(number)
            for edit in edits
            for number in re.findall(r"^<tool: edit>\n\S+:(\d+)$", edit, re.MULTILINE)
        }
        for function, mutations in self._mutable(tree, path) if path else ():
            fresh = [mutation for mutation in mutations if mutation.line not in done]
            if function.first_line == line and fresh:
                mutation = (
                    self.first
                    if self.first is not None and self.first in fresh and not done
                    else choose_mutation(fresh, generator)
                )
                return edit_reply(
                    listed(function, mutation), path, mutation.line, mutation.search, mutation.replace
                )
        return _call("submit", "\n".join(SPEC_FILES))

    def _weaken(self, tree: Tree, test_file: str, failing: Sequence[int]) -> str:
        """The first failing statement becomes a `return`; one of several lines is taken out whole."""
        spans = [statement_at(tree.text(test_file), line) for line in failing]
        first, last = min(spans, key=lambda span: span[1] - span[0])
        if first == last:
            return weaken_command(test_file, first)
        command = f"sed -i '{first}s/[^ ].*/return/;{first + 1},{last}d' {test_file}"
        return f"{command}; git diff {test_file} > /submit/test_weaken.diff"

    # -- solver

    def _solve(self, exchange: Exchange, episode: random.Random, turn: random.Random) -> str:
        if episode.random() >= self.skill:
            return _call("submit", "")
        last = exchange.replies[-1] if exchange.replies else ""
        output = BUDGET.sub("", exchange.observations[-1]) if exchange.observations else ""
        looked = SHOWN.findall("\n".join(exchange.replies))
        then = next(iter(self.places(exchange.task)[:MAX_LOOKS][len(looked) :]), None)
        edited = re.search(r"^<tool: edit>\n(\S+):\d+$", last, re.MULTILINE)
        if edited:
            return _call("bash", try_command(edited[1], then))
        if "git checkout -q " in last and not STILL_FAILING.search(output):
            return _call("submit", "")
        broken = self._seen(exchange)
        for path, number, text, original in broken if turn.random() >= self.guesses else ():
            reply = edit_reply(f"{number}:{text}", path, number, *smallest_edit(text, original))
            if reply not in exchange.replies:
                return reply
        if looked and self.guesses and (broken or turn.random() < self.guesses):
            guess = self._guess(
                exchange, [(path, int(first), int(last)) for path, first, last in looked], broken, turn
            )
            if guess:
                return guess
        return _call("bash", show_command(*then)) if then else _call("submit", "")

    def _guess(
        self,
        exchange: Exchange,
        shown: Sequence[tuple[str, int, int]],
        broken: Sequence[tuple[str, int, str, str]],
        turn: random.Random,
    ) -> str | None:
        """An edit of a shown function that does not mend it and was not made before; None where there is none."""
        path, first, last = shown[-1] if turn.random() < GUESSES_AT_LAST else turn.choice(shown)
        lines = self._tree_of(exchange.task).text(path).split("\n")
        mended = {number: lines[number - 1] for where, number, _, _ in broken if where == path}
        for where, number, text, _ in broken:
            if where == path:
                lines[number - 1] = text
        seen = {
            line.partition(":")[0]
            for observation in exchange.observations
            for line in observation.split("\n")
        }
        found = [
            edit_reply(
                f"{mutation.line}:{mutation.before}", path, mutation.line, mutation.search, mutation.replace
            )
            for _, mutations in mutations_of_file(path, "\n".join(lines), self.max_lines)
            for mutation in mutations
            if first <= mutation.line <= last
            and str(mutation.line) in seen
            and mutation.after != mended.get(mutation.line)
        ]
        fresh = [reply for reply in found if reply not in exchange.replies]
        return turn.choice(fresh) if fresh else None

    def _tree_of(self, task: str) -> Tree:
        named = [name.removeprefix("./") for name in PY_PATH.findall(task)]
        return max(self.trees, key=lambda t: sum(name in t for name in named))

    def _seen(self, exchange: Exchange) -> list[tuple[str, int, str, str]]:
        """(path, line, text, the original's text) of every shown line that differs from the original."""
        tree = self._tree_of(exchange.task)
        found = []
        for reply, observation in zip(exchange.replies, exchange.observations, strict=False):
            command = SHOWN.search(reply)
            if command and command[1] in tree:
                lines = tree.text(command[1]).split("\n")
                for number, text in re.findall(r"^(\d+):(.*)$", BUDGET.sub("", observation), re.MULTILINE):
                    if int(number) <= len(lines) and text != lines[int(number) - 1]:
                        found.append((command[1], int(number), text, lines[int(number) - 1]))
        return found

    def leads_to(self, task: str, mutation: Mutation) -> bool:
        """Whether a solver who is told `task` comes to look at the mutated line."""
        tree = self._tree_of(task)
        return mutation.path in tree and any(
            path == mutation.path
            and f"\n{mutation.line}:" in "\n" + shown_lines(tree.text(path), first, last)
            for path, first, last in self.places(task)[:MAX_LOOKS]
        )

    def places(self, task: str) -> list[tuple[str, int, int]]:
        """(path, first line, last line) of functions to look at, best first: the suspects that are given, else what the failure names."""
        return [(path, int(first), int(last)) for path, first, last in SUSPECT.findall(task)] or self._named(
            task
        )

    def _named(self, task: str) -> list[tuple[str, int, int]]:
        """Functions by what the failure says: innermost frames first, then what the failing lines call, then what those call."""
        tree = self._tree_of(task)
        defined: dict[str, list[tuple[str, int, int]]] = {}
        for path in sorted(tree):
            if path.endswith(".py") and not is_test_path(path):
                for function in functions_of(path, tree.text(path), max_lines=10_000):
                    defined.setdefault(function.short_name, []).append(
                        (path, function.first_line, function.last_line)
                    )
        frames = [(path.removeprefix("./"), name) for path, _, name in FRAME.findall(task)]
        found = [
            place for path, name in reversed(frames) for place in defined.get(name, ()) if place[0] == path
        ]
        called = re.findall(
            r"(\w+)\(", "\n".join(line for line in task.split("\n") if not line.startswith(("-", "@@")))
        )
        found += [place for name in reversed(called) for place in defined.get(name, ())]
        for place in list(found):
            found += [
                inner
                for name in re.findall(r"(\w+)\(", shown_lines(tree.text(place[0]), *place[1:]))
                for inner in defined.get(name, ())
            ]
        return list(dict.fromkeys(found))


# The players that `engine.script` can name.
PLAYERS = {"teacher": TeacherPlayer}


def _call(tool: str, body: str) -> str:
    return format_action(tool, body)
