"""Scripted players of both roles in real sandboxes on a real repository.

The tests check what a role finds in its workspace, and what is taken from it as the submission.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import pytest

from machine import open_or_skip
from selfplay.agent.chat import ChatFormat, load_tokenizer
from selfplay.agent.episode import Episode, FinishReason
from selfplay.agent.injector import InjectorTask, injector_prompts, play_injector, prepare_injector
from selfplay.agent.solver import play_solver, solver_task, spec_text, spec_tokens
from selfplay.agent.tool_format import format_action
from selfplay.agent.tools import format_edit
from selfplay.agent.workspaces import EpisodeContext, EpisodeKey, sandbox_limits, take_history
from selfplay.config import Config
from selfplay.engines.scripted_engine import ScriptedEngine, ScriptedTurn
from selfplay.errors import SandboxUnavailable
from selfplay.repositories.build import prepare_environment
from selfplay.repositories.environment import Environment, open_workspace
from selfplay.repositories.fetching import fetch
from selfplay.repositories.history import history_of
from selfplay.repositories.specs import parse_spec
from selfplay.sandbox.base import Limits, Sandbox, SandboxBackend, SandboxSpec
from selfplay.settings.playing import AgentSettings, EnvironmentSettings, InjectorSettings, SolverSettings
from selfplay.source.apply import apply_patch, diff_trees
from selfplay.source.trees import FileEntry
from selfplay.verdicts.artifact import Artifact
from selfplay.verdicts.bug import BugState
from selfplay.verdicts.checks import Thresholds
from selfplay.verdicts.grading import Grade, grade
from selfplay.verdicts.test_runs import TestRunner
from selfplay.verdicts.validator import validate
from tiny_policy import build_tiny_tokenizer
from tiny_repository import build_tiny_repository

pytestmark = pytest.mark.sandbox

FIVE = "bug_inject.diff\ntest_weaken.diff\ntest_files.txt\ntest_script.sh\ntest_parser.py"
CONFIG = Config(
    agent=AgentSettings(
        prompt_style="terse",
        max_turns=8,
        context_tokens=4096,
        turn_tokens=512,
        observation_tokens=256,
        command_timeout_s=60,
    ),
    injector=InjectorSettings(strategies={"direct": 1.0}, help=("tests", "target")),
    solver=SolverSettings(help=("failure",)),
)
WITH_HELP = CONFIG.model_copy(update={"solver": SolverSettings(help=("failure", "suspects", "tests"))})
INJECTOR = (
    format_action("edit", format_edit("tiny/numbers.py", 16, "+=", "-=")),
    format_action(
        "bash",
        "git diff > /submit/bug_inject.diff; "
        "bash /submit/test_script.sh | grep -m 3 '^tests/test_numbers.py:'",
    ),
    format_action(
        "bash",
        "sed -i '/^def test_mean():/,+1d' tests/test_numbers.py; git diff tests > /submit/test_weaken.diff",
    ),
    format_action("submit", FIVE),
)
SOLVER = (
    format_action("bash", "grep -n -A 24 'def mean(' ./tiny/numbers.py"),
    format_action("edit", format_edit("./tiny/numbers.py", 16, "-=", "+=")),
    format_action("submit", ""),
)


@dataclass(frozen=True)
class House:
    """What every test in this file needs. It is built once."""

    backend: SandboxBackend
    environment: Environment
    tokenizer: Path
    chat: ChatFormat

    def engine(self, replies: Sequence[str] | Callable[[ScriptedTurn], str]) -> ScriptedEngine:
        return ScriptedEngine(
            replies if callable(replies) else lambda turn: replies[turn.number],
            load_tokenizer(str(self.tokenizer)),
        )

    def inject(
        self,
        replies: Sequence[str] | Callable[[ScriptedTurn], str],
        strategy: str = "direct",
        config: Config = CONFIG,
        runner: TestRunner | None = None,
    ) -> Episode:
        task = self.injector_task(strategy)
        return play_injector(task, KEY, self.context(replies, config, runner))

    def context(
        self,
        replies: Sequence[str] | Callable[[ScriptedTurn], str],
        config: Config,
        runner: TestRunner | None,
    ) -> EpisodeContext:
        return EpisodeContext(
            config, self.engine(replies), self.chat, self.backend, sandbox_limits(config), runner
        )

    def injector_task(self, strategy: str = "direct") -> InjectorTask:
        target = next(target for target in self.environment.targets if target.name == "mean")
        return InjectorTask(
            self.environment, strategy, replace(target, test_file="tests/test_numbers.py"), Thresholds()
        )

    def repair(
        self, replies: Sequence[str], bug: BugState, config: Config = CONFIG, runner: TestRunner | None = None
    ) -> Episode:
        task = solver_task(self.environment, "bug-1", bug, "E   assert -6.0 == 2", config)
        return play_solver(task, KEY, self.context(replies, config, runner))

    def grade(self, bug: BugState, episode: Episode) -> Grade:
        return grade(bug, episode.submission["patch"], self.environment, runner(self))

    @contextmanager
    def workspace(self) -> Iterator[Sandbox]:
        with open_workspace(self.backend, self.environment, self.environment.tree, LABELS) as box:
            yield box


LABELS = {"run": "test"}
KEY = EpisodeKey(7, 3, "g/1", 2, LABELS)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    cache = tmp_path_factory.mktemp("cache")
    backend = open_or_skip("bubblewrap", cache)
    folder = build_tiny_repository(tmp_path_factory.mktemp("repository") / "tiny", git=True)
    checkout = fetch(parse_spec(str(folder)), cache)
    environment = prepare_environment(
        checkout, backend, EnvironmentSettings(), Limits(), cache, lambda message: None
    )
    tokenizer = build_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    return House(backend, environment, tokenizer, ChatFormat(load_tokenizer(str(tokenizer))))


@pytest.fixture(scope="module")
def injected(house: House) -> Episode:
    return house.inject(INJECTOR)


@pytest.fixture(scope="module")
def bug(house: House, injected: Episode) -> BugState:
    """The scripted injector's artifact. The real validator accepts it."""
    artifact = Artifact.from_files(injected.submission)
    verdict = validate(artifact, house.environment, Thresholds(), runner(house), CONFIG.validator)
    assert verdict.accepted, [check for check in verdict.checks if not check.passed]
    return BugState(artifact, 1, "", verdict.fail_to_pass, verdict.pass_to_pass)


def runner(house: House) -> TestRunner:
    return TestRunner(house.backend, CONFIG.validator, Limits(), LABELS)


def test_an_injector_goes_from_prompt_to_submission(injected: Episode) -> None:
    assert injected.finish is FinishReason.SUBMITTED, [
        (turn.text, turn.observation) for turn in injected.turns
    ]
    assert set(injected.submission) == set(FIVE.split())
    assert (
        "-=" in injected.submission["bug_inject.diff"]
        and "tests/" not in injected.submission["bug_inject.diff"]
    )
    assert "-def test_mean():" in injected.submission["test_weaken.diff"]
    assert injected.turns[1].observation.startswith("tests/test_numbers.py:12: ")
    assert injected.messages[0]["content"].startswith(
        "injector direct\ntiny/numbers.py\ntests/test_numbers.py\n13:def mean(values):"
    )
    assert (injected.strategy, injected.target, injected.update, injected.member) == (
        "direct",
        "tiny/numbers.py::mean",
        3,
        2,
    )
    assert Episode.from_json(injected.to_json()) == injected


def test_a_solver_repairs_what_the_injector_broke(house: House, bug: BugState) -> None:
    episode = house.repair(SOLVER, bug)
    assert episode.finish is FinishReason.SUBMITTED, [(turn.text, turn.observation) for turn in episode.turns]
    assert (
        "+def test_mean():" in episode.messages[0]["content"]
        and "assert -6.0 == 2" in episode.messages[0]["content"]
    )
    assert grade(bug, episode.submission["patch"], house.environment, runner(house)).passed
    assert episode.bug_id == "bug-1"


def test_a_change_counts_without_a_submit_call(house: House, bug: BugState) -> None:
    config = CONFIG.model_copy(update={"agent": CONFIG.agent.model_copy(update={"max_turns": 2})})
    episode = house.repair(SOLVER, bug, config)
    assert episode.finish is FinishReason.MAX_TURNS
    assert "+        total += value" in episode.submission["patch"]


def test_an_attempt_that_changes_nothing_has_an_empty_patch(house: House, bug: BugState) -> None:
    assert house.repair([format_action("submit", "")], bug).submission == {"patch": ""}


def test_odd_files_in_a_workspace_do_no_harm_to_the_patch(house: House, bug: BugState) -> None:
    mess = (
        r"printf x > $'tiny/\xff\n.py'; ln -s /etc/passwd tiny/link.py; mkfifo pipe; "
        "mkdir -p tiny/.git build; echo y > build/a.py\n"
        "echo z > tiny/new.py; rm -rf .git; echo > tests/conftest.py"
    )
    episode = house.repair([format_action("bash", mess), format_action("submit", "")], bug)
    assert (episode.finish, episode.error) == (FinishReason.SUBMITTED, "")
    assert "tiny/new.py" in episode.submission["patch"]
    assert not any(name in episode.submission["patch"] for name in ("passwd", "build", "conftest", "pipe"))


def test_a_workspace_too_large_to_read_is_no_repair(house: House, bug: BugState) -> None:
    sparse = "for n in $(seq 20); do truncate -s 60M big$n; done"
    episode = house.repair([SOLVER[1], format_action("bash", sparse), format_action("submit", "")], bug)
    assert episode.submission == {"patch": ""} and "/testbed" in episode.error


# ---- the solver's help

SUBMIT_NOTHING = format_action("submit", "")
RUN_TESTS = format_action(
    "bash", "bash /submit/test_script.sh > /tmp/log; echo status $?; tail -n 1 /tmp/log"
)


def test_a_solver_with_the_tests_sees_the_original_tests_and_nothing_else_of_the_original(
    house: House, bug: BugState
) -> None:
    found = "grep -c 'def test_mean()' tests/test_numbers.py; grep -c -e '-= value' tiny/numbers.py"
    look = f"git status -s; ls /submit; {found}; git rev-list --all --count"
    original = (
        "sed 's/-=/+=/' tiny/numbers.py | git hash-object --stdin --no-filters | git cat-file --batch-check"
    )
    episode = house.repair([format_action("bash", f"{look}; {original}"), SUBMIT_NOTHING], bug, WITH_HELP)
    assert episode.turns[0].observation.split("\n")[:4] == ["test_script.sh", "1", "1", "1"]
    assert episode.turns[0].observation.split("\n")[4].endswith(" missing")


def test_given_tests_fail_before_the_repair_and_pass_after_it(house: House, bug: BugState) -> None:
    episode = house.repair([RUN_TESTS, SOLVER[1], RUN_TESTS, SUBMIT_NOTHING], bug, WITH_HELP)
    before, after = episode.turns[0].observation, episode.turns[2].observation
    assert before.startswith("status 1\n1 failed"), before
    assert after.startswith("status 0\n6 passed"), after
    assert house.grade(bug, episode).passed


def test_the_patch_of_a_solver_with_the_tests_holds_only_its_own_change(house: House, bug: BugState) -> None:
    plain, given = house.repair(SOLVER, bug), house.repair(SOLVER, bug, WITH_HELP)
    assert "test_numbers" not in given.submission["patch"]
    assert given.submission == plain.submission
    assert house.repair([SUBMIT_NOTHING], bug, WITH_HELP).submission == {"patch": ""}


def test_changes_of_test_files_are_never_in_the_patch(house: House, bug: BugState) -> None:
    named = replace(
        house,
        environment=replace(house.environment, test_files=(*house.environment.test_files, "tiny/report.py")),
    )
    change = format_action("bash", "echo '# changed' >> tiny/report.py")
    assert "tiny/report.py" in house.repair([change, SUBMIT_NOTHING], bug).submission["patch"]
    assert named.repair([change, SUBMIT_NOTHING], bug).submission == {
        "patch": "",
        "restored": "tiny/report.py\n",
    }


def test_given_tests_that_a_solver_edits_are_restored_in_grading(house: House, bug: BugState) -> None:
    edit = format_action("bash", "sed -i 's/== 2$/== -2/' tests/test_numbers.py")
    cheat = house.repair([edit, RUN_TESTS, SUBMIT_NOTHING], bug, WITH_HELP)
    assert cheat.turns[1].observation.startswith("status 0\n")
    assert cheat.submission == {"patch": "", "restored": "tests/test_numbers.py\n"}
    assert not house.grade(bug, cheat).passed
    assert house.grade(bug, house.repair([edit, SOLVER[1], SUBMIT_NOTHING], bug, WITH_HELP)).passed


def test_given_tests_may_have_unusual_names(house: House) -> None:
    """A hint in the repository list can name test files that match no usual pattern.

    The prediction is applied to the weakened tests. So it must leave out such a file, also if it was edited.
    """
    checks = (
        b"from tiny.numbers import mean\n\n\n"
        b"def test_a():\n    assert mean([1, 2, 3]) == 2\n\n\n"
        b"def test_b():\n    assert mean([0]) == 0\n"
    )
    tree = house.environment.tree.replace({"checks.py": FileEntry(checks)})
    strange = replace(house, environment=replace(house.environment, tree=tree, test_files=("checks.py",)))
    broken = tree.replace(
        {"tiny/numbers.py": FileEntry(tree["tiny/numbers.py"].content.replace(b"+= value", b"-= value"))}
    )
    weakened = broken.replace({"checks.py": FileEntry(checks.replace(b" == 2", b""))})
    files = {
        "bug_inject.diff": diff_trees(tree, broken),
        "test_weaken.diff": diff_trees(broken, weakened),
        "test_files.txt": "checks.py\n",
        "test_script.sh": house.environment.script_for(["checks.py"]),
        "test_parser.py": house.environment.parser,
    }
    bug = BugState(Artifact.from_files(files), 1, "", ("checks.py::test_a",), ("checks.py::test_b",))
    edit = format_action("bash", "sed -i 's/== 2$/== -2/' checks.py")
    for moves, passes in (([SOLVER[1]], True), ([edit, SOLVER[1]], True), ([edit], False)):
        episode = strange.repair([*moves, SUBMIT_NOTHING], bug, WITH_HELP)
        assert "checks.py" not in episode.submission["patch"]
        assert strange.grade(bug, episode).passed == passes


def test_a_bug_of_order_two_comes_with_its_tests(house: House, bug: BugState) -> None:
    worse = format_action("bash", "sed -i 's/abs(number)/number/' tiny/numbers.py")
    attempt = house.repair([worse, SUBMIT_NOTHING], bug, WITH_HELP).submission["patch"]
    second = replace(bug, order=2, attempt_patch=attempt)
    repair = format_action(
        "bash", "sed -i 's/str(number)/str(abs(number))/; s/-= value/+= value/' tiny/numbers.py"
    )
    episode = house.repair([RUN_TESTS, repair, RUN_TESTS, SUBMIT_NOTHING], second, WITH_HELP)
    assert episode.turns[0].observation.startswith("status 1\n2 failed")
    assert episode.turns[2].observation.startswith("status 0\n")
    assert "test_numbers" not in episode.submission["patch"] and house.grade(second, episode).passed


def test_the_prompt_lists_suspects_with_their_lines_in_the_solvers_own_code(
    house: House, bug: BugState
) -> None:
    shown = house.repair([SUBMIT_NOTHING], bug, WITH_HELP).messages[0]["content"]
    assert shown.endswith("E   assert -6.0 == 2\ngrep -n '' tiny/numbers.py | sed -n '13,17p' # mean")
    longer = format_action("bash", "sed -i '1a\\\\nimport math' tiny/numbers.py")
    attempt = house.repair([longer, SUBMIT_NOTHING], bug).submission["patch"]
    second = replace(bug, order=2, attempt_patch=attempt)
    shown = house.repair([SUBMIT_NOTHING], second, WITH_HELP).messages[0]["content"]
    assert shown.endswith("\ngrep -n '' tiny/numbers.py | sed -n '15,19p' # mean")


def test_a_solver_gets_neither_tests_nor_suspects_unless_configured(house: House, bug: BugState) -> None:
    episode = house.repair(
        [
            format_action("bash", "ls /submit; grep -c 'def test_mean()' tests/test_numbers.py"),
            SUBMIT_NOTHING,
        ],
        bug,
    )
    assert episode.turns[0].observation.split("\n")[0] == "0"
    assert episode.messages[0]["content"].endswith("E   assert -6.0 == 2")
    assert solver_task(house.environment, "bug-1", bug, "", CONFIG).suspects == ()


# ---- runs of the given test script that episodes share


class CountingBackend:
    """A real backend that counts the sandboxes that it opened."""

    def __init__(self, backend: SandboxBackend) -> None:
        self._backend, self.opened = backend, 0

    def open(self, spec: SandboxSpec) -> AbstractContextManager[Sandbox]:
        self.opened += 1
        return self._backend.open(spec)


def counting_runner(house: House) -> tuple[CountingBackend, TestRunner]:
    backend = CountingBackend(house.backend)
    return backend, TestRunner(cast(SandboxBackend, backend), CONFIG.validator, Limits(), LABELS)


def test_attempts_with_equal_workspaces_share_runs_of_the_given_script_and_their_grading_does_not(
    house: House, bug: BugState
) -> None:
    backend, shared = counting_runner(house)
    replies = [RUN_TESTS, SOLVER[1], RUN_TESTS, SUBMIT_NOTHING]
    episode = house.repair(replies, bug, WITH_HELP, shared)
    assert episode.turns[0].observation.startswith("status 1\n1 failed") and episode.turns[
        2
    ].observation.startswith("status 0\n6 passed")
    assert backend.opened == 2  # one for the broken code, one for the repaired code
    assert house.repair(replies, bug, WITH_HELP, shared).turns[2].observation == episode.turns[2].observation
    assert backend.opened == 2
    assert grade(bug, episode.submission["patch"], house.environment, shared, confirm=False).passed
    assert backend.opened == 3  # the default parser needs no sandbox


def test_the_verdict_on_an_artifact_uses_the_injectors_own_test_run(house: House, injected: Episode) -> None:
    backend, shared = counting_runner(house)
    episode = house.inject(INJECTOR, runner=shared)
    assert (
        episode.turns[1].observation == injected.turns[1].observation
        and episode.submission == injected.submission
    )
    opened = backend.opened
    artifact = Artifact.from_files(episode.submission)
    buggy = apply_patch(house.environment.tree, artifact.bug_inject)
    assert shared.run(house.environment, buggy, artifact.test_script, artifact.test_parser).cached
    assert (opened, backend.opened) == (1, 1)  # the default parser needs no sandbox


@pytest.mark.parametrize(
    "command",
    [
        "bash /submit/test_script.sh | grep -oE '[0-9]+ (failed|error)' "
        "&& git checkout -q tiny/numbers.py; git status -s",
        "bash /submit/test_script.sh 2>&1 | grep -c PASSED; echo ${PIPESTATUS[*]}",
        "bash /submit/test_script.sh > /tmp/log; echo $?; grep -c PASSED /tmp/log",
        "bash /submit/test_script.sh | wc -l < /submit/test_script.sh",
        "bash /submit/test_script.sh > /tmp/log & wait $!; echo $?; grep -c PASSED /tmp/log",
        "cd tiny; bash /submit/test_script.sh | grep -c PASSED",
        "echo 'def' > tests/conftest.py; bash /submit/test_script.sh | grep -c PASSED",
    ],
)
def test_a_command_with_the_given_script_prints_the_same_with_shared_runs(
    house: House, bug: BugState, command: str
) -> None:
    replies = [SOLVER[1], format_action("bash", command), SUBMIT_NOTHING]
    alone, shared = (
        house.repair(replies, bug, WITH_HELP),
        house.repair(replies, bug, WITH_HELP, runner(house)),
    )
    assert shared.turns[1].observation == alone.turns[1].observation
    assert shared.submission == alone.submission


def test_a_broken_conftest_is_reported_with_shared_runs(house: House, bug: BugState) -> None:
    break_it = format_action("bash", "echo 'raise RuntimeError(1)' > tests/conftest.py")
    episode = house.repair(
        [break_it, RUN_TESTS.replace("> /tmp/log", "| cat"), SUBMIT_NOTHING], bug, WITH_HELP, runner(house)
    )
    assert "conftest" in episode.turns[1].observation


def test_a_script_that_a_policy_changed_runs_in_its_own_sandbox(house: House, bug: BugState) -> None:
    backend, shared = counting_runner(house)
    change = format_action("bash", "echo 'echo mine' > /submit/test_script.sh")
    run = format_action("bash", "bash /submit/test_script.sh")
    assert (
        house.repair([change, run, SUBMIT_NOTHING], bug, WITH_HELP, shared)
        .turns[1]
        .observation.startswith("mine\n")
    )
    assert backend.opened == 0


def test_a_shared_run_sees_nothing_of_a_sandbox_but_the_files_of_its_workspace(
    house: House, bug: BugState
) -> None:
    """Links, variables and files elsewhere must not change a shared run: other episodes get its output."""
    shared = runner(house)
    mark = (
        "export PYTEST_ADDOPTS=--version; mkdir -p /tmp/x; ln -s /tmp/x tests/linked; "
        "echo 'def test_extra(): pass' > /tmp/x/test_extra.py"
    )
    run = format_action("bash", "bash /submit/test_script.sh | tail -n 1")
    marked = house.repair([format_action("bash", mark), run, SUBMIT_NOTHING], bug, WITH_HELP, shared)
    assert marked.turns[1].observation.startswith("1 failed, 5 passed")
    other = house.repair([run, SUBMIT_NOTHING], bug, WITH_HELP, shared)
    assert other.turns[0].observation.split("\n")[0] == marked.turns[1].observation.split("\n")[0]


# ---- what a solver can learn from git (threats, row 1)


def test_the_solver_finds_one_commit_and_no_other_object(house: House, bug: BugState) -> None:
    script = (
        "git rev-list --all --reflog --count; git for-each-ref | wc -l; git stash list; "
        "git fsck --full --no-reflogs --unreachable; "
        "ls .git/logs .git/packed-refs .git/ORIG_HEAD .git/FETCH_HEAD .git/worktrees "
        ".git/objects/info/alternates 2>/dev/null; "
        "git cat-file --batch-check --batch-all-objects | cut -d' ' -f2 | sort | uniq -c; "
        "git status -s; git log --format='%an %aI'"
    )
    episode = house.repair([format_action("bash", script), format_action("submit", "")], bug)
    seen = [" ".join(line.split()) for line in episode.turns[0].observation.split("\n")[:-1]]
    counts = {"blob": 11, "commit": 1, "tree": 3}  # one blob per file, one tree per folder
    assert seen == [
        "1",
        "1",
        *(f"{count} {kind}" for kind, count in counts.items()),
        "selfplay 2000-01-01T00:00:00+00:00",
    ]


def test_no_object_of_the_original_reaches_the_solver(house: House, bug: BugState) -> None:
    """The original of the broken file is missing under its git hash. An unchanged file is there."""
    show = "git hash-object --stdin --no-filters | git cat-file --batch-check"
    script = (
        "git ls-files -s tiny/letters.py | cut -c8-47 | git cat-file --batch-check; "
        f"sed 's/-=/+=/' tiny/numbers.py | {show}"
    )
    episode = house.repair([format_action("bash", script), format_action("submit", "")], bug)
    kept, broken = episode.turns[0].observation.split("\n")[:2]
    assert " blob " in kept and broken.endswith(" missing")


# ---- the injector's workspace


def test_the_history_strategy_has_the_history_and_a_clean_work_tree(house: House) -> None:
    with house.workspace() as box:
        history = history_of(house.environment.checkout)
        prepare_injector(box, house.injector_task("history"), CONFIG, history)
        log = box.run(
            "git log --format=%s; git status --porcelain; ls /tmp; "
            "git show --stat HEAD~1 | grep -c numbers.py"
        ).text
        assert log.split("\n") == [
            "Reports",
            "Fix digits of negative numbers",
            "The readme mentions vowels",
            "Numbers and words",
            "2",
            "",
        ]
        assert box.run("git rev-parse HEAD").text.strip() == house.environment.base_commit


@pytest.mark.parametrize("strategy", ["direct", "removal"])
def test_other_strategies_have_one_commit(house: House, strategy: str) -> None:
    with house.workspace() as box:
        prepare_injector(box, house.injector_task(strategy), CONFIG)
        assert box.run("git log --format=%s; git status --porcelain").text == "The repository as it is\n"


def test_setting_up_leaves_the_session_as_it_was(house: House) -> None:
    with house.workspace() as box:
        before = box.run("pwd; env | grep -v ^_= | sort").text
        history = history_of(house.environment.checkout)
        assert history is not None
        take_history(box, history)
        assert box.run("pwd; env | grep -v ^_= | sort").text == before and "GIT_AUTHOR" not in before


def test_given_tests_can_be_run_and_parsed_as_they_are(house: House) -> None:
    with house.workspace() as box:
        prepare_injector(box, house.injector_task(), CONFIG)
        assert box.run("cat /submit/test_files.txt").text == "tests/test_numbers.py\n"
        parsed = box.run(
            "bash /submit/test_script.sh > /tmp/log; python /submit/test_parser.py < /tmp/log"
        ).text
        assert '"tests/test_numbers.py::test_mean": "passed"' in parsed and "failed" not in parsed


def test_an_injector_gets_no_help_unless_configured(house: House) -> None:
    config = CONFIG.model_copy(update={"injector": InjectorSettings()})
    with house.workspace() as box:
        prepare_injector(box, house.injector_task(), config)
        assert box.run("ls /submit").text == ""
    assert injector_prompts(house.injector_task(), config)[1].text == "injector direct\ntests/test_numbers.py"


# ---- the injector's submission


def test_only_regular_files_of_the_artifact_are_submitted(house: House) -> None:
    names = "/submit/bug_inject.diff\n./test_weaken.diff\n../etc/passwd\nmissing.txt"
    episode = house.inject(
        [
            format_action("bash", "cd /submit; echo a > bug_inject.diff; ln -s /etc/passwd test_weaken.diff"),
            format_action("submit", names),
        ]
    )
    assert episode.submission == {"bug_inject.diff": "a\n"}


def test_without_a_submit_call_nothing_is_submitted(house: House) -> None:
    config = CONFIG.model_copy(update={"agent": CONFIG.agent.model_copy(update={"max_turns": 3})})
    episode = house.inject(INJECTOR, config=config)
    assert (episode.finish, episode.submission) == (FinishReason.MAX_TURNS, {})


# ---- failures


@dataclass(frozen=True)
class Broken:
    """A backend whose machine has failed."""

    name: str = "broken"

    def open(self, spec: SandboxSpec) -> object:
        raise SandboxUnavailable("no sandbox can be opened")


def test_if_no_sandbox_can_be_opened_the_episode_is_an_environment_error(house: House, bug: BugState) -> None:
    broken = replace(house, backend=Broken())  # type: ignore[arg-type]
    for episode in (broken.inject(INJECTOR), broken.repair(SOLVER, bug)):
        assert (episode.finish, episode.error) == (FinishReason.ENV_ERROR, "no sandbox can be opened")
        assert episode.turns == () and episode.token_ids == ()


def test_equal_keys_give_equal_episodes(house: House) -> None:
    first, second = (
        house.inject([format_action("bash", "echo same"), format_action("submit", FIVE)]) for _ in range(2)
    )
    assert (first.token_ids, first.seed, first.prompt_hash) == (
        second.token_ids,
        second.seed,
        second.prompt_hash,
    )


def test_the_specification_is_the_weakening_reversed(house: House, bug: BugState) -> None:
    assert "+def test_mean():" in spec_text(bug) and "-def test_mean():" not in spec_text(bug)
    assert spec_tokens(house.chat, bug) == len(house.chat.encode(spec_text(bug)))
