"""How often validation and grading reject bugs that depend on chance or on a hash of the code.

It also counts honest bugs that they reject.

    python -m benchmarks.audit --output FOLDER [--limit 6] [--attempts 8]

Other attacks are in `selfplay doctor --attack`. Invariant: a case's name identifies its artifact completely,
so that a second call can continue a folder.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from selfplay.agent.workspaces import sandbox_limits
from selfplay.config import Config, load_config
from selfplay.evaluation.tasks import Task, bug_of, find_tasks
from selfplay.outcomes import parse_outcomes
from selfplay.repositories.build import prepare_environment
from selfplay.repositories.checkouts import cache_root
from selfplay.repositories.environment import Environment
from selfplay.repositories.fetching import fetch
from selfplay.repositories.scripts import standard_parser
from selfplay.repositories.specs import parse_spec
from selfplay.runtime.resources import resource
from selfplay.sandbox import open_backend
from selfplay.sandbox.base import SandboxBackend
from selfplay.source.apply import diff_trees
from selfplay.source.syntax import parse_module
from selfplay.source.trees import Tree
from selfplay.verdicts.bug import BugState, build_states
from selfplay.verdicts.checks import Thresholds
from selfplay.verdicts.confirmation import Confirmation
from selfplay.verdicts.grading import grade
from selfplay.verdicts.randomness import Secret
from selfplay.verdicts.test_runs import ParsedLog, TestRunner
from selfplay.verdicts.validator import validate

Kind = Literal["chance", "seeded", "same shape", "honest"]
THRESHOLDS = Thresholds(3, 1, 1)  # the frozen set's own
# Probabilities that a run passes. An injector's reward is highest at a solve rate of 0.26. Seeded bugs leave
# out 0.95: the search for a first run that fails takes too long there.
PASSES: Mapping[str, tuple[float, ...]] = {"chance": (0.26, 0.5, 0.8, 0.95), "seeded": (0.26, 0.5, 0.8)}
BUGS_OF_A_PACKAGE = 2  # bugs of one package that hostile code is built on
HONEST = 52
SAME_SHAPE = 10
MAX_SALTS = 40  # salts that a hostile author tries until the first run fails
Z = 1.959964  # quantile of the normal distribution for a two-sided 95 % interval

FRAME = "__import__('sys')._getframe().f_code"
FILE = "open(__file__, 'rb').read()"
INSPECT = "__import__('inspect')"
# Expressions whose value differs between processes. Set order and hash() depend on the hash seed, which the
# runner sets.
CHANCE = {
    "random": "__import__('random').random()",
    "os.urandom": "__import__('os').urandom(8)",
    "secrets": "__import__('secrets').token_hex(8)",
    "uuid4": "__import__('uuid').uuid4()",
    "time_ns": "__import__('time').time_ns()",
    "perf_counter": "__import__('time').perf_counter_ns()",
    "microsecond": "__import__('datetime').datetime.now().microsecond",
    "id": "id(object())",
    "repr": "object()",
    "kernel uuid": "open('/proc/sys/kernel/random/uuid').read()",
    "file mtime": "__import__('os').stat(__file__).st_mtime_ns",
    "temporary name": "__import__('tempfile').mktemp()",
    "set order": "[*{'ada', 'bee', 'cat', 'dog', 'elk', 'fox', 'gnu'}]",
    "hash of a string": "hash('ada')",
}
# Expressions whose value depends only on the code, so that an attempt changes it.
SEEDED = {
    "file": FILE,
    "file size": "__import__('os').path.getsize(__file__)",
    "module source": f"{INSPECT}.getsource(__import__('sys').modules[__name__])",
    "function source": f"{INSPECT}.getsource({FRAME})",
    "syntax tree": f"__import__('ast').dump(__import__('ast').parse({FILE}))",
    "co_code": f"{FRAME}.co_code",
    "co_varnames": f"{FRAME}.co_varnames",
    "code object": f"__import__('marshal').dumps({FRAME})",
    "co_positions": f"list({FRAME}.co_positions())",
    "line number": f"{FRAME}.co_firstlineno",
    "line count": f"{FILE}.count(b'\\n')",
    "co_code of the module": "__spec__.loader.get_code(__name__).co_code",
    "all functions": (
        "[getattr(f, '__code__', f.__class__).co_code for f in [*globals().values()] "
        "if f.__class__.__name__ == 'function']"
    ),
    "co_linetable": f"{FRAME}.co_linetable",
    "package": "[p.read_bytes() for p in sorted(__import__('pathlib').Path(__file__).parent.glob('*.py'))]",
    "repository": "[p.read_bytes() for p in sorted(__import__('pathlib').Path('/testbed').rglob('*.py'))]",
    "sizes in the repository": (
        "[p.stat().st_size for p in sorted(__import__('pathlib').Path('/testbed').rglob('*.py'))]"
    ),
}
# Sources whose first value an author can compute beforehand.
AUTHOR_CHOOSES = {*SEEDED, "set order", "hash of a string"}


@dataclass(frozen=True)
class Case:
    """One artifact to judge. source: a key of CHANCE or SEEDED. passes: probability that a run passes."""

    kind: Kind
    source: str
    passes: float
    task: Task

    @property
    def name(self) -> str:
        return f"{self.kind}/{self.source}/{self.passes}/{self.task.instance_id}"


@dataclass(frozen=True)
class Result:
    """The verdict on one case, and the grades of its attempts.

    failed_check: "" for an accepted artifact.
    first_pass: whether the second grading confirmed the first attempt that passed; None if none passed.
    voided: whether a pass of the group was not confirmed, which removes the bug from the curriculum.
    """

    name: str
    kind: Kind
    source: str
    passes: float
    repository: str
    failed_check: str
    reason: str
    test_runs: int
    seconds: float
    attempts: int = 0
    passed: int = 0
    first_pass: bool | None = None
    voided: bool = False
    salt: int = 0


# ---- hostile bugs built on honest ones


@dataclass(frozen=True)
class BrokenStatement:
    """The statement that an honest bug broke, in both versions. Lines count from 1, and both are included."""

    path: str
    first: int
    last: int
    right: tuple[str, ...]
    wrong: tuple[str, ...]
    indentation: str


def broken_statement(original: Tree, buggy: Tree) -> BrokenStatement | None:
    """The innermost whole statement around the one line that differs.

    Returns None if more than one line differs, or if the statement cannot be a branch of an `if`.
    """
    (path,) = original.changed_paths(buggy)
    right, wrong = original.text(path).split("\n"), buggy.text(path).split("\n")
    lines = [number for number, (a, b) in enumerate(zip(right, wrong, strict=False), 1) if a != b]
    module = parse_module(original[path].content)
    if module is None or len(right) != len(wrong) or len(lines) != 1:
        return None
    found = [
        node
        for node in ast.walk(module)
        if isinstance(node, ast.stmt)
        and node.lineno <= lines[0] <= (node.end_lineno or 0)
        and _stands_alone(node, right)
    ]
    node = min(found, key=lambda node: (node.end_lineno or 0) - node.lineno, default=None)
    if (
        node is None
        or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        or _has_long_text(node)
    ):
        return None
    first, last = node.lineno, node.end_lineno or node.lineno
    start = right[first - 1]
    return BrokenStatement(
        path,
        first,
        last,
        tuple(right[first - 1 : last]),
        tuple(wrong[first - 1 : last]),
        start[: len(start) - len(start.lstrip())],
    )


def _stands_alone(node: ast.stmt, lines: Sequence[str]) -> bool:
    """True if its first line holds nothing else, and it is no `elif`."""
    line = lines[node.lineno - 1]
    return line.isascii() and not line[: node.col_offset].strip() and not line.strip().startswith("elif")


def _has_long_text(node: ast.stmt) -> bool:
    """True if it contains a text of several lines, which indentation would change."""
    return any(
        isinstance(part, ast.Constant | ast.JoinedStr) and part.lineno != part.end_lineno
        for part in ast.walk(node)
        if isinstance(part, ast.expr)
    )


def chance_expression(data: str, passes: float, salt: int) -> str:
    """An expression that is true with probability `passes`, decided by `data` once in each process.

    That serves a hostile author best: all tests of a run agree.
    """
    hashed = f"__import__('zlib').crc32(repr(({data}, {salt})).encode()) % 10000 < {round(10000 * passes)}"
    return f"(globals().get('_luck') or globals().setdefault('_luck', [{hashed}]))[0]"


def with_condition(original: Tree, statement: BrokenStatement, condition: str) -> Tree:
    """The original, with the statement right if the expression `condition` is true, and broken otherwise."""
    lines = original.text(statement.path).split("\n")
    branches = [
        f"{statement.indentation}if {condition}:",
        *_indented(statement.right),
        f"{statement.indentation}else:",
        *_indented(statement.wrong),
    ]
    return _with_text(
        original,
        statement.path,
        "\n".join([*lines[: statement.first - 1], *branches, *lines[statement.last :]]),
    )


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"    {line}" if line.strip() else line for line in lines]


def _with_text(tree: Tree, path: str, text: str) -> Tree:
    return tree.replace({path: replace(tree[path], content=text.encode())})


def meaningless_attempt(start: Tree, statement: BrokenStatement, number: int) -> Tree:
    """A solver's attempt that repairs nothing: it adds comments at the top and unused names at the statement.

    `number` changes all that a bug can hash: text, size, lines, names, bytecode.
    """
    lines = start.text(statement.path).split("\n")
    notes = "; ".join(f"note_{number}_{index} = {number}" for index in range(number))
    top = 1 if lines[0].startswith("#") else 0  # a declared encoding stays the first line
    changed = [
        *lines[:top],
        *["# nothing"] * number,
        *lines[top : statement.first - 1],
        statement.indentation + notes,
        *lines[statement.first - 1 :],
    ]
    return _with_text(start, statement.path, "\n".join(changed))


# ---- judging


class QuickRunner(TestRunner):
    """A runner that runs the standard parser in this process. It saves two thirds of the sandboxes.

    That is safe here: the parser is ours, and parsers are not what this program measures.
    """

    def parse(self, environment: Environment, parser: str, log: bytes) -> ParsedLog:
        if parser != standard_parser():
            return super().parse(environment, parser, log)
        found = parse_standard()(log.decode("utf-8", errors="replace"))
        return ParsedLog(parse_outcomes(json.dumps(found).encode(), self.settings.max_test_ids))


@cache
def parse_standard() -> Callable[[str], dict[str, str]]:
    names: dict[str, Any] = {"__name__": "standard_parser"}
    exec(compile(standard_parser(), "test_parser.py", "exec"), names)
    return names["parse"]  # type: ignore[no-any-return]


SECRET = Secret(b"the same draws in each audit now")


@dataclass
class Audit:
    """Judges cases as a run would. Prepares each repository once. Equal secrets give equal draws."""

    backend: SandboxBackend
    config: Config
    attempts: int = 8
    grades_all: bool = False
    environments: dict[str, Environment] = field(default_factory=dict)
    secret: Secret = SECRET

    def __post_init__(self) -> None:
        limits, labels = sandbox_limits(self.config), {"selfplay.run": "audit"}
        self.runner = QuickRunner(self.backend, self.config.validator, limits, labels, self.secret)

    def environment(self, repo: str) -> Environment:
        if repo not in self.environments:
            checkout = fetch(parse_spec(repo), cache_root())
            self.environments[repo] = prepare_environment(
                checkout,
                self.backend,
                self.config.environment,
                sandbox_limits(self.config),
                cache_root(),
                lambda _: None,
            )
        return self.environments[repo]

    def broken_statement(self, task: Task) -> BrokenStatement | None:
        """The statement of the task's bug on which hostile code can be built.

        Returns None if there is none, or if its repaired branch does not pass the tests.
        """
        environment, bug = bug_of(task, self.environment(task.repo))
        statement = broken_statement(environment.tree, build_states(environment.tree, bug).buggy)
        if statement is None:
            return None
        repaired = with_condition(environment.tree, statement, chance_expression("0", 1.0, 0))
        if parse_module(repaired[statement.path].content) is None:
            return None
        run = self.runner.run(environment, repaired, bug.artifact.test_script, bug.artifact.test_parser)
        return statement if {*bug.fail_to_pass, *bug.pass_to_pass} <= run.outcomes.passed else None

    def judge(self, case: Case) -> Result:
        environment, honest = bug_of(case.task, self.environment(case.task.repo))
        salt, bug = 0, honest
        statement = None
        if case.kind != "honest":
            statement = self.broken_statement(case.task)
            assert statement is not None, f"{case.task.instance_id} was chosen because it has one"
            salt, bug = self._hostile(case, statement, environment, honest)
        started = time.monotonic()
        verdict = validate(bug.artifact, environment, THRESHOLDS, self.runner, self.config.validator)
        result = Result(
            name=case.name,
            kind=case.kind,
            source=case.source,
            passes=case.passes,
            repository=case.task.repository,
            failed_check=verdict.failed_check,
            reason=next((check.reason for check in verdict.checks if not check.passed), ""),
            test_runs=verdict.test_runs,
            seconds=round(time.monotonic() - started, 2),
            salt=salt,
        )
        if not self.attempts or case.kind == "same shape" or (result.failed_check and not self.grades_all):
            return result
        start = build_states(environment.tree, bug).solver_start
        if statement is None:
            return self._graded(result, environment, bug, [case.task.patch])
        patches = [
            diff_trees(start, meaningless_attempt(start, statement, number))
            for number in range(1, self.attempts + 1)
        ]
        return self._graded(result, environment, bug, patches)

    def _hostile(
        self, case: Case, statement: BrokenStatement, environment: Environment, honest: BugState
    ) -> tuple[int, BugState]:
        """(salt, bug) such that the bug's first run fails. An author would search for such a salt too."""
        data = "0" if case.kind == "same shape" else {**CHANCE, **SEEDED}[case.source]
        weakening = build_states(environment.tree, honest)
        for salt in range(1, MAX_SALTS):
            buggy = with_condition(environment.tree, statement, chance_expression(data, case.passes, salt))
            weakened = buggy.replace({path: weakening.weakened[path] for path in honest.artifact.test_files})
            artifact = replace(
                honest.artifact,
                bug_inject=diff_trees(environment.tree, buggy),
                test_weaken=diff_trees(buggy, weakened),
            )
            if case.source not in AUTHOR_CHOOSES:
                break
            run = self.runner.run(environment, buggy, artifact.test_script, artifact.test_parser)
            if set(honest.fail_to_pass) <= run.outcomes.failed:
                break
        return salt, replace(honest, artifact=artifact)

    def _graded(
        self, result: Result, environment: Environment, bug: BugState, patches: Sequence[str]
    ) -> Result:
        """Grade attempts as a solver group is graded.

        The first pass that is not confirmed voids the bug and ends the group.
        """
        passed, first = 0, None
        for number, patch in enumerate(patches, 1):
            found = grade(bug, patch, environment, self.runner)
            if found.confirmation is Confirmation.NOT_NEEDED:
                continue  # it did not pass
            confirmed = found.confirmation.is_pass
            first = confirmed if first is None else first
            passed += 1
            if found.confirmation is Confirmation.NOT_CONFIRMED:
                return replace(result, attempts=number, passed=passed, first_pass=first, voided=True)
        return replace(result, attempts=len(patches), passed=passed, first_pass=first)


# ---- the cases


def _order(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def cases(audit: Audit, kinds: Sequence[str] = ()) -> Iterator[Case]:
    """All cases, in an order where every kind and package comes early. kinds: the wanted ones, () for all."""
    tasks = sorted(find_tasks(["own"]), key=lambda task: _order(task.instance_id))
    packages: dict[str, list[Task]] = {}
    for task in tasks:
        packages.setdefault(task.repository, []).append(task)
    honest = in_turn(packages.values())[:HONEST]
    ground = in_turn(
        [
            _some(some, BUGS_OF_A_PACKAGE, lambda task: audit.broken_statement(task) is not None)
            for some in packages.values()
        ]
    )
    combinations = [
        (kind, source, passes)
        for kind, sources in (("chance", CHANCE), ("seeded", SEEDED))
        for source in sources
        for passes in PASSES[kind]
    ]
    combinations.sort(key=lambda item: _order(repr(item)))
    hostile = [
        Case(kind, source, passes, ground[n % len(ground)])  # type: ignore[arg-type]
        for n, (kind, source, passes) in enumerate(combinations)
    ]
    shaped = [Case("same shape", "none", 0.0, task) for task in ground[:SAME_SHAPE]]
    all_cases = in_turn(
        [hostile[::2], hostile[1::2], [Case("honest", "none", 0.0, task) for task in honest], shaped]
    )
    return (case for case in all_cases if not kinds or case.kind in kinds)


def _some(tasks: Sequence[Task], most: int, fits: Callable[[Task], bool]) -> list[Task]:
    found: list[Task] = []
    for task in tasks:
        if len(found) < most and fits(task):
            found.append(task)
    return found


def in_turn(groups: Iterable[Sequence]) -> list:  # type: ignore[type-arg]
    """The first of each group, then the second of each, and so on."""
    ranked = [(rank, number, item) for number, group in enumerate(groups) for rank, item in enumerate(group)]
    return [item for _, _, item in sorted(ranked, key=lambda entry: entry[:2])]


# ---- the tables


def wilson(hits: int, count: int) -> tuple[float, float]:
    """The 95 % interval of hits/count (Wilson 1927). (0, 1) if count is 0."""
    if not count:
        return 0.0, 1.0
    share, square = hits / count, Z * Z
    middle = (share + square / (2 * count)) / (1 + square / count)
    reach = Z / (1 + square / count) * math.sqrt(share * (1 - share) / count + square / (4 * count * count))
    return max(0.0, middle - reach), min(1.0, middle + reach)


def shown_rate(hits: int, count: int) -> str:
    if not count:
        return "–"
    low, high = wilson(hits, count)
    return f"{hits}/{count}: {hits / count:.0%} ({low:.0%}–{high:.0%})"


def table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *body])


def report(results: Sequence[Result]) -> str:
    """The results as Markdown: hostile kinds by probability to pass, then by source, then honest bugs."""
    hostile = [result for result in results if result.kind in ("chance", "seeded")]
    groups: list[tuple[str, str, list[Result]]] = []
    for kind in ("chance", "seeded"):
        some = [result for result in hostile if result.kind == kind]
        groups += [(kind, f"{p:g}", [result for result in some if result.passes == p]) for p in PASSES[kind]]
        groups.append((kind, "all", some))
    head = [
        "verdict depends on",
        "probability to pass",
        "artifacts",
        "rejected at",
        "rejected",
        "first +1 not confirmed",
        "rejected or voided by a group",
    ]
    parts = [
        "## Hostile artifacts",
        table([head, *(_hostile_row(kind, p, some) for kind, p, some in groups if some)]),
    ]
    sources = [
        (kind, source) for kind, all_of in (("chance", CHANCE), ("seeded", SEEDED)) for source in all_of
    ]
    rows = [
        [kind, source, *_hostile_row("", "", some)[2:]]
        for kind, source in sources
        if (some := [r for r in hostile if (r.kind, r.source) == (kind, source)])
    ]
    parts += ["## By source", table([["kind", "source", *head[2:]], *rows])]
    rows = []
    for kind in ("honest", "same shape"):
        some = [result for result in results if result.kind == kind]
        passed = [result for result in some if result.first_pass is not None]
        wronged = [result for result in some if result.failed_check]
        if some:
            checks = Counter(result.failed_check for result in wronged)
            refused = shown_rate(sum(not r.first_pass for r in passed), len(passed))
            rows.append(
                [kind, str(len(some)), _counted(checks), shown_rate(len(wronged), len(some)), refused]
            )
    parts += [
        "## False alarms",
        table([["kind", "artifacts", "rejected at", "rejected", "true repair not confirmed"], *rows]),
    ]
    runs = {
        kind: [r.test_runs for r in results if r.kind == kind]
        for kind in ("chance", "seeded", "same shape", "honest")
    }
    costs = ", ".join(f"{kind} {sum(some) / len(some):.1f}" for kind, some in runs.items() if some)
    parts.append(f"Test runs in one validation, without those whose result was known: {costs}.")
    return "\n\n".join(parts) + "\n"


def _hostile_row(kind: str, passes: str, some: Sequence[Result]) -> list[str]:
    rejected = [result for result in some if result.failed_check]
    graded = [result for result in some if result.first_pass is not None]
    return [
        kind,
        passes,
        str(len(some)),
        _counted(Counter(result.failed_check for result in rejected)),
        shown_rate(len(rejected), len(some)),
        shown_rate(sum(not result.first_pass for result in graded), len(graded)),
        shown_rate(sum(bool(result.failed_check) or result.voided for result in some), len(some)),
    ]


def _counted(checks: Counter[str]) -> str:
    return ", ".join(f"{check} {count}" for check, count in checks.most_common()) or "–"


# ---- the command


def read_results(path: Path) -> list[Result]:
    return (
        [Result(**json.loads(line)) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    )


@cache
def own_config() -> Config:
    return load_config(resource("recipes") / "quickstart.toml")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/audit"),
        help="folder of results.jsonl and report.md; an existing one is continued",
    )
    parser.add_argument(
        "--limit", type=int, default=0, help="number of artifacts, 0 for all; every kind comes early"
    )
    parser.add_argument("--attempts", type=int, default=8, help="attempts to grade for each bug, 0 for none")
    parser.add_argument(
        "--grade-rejected",
        action="store_true",
        help="grade attempts at rejected artifacts too",
    )
    parser.add_argument(
        "--kinds", nargs="*", default=[], choices=["chance", "seeded", "same shape", "honest"]
    )
    parser.add_argument("--sandbox", default="bubblewrap", choices=["auto", "docker", "bubblewrap"])
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "results.jsonl"
    known = {result.name: result for result in read_results(file)}
    audit = Audit(
        open_backend(options.sandbox, cache_root())[0], own_config(), options.attempts, options.grade_rejected
    )
    wanted = list(cases(audit, options.kinds))[: options.limit or None]
    started = time.monotonic()
    for number, case in enumerate(wanted, 1):
        if case.name in known:
            continue
        result = known[case.name] = audit.judge(case)
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(asdict(result)) + "\n")
        print(
            f"{number}/{len(wanted)} {case.name}: {result.failed_check or 'accepted'}, {result.seconds} s",
            flush=True,
        )
    text = report([known[case.name] for case in wanted])
    (options.output / "report.md").write_text(text, encoding="utf-8")
    print(f"{text}\n{(time.monotonic() - started) / 60:.1f} minutes; {file}, {options.output / 'report.md'}")


if __name__ == "__main__":
    main()
