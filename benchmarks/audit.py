"""How often validation and grading see through bugs whose verdict rests on chance or on a hash of the code; and how often they err.

    python -m benchmarks.audit --output FOLDER [--limit 6] [--attempts 8]

Leaves attacks on anything else to `selfplay doctor --attack`. Invariant: a name says all of an artifact, so a folder can be continued.
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
from selfplay.repositories.environment import Environment, standard_parser
from selfplay.repositories.fetching import fetch
from selfplay.repositories.specs import parse_spec
from selfplay.runtime.resources import resource
from selfplay.sandbox import open_backend
from selfplay.sandbox.base import SandboxBackend
from selfplay.source.apply import diff_trees
from selfplay.source.syntax import parse_module
from selfplay.source.trees import Tree
from selfplay.verdicts.bug import BugState, build_states
from selfplay.verdicts.checks import Thresholds
from selfplay.verdicts.grading import grade
from selfplay.verdicts.test_runs import ParsedLog, TestRunner
from selfplay.verdicts.validator import validate

Kind = Literal["chance", "seeded", "same shape", "honest"]
THRESHOLDS = Thresholds(3, 1, 1)  # the frozen set's own
# How often luck repairs. 0.26 is the solve rate that pays an injector best; where an author seeks a first draw that fails, 0.95 takes long.
PASSES: Mapping[str, tuple[float, ...]] = {"chance": (0.26, 0.5, 0.8, 0.95), "seeded": (0.26, 0.5, 0.8)}
BUGS_OF_A_PACKAGE = 2  # that hostile code is built over: those of a package whose tests run the fastest
HONEST = 52
SAME_SHAPE = 10
MAX_SALTS = 40  # that a hostile author tries for a first draw that fails
Z = 1.959964  # two-sided 95 %

FRAME = "__import__('sys')._getframe().f_code"
FILE = "open(__file__, 'rb').read()"
INSPECT = "__import__('inspect')"
# Something another in each process. Set order and hash() hang on the hash seed, which the runner sets.
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
# Something that is the same for equal code, and another for code that an attempt changed.
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
    "all functions": "[getattr(f, '__code__', f.__class__).co_code for f in [*globals().values()] if f.__class__.__name__ == 'function']",
    "co_linetable": f"{FRAME}.co_linetable",
    "package": "[p.read_bytes() for p in sorted(__import__('pathlib').Path(__file__).parent.glob('*.py'))]",
    "repository": "[p.read_bytes() for p in sorted(__import__('pathlib').Path('/testbed').rglob('*.py'))]",
    "sizes in the repository": "[p.stat().st_size for p in sorted(__import__('pathlib').Path('/testbed').rglob('*.py'))]",
}
AUTHOR_CHOOSES = {
    *SEEDED,
    "set order",
    "hash of a string",
}  # what comes out the first time can be known beforehand


@dataclass(frozen=True)
class Case:
    """One artifact to be put to the test. source: what its luck is drawn from; passes: how often luck repairs it."""

    kind: Kind
    source: str
    passes: float
    task: Task

    @property
    def name(self) -> str:
        return f"{self.kind}/{self.source}/{self.passes}/{self.task.instance_id}"


@dataclass(frozen=True)
class Result:
    """failed_check: "" for an accepted artifact. first_pass: whether the first attempt that passed was confirmed; None without any.

    voided: whether a pass of the group was not confirmed, which takes the bug out of the curriculum.
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


# ---- hostile bugs over honest ones


@dataclass(frozen=True)
class Place:
    """The statement that an honest bug broke: its file, its lines (1-based, inclusive), and what both versions of them are."""

    path: str
    first: int
    last: int
    right: tuple[str, ...]
    wrong: tuple[str, ...]
    indentation: str


def broken_statement(original: Tree, buggy: Tree) -> Place | None:
    """The innermost whole statement around the one line that differs; None where two of them cannot stand in the branches of an `if`."""
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
    return Place(
        path,
        first,
        last,
        tuple(right[first - 1 : last]),
        tuple(wrong[first - 1 : last]),
        start[: len(start) - len(start.lstrip())],
    )


def _stands_alone(node: ast.stmt, lines: Sequence[str]) -> bool:
    """Nothing else is on its first line, and it is no `elif`."""
    line = lines[node.lineno - 1]
    return line.isascii() and not line[: node.col_offset].strip() and not line.strip().startswith("elif")


def _has_long_text(node: ast.stmt) -> bool:
    """A text of several lines within would change with its indentation."""
    return any(
        isinstance(part, ast.Constant | ast.JoinedStr) and part.lineno != part.end_lineno
        for part in ast.walk(node)
        if isinstance(part, ast.expr)
    )


def draw(data: str, passes: float, salt: int) -> str:
    """An expression that is true with the probability `passes`, drawn once a process from `data`: what serves a hostile author best."""
    lot = f"__import__('zlib').crc32(repr(({data}, {salt})).encode()) % 10000 < {round(10000 * passes)}"
    return f"(globals().get('_luck') or globals().setdefault('_luck', [{lot}]))[0]"


def with_luck(original: Tree, place: Place, luck: str) -> Tree:
    """The original with the statement made right where `luck` is true, and wrong else."""
    lines = original.text(place.path).split("\n")
    branches = [
        f"{place.indentation}if {luck}:",
        *_indented(place.right),
        f"{place.indentation}else:",
        *_indented(place.wrong),
    ]
    return _with_text(
        original, place.path, "\n".join([*lines[: place.first - 1], *branches, *lines[place.last :]])
    )


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"    {line}" if line.strip() else line for line in lines]


def _with_text(tree: Tree, path: str, text: str) -> Tree:
    return tree.replace({path: replace(tree[path], content=text.encode())})


def meaningless_attempt(start: Tree, place: Place, number: int) -> Tree:
    """What a solver may hand in that repairs nothing: comments at the top and unused names beside the broken statement.

    Everything that a draw can hang on moves with `number`: text, size, lines, names, bytecode.
    """
    lines = start.text(place.path).split("\n")
    notes = "; ".join(f"note_{number}_{index} = {number}" for index in range(number))
    top = 1 if lines[0].startswith("#") else 0  # an encoding stays in its place
    changed = [
        *lines[:top],
        *["# nothing"] * number,
        *lines[top : place.first - 1],
        place.indentation + notes,
        *lines[place.first - 1 :],
    ]
    return _with_text(start, place.path, "\n".join(changed))


# ---- putting them to the test


class QuickRunner(TestRunner):
    """Reads logs with the standard parser in this process, as it is ours and not what is tried here: a third of the sandboxes."""

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


@dataclass
class Audit:
    """Opens repositories once, and judges one case after another as a run would."""

    backend: SandboxBackend
    config: Config
    attempts: int = 8
    grades_all: bool = False
    environments: dict[str, Environment] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.runner = QuickRunner(
            self.backend, self.config.validator, sandbox_limits(self.config), {"selfplay.run": "audit"}
        )

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

    def place(self, task: Task) -> Place | None:
        """Where hostile code can be built over the task's bug; None where the repaired branch does not pass its tests."""
        environment, bug = bug_of(task, self.environment(task.repo))
        place = broken_statement(environment.tree, build_states(environment.tree, bug).buggy)
        if place is None:
            return None
        lucky = with_luck(environment.tree, place, draw("0", 1.0, 0))
        if parse_module(lucky[place.path].content) is None:
            return None
        run = self.runner.run(environment, lucky, bug.artifact.test_script, bug.artifact.test_parser)
        return place if {*bug.fail_to_pass, *bug.pass_to_pass} <= run.outcomes.passed else None

    def judge(self, case: Case) -> Result:
        environment, honest = bug_of(case.task, self.environment(case.task.repo))
        salt, bug = 0, honest
        place = None
        if case.kind != "honest":
            place = self.place(case.task)
            assert place is not None, f"{case.task.instance_id} was chosen because it has one"
            salt, bug = self._hostile(case, place, environment, honest)
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
        if place is None:
            return self._graded(result, environment, bug, [case.task.patch])
        patches = [
            diff_trees(start, meaningless_attempt(start, place, number))
            for number in range(1, self.attempts + 1)
        ]
        return self._graded(result, environment, bug, patches)

    def _hostile(
        self, case: Case, place: Place, environment: Environment, honest: BugState
    ) -> tuple[int, BugState]:
        """The bug, and the salt with which its first draw fails: an author would try as many as it takes."""
        data = "0" if case.kind == "same shape" else {**CHANCE, **SEEDED}[case.source]
        weakening = build_states(environment.tree, honest)
        for salt in range(1, MAX_SALTS):
            buggy = with_luck(environment.tree, place, draw(data, case.passes, salt))
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
        """A group of attempts, as a solver group is graded; the first pass that is not confirmed voids the bug and ends it."""
        passed, first = 0, None
        for number, patch in enumerate(patches, 1):
            found = grade(bug, patch, environment, self.runner)
            if found.confirmed is None and found.passed is False and "forge" not in found.reason:
                continue  # it did not pass
            confirmed = found.confirmed is True
            first = confirmed if first is None else first
            passed += 1
            if not confirmed:
                return replace(result, attempts=number, passed=passed, first_pass=first, voided=True)
        return replace(result, attempts=len(patches), passed=passed, first_pass=first)


# ---- the cases


def _order(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def cases(audit: Audit, kinds: Sequence[str] = ()) -> Iterator[Case]:
    """All of them, in an order in which any beginning holds every kind and package. kinds: those that are wanted, () for all."""
    tasks = sorted(find_tasks(["own"]), key=lambda task: _order(task.instance_id))
    packages: dict[str, list[Task]] = {}
    for task in tasks:
        packages.setdefault(task.repository, []).append(task)
    honest = in_turn(packages.values())[:HONEST]
    ground = in_turn(
        [
            _some(some, BUGS_OF_A_PACKAGE, lambda task: audit.place(task) is not None)
            for some in packages.values()
        ]
    )
    drawn = [
        (kind, source, passes)
        for kind, sources in (("chance", CHANCE), ("seeded", SEEDED))
        for source in sources
        for passes in PASSES[kind]
    ]
    drawn.sort(key=lambda item: _order(repr(item)))
    hostile = [
        Case(kind, source, passes, ground[n % len(ground)]) for n, (kind, source, passes) in enumerate(drawn)
    ]  # type: ignore[arg-type]
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
    """The 95 % interval of a share (Wilson 1927); (0, 1) of none."""
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
    """Markdown: hostile kinds by how often luck repairs them, then by what luck is drawn from, then the honest ones."""
    hostile = [result for result in results if result.kind in ("chance", "seeded")]
    groups: list[tuple[str, str, list[Result]]] = []
    for kind in ("chance", "seeded"):
        some = [result for result in hostile if result.kind == kind]
        groups += [(kind, f"{p:g}", [result for result in some if result.passes == p]) for p in PASSES[kind]]
        groups.append((kind, "all", some))
    head = [
        "verdict hangs on",
        "luck repairs",
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
    parts += ["## By what luck is drawn from", table([["kind", "source", *head[2:]], *rows])]
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
    parts.append(f"Test runs a validation, those known already left out: {costs}.")
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
        help="folder of results.jsonl, continued if there, and report.md",
    )
    parser.add_argument(
        "--limit", type=int, default=0, help="this many artifacts only; every kind comes early"
    )
    parser.add_argument(
        "--attempts", type=int, default=8, help="that are graded for each bug; 0 leaves grading out"
    )
    parser.add_argument(
        "--grade-rejected",
        action="store_true",
        help="grade attempts at rejected artifacts too, as if they had been let through",
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
