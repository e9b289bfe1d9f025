"""The target of the attacks: an open sandbox backend, and a small prepared repository with a bug in it.

The repository is made from the texts below. The attacks have modules of their own.
Invariant: no attack runs unless an honest bug is accepted and an honest repair passes. Else every attack
would look held.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from selfplay.agent.solver import SolverTask, prepare_solver
from selfplay.config import Config
from selfplay.errors import SandboxUnavailable
from selfplay.repositories.build import prepare_environment
from selfplay.repositories.environment import Environment, open_workspace
from selfplay.repositories.fetching import fetch
from selfplay.repositories.specs import parse_spec
from selfplay.sandbox.base import WORKSPACE, Limits, Sandbox, SandboxBackend, SandboxSpec
from selfplay.sandbox.conformance import SMALL
from selfplay.settings.playing import EnvironmentSettings, ValidatorSettings
from selfplay.source.apply import diff_trees
from selfplay.source.trees import FileEntry, Tree
from selfplay.verdicts.artifact import Artifact
from selfplay.verdicts.bug import BugState, build_states
from selfplay.verdicts.checks import Thresholds
from selfplay.verdicts.grading import Grade, grade
from selfplay.verdicts.perturbation import noisy
from selfplay.verdicts.randomness import Secret
from selfplay.verdicts.repairs import take_repair
from selfplay.verdicts.test_runs import TestRunner
from selfplay.verdicts.validator import validate
from selfplay.verdicts.verdict import Verdict

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
    "pyproject.toml": (
        '[project]\nname = "heron"\nversion = "1.0"\nlicense = "MIT"\n\n'
        '[tool.pytest.ini_options]\ntestpaths = ["tests"]\n'
    ),
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
SECRET = Secret(b"the same draws in every attack  ")
# A file's new text, or (old part, new part), or None: the file is deleted.
Change = str | tuple[str, str] | None


@dataclass(frozen=True)
class Ground:
    """A prepared target. scratch: our folder on the host for canaries and hostile repositories.

    secret: what judging draws from. No attack's code knows it; we do, so that an attack ends in one way.
    Attacks aim at nothing else on the host.
    """

    backend: SandboxBackend
    environment: Environment
    runner: TestRunner
    scratch: Path
    cache: Path
    config: Config
    secret: Secret

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
        """An honest artifact, except for the parts that are given."""
        return Artifact(
            diff_trees(self.tree, changed(self.tree, bug or {CODE: (RIGHT, WRONG)})),
            diff_trees(self.tree, changed(self.tree, weaken or {TESTS: (", (11, 10)]", "]")})),
            ("tests/test_bounds.py", "tests/test_words.py"),
            script or self.environment.script,
            parser or self.environment.parser,
        )

    def start(self) -> Tree:
        """The tree that a solver starts from."""
        return build_states(self.tree, self.bug).solver_start

    # ---- what is attacked

    @contextmanager
    def box(self, limits: Limits = SMALL, environment: str | None = None) -> Iterator[Sandbox]:
        reference, hidden = self.environment.reference, self.environment.hidden
        if environment is not None:
            reference, hidden = environment, ()
        spec = SandboxSpec(reference, limits, labels={"run": "attack"}, hidden=hidden)
        with self.backend.open(spec) as opened:
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
        """Grade a repair that makes these changes, as a solver's repair is graded.

        runner: None for the ground's own, which remembers earlier runs.
        artifact: another bug with the same tests.
        """
        bug = replace(self.bug, artifact=artifact or self.bug.artifact)
        start = build_states(self.tree, bug).solver_start
        return grade(bug, diff_trees(start, changed(start, changes)), self.environment, runner or self.runner)

    def taken(self, box: Sandbox) -> str:
        """The patch that the harness takes from a solver's workspace."""
        states, most = build_states(self.tree, self.bug), self.config.validator.max_patch_bytes
        archive, test_files = box.read_archive(WORKSPACE, 64 << 20), self.environment.test_files
        return take_repair(states, states.solver_start, archive, test_files, most).patch

    def validate(self, artifact: Artifact, runner: TestRunner | None = None) -> Verdict:
        """The verdict on an artifact. runner: None for one that remembers no earlier run."""
        runner = runner or self.fresh_runner()
        return validate(artifact, self.environment, Thresholds(), runner, self.config.validator)

    def fresh_runner(self) -> TestRunner:
        """A runner that remembers nothing."""
        return TestRunner(self.backend, self.config.validator, Limits(), {"run": "attack"}, self.secret)

    def changed_by_judges(self, tree: Tree, phase: str, number: int | None = None) -> Tree:
        """`tree`, whose code differs in CODE, as judging runs it in this phase of `verdicts.perturbation`."""
        numbers = () if number is None else (str(number),)
        return noisy(self.tree, tree, [CODE], self.secret, phase, tree.digest, *numbers)

    def canary(self, name: str) -> Path:
        """A path in our folder on the host that does not exist yet.

        If an attack creates it, the attack ran on the host.
        """
        path = self.scratch / name
        path.unlink(missing_ok=True)
        return path

    def folder(self, name: str) -> Path:
        """A new empty folder in our folder on the host."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.scratch))


def changed(tree: Tree, changes: Mapping[str, Change]) -> Tree:
    """The tree with these changes, by path."""
    entries: dict[str, FileEntry | None] = {}
    for path, change in changes.items():
        text = tree.text(path).replace(*change) if isinstance(change, tuple) else change
        entries[path] = None if text is None else FileEntry(text.encode("utf-8", "surrogateescape"))
    return tree.replace(entries)


@contextmanager
def open_ground(backend: SandboxBackend, cache: Path, scratch: Path | None = None) -> Iterator[Ground]:
    """Prepare the ground. The cache makes every time after the first fast.

    scratch: where to make our folder, None for the system's folder of temporary files.
    Raises EnvironmentBuildError, and SandboxUnavailable if honest work fails here.
    """
    with tempfile.TemporaryDirectory(prefix="selfplay-attack-", dir=scratch) as name:
        folder = Path(name)
        folder.chmod(0o755)  # so that the sandbox's user could read the canaries if it reached them
        Tree({path: FileEntry(text.encode()) for path, text in FILES.items()}).write_to(folder / "heron")
        checkout = fetch(parse_spec(str(folder / "heron")), cache)
        environment = prepare_environment(
            checkout, backend, EnvironmentSettings(baselines=2), Limits(), cache, lambda _: None
        )
        config = Config(validator=ValidatorSettings(script_timeout_s=60))
        runner = TestRunner(backend, config.validator, Limits(), {"run": "attack"}, SECRET)
        ground = Ground(backend, environment, runner, folder, cache, config, SECRET)
        check_ground(ground)
        yield ground


def check_ground(ground: Ground) -> None:
    """Raise SandboxUnavailable if honest work fails here: every attack would look held."""
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
