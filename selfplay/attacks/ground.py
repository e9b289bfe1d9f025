"""Where attacks are carried out: an open backend and a small prepared repository with a bug in it, made from texts that ship here.

Leaves attacks to their own modules. Invariant: an honest bug is accepted and an honest repair passes, else no attack is made at all.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from selfplay.agent.solver import SolverTask, prepare_solver
from selfplay.config import Config, EnvironmentSettings, ValidatorSettings
from selfplay.errors import SandboxUnavailable
from selfplay.repositories.build import prepare_environment
from selfplay.repositories.environment import Environment, open_workspace
from selfplay.repositories.fetching import fetch
from selfplay.repositories.specs import parse_spec
from selfplay.sandbox.base import WORKSPACE, Limits, Sandbox, SandboxBackend, SandboxSpec
from selfplay.sandbox.conformance import SMALL
from selfplay.source.apply import diff_trees
from selfplay.source.trees import FileEntry, Tree
from selfplay.verdicts.artifact import Artifact
from selfplay.verdicts.bug import BugState, build_states
from selfplay.verdicts.checks import Thresholds
from selfplay.verdicts.grading import Grade, grade, take_prediction
from selfplay.verdicts.test_runs import TestRunner
from selfplay.verdicts.validator import Verdict, validate

BOUNDS = '''"""Numbers within bounds."""


def clamp(value, lowest_allowed, highest_allowed):
    """`value`, but not below the lowest and not above the highest that is allowed."""
    if value < lowest_allowed:
        return lowest_allowed
    if value > highest_allowed:
        return highest_allowed
    return value


def middle(values):
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


def spread(values):
    return max(values) - min(values)
'''
WORDS = '''"""Words about numbers and names."""

from heron.bounds import spread


def initials(name):
    return "".join(word[0].upper() for word in name.split())


def spread_in_words(values):
    width = spread(values)
    return "all are equal" if width == 0 else f"they lie {width} apart, from the lowest to the highest of them"
'''
TEST_BOUNDS = """import pytest

from heron.bounds import clamp, middle, spread


@pytest.mark.parametrize(("value", "expected"), [(5, 5), (-1, 0), (11, 10)])
def test_clamp(value, expected):
    assert clamp(value, 0, 10) == expected


def test_middle():
    assert middle([3, 1, 2]) == 2


def test_spread():
    assert spread([4, 1]) == 3
"""
TEST_WORDS = """from heron.words import initials, spread_in_words


def test_initials():
    assert initials("ada king") == "AK"


def test_spread_in_words():
    assert spread_in_words([2, 2]) == "all are equal"
"""
FILES = {
    "pyproject.toml": '[project]\nname = "heron"\nversion = "1.0"\nlicense = "MIT"\n\n[tool.pytest.ini_options]\ntestpaths = ["tests"]\n',
    ".gitignore": "__pycache__/\nbuild/\n",
    "heron/__init__.py": '"""A small package for attacks to work on."""\n',
    "heron/bounds.py": BOUNDS,
    "heron/words.py": WORDS,
    "tests/test_bounds.py": TEST_BOUNDS,
    "tests/test_words.py": TEST_WORDS,
}
CODE, TESTS = "heron/bounds.py", "tests/test_bounds.py"
RIGHT, WRONG = "        return highest_allowed\n", "        return lowest_allowed - 1\n"
HIDDEN_TEST = "tests/test_bounds.py::test_clamp[11-10]"
OTHER_TESTS = (
    "tests/test_bounds.py::test_clamp[-1-0]",
    "tests/test_bounds.py::test_clamp[5-5]",
    "tests/test_bounds.py::test_middle",
    "tests/test_bounds.py::test_spread",
    "tests/test_words.py::test_initials",
    "tests/test_words.py::test_spread_in_words",
)
Change = str | tuple[str, str] | None  # new text, or (old, new) part of it, or None: deleted


@dataclass(frozen=True)
class Ground:
    """scratch: a folder of ours on the host, for canaries and hostile repositories; nothing else of the host is ever aimed at."""

    backend: SandboxBackend
    environment: Environment
    runner: TestRunner
    scratch: Path
    cache: Path
    config: Config

    # ---- the repository and its bug

    @property
    def tree(self) -> Tree:
        return self.environment.tree

    @property
    def bug(self) -> BugState:
        return BugState(self.artifact(), 1, "", (HIDDEN_TEST,), OTHER_TESTS)

    def artifact(
        self,
        bug: Mapping[str, Change] | None = None,
        weaken: Mapping[str, Change] | None = None,
        script: str | None = None,
        parser: str | None = None,
    ) -> Artifact:
        """An honest artifact, but for what is given."""
        return Artifact(
            diff_trees(self.tree, changed(self.tree, bug or {CODE: (RIGHT, WRONG)})),
            diff_trees(self.tree, changed(self.tree, weaken or {TESTS: (", (11, 10)]", "]")})),
            ("tests/test_bounds.py", "tests/test_words.py"),
            script or self.environment.script,
            parser or self.environment.parser,
        )

    def start(self) -> Tree:
        """What a solver starts from."""
        return build_states(self.tree, self.bug).solver_start

    # ---- what attacks go against

    @contextmanager
    def box(self, limits: Limits = SMALL, environment: str | None = None) -> Iterator[Sandbox]:
        reference = self.environment.reference if environment is None else environment
        with self.backend.open(SandboxSpec(reference, limits, labels={"run": "attack"})) as opened:
            yield opened

    @contextmanager
    def solver(self) -> Iterator[Sandbox]:
        """A solver's sandbox as an episode prepares it."""
        with open_workspace(self.backend, self.environment, self.start(), {"run": "attack"}) as opened:
            prepare_solver(opened, SolverTask(self.environment, "bug", self.bug, ""), self.config)
            yield opened

    def grade(
        self,
        changes: Mapping[str, Change],
        runner: TestRunner | None = None,
        artifact: Artifact | None = None,
    ) -> Grade:
        """A repair with these changes of the bug (or of another one with the same tests), judged as a solver's is."""
        bug = replace(self.bug, artifact=artifact or self.bug.artifact)
        start = build_states(self.tree, bug).solver_start
        return grade(bug, diff_trees(start, changed(start, changes)), self.environment, runner or self.runner)

    def taken(self, box: Sandbox) -> str:
        """What a solver's workspace is handed in as."""
        return take_prediction(self.start(), box.read_archive(WORKSPACE, 64 << 20)).patch

    def validate(self, artifact: Artifact) -> Verdict:
        """What becomes of an artifact, with nothing remembered of earlier runs."""
        return validate(artifact, self.environment, Thresholds(), self.fresh_runner(), self.config.validator)

    def fresh_runner(self) -> TestRunner:
        """A runner that remembers nothing."""
        return TestRunner(self.backend, self.config.validator, Limits(), {"run": "attack"})

    def canary(self, name: str) -> Path:
        """A path in our own folder on the host, not there yet: an attack that makes it exist ran on the host."""
        path = self.scratch / name
        path.unlink(missing_ok=True)
        return path

    def folder(self, name: str) -> Path:
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.scratch))


def changed(tree: Tree, changes: Mapping[str, Change]) -> Tree:
    entries: dict[str, FileEntry | None] = {}
    for path, change in changes.items():
        text = tree.text(path).replace(*change) if isinstance(change, tuple) else change
        entries[path] = None if text is None else FileEntry(text.encode("utf-8", "surrogateescape"))
    return tree.replace(entries)


@contextmanager
def open_ground(backend: SandboxBackend, cache: Path, scratch: Path | None = None) -> Iterator[Ground]:
    """The ground, prepared (from the cache, after the first time). Raises EnvironmentBuildError, SandboxUnavailable."""
    with tempfile.TemporaryDirectory(prefix="selfplay-attack-", dir=scratch) as name:
        folder = Path(name)
        folder.chmod(0o755)  # a sandbox's user must be able to find the canaries, were they in reach
        Tree({path: FileEntry(text.encode()) for path, text in FILES.items()}).write_to(folder / "heron")
        checkout = fetch(parse_spec(str(folder / "heron")), cache)
        environment = prepare_environment(
            checkout, backend, EnvironmentSettings(baselines=2), Limits(), cache, lambda _: None
        )
        config = Config(validator=ValidatorSettings(script_timeout_s=60))
        runner = TestRunner(backend, config.validator, Limits(), {"run": "attack"})
        ground = Ground(backend, environment, runner, folder, cache, config)
        check_ground(ground)
        yield ground


def check_ground(ground: Ground) -> None:
    """Raise SandboxUnavailable where even honest work fails: everything would look held then."""
    verdict = ground.validate(ground.artifact())
    if not verdict.accepted or verdict.fail_to_pass != (HIDDEN_TEST,):
        said = next(
            (check.reason for check in verdict.checks if not check.passed), "other tests fail than expected"
        )
        raise SandboxUnavailable(
            f"an honest bug is rejected here ({verdict.failed_check}: {said}), so attacks would show nothing"
        )
    found = ground.grade({CODE: (WRONG, RIGHT)})
    if not found.passed:
        raise SandboxUnavailable(
            f"an honest repair fails here ({found.reason}), so attacks would show nothing"
        )
