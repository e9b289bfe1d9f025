"""Fabricated episodes of both roles over plain trees: what a sandbox would print is computed where it can be, made up where it cannot.

Leaves running anything to others. Invariant: a training text is made of the very pieces that play is made of (prompts, chat, tools).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace

from selfplay.agent import prompting, tools
from selfplay.agent.chat import ChatFormat
from selfplay.repositories.suspects import Suspect, failure_first
from selfplay.repositories.targets import Span, function_spans, is_held_out, shown_source
from selfplay.source.path_policy import is_protected_path, is_test_path
from selfplay.source.trees import Tree
from selfplay.teacher import player as teacher
from selfplay.teacher.mutations import (
    Function,
    Mutation,
    choose_mutation,
    mutations_of_file,
    plainest_mutation,
    smallest_edit,
)
from selfplay.teacher.phrases import (
    SPEC_FILES,
    break_command,
    edit_reply,
    listed,
    show_command,
    shown_lines,
    try_command,
    weaken_command,
)
from selfplay.warm_start.sft import Document


@dataclass(frozen=True)
class PlayLimits:
    """The limits of the episodes to be imitated, as a run's agent settings have them."""

    context_tokens: int = 3072
    observation_tokens: int = 400
    turns: int = 10


@dataclass(frozen=True)
class Package:
    """One source distribution, read but never run: functions that can be mutated, and test lines that call them."""

    name: str
    licence: str
    tree: Tree
    max_lines: int
    most_functions: int
    share: float = 1.0  # how often it is drawn, beside others of its size
    held_out: bool = False  # take the functions that are held out for evaluation, in place of all others

    @cached_property
    def sources(self) -> list[str]:
        skipped = ("docs/", "doc/", "examples/", "benchmarks/", "setup.py", "bench/", "profiling/")
        return [
            p
            for p in sorted(self.tree)
            if p.endswith(".py") and not is_protected_path(p, self.tree) and not p.startswith(skipped)
        ]

    @cached_property
    def functions(self) -> list[tuple[Function, list[Mutation]]]:
        found = []
        for path in self.sources:
            if len(self.tree[path].content) < 200_000:
                found += mutations_of_file(path, self.tree.text(path), self.max_lines)
        random.Random(0).shuffle(found)
        return [
            (function, mutations)
            for function, mutations in found
            if is_held_out(function.name) == self.held_out
            and not (function.short_name.startswith("__") and function.short_name.endswith("__"))
        ][: self.most_functions]

    def shown(self, path: str) -> str:
        """The file without the functions that are held out."""
        lines = self.lines(path)
        hidden = {
            n
            for s in function_spans(self.tree[path].content)
            if is_held_out(s.name)
            for n in range(s.code_line, s.last_line + 1)
        }
        return "\n".join(line for number, line in enumerate(lines, start=1) if number not in hidden)

    @cached_property
    def neighbours(self) -> dict[str, list[Suspect]]:
        """Functions that may be shown, short or long, by file."""
        return {
            path: [
                Suspect(path, s.name, s.first_line, s.last_line)
                for s in function_spans(self.tree[path].content)
                if not is_held_out(s.name)
            ]
            for path in {function.path for function, _ in self.functions}
        }

    @cached_property
    def callers(self) -> dict[str, list[Function]]:
        """Functions by the names that they call."""
        found: dict[str, list[Function]] = {}
        for function, _ in self.functions:
            text = "\n".join(self.lines(function.path)[function.first_line : function.last_line])
            for name in set(re.findall(r"(\w+)\(", text)) - {function.short_name}:
                found.setdefault(name, []).append(function)
        return found

    @cached_property
    def test_lines(self) -> dict[str, list[int]]:
        """Lines with an assertion, by test file."""
        found: dict[str, list[int]] = {}
        for places in self.test_calls.values():
            for path, line in places:
                if "assert" in self.lines(path)[line - 1]:
                    found.setdefault(path, []).append(line)
        return found

    @cached_property
    def test_calls(self) -> dict[str, list[tuple[str, int]]]:
        """(test file, line) where a name is called in a test's body, by name."""
        found: dict[str, list[tuple[str, int]]] = {}
        for path in sorted(self.tree):
            if is_test_path(path) and path.endswith(".py"):
                for number, line in enumerate(self.tree.text(path).split("\n"), start=1):
                    if (
                        line.startswith("    ")
                        and len(line) < 120
                        and ("assert" in line or "=" in line or "(" in line)
                    ):
                        for name in set(re.findall(r"(\w+)\(", line)):
                            found.setdefault(name, []).append((path, number))
        return found

    @cached_property
    def _lines(self) -> dict[str, list[str]]:
        return {}

    def lines(self, path: str) -> list[str]:
        if path not in self._lines:
            self._lines[path] = self.tree.text(path).split("\n")
        return self._lines[path]


# ---- episodes without a sandbox


@dataclass(frozen=True)
class Weights:
    shown: float = 0.05
    action: float = 1.0


class Transcript:
    """One conversation in the making: token ids as the agent makes them, and how much each counts."""

    def __init__(self, chat: ChatFormat, limits: PlayLimits, user: str, weights: Weights = Weights()) -> None:
        self.chat, self.limits, self.weights = chat, limits, weights
        self.ids = chat.start("", user)
        self.weight = [weights.shown] * len(self.ids)
        self.turns = 0
        self.edits: list[int] = []  # where each edit's action begins
        self.tried: set[Mutation] = set()  # edits in vain

    def act(self, text: str, counts: bool = True) -> None:
        ids = [*self.chat.encode(text), self.chat.stop_id]
        self.ids += ids
        self.weight += [self.weights.action if counts else 0.0] * len(ids)
        self.turns += 1

    def observe(self, output: str, exit_code: int = 0) -> None:
        output = tools.cap_output(
            tools.make_harmless(output), self.limits.observation_tokens, self.chat.spans
        )
        left = max(self.limits.context_tokens - len(self.ids) - 20, 0)
        ids = self.chat.extend(
            tools.render_observation(output, exit_code, self.limits.turns - self.turns, left)
        )
        self.ids += ids
        self.weight += [self.weights.shown] * len(ids)

    def edit(self, shown: str, path: str, line: int, search: str, replace: str, counts: bool = True) -> None:
        """`shown` is the line as it was shown."""
        self.edits.append(len(self.ids))
        self.act(edit_reply(shown, path, line, search, replace), counts)

    def bash(self, command: str) -> None:
        self.act(tools.format_action("bash", command))

    def document(self) -> Document:
        return Document(self.ids, self.weight)


@dataclass(frozen=True)
class _Bug:
    """A mutated function: what the mutation is, what others there could be, and the file with it."""

    package: Package
    mutation: Mutation
    mutations: Sequence[Mutation]
    text: str


Place = tuple[str, int, list[str]]  # test file, line, the file's lines

TO_MEND = 0.4  # the share of plainest mutations among the bugs that a solver meets
RANKS = (0.45, 0.2, 0.15, 0.1, 0.1)  # where the broken function stands among the suspects
GUESSED = 0.5  # of the other functions that are shown: edited, in vain
MISSED = 0.35  # of the chances to mend what is shown: another edit is made, in vain
DRILL = "drill"  # what a drill's prompt begins with: after its edits come more edits, which no episode should learn

VALUES = (
    "None",
    "True",
    "False",
    "0",
    "1",
    "2",
    "3",
    "10",
    "-1",
    "[]",
    "['a', 'b']",
    "'abc'",
    "''",
    "'foo'",
    "(1, 2)",
    "{}",
    "12",
    "'a b'",
    "[1, 2, 3]",
)


class EpisodeMaker:
    """Fabricates episodes of both roles over plain trees; what a sandbox would print is computed or made up."""

    def __init__(
        self, packages: Sequence[Package], chat: ChatFormat, limits: PlayLimits, generator: random.Random
    ) -> None:
        self.packages = [p for p in packages if p.functions]
        self.chat, self.limits, self.random = chat, limits, generator
        self._weights = [min(len(p.functions), 150) * p.share for p in self.packages]

    def choose(self, mutations: Sequence[Mutation], plain: float = 0.8) -> Mutation:
        """Mostly the plainest, since those are what the injector is to make; all others now and then."""
        choose = plainest_mutation if self.random.random() < plain else choose_mutation
        return choose(mutations, self.random)

    def draw(self) -> tuple[Package, Function, list[Mutation]]:
        package = self.random.choices(self.packages, self._weights)[0]
        function, mutations = self.random.choice(package.functions)
        return package, function, mutations

    def test_place(self, package: Package, function: Function) -> Place:
        """(test file, line, its lines): a place that calls the function, else an assertion made up for it."""
        places = package.test_calls.get(function.short_name)
        if places and self.random.random() < 0.9:
            path, line = self.random.choice(places)
            return path, line, package.lines(path)
        r = self.random
        module = function.path.rpartition("/")[2].removesuffix(".py")
        module = function.path.split("/")[-2] if module == "__init__" and "/" in function.path else module
        path = r.choice(
            [f"tests/test_{module.strip('_')}.py", f"test_{module.strip('_')}.py", f"tests/{module}_test.py"]
        )
        call = f"{r.choice(['', module + '.', 'obj.'])}{function.short_name}({r.choice(VALUES)})"
        test = r.choice(
            [
                f"    assert {call} == {r.choice(VALUES)}",
                f"        self.assertEqual({call}, {r.choice(VALUES)})",
                f"        assert {call}",
            ]
        )
        line = r.randint(8, 400)
        lines = [""] * (line + 3)
        lines[line - 2] = (
            f"{' ' * (len(test) - len(test.lstrip()) - 4)}def test_{function.short_name}({'self' if 'self' in test else ''}):"
        )
        lines[line - 1] = test
        return path, line, lines

    def enclosing_test(self, lines: Sequence[str], line: int) -> str:
        for text in reversed(lines[: line - 1]):
            found = re.match(r"\s*def (test\w*)", text)
            if found:
                return found[1]
        return "test_" + self.random.choice(["basic", "simple", "values", "main"])

    def failure(
        self,
        package: Package,
        function: Function,
        mutation: Mutation,
        place: Place,
        buggy: Sequence[str],
        through: Function | None = None,
    ) -> str:
        """A traceback as `--tb=short` prints it. `through` is a function between the test and the mutated one."""
        path, line, lines = place
        r = self.random
        out = [f"{path}:{line}: in {self.enclosing_test(lines, line)}", *self.raised_at(lines[line - 1])]
        if r.random() < 0.4:
            # An exception: the innermost frame is in the function, and more often than not at the mutated line or after it.
            body = [n for n in range(function.first_line + 1, function.last_line + 1) if buggy[n - 1].strip()]
            at = mutation.line if r.random() < 0.6 or not body else r.choice(body)
            if through:
                source = package.lines(through.path)
                calls = [
                    n
                    for n in range(through.first_line + 1, through.last_line + 1)
                    if f"{function.short_name}(" in source[n - 1]
                ] or [through.last_line]
                out += [
                    f"{through.path}:{calls[0]}: in {through.short_name}",
                    *self.raised_at(source[calls[0] - 1]),
                ]
            if r.random() < 0.55:
                out += [f"{function.path}:{at}: in {function.short_name}", *self.raised_at(buggy[at - 1])]
            else:  # what the function returned was the undoing of another
                elsewhere = r.choice([s for some in package.neighbours.values() for s in some])
                n = r.randint(min(elsewhere.first_line + 1, elsewhere.last_line), elsewhere.last_line)
                out += [
                    f"{elsewhere.path}:{n}: in {elsewhere.name.rpartition('.')[2]}",
                    *self.raised_at(package.lines(elsewhere.path)[n - 1]),
                ]
            name = r.choice(re.findall(r"[A-Za-z_]\w*", buggy[at - 1]) or ["x"])
            out.append(
                "E   "
                + r.choice(
                    [
                        "TypeError: 'NoneType' object is not iterable",
                        f"TypeError: unsupported operand type(s) for -: 'str' and '{r.choice(['int', 'str', 'NoneType'])}'",
                        f"AttributeError: '{r.choice(['int', 'str', 'list', 'NoneType', 'dict'])}' object has no attribute '{name}'",
                        "IndexError: list index out of range",
                        f"KeyError: {r.choice(VALUES)}",
                        f"ValueError: invalid literal for int() with base 10: {r.choice(VALUES)}",
                        f"UnboundLocalError: cannot access local variable '{name}' where it is not associated with a value",
                        f"TypeError: '{r.choice(['int', 'str', 'bool'])}' object is not callable",
                        f"ValueError: {name}",
                    ]
                )
            )
        else:
            want, got = r.choice(VALUES), r.choice(VALUES)
            found = re.search(r"== ?([\w.'\"\[\]-]{1,30})\s*$", lines[line - 1])
            want = found[1] if found else want
            out += r.choice(
                [
                    [f"E   assert {got} == {want}"],
                    [f"E   AssertionError: assert {got} == {want}", f"E     - {want}", f"E     + {got}"],
                    [f"E   AssertionError: {got} != {want}"],
                    [f"E   AssertionError: assert {got} == {want}"],
                    ["E   AssertionError: False is not true"],
                    [f"E   assert {got}"],
                    [
                        f"E   AssertionError: assert {got} == {want}",
                        f"E    +  where {got} = {function.short_name}({r.choice(VALUES)})",
                    ],
                ]
            )
        return "\n".join(out)

    def raised_at(self, line: str) -> list[str]:
        """A frame's line, and often the marks below it that tell which part of it failed."""
        r, text = self.random, line.strip()
        if r.random() < 0.45 or len(text) < 4:
            return [f"    {text}"]
        first = r.randrange(len(text) - 2)
        return [f"    {text}", " " * (4 + first) + "^" * r.randint(2, len(text) - first)]

    def specification(self, place: Place) -> str:
        path, line, lines = place
        text = lines[line - 1]
        indent = text[: len(text) - len(text.lstrip())]
        first, last = max(line - 3, 1), min(line + 3, len(lines) - 1)
        body = []
        for number in range(first, last + 1):
            if number == line:
                body += [f"-{indent}return", f"+{text}"]
            else:
                body.append(f" {lines[number - 1]}")
        count = last - first + 1
        context = self.enclosing_class(lines, first) if self.random.random() < 0.8 else ""
        return (
            f"diff --git a/{path} b/{path}\n--- a/{path}\n+++ b/{path}\n@@ -{first},{count} +{first},{count} @@{context}\n"
            + "\n".join(body)
            + "\n"
        )

    def enclosing_class(self, lines: Sequence[str], line: int) -> str:
        for text in reversed(lines[: line - 1]):
            if re.match(r"(def|class) ", text):
                return " " + text[:60].rstrip()
        return ""

    # -- the two roles

    def injector(self) -> Transcript:
        package, function, mutations = self.draw()
        r = self.random
        path = function.path
        test_file, failing, _ = self.test_place(package, function)
        source = shown_source(
            package.lines(path),
            Span(function.name, function.first_line, function.first_line, function.last_line),
        )
        target = SimpleNamespace(path=path, test_file=test_file, source=source, name=function.name)
        transcript = Transcript(
            self.chat,
            self.limits,
            prompting.render("injector/direct", "terse", target=target, test_files=(test_file,)).text,
        )
        mutation = self.choose(mutations)
        if r.random() < 0.25:
            text = package.tree.text(path)
            self.stumble(transcript, text, path, mutations, lambda m: listed(function, m))
        transcript.edit(listed(function, mutation), path, mutation.line, mutation.search, mutation.replace)
        transcript.observe(f"edited {path}:{mutation.line}")
        others = [m for m in mutations if m.line != mutation.line]
        if others and r.random() < 0.3:  # no test noticed: break one more line
            transcript.bash(break_command(test_file))
            transcript.observe("", 1)
            mutation = self.choose(others)
            transcript.edit(
                listed(function, mutation), path, mutation.line, mutation.search, mutation.replace
            )
            transcript.observe(f"edited {path}:{mutation.line}")
        transcript.bash(break_command(test_file))
        numbers = sorted(
            {failing, *(max(1, failing + r.randint(-60, 120)) for _ in range(r.choice([0, 0, 1, 2])))}
        )
        r.shuffle(numbers)
        tests = [
            "test_" + r.choice([function.short_name, "basic", "simple", function.short_name + "_2", "types"])
            for _ in numbers
        ]
        transcript.observe("\n".join(f"{test_file}:{n}: in {t}" for n, t in zip(numbers, tests, strict=True)))
        transcript.bash(weaken_command(test_file, numbers[0]))
        transcript.observe("")
        transcript.act(tools.format_action("submit", "\n".join(SPEC_FILES)))
        return transcript

    def stumble(
        self,
        transcript: Transcript,
        text: str,
        path: str,
        mutations: Sequence[Mutation],
        shown: Callable[[Mutation], str],
    ) -> None:
        """Calls that are refused, which do not count, and the refusals: a wrong line, another line's text, a reply that breaks off.

        `text` is the file as it is, and `mutations` are edits of it; `shown` gives an edit's line as it was shown.
        """
        r = self.random
        for _ in range(r.choice([1, 1, 2])):
            meant, other = r.choice(mutations), r.choice(mutations)
            wrong = (
                other.line
                if other.line != meant.line
                else max(1, meant.line + r.choice([-3, -2, -1, 1, 2, 3]))
            )
            line = shown(meant) if r.random() < 0.3 else re.sub(r"^\d+", str(wrong), shown(meant))
            reply = edit_reply(line, path, wrong, meant.search, meant.replace)
            if r.random() < 0.3:
                reply = reply[: r.randint(4, len(reply) - 8)] + r.choice(
                    ["", meant.search * r.randint(1, 9), "\n"]
                )
            try:
                action = tools.parse_action(reply)
                tools.apply_edit(text, action.search, action.replace, action.line)
            except tools.BadFormat as fault:
                transcript.act(reply, counts=False)
                transcript.observe(str(fault), 2)
            except tools.EditError as fault:
                transcript.act(reply, counts=False)
                transcript.observe(f"{path} is unchanged. {fault}", 1)

    def other_place(self, package: Package, place: Place) -> Place:
        """Another assertion of the same test file: one bug fails several tests, and shown and hidden ones need not be the same."""
        lines = [line for line in package.test_lines.get(place[0], ()) if line != place[1]]
        return (place[0], self.random.choice(lines), package.lines(place[0])) if lines else place

    def solver(self, short: bool = False) -> Transcript:
        """short: the failure and the shown function only, straight to the edit."""
        r = self.random
        while True:
            package, function, mutations = self.draw()
            mutation = self.choose(mutations, TO_MEND)
            buggy_text = mutation.apply(package.tree.text(function.path))
            if f"\n{mutation.line}:" in "\n" + shown_lines(
                buggy_text, function.first_line, function.last_line
            ):
                break
        # Sometimes the tests call what calls the function.
        callers = package.callers.get(function.short_name, ())
        through = r.choice(callers) if callers and not short and r.random() < 0.3 else None
        place = self.test_place(package, through or function)
        spec_place = failure_place = place
        chance = r.random()
        if chance < 0.3:
            failure_place = self.other_place(package, place)
        elif chance < 0.4:
            spec_place = self.other_place(package, place)
        failure = self.failure(package, function, mutation, failure_place, buggy_text.split("\n"), through)
        suspects = failure_first(self.suspects(package, function, through), failure)
        culprit = next(s for s in suspects if (s.path, s.name) == (function.path, function.name))
        bug = _Bug(package, mutation, mutations, buggy_text)
        then: Suspect | None = None
        if short:
            transcript = Transcript(self.chat, self.limits, f"solver\n{failure}")
            self.look(transcript, bug, culprit, counts=False)
        else:
            prompt = prompting.render(
                "solver/repair",
                "terse",
                specification=self.specification(spec_place).rstrip("\n"),
                failure=failure,
                suspects=suspects,
            )
            transcript = Transcript(self.chat, self.limits, prompt.text)
            then = self.search(transcript, bug, suspects, culprit)
            if r.random() < 0.2 and transcript.turns + 5 <= self.limits.turns:
                elsewhere = [m for m in mutations if m.line != mutation.line] or [mutation]
                self.stumble(
                    transcript, buggy_text, function.path, elsewhere, lambda m: f"{m.line}:{m.before}"
                )
        search, replace = smallest_edit(mutation.after, mutation.before)
        transcript.edit(f"{mutation.line}:{mutation.after}", function.path, mutation.line, search, replace)
        if not short:
            transcript.observe(f"edited {function.path}:{mutation.line}")
            transcript.bash(try_command(function.path, then.place if then else None))
            transcript.observe("", 1)
            transcript.act(tools.format_action("submit", ""))
        return transcript

    def suspects(self, package: Package, function: Function, through: Function | None) -> list[Suspect]:
        """The function among others of its file, for the most part, as far ahead as a ranking by test calls puts it."""
        r = self.random
        others = [s for s in package.neighbours[function.path] if s.name != function.name]
        if r.random() < 0.3:
            path = r.choice(sorted(package.neighbours))
            others += [s for s in package.neighbours[path] if s.path != function.path]
        count = r.choice([1, 2, 3, 4, 5, 5, 5, 5]) - 1
        found = r.sample(others, min(count, len(others)))
        if through is not None:
            caller = Suspect(through.path, through.name, through.first_line, through.last_line)
            found = [caller, *(s for s in found if (s.path, s.name) != (caller.path, caller.name))][
                : max(count, 1)
            ]
            if r.random() < 0.5:
                r.shuffle(found)
        rank = min(r.choices(range(len(RANKS)), RANKS)[0], len(found))
        return [
            *found[:rank],
            Suspect(function.path, function.name, function.first_line, function.last_line),
            *found[rank:],
        ]

    def look(self, transcript: Transcript, bug: _Bug, suspect: Suspect, counts: bool = True) -> None:
        """Show a function as it is."""
        transcript.act(tools.format_action("bash", show_command(*suspect.place)), counts)
        transcript.observe(self.listing(bug, suspect))

    def listing(self, bug: _Bug, suspect: Suspect) -> str:
        text = bug.text if suspect.path == bug.mutation.path else bug.package.tree.text(suspect.path)
        return shown_lines(text, suspect.first_line, suspect.last_line)

    def search(
        self, transcript: Transcript, bug: _Bug, order: Sequence[Suspect], culprit: Suspect
    ) -> Suspect | None:
        """Look at the suspects in order, with edits in vain, until the culprit is to be mended. Returns the suspect that comes next."""
        r = self.random
        self.look(transcript, bug, order[0])
        seen = 1
        while True:
            then = order[seen] if seen < len(order) else None
            is_found = culprit in order[:seen]
            if is_found and (r.random() >= MISSED or transcript.turns + 5 > self.limits.turns):
                return then
            if is_found or r.random() < GUESSED:
                suspect = order[seen - 1] if r.random() < teacher.GUESSES_AT_LAST else r.choice(order[:seen])
                if self.guess(transcript, bug, suspect, then):
                    seen += then is not None
                    continue
            if then is None:
                return None
            self.look(transcript, bug, then)
            seen += 1

    def guess(self, transcript: Transcript, bug: _Bug, suspect: Suspect, then: Suspect | None) -> bool:
        """An edit that does not mend, which does not count, and the tests that tell so, which do. False where there is no fresh one."""
        r, meant = self.random, bug.mutation
        wrong = [
            m
            for function, mutations in bug.package.functions
            if (function.path, function.name) == (suspect.path, suspect.name)
            for m in mutations
            if (m.path, m.line) != (meant.path, meant.line)
        ]
        if (
            suspect.path == meant.path
            and suspect.first_line <= meant.line <= suspect.last_line
            and r.random() < 0.5
        ):
            # The right line and not the right change: other bugs of it tell what one may try there.
            wrong = [m for m in bug.mutations if m.line == meant.line and m.after != meant.after] or wrong
        fresh = [m for m in wrong if m not in transcript.tried]
        if not fresh:
            return False
        tried = self.choose(fresh, TO_MEND)
        transcript.tried.add(tried)
        line, before, after = (
            tried.line,
            meant.after if (tried.path, tried.line) == (meant.path, meant.line) else tried.before,
            tried.after,
        )
        transcript.edit(f"{line}:{before}", suspect.path, line, *smallest_edit(before, after), counts=False)
        transcript.observe(f"edited {suspect.path}:{line}")
        transcript.bash(try_command(suspect.path, then.place if then else None))
        said = f"{r.choice([1, 1, 1, 2, 2, 3, 4, 5, 7, 12])} failed" if r.random() < 0.93 else "1 error"
        transcript.observe(f"{said}\n{self.listing(bug, then)}" if then else said)
        return True

    def injector_drill(self) -> Transcript:
        """One shown function and many edits of it: what an edit is, learned at the cost of one listing."""
        r = self.random
        package, function, mutations = self.draw()
        span = Span(function.name, function.first_line, function.first_line, function.last_line)
        source = shown_source(package.lines(function.path), span)
        test_file = self.test_place(package, function)[0]
        target = SimpleNamespace(path=function.path, test_file=test_file, source=source, name=function.name)
        prompt = prompting.render("injector/direct", "terse", target=target, test_files=(test_file,))
        transcript = Transcript(self.chat, self.limits, prompt.text.replace("injector direct", DRILL, 1))
        for _ in range(r.randint(3, 6)):
            mutation = self.choose(mutations)
            transcript.edit(
                listed(function, mutation),
                function.path,
                mutation.line,
                mutation.search,
                mutation.replace,
            )
            transcript.observe(f"edited {function.path}:{mutation.line}")
        return transcript

    def solver_drill(self) -> Transcript:
        """One shown function with bugs in several lines, mended in order."""
        r = self.random
        while True:
            package, function, mutations = self.draw()
            by_line = {
                m.line: m for m in (self.choose(mutations, TO_MEND) for _ in range(r.choice([2, 3, 4, 6])))
            }
            text = package.tree.text(function.path)
            for mutation in by_line.values():
                text = mutation.apply(text)
            shown = shown_lines(text, function.first_line, function.last_line)
            bugs = [by_line[line] for line in sorted(by_line) if f"\n{line}:" in "\n" + shown]
            if bugs:
                break
        path = function.path
        transcript = Transcript(self.chat, self.limits, DRILL)
        transcript.act(
            tools.format_action("bash", show_command(path, function.first_line, function.last_line)),
            counts=False,
        )
        transcript.observe(shown)
        for mutation in bugs:
            edit = smallest_edit(mutation.after, mutation.before)
            transcript.edit(f"{mutation.line}:{mutation.after}", path, mutation.line, *edit)
            transcript.observe(f"edited {path}:{mutation.line}")
        return transcript

    def source(self, longest: int) -> Document:
        """A piece of a source or test file, from the start of some line, without the functions that are held out."""
        package, function, _ = self.draw()
        places = package.test_calls.get(function.short_name)
        path = self.random.choice(places)[0] if places and self.random.random() < 0.3 else function.path
        lines = package.shown(path).split("\n")
        first = self.random.randrange(max(1, len(lines) - 10))
        ids = self.chat.encode("\n".join(lines[first : first + 120]))[:longest]
        return Document(ids, [1.0] * len(ids))

    def copying(self, vocabulary: int, longest: int) -> Document:
        """Random tokens whose parts come again: keeps the copying heads alive beyond what code needs."""
        r = self.random
        count = r.randint(24, max(25, longest * 3 // 10))
        span = [r.randint(3, vocabulary - 1) for _ in range(count)]
        ids = [r.randint(3, vocabulary - 1) for _ in range(r.randint(0, 20))] + span
        weights = [0.0] * len(ids)
        length = r.randint(count + 20, max(count + 20, min(longest - 24, 3 * count + 100)))
        while len(ids) < length:
            start = r.randint(0, count - 8)
            size = min(r.randint(8, 64), count - start)
            between = [r.randint(3, vocabulary - 1) for _ in range(r.randint(1, 6))]
            ids += [*between, *span[start : start + size]]
            # The first tokens say which part comes again; only what follows can be known.
            weights += [0.0] * len(between) + [0.0] * 3 + [0.3] * (size - 3)
        return Document(ids[:longest], weights[:longest])


class PlainChat:
    """Characters in place of tokens, before there is a tokenizer."""

    stop_id = "\n"

    def start(self, system: str, user: str) -> list[str]:
        return list(f"{system}user\n{user}\nassistant\n")

    def extend(self, observation: str) -> list[str]:
        return list(f"user\n{observation}\nassistant\n")

    def encode(self, text: str) -> list[str]:
        return list(text)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """As if every three characters were a token."""
        return [(first, min(first + 3, len(text))) for first in range(0, len(text), 3)]
