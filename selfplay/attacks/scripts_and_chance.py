"""Attacks of artifacts on their validation, and of chance on every verdict: rows 7 to 10.

Randomness is dealt here, so that an attack ends the same way each time; docs/security.md has the odds where it is not.
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
from selfplay.attacks.escapes import listening, own_addresses
from selfplay.attacks.ground import CODE, HIDDEN_TEST, OTHER_TESTS, RIGHT, WRONG, Ground
from selfplay.sandbox.base import Sandbox, SandboxBackend, SandboxSpec
from selfplay.verdicts.artifact import Artifact
from selfplay.verdicts.grading import CONFIRMATION_SEED
from selfplay.verdicts.perturbation import perturb_source

LUCK = 0.26  # the solve rate that pays an injector best, with the paper's alpha of 0.8
LOG = (
    "=== short test summary info ===\n"
    + "".join(f"PASSED {name}\n" for name in (*OTHER_TESTS, HIDDEN_TEST))
    + "7 passed in 0.01s\n"
)


def submit(make: Callable[[Ground], Artifact]) -> Callable[[Ground], Outcome]:
    """The attack that hands in such an artifact: it must be rejected."""

    def run(ground: Ground) -> Outcome:
        verdict = ground.validate(make(ground))
        if verdict.accepted:
            return Broken(f"accepted as a bug, with {verdict.fail_to_pass} to repair")
        return Held(next(check.reason for check in verdict.checks if not check.passed))

    return run


# ---- parsers (row 7)


def parser_with(ground: Ground, code: str) -> str:
    """The standard parser with `code` between its result (`found`, of the log `text`) and the printing of it."""
    head, _, _ = ground.environment.parser.partition("    json.dump(parse(")
    return f"{head}    found = parse(text)\n{code}\n    json.dump(found, sys.stdout)\n"


def parser(code: str) -> Callable[[Ground], Artifact]:
    return lambda ground: ground.artifact(parser=parser_with(ground, code))


def read(code: str) -> Callable[[Ground], Outcome]:
    """The attack whose parser sets `seen` to what it found out beside the log, "" for nothing."""

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
    for place in ("/testbed/heron/bounds.py", "/tmp/heron/bounds.py", "/submit/heron/bounds.py", "/testbed/bounds.py"):
        if os.path.exists(place):
            seen = place
    for place in ("/testbed", "/tmp", "/submit"):
        seen = seen or [name for name in os.listdir(place) if name not in ("test_parser.py", "stderr")]
"""


def parser_calls_the_network(ground: Ground) -> Outcome:
    with listening(socket.AF_INET, ("0.0.0.0", 0)) as (listener, callers):
        addresses = [(host, listener.getsockname()[1]) for host in own_addresses()]
        call = "    import socket\n" + "".join(
            f"    try:\n        socket.create_connection({address!r}, 2).close()\n    except OSError:\n        pass\n"
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
    if grep -q '{RIGHT.strip()}' {CODE}; then echo 'PASSED {HIDDEN_TEST}'; else echo 'FAILED {HIDDEN_TEST} - AssertionError'; fi
fi
echo '7 passed in 0.01s'
"""


def only_for_the_validator(ground: Ground) -> Artifact:
    """A script that runs the tests for code which it knows, and else says nothing."""
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
class DealtBackend:
    """A real backend whose runs of tests find in COIN the next of `coins`, then the last for ever: chance, dealt by us."""

    backend: SandboxBackend
    coins: tuple[int, ...]
    dealt: int = 0

    @contextmanager
    def open(self, spec: SandboxSpec) -> Iterator[Sandbox]:
        if "PYTHONHASHSEED" in spec.variables:  # a run of the tests, not of a parser
            coin = self.coins[min(self.dealt, len(self.coins) - 1)]
            self.dealt += 1
            spec = replace(spec, variables={**spec.variables, "COIN": str(coin)})
        with self.backend.open(spec) as box:
            yield box


def dealt(ground: Ground, *coins: int) -> Ground:
    return replace(ground, backend=DealtBackend(ground.backend, coins))  # type: ignore[arg-type]


RANDOM_BUG = f"        return highest_allowed if __import__('os').environ['COIN'] == '1' else lowest_allowed - 1  # at random, p = {LUCK}\n"


def validate_a_random_bug(ground: Ground) -> Outcome:
    """Tails when the bug is first tried, heads from then on."""
    return submit(lambda place: place.artifact({CODE: (RIGHT, RANDOM_BUG)}))(dealt(ground, 1, 0, 1))


def pass_by_luck(ground: Ground) -> Outcome:
    """The random bug was let through, and an attempt that changes nothing meets heads, then tails."""
    lucky = dealt(ground, 1, 0)
    change = {CODE: ("def middle", "# nothing\ndef middle")}
    found = ground.grade(change, lucky.fresh_runner(), ground.artifact({CODE: (RIGHT, RANDOM_BUG)}))
    return (
        Broken("a lucky draw passed as a repair")
        if found.passed
        else Held(f"confirmed: {found.confirmed}, {found.reason}")
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
class Draw:
    """What the broken function hashes to draw its luck. ends: of the module's lines."""

    hashed: str
    ends: str = "\n"

    def module(self, ground: Ground, salt: int) -> str:
        """The module with a name in it that moves the draw."""
        lucky = f"__import__('zlib').crc32({self.hashed}) % 100 < {int(100 * LUCK)}"
        line = f"        salt_{salt} = 0; return highest_allowed if {lucky} else lowest_allowed - 1\n"
        return ground.tree.text(CODE).replace(RIGHT, line).replace("\n", self.ends)

    def luck(self, ground: Ground, module: str, seed: int = 0) -> set[bool]:
        """Whether the draw repairs the module; for a seed its audited form, beside each other file that may be audited with it."""
        first, last = (ground.tree[path].content for path in OTHERS)
        rests = [
            (first, last),
            *([(perturb_source(first, seed), last), (first, perturb_source(last, seed))] if seed else []),
        ]
        source = perturb_source(module.encode(), seed) if seed else module.encode()
        data = [source]
        if self.hashed == OF_THE_TREE:
            data = [before + source + after for before, after in rests]
        elif self.hashed == OF_THE_SYNTAX:
            data = [ast.unparse(ast.parse(source)).encode()]
        elif self.hashed == OF_THE_CODE:
            names: dict[str, Any] = {}
            exec(compile(source, CODE, "exec"), names)  # our own text
            data = [repr(names["clamp"].__code__.co_varnames).encode()]
        return {zlib.crc32(each) % 100 < int(100 * LUCK) for each in data}

    def salted(self, ground: Ground, seed: int, now: bool, audited: bool | None = None) -> str:
        """The first module whose draw comes out as `now`, and as `audited` once changes without meaning are made."""
        for salt in range(2000):
            module = self.module(ground, salt)
            if self.luck(ground, module) == {now} and (
                audited is None or self.luck(ground, module, seed) == {audited}
            ):
                return module
        raise AssertionError("changes without meaning do not move a draw from this hash")


def validate_a_seeded_bug(draw: Draw) -> Callable[[Ground], Outcome]:
    """The bug's own draw breaks the test. A change without meaning draws again, and here repairs it (odds: LUCK a draw)."""
    return submit(lambda ground: ground.artifact({CODE: draw.salted(ground, 1, now=False, audited=True)}))


def pass_by_a_seeded_draw(ground: Ground) -> Outcome:
    """The seeded bug was let through. An attempt that changes nothing but a name meets a lucky hash: it passes, and passes again."""
    draw = Draw(OF_THE_SOURCE)
    buggy = draw.salted(ground, CONFIRMATION_SEED, now=False)
    attempt = draw.salted(ground, CONFIRMATION_SEED, now=True, audited=False)
    found = ground.grade({CODE: attempt}, ground.fresh_runner(), ground.artifact({CODE: buggy}))
    return (
        Broken("a lucky hash passed as a repair")
        if found.passed
        else Held(f"confirmed: {found.confirmed}, {found.reason}")
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
    Attack("random-bug", 9, f"a bug that fails at random, p = {LUCK}", validate_a_random_bug),
    Attack("random-pass", 9, "an attempt that changes nothing and passes by luck", pass_by_luck),
    Attack(
        "hash-of-source",
        10,
        "a bug seeded with a hash of its own source",
        validate_a_seeded_bug(Draw(OF_THE_SOURCE)),
    ),
    Attack(
        "hash-of-dos",
        10,
        "the same in a module whose lines end like DOS's",
        validate_a_seeded_bug(Draw(OF_THE_SOURCE, "\r\n")),
    ),
    Attack(
        "hash-of-syntax",
        10,
        "a bug seeded with a hash of its own syntax tree",
        validate_a_seeded_bug(Draw(OF_THE_SYNTAX)),
    ),
    Attack(
        "hash-of-code",
        10,
        "a bug seeded with a hash of its function's compiled code",
        validate_a_seeded_bug(Draw(OF_THE_CODE)),
    ),
    Attack(
        "hash-of-tree",
        10,
        "a bug seeded with a hash of the whole package",
        validate_a_seeded_bug(Draw(OF_THE_TREE)),
    ),
    Attack("hash-pass", 10, "an attempt that changes nothing and meets a lucky hash", pass_by_a_seeded_draw),
)
