"""A scripted player of both roles: it mutates a function as injector, and undoes mutations as solver.

It knows the repositories without bugs. Does not judge, and leaves the format of calls to `agent.tools`.
Invariant: an edit names one line, and its old text occurs exactly once in that line.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from selfplay.agent.chat import ChatFormat
from selfplay.agent.tool_format import BadFormat, CannotWrite
from selfplay.agent.tools import STANDARD, Action, Toolbox
from selfplay.errors import ConfigError
from selfplay.repositories.suspects import FRAME
from selfplay.source.path_policy import is_protected_path, is_test_path
from selfplay.source.trees import Tree
from selfplay.teacher.conversations import (
    BUDGET,
    PY_PATH,
    SHOWN,
    STILL_FAILING,
    SUSPECT,
    Exchange,
    Turn,
    read_conversation,
)
from selfplay.teacher.functions import Function, functions_of, statement_at
from selfplay.teacher.mutations import Mutation, choose_mutation, mutations_of_file, smallest_edit
from selfplay.teacher.phrases import (
    SPEC_FILES,
    LineEdit,
    Listing,
    break_command,
    listed,
    show_command,
    shown_lines,
    try_command,
    weaken_command,
)

MAX_EDITS = 3  # of an injector whose bug no test notices
MAX_LISTINGS = 5  # functions that a solver shows
GUESSES_IN_LAST = 0.8  # share of wrong edits that go to the function shown last
CALL = re.compile(r"(\w+)\(")


class Target(NamedTuple):
    """The function that an injector breaks, by the line of its `def`, and the test file that notices."""

    tree: Tree
    path: str
    test_file: str
    line: int


class Difference(NamedTuple):
    """A shown line that differs from the repository without the bug."""

    path: str
    line: int
    text: str
    original: str


@dataclass(frozen=True)
class TeacherPlayer:
    """Plays both roles. Call it with a turn of the scripted engine; equal turns give equal replies.

    The solver shows the suspects one after another and compares them with the original. It puts back the
    first line that differs, and runs the tests. If tests fail, it undoes the edit and shows the next suspect.

    trees: the repositories without bugs.
    skill: share of solver episodes that try. The others submit nothing, so that groups hold both outcomes.
    max_lines: of a function that the player mutates.
    first_mutation: the mutation that an injector begins with. Without it, the turn's seed chooses.
    guess_rate: how often the solver makes a wrong edit instead of the right one, or instead of showing the
        next suspect.
    chat: of the prompts, with the tools and the format of calls. Without it: ChatML and the standard ones.
    whole_lines: an edit replaces its whole line, see `LineEdit.reply`.
    """

    trees: Sequence[Tree]
    skill: float = 0.6
    max_lines: int = 30
    first_mutation: Mutation | None = None
    guess_rate: float = 0.0
    chat: ChatFormat | None = None
    whole_lines: bool = False
    _functions: dict[tuple[str, str], list[tuple[Function, list[Mutation]]]] = field(
        default_factory=dict, repr=False
    )

    def __call__(self, turn: Turn) -> str:
        try:
            return self._reply(turn)
        except CannotWrite:  # a line of the repository is a tag of the format
            return self._submit()

    def _reply(self, turn: Turn) -> str:
        exchange = read_conversation(turn.text, self.chat)
        turn_random = random.Random(turn.seed)
        if turn.tag.partition("/")[0] == "injector":
            return self._inject(exchange, turn_random)
        # Seeded by the episode: whether the solver tries at all must be the same in each of its turns.
        episode_random = random.Random(turn.tag.rpartition("/")[0])
        if episode_random.random() >= self.skill:
            return self._submit()
        return self._solve(exchange, turn_random)

    def __post_init__(self) -> None:
        check_tools(self.tools)

    @property
    def tools(self) -> Toolbox:
        return self.chat.tools if self.chat else STANDARD

    def _bash(self, command: str) -> str:
        return self.tools.write("bash", command=command)

    def _submit(self, *names: str) -> str:
        return self.tools.write("submit", **({"files": "\n".join(names)} if names else {}))

    def _action(self, reply: str) -> Action:
        """The call of a reply; without one, bash with an empty script."""
        try:
            return self.tools.parse(reply)
        except BadFormat:
            return Action("bash", "")

    def leads_to(self, task: str, mutation: Mutation) -> bool:
        """True if a solver with this `task` shows the mutated line."""
        tree = self._tree_of(task)
        return mutation.path in tree and any(
            path == mutation.path
            and f"\n{mutation.line}:" in "\n" + shown_lines(tree.text(path), first, last)
            for path, first, last in self.listings(task)[:MAX_LISTINGS]
        )

    def listings(self, task: str) -> list[Listing]:
        """Functions to show, best first: the suspects in the prompt, or else those that the failure names."""
        suspects = [(path, int(first), int(last)) for path, first, last in SUSPECT.findall(task)]
        return suspects or self._named_by_failure(task)

    def _tree_of(self, task: str) -> Tree:
        """The repository that the task is about: the one that has most of the named files."""
        names = _py_paths(task)
        return max(self.trees, key=lambda tree: sum(name in tree for name in names))

    def _mutations_of(self, tree: Tree, path: str) -> list[tuple[Function, list[Mutation]]]:
        key = (tree.digest, path)
        if key not in self._functions:
            self._functions[key] = mutations_of_file(path, tree.text(path), self.max_lines)
        return self._functions[key]

    # ---- injector

    def _inject(self, exchange: Exchange, generator: random.Random) -> str:
        target = self._target(exchange.task)
        if not exchange.last_reply:
            return self._break(target, (), generator)
        actions = [self._action(reply) for reply in exchange.replies]
        edits = [action for action in actions if action.tool == "edit"]
        if actions[-1].tool == "edit":
            return self._bash(break_command(target.test_file))
        if break_command(target.test_file) in actions[-1].body:
            failing = [
                int(number)
                for name, number in re.findall(r"^(\S+\.py):(\d+): ", exchange.last_output, re.MULTILINE)
                if name == target.test_file
            ]
            if failing:
                return self._bash(_weaken(target, failing))
            if len(edits) < MAX_EDITS:
                return self._break(target, edits, generator)
        return self._submit(*SPEC_FILES)

    def _target(self, task: str) -> Target:
        """The target that the prompt shows. Without one: a function that the test file calls."""
        tree = self._tree_of(task)
        names = [name for name in _py_paths(task) if name in tree]
        test_file = next((name for name in names if is_test_path(name)), None)
        if test_file is None:
            test_files = (path for path in sorted(tree) if is_test_path(path) and path.endswith(".py"))
            test_file = next(test_files, "")
        path = next((name for name in names if not is_test_path(name)), None)
        shown = re.search(r"^(\d+):\s*(?:async )?def ", task, re.MULTILINE)
        if path is not None and shown:
            return Target(tree, path, test_file, int(shown[1]))
        called = set(CALL.findall(tree.text(test_file))) if test_file in tree else set()
        known = [
            (path, function.first_line)
            for path in sorted(tree)
            if path.endswith(".py") and not is_protected_path(path, tree)
            for function, _ in self._mutations_of(tree, path)
            if function.short_name in called
        ]
        path, line = random.Random(task).choice(known) if known else ("", 0)
        return Target(tree, path, test_file, line)

    def _break(self, target: Target, edits: Sequence[Action], generator: random.Random) -> str:
        """Mutate a line that no earlier edit changed; without one, submit."""
        edited = {edit.line for edit in edits}
        for function, mutations in self._mutations_of(target.tree, target.path) if target.path else ():
            fresh = [mutation for mutation in mutations if mutation.line not in edited]
            if function.first_line == target.line and fresh:
                first = self.first_mutation
                mutation = (
                    first
                    if first is not None and first in fresh and not edited
                    else choose_mutation(fresh, generator)
                )
                shown = listed(function, mutation)
                edit = LineEdit(shown, target.path, mutation.line, mutation.search, mutation.replace)
                return edit.reply(self.tools, self.whole_lines)
        return self._submit(*SPEC_FILES)

    # ---- solver

    def _solve(self, exchange: Exchange, generator: random.Random) -> str:
        actions = [self._action(reply) for reply in exchange.replies]
        commands = "\n".join(action.body for action in actions)
        shown = [(path, int(first), int(last)) for path, first, last in SHOWN.findall(commands)]
        next_listing = next(iter(self.listings(exchange.task)[:MAX_LISTINGS][len(shown) :]), None)
        last = actions[-1] if actions else Action("bash", "")
        if last.tool == "edit":
            return self._bash(try_command(last.path, next_listing))
        if "git checkout -q " in last.body and not STILL_FAILING.search(exchange.last_output):
            return self._submit()
        differences = self._differences(exchange)
        if generator.random() >= self.guess_rate:
            for path, line, text, original in differences:
                edit = LineEdit(f"{line}:{text}", path, line, *smallest_edit(text, original))
                reply = edit.reply(self.tools, self.whole_lines)
                if reply not in exchange.replies:
                    return reply
        if shown and self.guess_rate and (differences or generator.random() < self.guess_rate):
            guess = self._guess(exchange, shown, differences, generator)
            if guess:
                return guess
        return self._bash(show_command(*next_listing)) if next_listing else self._submit()

    def _differences(self, exchange: Exchange) -> list[Difference]:
        """Every shown line that differs from the original."""
        tree = self._tree_of(exchange.task)
        found = []
        for reply, observation in zip(exchange.replies, exchange.observations, strict=False):
            command = SHOWN.search(self._action(reply).body)
            if command and command[1] in tree:
                lines = tree.text(command[1]).split("\n")
                for number, text in re.findall(r"^(\d+):(.*)$", BUDGET.sub("", observation), re.MULTILINE):
                    if int(number) <= len(lines) and text != lines[int(number) - 1]:
                        found.append(Difference(command[1], int(number), text, lines[int(number) - 1]))
        return found

    def _guess(
        self,
        exchange: Exchange,
        shown: Sequence[Listing],
        differences: Sequence[Difference],
        generator: random.Random,
    ) -> str | None:
        """A wrong edit of a shown function that no earlier reply made; None if there is none."""
        path, first, last = shown[-1] if generator.random() < GUESSES_IN_LAST else generator.choice(shown)
        lines = self._tree_of(exchange.task).text(path).split("\n")
        repairs = {number: lines[number - 1] for where, number, _, _ in differences if where == path}
        for where, number, text, _ in differences:
            if where == path:
                lines[number - 1] = text
        seen = {
            line.partition(":")[0]
            for observation in exchange.observations
            for line in observation.split("\n")
        }
        found = [
            LineEdit(
                f"{mutation.line}:{mutation.before}", path, mutation.line, mutation.search, mutation.replace
            ).reply(self.tools, self.whole_lines)
            for _, mutations in mutations_of_file(path, "\n".join(lines), self.max_lines)
            for mutation in mutations
            if first <= mutation.line <= last
            and str(mutation.line) in seen
            and mutation.after != repairs.get(mutation.line)
        ]
        fresh = [reply for reply in found if reply not in exchange.replies]
        return generator.choice(fresh) if fresh else None

    def _named_by_failure(self, task: str) -> list[Listing]:
        """Functions that the failure names.

        First those of its frames, innermost first; then what its lines call; then what those functions call.
        """
        tree = self._tree_of(task)
        defined: dict[str, list[Listing]] = {}
        for path in sorted(tree):
            if path.endswith(".py") and not is_test_path(path):
                for function in functions_of(path, tree.text(path), max_lines=10_000):
                    defined.setdefault(function.short_name, []).append(
                        (path, function.first_line, function.last_line)
                    )
        frames = [(path.removeprefix("./"), name) for path, _, name in FRAME.findall(task)]
        found = [
            listing
            for path, name in reversed(frames)
            for listing in defined.get(name, ())
            if listing[0] == path
        ]
        called = CALL.findall(
            "\n".join(line for line in task.split("\n") if not line.startswith(("-", "@@")))
        )
        found += [listing for name in reversed(called) for listing in defined.get(name, ())]
        for path, first, last in list(found):
            found += [
                listing
                for name in CALL.findall(shown_lines(tree.text(path), first, last))
                for listing in defined.get(name, ())
            ]
        return list(dict.fromkeys(found))


def check_tools(tools: Toolbox) -> None:
    """Raise ConfigError if the calls that the player writes cannot be made."""
    missing = [name for name in ("bash", "edit", "submit") if name not in tools.tools]
    if missing:
        raise ConfigError(
            f"the scripted player and the warm start call bash, edit and submit; agent.tools lacks "
            f"{', '.join(missing)}. Add what is missing, with another agent.tool_format than 'bash-block'."
        )


def _py_paths(task: str) -> list[str]:
    return [name.removeprefix("./") for name in PY_PATH.findall(task)]


def _weaken(target: Target, failing: Sequence[int]) -> str:
    """Replace the shortest of the failing statements by `return`."""
    spans = [statement_at(target.tree.text(target.test_file), line) for line in failing]
    first, last = min(spans, key=lambda span: span[1] - span[0])
    if first == last:
        return weaken_command(target.test_file, first)
    command = f"sed -i '{first}s/[^ ].*/return/;{first + 1},{last}d' {target.test_file}"
    return f"{command}; git diff {target.test_file} > /submit/test_weaken.diff"
