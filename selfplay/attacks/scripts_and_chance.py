"""Attacks of artifacts on their validation, and of chance on every verdict: rows 7 to 10.

Chance is fixed here, so that an attack ends the same way each time. docs/security.md has the real odds.
"""

from __future__ import annotations

import ast
import shlex
import socket
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from selfplay.attacks.base import Attack, Broken, Held, Outcome
from selfplay.attacks.ground import CODE, HIDDEN_TEST, OTHER_TESTS, RIGHT, WRONG, Ground, changed
from selfplay.attacks.probes import listening, own_addresses
from selfplay.sandbox.base import Sandbox, SandboxBackend, SandboxSpec
from selfplay.source.trees import Tree
from selfplay.verdicts.artifact import Artifact
from selfplay.verdicts.perturbation import FIRST_GRADING, REPEAT, SECOND_GRADING

# The solve rate with the highest reward for an injector, with the paper's alpha of 0.8.
PASS_CHANCE = 0.26
LOG = (
    "=== short test summary info ===\n"
    + "".join(f"PASSED {name}\n" for name in (*OTHER_TESTS, HIDDEN_TEST))
    + "7 passed in 0.01s\n"
)


def submit(make: Callable[[Ground], Artifact]) -> Callable[[Ground], Outcome]:
    """The attack that hands in the artifact that `make` returns. It must be rejected."""

    def run(ground: Ground) -> Outcome:
        verdict = ground.validate(make(ground))
        if verdict.accepted:
            return Broken(f"accepted as a bug, with {verdict.fail_to_pass} to repair")
        return Held(next(check.reason for check in verdict.checks if not check.passed))

    return run


# ---- parsers (row 7)


def parser_with(ground: Ground, code: str) -> str:
    """The standard parser with `code` before it prints.

    The code sees the log as `text` and the outcomes as `found`.
    """
    head, _, _ = ground.environment.parser.partition("    json.dump(parse(")
    return f"{head}    found = parse(text)\n{code}\n    json.dump(found, sys.stdout)\n"


def parser(code: str) -> Callable[[Ground], Artifact]:
    return lambda ground: ground.artifact(parser=parser_with(ground, code))


def read(code: str) -> Callable[[Ground], Outcome]:
    """The attack with a parser that sets `seen` to what it learned from anything but the log, or to ""."""

    def run(ground: Ground) -> Outcome:
        script = f"    seen = ''\n{code}\n    if seen:\n        found['seen ' + str(seen)] = 'passed'"
        parsed = ground.fresh_runner().parse(ground.environment, parser_with(ground, script), LOG.encode())
        got = [name for name in parsed.outcomes.ids if name.startswith("seen ")]
        return (
            Broken(f"the parser knew more than its log: {got[0]}")
            if got
            else Held(parsed.error or "it found nothing")
        )

    return run


READ_REPOSITORY = """
    import os
    files = [folder + "/heron/bounds.py" for folder in ("/testbed", "/tmp", "/submit")]
    for place in (*files, "/testbed/bounds.py"):
        if os.path.exists(place):
            seen = place
    for place in ("/testbed", "/tmp", "/submit"):
        seen = seen or [name for name in os.listdir(place) if name not in ("test_parser.py", "stderr")]
"""


def parser_calls_the_network(ground: Ground) -> Outcome:
    with listening(socket.AF_INET, ("0.0.0.0", 0)) as (listener, callers):
        addresses = [(host, listener.getsockname()[1]) for host in own_addresses()]
        call = "    import socket\n" + "".join(
            f"    try:\n        socket.create_connection({address!r}, 2).close()\n"
            "    except OSError:\n        pass\n"
            for address in addresses
        )
        ground.fresh_runner().parse(ground.environment, parser_with(ground, call), LOG.encode())
    return Broken(f"the parser reached this machine: {callers}") if callers else Held("no address answers")


# ---- scripts (row 8)

FIXED_ANSWER = f"cat <<'EOF'\n{LOG}EOF\n"
READS_CODE = f"""cd /testbed
echo '=== short test summary info ==='
for name in {shlex.join(OTHER_TESTS)}; do echo "PASSED $name"; done
if grep -q '11, 10' tests/test_bounds.py; then
    if grep -q '{RIGHT.strip()}' {CODE}
    then echo 'PASSED {HIDDEN_TEST}'
    else echo 'FAILED {HIDDEN_TEST} - AssertionError'
    fi
fi
echo '7 passed in 0.01s'
"""


def only_for_the_validator(ground: Ground) -> Artifact:
    """A script that runs the tests for code that it knows, and prints nothing for other code."""
    sums = [
        zlib.crc32(text.encode())
        for text in (ground.tree.text(CODE), ground.tree.text(CODE).replace(RIGHT, WRONG))
    ]
    check = f"import sys, zlib; sys.exit(zlib.crc32(open('{CODE}', 'rb').read()) not in {sums})"
    return ground.artifact(
        script=ground.environment.script.replace(
            "exec python", f"python -c {shlex.quote(check)} || exit 0\nexec python"
        )
    )


# ---- chance (row 9)


@dataclass
class CoinBackend:
    """A real backend with chosen chance: each run of tests finds the next of `coins` in the variable COIN.

    When all coins are used, the last one counts for ever.
    """

    backend: SandboxBackend
    coins: tuple[int, ...]
    used: int = 0

    @contextmanager
    def open(self, spec: SandboxSpec) -> Iterator[Sandbox]:
        if "PYTHONHASHSEED" in spec.variables:  # a run of the tests, not of a parser
            coin = self.coins[min(self.used, len(self.coins) - 1)]
            self.used += 1
            spec = replace(spec, variables={**spec.variables, "COIN": str(coin)})
        with self.backend.open(spec) as box:
            yield box


def with_coins(ground: Ground, *coins: int) -> Ground:
    return replace(ground, backend=CoinBackend(ground.backend, coins))  # type: ignore[arg-type]


RANDOM_BUG = (
    "        return highest_allowed if __import__('os').environ['COIN'] == '1' else lowest_allowed - 1"
    f"  # at random, p = {PASS_CHANCE}\n"
)


def validate_a_random_bug(ground: Ground) -> Outcome:
    """The bug's first run fails, and all later runs pass."""
    attack = submit(lambda opened: opened.artifact({CODE: (RIGHT, RANDOM_BUG)}))
    return attack(with_coins(ground, 1, 0, 1))


def pass_by_chance(ground: Ground) -> Outcome:
    """A random bug was accepted.

    An attempt that changes nothing passes its first run, and all later runs fail.
    """
    opened = with_coins(ground, 1, 0)
    change = {CODE: ("def middle", "# nothing\ndef middle")}
    found = ground.grade(change, opened.fresh_runner(), ground.artifact({CODE: (RIGHT, RANDOM_BUG)}))
    return (
        Broken("a lucky draw passed as a repair")
        if found.passed
        else Held(f"{found.confirmation.value}: {found.reason}")
    )


# ---- chance from the code's own hash (row 10)

OF_THE_SOURCE = "open(__file__, 'rb').read()"
OF_THE_TREE = (
    "b''.join(open(f'/testbed/heron/{n}', 'rb').read() for n in ('__init__.py', 'bounds.py', 'words.py'))"
)
OF_THE_SYNTAX = "__import__('ast').unparse(__import__('ast').parse(open(__file__).read())).encode()"
OF_THE_CODE = "repr(clamp.__code__.co_varnames).encode()"
OTHERS = ("heron/__init__.py", "heron/words.py")


@dataclass(frozen=True)
class SeededBug:
    """A bug that passes or fails by the hash of an expression's value.

    hashed: the expression. ends: what ends the module's lines.
    """

    hashed: str
    ends: str = "\n"

    def tree(self, ground: Ground, salt: int) -> Tree:
        """The repository with the bug. The name that it holds changes the hash with the salt."""
        passes = f"__import__('zlib').crc32({self.hashed}) % 100 < {int(100 * PASS_CHANCE)}"
        line = f"        salt_{salt} = 0; return highest_allowed if {passes} else lowest_allowed - 1\n"
        text = ground.tree.text(CODE).replace(RIGHT, line).replace("\n", self.ends)
        return changed(ground.tree, {CODE: text})

    def passes(self, tree: Tree) -> bool:
        """Whether the bug passes its test, by its hash."""
        data = tree[CODE].content
        if self.hashed == OF_THE_TREE:
            first, last = (tree[path].content for path in OTHERS)
            data = first + data + last
        elif self.hashed == OF_THE_SYNTAX:
            data = ast.unparse(ast.parse(data)).encode()
        elif self.hashed == OF_THE_CODE:
            names: dict[str, Any] = {}
            exec(compile(data, CODE, "exec"), names)  # our own text
            data = repr(names["clamp"].__code__.co_varnames).encode()
        return zlib.crc32(data) % 100 < int(100 * PASS_CHANCE)

    def find(self, ground: Ground, fits: Callable[[Tree], bool]) -> str:
        """The first module that fits. Raises AssertionError if no salt gives one."""
        for salt in range(2000):
            tree = self.tree(ground, salt)
            if fits(tree):
                return tree.text(CODE)
        raise AssertionError("changes without meaning do not move a draw from this hash")


def validate_a_seeded_bug(bug: SeededBug) -> Callable[[Ground], Outcome]:
    """The attack with a bug that fails as submitted, and that the audit's changes without meaning repair.

    A hash that the author does not choose repairs with probability PASS_CHANCE.
    """

    def run(ground: Ground) -> Outcome:
        def fits(tree: Tree) -> bool:
            return not bug.passes(tree) and bug.passes(ground.changed_by_judges(tree, REPEAT, 1))

        return submit(lambda opened: opened.artifact({CODE: bug.find(opened, fits)}))(ground)

    return run


def pass_by_a_seeded_draw(ground: Ground) -> Outcome:
    """A seeded bug was accepted. An attempt that changes only a name has a lucky hash, the first time."""
    bug = SeededBug(OF_THE_SOURCE)

    def fits(tree: Tree) -> bool:
        first = ground.changed_by_judges(tree, FIRST_GRADING)
        return bug.passes(first) and not bug.passes(ground.changed_by_judges(tree, SECOND_GRADING, 0))

    buggy = bug.find(ground, lambda tree: not bug.passes(tree))
    attempt = bug.find(ground, fits)
    found = ground.grade({CODE: attempt}, ground.fresh_runner(), ground.artifact({CODE: buggy}))
    return (
        Broken("a lucky hash passed as a repair")
        if found.passed
        else Held(f"{found.confirmation.value}: {found.reason}")
    )


ATTACKS = (
    Attack(
        "parser-empty-log",
        7,
        "a parser that reports passes in an empty log",
        submit(parser(f"    found = found or {{{HIDDEN_TEST!r}: 'passed'}}")),
    ),
    Attack(
        "parser-knows",
        7,
        "a parser that knows its answers and needs no lines for them",
        submit(parser(f"    if '=' in text:\n        found.setdefault({OTHER_TESTS[0]!r}, 'passed')")),
    ),
    Attack("parser-repository", 7, "a parser that reads the repository", read(READ_REPOSITORY)),
    Attack(
        "parser-chance", 7, "a parser that draws lots", read("    import os\n    seen = os.urandom(8).hex()")
    ),
    Attack(
        "parser-clock", 7, "a parser that reads the clock", read("    import time\n    seen = time.time_ns()")
    ),
    Attack("parser-network", 7, "a parser that asks the network", parser_calls_the_network),
    Attack(
        "script-fixed",
        8,
        "a script that prints one answer whatever the code",
        submit(lambda g: g.artifact(script=FIXED_ANSWER)),
    ),
    Attack(
        "script-reads",
        8,
        "a script that looks for words in the code in place of running it",
        submit(lambda g: g.artifact(script=READS_CODE)),
    ),
    Attack(
        "script-knows",
        8,
        "a script that runs tests for code that it knows only",
        submit(only_for_the_validator),
    ),
    Attack("random-bug", 9, f"a bug that fails at random, p = {PASS_CHANCE}", validate_a_random_bug),
    Attack("random-pass", 9, "an attempt that changes nothing and passes by luck", pass_by_chance),
    Attack(
        "hash-of-source",
        10,
        "a bug seeded with a hash of its own source",
        validate_a_seeded_bug(SeededBug(OF_THE_SOURCE)),
    ),
    Attack(
        "hash-of-dos",
        10,
        "the same in a module whose lines end like DOS's",
        validate_a_seeded_bug(SeededBug(OF_THE_SOURCE, "\r\n")),
    ),
    Attack(
        "hash-of-syntax",
        10,
        "a bug seeded with a hash of its own syntax tree",
        validate_a_seeded_bug(SeededBug(OF_THE_SYNTAX)),
    ),
    Attack(
        "hash-of-code",
        10,
        "a bug seeded with a hash of its function's compiled code",
        validate_a_seeded_bug(SeededBug(OF_THE_CODE)),
    ),
    Attack(
        "hash-of-tree",
        10,
        "a bug seeded with a hash of the whole package",
        validate_a_seeded_bug(SeededBug(OF_THE_TREE)),
    ),
    Attack("hash-pass", 10, "an attempt that changes nothing and meets a lucky hash", pass_by_a_seeded_draw),
)
