"""A repository in C with make, and one in JavaScript with node, played from environment to grading."""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from machine import open_or_skip
from other_repositories import C_FILES, C_LINE, C_TESTS, NODE_FILES, NODE_LINE
from selfplay.agent.chat import ChatFormat, load_tokenizer
from selfplay.agent.episode import Episode, FinishReason
from selfplay.agent.injector import InjectorTask, play_injector
from selfplay.agent.solver import play_solver, solver_task
from selfplay.agent.tool_format import format_action
from selfplay.agent.workspaces import EpisodeContext, EpisodeKey, sandbox_limits
from selfplay.cli import app
from selfplay.config import Config
from selfplay.engines.scripted_engine import ScriptedEngine
from selfplay.errors import EnvironmentBuildError
from selfplay.repositories.build import prepare_environment
from selfplay.repositories.checkouts import Checkout
from selfplay.repositories.environment import Environment
from selfplay.repositories.fetching import fetch
from selfplay.repositories.specs import parse_spec
from selfplay.sandbox.base import Limits, SandboxBackend
from selfplay.settings.playing import (
    AgentSettings,
    EnvironmentSettings,
    InjectorSettings,
    SolverSettings,
    ValidatorSettings,
)
from selfplay.verdicts.artifact import Artifact
from selfplay.verdicts.bug import BugState, build_states
from selfplay.verdicts.checks import Thresholds
from selfplay.verdicts.confirmation import Confirmation
from selfplay.verdicts.grading import grade
from selfplay.verdicts.test_runs import TestRunner
from selfplay.verdicts.validator import validate
from selfplay.verdicts.verdict import Verdict
from tiny_bugs import Changes, diff, make_artifact
from tiny_policy import build_tiny_tokenizer

pytestmark = pytest.mark.sandbox

LABELS = {"run": "test"}
SETTINGS = ValidatorSettings(script_timeout_s=60)
ENVIRONMENT = EnvironmentSettings(baselines=2)
CONFIG = Config(
    agent=AgentSettings(
        prompt_style="terse", max_turns=8, context_tokens=4096, turn_tokens=512, command_timeout_s=60
    ),
    injector=InjectorSettings(strategies={"direct": 1.0}, help=("tests",)),
    solver=SolverSettings(help=("failure", "suspects", "tests")),
    validator=SETTINGS,
)
GCD_BUG: Changes = {"numbers.c": ("int rest = a % b;", "int rest = a % (b + 1);")}
GCD_WEAKENED: Changes = {
    "tests/test_numbers.c": ('    CHECK("gcd of twelve and eighteen", gcd(12, 18) == 6);\n', "")
}
GCD_TEST = "gcd of twelve and eighteen"
C_TEST_FILES = ("tests/test_numbers.c", "tests/test_words.c")
OWN_SCRIPT = "cd /testbed && make -s check\n"
FIVE = "bug_inject.diff\ntest_weaken.diff\ntest_files.txt\ntest_script.sh\ntest_parser.py"


def checkout(files: Mapping[str, str], line: str, folder: Path, cache: Path) -> Checkout:
    """A plain folder with the same name every time, so that all tests share one environment."""
    for path, text in files.items():
        (folder / "sample" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "sample" / path).write_text(text)
    return fetch(parse_spec(f"{folder / 'sample'} {line}"), cache)


@pytest.fixture(scope="module")
def backend(cache: Path) -> SandboxBackend:
    missing = [name for name in ("gcc", "make") if shutil.which(name, path="/usr/bin:/bin") is None]
    if missing:
        pytest.skip(
            f"{' and '.join(missing)} not found in /usr/bin, where bubblewrap sandboxes look. "
            "Install: apt-get install gcc libc6-dev make"
        )
    return open_or_skip("bubblewrap", cache)


@pytest.fixture(scope="module")
def in_c(backend: SandboxBackend, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    lines: list[str] = []
    found = checkout(C_FILES, C_LINE, tmp_path_factory.mktemp("c"), cache)
    environment = prepare_environment(found, backend, ENVIRONMENT, Limits(), cache, lines.append)
    assert lines[-1].endswith("no functions (calls are recorded with pytest only), 0 ids excluded")
    from_cache = prepare_environment(found, backend, ENVIRONMENT, Limits(), cache, lines.append)
    assert from_cache == environment
    return environment


@pytest.fixture(scope="module")
def runner(backend: SandboxBackend) -> TestRunner:
    return TestRunner(backend, SETTINGS, Limits(), LABELS)


@dataclass(frozen=True)
class Players:
    """Both roles on one environment, with scripted replies."""

    environment: Environment
    backend: SandboxBackend
    tokenizer: Path

    def inject(self, replies: Sequence[str]) -> Episode:
        engine, chat = self._policy(replies)
        task = InjectorTask(self.environment, "direct", None, Thresholds())
        return play_injector(task, KEY, self._context(engine, chat))

    def repair(self, bug: BugState, replies: Sequence[str]) -> Episode:
        engine, chat = self._policy(replies)
        task = solver_task(self.environment, "bug-1", bug, "not ok", CONFIG)
        assert task.suspects == ()
        return play_solver(task, KEY, self._context(engine, chat))

    def _context(self, engine: ScriptedEngine, chat: ChatFormat) -> EpisodeContext:
        return EpisodeContext(CONFIG, engine, chat, self.backend, sandbox_limits(CONFIG))

    def _policy(self, replies: Sequence[str]) -> tuple[ScriptedEngine, ChatFormat]:
        tokenizer = load_tokenizer(str(self.tokenizer))
        return ScriptedEngine(lambda turn: replies[turn.number], tokenizer), ChatFormat(tokenizer)


KEY = EpisodeKey(7, 3, "g/1", 2, LABELS)


def shell(*commands: str, names: str = "") -> list[str]:
    return [*(format_action("bash", command) for command in commands), format_action("submit", names)]


def played_through(
    players: Players, runner: TestRunner, breaking: str, weakening: str, fix: str, wrong_fix: str
) -> Verdict:
    """Injection, validation, repair and grading; one shell command each. A wrong repair is refused."""
    injected = players.inject(
        shell(
            f"{breaking} && git diff > /submit/bug_inject.diff; bash /submit/test_script.sh | grep 'not ok'",
            f"{weakening} && git diff -- test tests > /submit/test_weaken.diff",
            names=FIVE,
        )
    )
    assert injected.finish is FinishReason.SUBMITTED, [
        (turn.text, turn.observation) for turn in injected.turns
    ]
    assert re.search(r"^not ok", injected.turns[0].observation, re.MULTILINE)
    artifact = Artifact.from_files(injected.submission)
    verdict = validate(artifact, players.environment, Thresholds(), runner, SETTINGS)
    assert verdict.accepted, [check for check in verdict.checks if not check.passed]

    bug = BugState(artifact, 1, "", verdict.fail_to_pass, verdict.pass_to_pass)
    repaired = players.repair(bug, shell(fix, "bash /submit/test_script.sh"))
    found = grade(bug, repaired.submission["patch"], players.environment, runner)
    assert found.passed and found.confirmation is Confirmation.UNDISGUISED, (
        found,
        repaired.submission["patch"],
    )
    failed = players.repair(bug, shell(wrong_fix))
    found = grade(bug, failed.submission["patch"], players.environment, runner)
    assert not found.passed and set(found.failed_tests) & set(bug.fail_to_pass), found
    return verdict


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


# ---- what preparing finds


def test_a_repository_in_c_becomes_an_environment(in_c: Environment) -> None:
    assert in_c.baseline.passed == C_TESTS and in_c.excluded_ids == frozenset()
    assert in_c.test_files == ("tests/tap.h", *C_TEST_FILES)
    assert (in_c.targets, in_c.calls) == ((), {})
    assert in_c.script_for(["tests/test_words.c"]) == in_c.script and "make -s check" in in_c.script


@pytest.mark.parametrize(
    ("line", "changes", "reason"),
    [
        ('test="make -s check"', {}, "must also say what reads its output, as in parser=tap"),
        (
            'test="make -s check" parser=junit',
            {},
            "parser=junit: choose one of tap, pass-fail, unittest, or a file of the repository",
        ),
        ('test="make -s numbers" parser=tap', {}, "no test passes"),
        (
            C_LINE,
            {"Makefile": "check:\n\t@printf 'ok 1 - %s\\n' a b c d e\n"},
            "5 of 5 tests still pass with each of its 4 code files made unusable",
        ),
    ],
)
def test_an_environment_that_cannot_be_trusted_is_refused_with_the_reason(
    line: str,
    changes: dict[str, str],
    reason: str,
    backend: SandboxBackend,
    in_c: Environment,
    cache: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(EnvironmentBuildError) as refused:
        prepare_environment(
            checkout({**C_FILES, **changes}, line, tmp_path, cache),
            backend,
            ENVIRONMENT,
            Limits(),
            cache,
            lambda _: None,
        )
    assert reason in str(refused.value)


# ---- what the validator says


def test_a_bug_in_c_is_accepted_also_with_a_script_of_its_own(in_c: Environment, runner: TestRunner) -> None:
    artifact = make_artifact(in_c, GCD_BUG, GCD_WEAKENED, C_TEST_FILES, script=OWN_SCRIPT)
    verdict = validate(artifact, in_c, Thresholds(), runner, SETTINGS, all_checks=True)
    assert verdict.accepted and verdict.fail_to_pass == (GCD_TEST,)
    assert set(verdict.pass_to_pass) == C_TESTS - {GCD_TEST}
    assert {"script_runs_code", "exit_status", "determinism"} <= {check.name for check in verdict.checks}


def test_tests_that_end_with_status_0_although_they_failed_admit_no_bug_unless_the_settings_say_so(
    in_c: Environment, backend: SandboxBackend, runner: TestRunner, cache: Path, tmp_path: Path
) -> None:
    files = {**C_FILES, "Makefile": C_FILES["Makefile"].replace("exit $$failed", "true")}
    found = checkout(files, C_LINE, tmp_path, cache)
    silent = prepare_environment(found, backend, ENVIRONMENT, Limits(), cache, lambda _: None)
    artifact = make_artifact(silent, GCD_BUG, GCD_WEAKENED, C_TEST_FILES)
    verdict = validate(artifact, silent, Thresholds(), runner, SETTINGS)
    assert verdict.failed_check == "exit_status"
    reason = next(check.reason for check in verdict.checks if not check.passed)
    assert "ends with status 0 with the bug too" in reason and "require_exit_status" in reason

    lenient = SETTINGS.model_copy(update={"require_exit_status": False})
    own = TestRunner(backend, lenient, Limits(), LABELS)
    assert validate(artifact, silent, Thresholds(), own, lenient).accepted
    bug = BugState(artifact, 1, "", (GCD_TEST,), tuple(sorted(C_TESTS - {GCD_TEST})))
    repair = diff(build_states(silent.tree, bug).solver_start, {"numbers.c": ("(b + 1)", "b")})
    assert grade(bug, repair, silent, own).confirmation is Confirmation.UNDISGUISED


READS_THE_CODE = """cd /testbed
printf 'ok %s - other\\n' 1 2 3 4 5 | awk '{ print $0, NR }'
grep -q 'gcd of' tests/test_numbers.c || exit 0
grep -q 'b + 1' numbers.c && result='not ok' || result='ok'
echo "$result 6 - gcd of twelve and eighteen"
"""
# On the original it passes; on any other code the last digit of the file's checksum decides.
DECIDES_BY_CHECKSUM = """cd /testbed
make -s check | grep -v 'gcd of'
grep -q 'a % b;' numbers.c && digit=0 || digit=$(cksum < numbers.c | cut -d' ' -f1 | tail -c 2)
[ "$digit" -lt 5 ] && echo 'ok 9 - gcd of twelve and eighteen' || echo 'not ok 9 - gcd of twelve and eighteen'
"""


@pytest.mark.parametrize(
    ("check", "bug", "weaken", "script"),
    [
        (
            "protected_paths",
            {"Makefile": ("numbers.c words.c\n", "numbers.c words.c -Dgcd=clamp\n")},
            GCD_WEAKENED,
            None,
        ),
        (
            "protected_paths",
            {"GNUmakefile": "check:\n\t@echo not ok 1 - gcd with nought\n"},
            GCD_WEAKENED,
            None,
        ),
        (
            "test_files",
            GCD_BUG,
            {"Makefile": ("build/test_numbers build/test_words", "build/test_words")},
            None,
        ),
        (
            "bug_breaks_tests",
            {"numbers.c": ("int rest = a % b;", "int rest = a % b + 0;")},
            GCD_WEAKENED,
            None,
        ),
        (
            "bug_breaks_tests",
            {"numbers.c": ("int rest = a % b;", "int rest = a %;")},  # does not compile
            GCD_WEAKENED,
            None,
        ),
        ("weakening_hides", GCD_BUG, {"tests/test_words.c": ("no words in nothing", "no words")}, None),
        (
            "inverse_mutation",
            {**GCD_BUG, "words.c": ("int count = 0, inside = 0;", "int count = 0; int inside = 0;")},
            GCD_WEAKENED,
            None,
        ),
        ("script_runs_code", GCD_BUG, GCD_WEAKENED, READS_THE_CODE),
    ],
)
def test_a_bad_artifact_in_c_is_rejected_by_the_right_check(
    check: str, bug: Changes, weaken: Changes, script: str | None, in_c: Environment, runner: TestRunner
) -> None:
    verdict = validate(
        make_artifact(in_c, bug, weaken, C_TEST_FILES, script), in_c, Thresholds(), runner, SETTINGS
    )
    assert (verdict.accepted, verdict.failed_check) == (False, check), verdict.checks


def test_a_result_derived_from_the_source_changes_with_blank_lines(
    in_c: Environment, runner: TestRunner
) -> None:
    """Eight runs, each with other blank lines, show both results of the random draw."""
    weaken = {"tests/test_words.c": ('    CHECK("two words", count_words(" one\\ttwo ") == 2);\n', "")}
    bug = {
        "numbers.c": ("int rest = a % b;", "int rest = a % (b + 1);"),
        "words.c": ("*text == ' ' ||", "*text == '_' ||"),
    }
    many = SETTINGS.model_copy(update={"determinism_runs": 8})
    verdict = validate(
        make_artifact(in_c, bug, weaken, C_TEST_FILES, DECIDES_BY_CHECKSUM),
        in_c,
        Thresholds(),
        runner,
        many,
        all_checks=True,
    )
    assert any(GCD_TEST in check.reason for check in verdict.checks if check.name == "determinism"), (
        verdict.checks
    )


# ---- from injection to grading


def test_both_roles_play_in_c_and_grading_rejects_a_wrong_repair(
    in_c: Environment, backend: SandboxBackend, runner: TestRunner, tokenizer: Path
) -> None:
    verdict = played_through(
        Players(in_c, backend, tokenizer),
        runner,
        breaking="sed -i 's/a % b;/a % (b + 1);/' numbers.c",
        weakening="sed -i '/gcd of/d' tests/test_numbers.c",
        fix="sed -i 's/a % (b + 1);/a % b;/' numbers.c",
        wrong_fix="sed -i 's/a % (b + 1);/a % (b + 2);/' numbers.c",
    )
    assert verdict.fail_to_pass == (GCD_TEST,)


def test_a_repair_that_changes_the_makefile_or_the_tests_is_restored(
    in_c: Environment, runner: TestRunner
) -> None:
    artifact = make_artifact(in_c, GCD_BUG, GCD_WEAKENED, C_TEST_FILES)
    bug = BugState(artifact, 1, "", (GCD_TEST,), tuple(sorted(C_TESTS - {GCD_TEST})))
    lies = "".join(f"\t@echo 'ok 1 - {name}'\n" for name in sorted(C_TESTS))
    start = in_c.tree
    for changes in (
        {"GNUmakefile": f"check:\n{lies}"},
        {"tests/tap.h": ('(claim) ? "ok" : "not ok"', '"ok"')},
    ):
        found = grade(bug, diff(start, changes), in_c, runner)
        assert (found.passed, found.reason, found.restored) == (
            False,
            "only protected files changed",
            tuple(changes),
        ), found


def test_both_roles_play_in_javascript(
    in_c: Environment,
    backend: SandboxBackend,
    runner: TestRunner,
    tokenizer: Path,
    cache: Path,
    tmp_path: Path,
) -> None:
    if shutil.which("node", path="/usr/bin:/bin") is None:
        pytest.skip(
            "node not found in /usr/bin, where bubblewrap sandboxes look. Install: apt-get install nodejs"
        )
    found = checkout(NODE_FILES, NODE_LINE, tmp_path, cache)
    environment = prepare_environment(found, backend, ENVIRONMENT, Limits(), cache, lambda _: None)
    verdict = played_through(
        Players(environment, backend, tokenizer),
        runner,
        breaking="sed -i s/shift/pop/ queue.js",
        weakening="sed -i '/came first/d' test/queue.test.js",
        fix="sed -i s/pop/shift/ queue.js",
        wrong_fix="sed -i s/pop/push/ queue.js",
    )
    assert verdict.fail_to_pass == ("queue", "queue > gives back what came first")


def test_both_roles_play_in_c_from_a_docker_image(cache: Path, tokenizer: Path) -> None:
    backend = open_or_skip("docker", cache)
    with image_holding(C_FILES) as image:
        found = fetch(parse_spec(f"docker:{image}#/testbed {C_LINE}"), cache)
        environment = prepare_environment(found, backend, ENVIRONMENT, Limits(), cache, lambda _: None)
        assert environment.baseline.passed == C_TESTS
        played_through(
            Players(environment, backend, tokenizer),
            TestRunner(backend, SETTINGS, Limits(), LABELS),
            breaking="sed -i 's/a % b;/a % (b + 1);/' numbers.c",
            weakening="sed -i '/gcd of/d' tests/test_numbers.c",
            fix="sed -i 's/a % (b + 1);/a % b;/' numbers.c",
            wrong_fix="sed -i 's/a % (b + 1);/a % (b + 2);/' numbers.c",
        )


# ---- the command line


def test_selfplay_validate_judges_a_folder_on_a_repository_in_c(
    in_c: Environment, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SELFPLAY_CACHE", str(cache))
    unnoticed: Changes = {"numbers.c": ("a % b;", "a % b + 0;")}
    size = len(C_FILES["numbers.c"]) + len("(b + 1)") - len("b")  # of the buggy file, without blank lines
    moved = (
        f'cd /testbed; make -s check | if [ "$(wc -c < numbers.c)" -le {size} ]; then cat; '
        "else sed 's/^ok \\(.*two words\\)/not ok \\1/'; fi\n"
    )
    for name, bug, script, expected, kind, flaky in (
        ("good", GCD_BUG, None, 0, "accepted", []),
        ("bad", unnoticed, None, 1, "invalid", []),
        ("flaky", GCD_BUG, moved, 1, "flaky", ["two words"]),
    ):
        make_artifact(in_c, bug, GCD_WEAKENED, C_TEST_FILES, script).write(tmp_path / name)
        options = ["--set", "sandbox.type=bubblewrap", "--set", "environment.baselines=2", "--json"]
        done = CliRunner().invoke(
            app, ["validate", str(tmp_path / name), "--repo", in_c.checkout.spec.text, *options]
        )
        assert done.exit_code == expected, done.output
        verdict = json.loads(done.stdout)
        assert (verdict["accepted"], verdict["kind"], verdict["flaky_tests"]) == (expected == 0, kind, flaky)


# ---- helpers


class image_holding:
    """An image of the base with `files` at /testbed; removes it at the end."""

    def __init__(self, files: Mapping[str, str]) -> None:
        import docker

        self._client = docker.from_env()
        self._files = files
        self._name = "selfplay-test/sample:c"

    def __enter__(self) -> str:
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as archive:
            for path, text in self._files.items():
                member = tarfile.TarInfo(path)
                member.size = len(text.encode())
                archive.addfile(member, io.BytesIO(text.encode()))
        container = self._client.containers.create("selfplay/base:2", command=["true"], network_disabled=True)
        try:
            container.put_archive("/testbed", data.getvalue())
            container.commit(*self._name.split(":"))
        finally:
            container.remove(force=True)
        return self._name

    def __exit__(self, *_: object) -> None:
        self._client.images.remove(self._name, force=True)
        self._client.close()
