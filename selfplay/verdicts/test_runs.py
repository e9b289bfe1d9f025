"""Test runs: a script and a parser run on a tree, each in a fresh sandbox of its own.

What the outcomes mean is left to others. Invariant: the parser sees nothing of the repository's run but its
log, because the repository's code is hostile. Equal runs happen once, unless a fresh one is asked for.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Generic, TypeVar

from selfplay.errors import ArtifactError, OutcomesError, SandboxLost, SandboxUnavailable
from selfplay.outcomes import TestOutcomes, parse_outcomes
from selfplay.repositories.environment import fill_workspace
from selfplay.repositories.scripts import is_standard_parser
from selfplay.sandbox.base import (
    SUBMIT,
    WORKSPACE,
    ExecResult,
    Limits,
    Sandbox,
    SandboxBackend,
    SandboxSpec,
)
from selfplay.source.trees import FileEntry, Tree
from selfplay.verdicts.confirmation import Confirmation, SecondGrading

if TYPE_CHECKING:
    from selfplay.repositories.environment import Environment
    from selfplay.settings.playing import ValidatorSettings

SCRIPT_COMMAND = f"cd {WORKSPACE} && bash {SUBMIT}/test_script.sh"
PARSER_COMMAND = f"python3 -I {SUBMIT}/test_parser.py 2>/tmp/stderr"
PARSER_TIMEOUT_S = 30.0
PARSER_OUTPUT_BYTES = 16 << 20
PARSER_MEMORY_BYTES = 1 << 30  # of the standard parser
KILLED = 128 + 9  # the exit status of a process that SIGKILL ended
MAX_KNOWN_BYTES = 64 << 20  # of the results that one cache keeps
MAX_KNOWN = 4096  # results that one cache keeps

Result = TypeVar("Result")


@dataclass(frozen=True)
class Timings:
    """How long each part of a run took, in seconds."""

    open_s: float = 0.0
    transfer_s: float = 0.0
    script_s: float = 0.0
    parser_s: float = 0.0


@dataclass(frozen=True)
class ScriptRun:
    """The log and exit status of test_script.sh. `error`: why the run does not count, "" if it does."""

    log: bytes
    exit_code: int
    error: str = ""
    timings: Timings = field(default_factory=Timings)


@dataclass(frozen=True)
class TestRun:
    """The outcomes of one run.

    error      why there are no outcomes, in words for the author of the artifact; "" if there are outcomes
    exit_code  of the script, as the kernel reports it to process 1 of the sandbox: the log cannot forge it
    """

    __test__ = False  # pytest: a value, not a test class

    outcomes: TestOutcomes
    log: bytes = b""
    error: str = ""
    cached: bool = False
    timings: Timings = field(default_factory=Timings)
    exit_code: int = 0


@dataclass(frozen=True)
class ParsedLog:
    """The outcomes that a parser reads from a log. `error`: why there are none, "" if there are."""

    outcomes: TestOutcomes
    error: str = ""
    duration_s: float = 0.0


class TestRunner:
    """Runs tests in the sandboxes of `backend` and keeps the results. Thread-safe.

    A failure of the machine raises SandboxUnavailable.
    """

    __test__ = False  # pytest: not a test class

    def __init__(
        self, backend: SandboxBackend, settings: ValidatorSettings, limits: Limits, labels: Mapping[str, str]
    ) -> None:
        self.settings = settings
        self._backend = backend
        self._limits = limits
        self._labels = dict(labels)
        self._lock = threading.Lock()
        self._scripts: _Known[ScriptRun] = _Known(
            keep=lambda run: not run.error, size=lambda run: len(run.log)
        )
        self._confirmed: _Known[SecondGrading] = _Known(
            keep=lambda found: found.confirmation is Confirmation.CONFIRMED, size=lambda _: 64
        )
        self._undisguised: OrderedDict[str, None] = OrderedDict()
        self._parsed: _Known[ParsedLog] = _Known(
            keep=lambda parsed: not parsed.error, size=lambda parsed: 64 * len(parsed.outcomes.ids)
        )

    def run(
        self,
        environment: Environment,
        tree: Tree,
        script: str,
        parser: str,
        hash_seed: int = 0,
        fresh: bool = False,
    ) -> TestRun:
        """The outcomes of `script` on `tree`, without the environment's excluded tests.

        A known run of the script (same tree, script, environment and hash seed) is used unless `fresh` is
        set. A run with an error is never kept.
        """
        if fresh:
            done, is_new = self._run_script(environment, tree, script, hash_seed), True
        else:
            done, is_new = self._known_script(environment, tree, script, hash_seed)
        timings = done.timings if is_new else Timings()
        if done.error:
            return TestRun(TestOutcomes(), done.log, done.error, not is_new, timings, done.exit_code)
        parsed = self.parse(environment, parser, done.log)
        timings = replace(timings, parser_s=parsed.duration_s)
        return TestRun(
            parsed.outcomes.without(environment.excluded_from(script)),
            done.log,
            parsed.error,
            not is_new,
            timings,
            done.exit_code,
        )

    def script(self, environment: Environment, tree: Tree, script: str) -> ScriptRun:
        """Run `script` on `tree` in a fresh sandbox: the first half of `run`, which then knows the result."""
        return self._known_script(environment, tree, script, 0)[0]

    def parse(self, environment: Environment, parser: str, log: bytes) -> ParsedLog:
        """Run `parser` on `log` twice, each time in a fresh sandbox without the repository.

        The outcomes must match.

        A standard parser runs once, in a process without a sandbox, because neither the policy nor a
        repository wrote it. An error is not kept: a machine that is slow or short of memory once must not
        reject each artifact whose original prints this log.
        """
        key = _key(environment.reference, parser, hashlib.sha256(log).hexdigest())
        parsed, is_new = self._parsed.get(key, lambda: self._parse_twice(environment, parser, log))
        return parsed if is_new else replace(parsed, duration_s=0.0)

    def confirm(
        self,
        environment: Environment,
        tree: Tree,
        script: str,
        parser: str,
        wanted: Sequence[str],
        grade: Callable[[], SecondGrading],
    ) -> SecondGrading:
        """The result of `grade`, called once for all attempts that end in `tree`.

        wanted: the tests that must pass. Only a confirmed pass is kept.
        """
        key = _key(environment.key, environment.reference, tree.digest, script, parser, *wanted)
        return self._confirmed.get(key, grade)[0]

    def suits_disguise(self, environment: Environment, script: str, fail_to_pass: Sequence[str]) -> bool:
        """False after `refuse_disguise` for these tests."""
        with self._lock:
            return _key(environment.key, script, *fail_to_pass) not in self._undisguised

    def refuse_disguise(self, environment: Environment, script: str, fail_to_pass: Sequence[str]) -> None:
        """Remember that the original's own code does not pass these tests in disguise."""
        with self._lock:
            self._undisguised[_key(environment.key, script, *fail_to_pass)] = None
            while len(self._undisguised) > MAX_KNOWN:
                self._undisguised.popitem(last=False)

    def _known_script(
        self, environment: Environment, tree: Tree, script: str, hash_seed: int
    ) -> tuple[ScriptRun, bool]:
        key = _key(environment.key, environment.reference, tree.digest, script, str(hash_seed))
        return self._scripts.get(key, lambda: self._run_script(environment, tree, script, hash_seed))

    def _run_script(self, environment: Environment, tree: Tree, script: str, hash_seed: int) -> ScriptRun:
        """Run a script, and once more if SIGKILL ended it: the machine may have sent the signal."""
        done = self._run_script_once(environment, tree, script, hash_seed)
        if done.exit_code == KILLED and not done.error:
            return self._run_script_once(environment, tree, script, hash_seed)
        return done

    def _run_script_once(
        self, environment: Environment, tree: Tree, script: str, hash_seed: int
    ) -> ScriptRun:
        variables = {**environment.variables, "PYTHONHASHSEED": str(hash_seed)}
        started = time.monotonic()
        with self._opened(environment, variables) as box:
            opened = time.monotonic()
            try:
                fill_workspace(box, environment, tree)
                box.write_archive(SUBMIT, _single_file("test_script.sh", script))
            except (ArtifactError, SandboxLost) as error:
                raise SandboxUnavailable(
                    f"the repository does not fit into its sandbox: {error}. Raise sandbox.workspace_mb."
                ) from error
            written = time.monotonic()
            log, exit_code, error_text = self._script_log(box)
            ended = time.monotonic()
        return ScriptRun(
            log, exit_code, error_text, Timings(opened - started, written - opened, ended - written)
        )

    def _script_log(self, box: Sandbox) -> tuple[bytes, int, str]:
        """The log, the exit status, and why the run does not count ("" if it does).

        The exit status is no error: failing tests set it.
        """
        timeout_s, max_bytes = self.settings.script_timeout_s, self.settings.max_log_bytes
        try:
            done = box.run(SCRIPT_COMMAND, timeout_s=timeout_s, output_bytes=max_bytes)
        except SandboxLost as error:
            return b"", 0, f"test_script.sh ended its own sandbox: {error}"
        problem = ""
        if done.timed_out:
            problem = f"test_script.sh did not end within {timeout_s:g} s (validator.script_timeout_s)"
        elif done.truncated:
            problem = f"test_script.sh printed more than {max_bytes} bytes (validator.max_log_bytes)"
        return done.output, done.exit_code, problem

    def _parse_twice(self, environment: Environment, parser: str, log: bytes) -> ParsedLog:
        started = time.monotonic()
        try:
            if is_standard_parser(parser):
                first = second = parse_outcomes(run_standard_parser(parser, log), self.settings.max_test_ids)
            else:
                first = self._parse_once(environment, parser, log)
                second = self._parse_once(environment, parser, log)
        except OutcomesError as error:
            return ParsedLog(TestOutcomes(), str(error), time.monotonic() - started)
        duration_s = time.monotonic() - started
        if first != second:
            ids = ", ".join(first.differing(second)[:5])
            return ParsedLog(
                TestOutcomes(), f"test_parser.py read one log twice and differed in {ids}", duration_s
            )
        return ParsedLog(first, "", duration_s)

    def _parse_once(self, environment: Environment, parser: str, log: bytes) -> TestOutcomes:
        """Raises OutcomesError."""
        with self._opened(environment, {}) as box:
            try:
                box.write_archive(SUBMIT, _single_file("test_parser.py", parser))
                done = _run_parser(box, log)
                if done.exit_code == KILLED:  # as for scripts, the machine may have sent the signal
                    done = _run_parser(box, log)
                if done.timed_out:
                    raise OutcomesError(f"test_parser.py did not end within {PARSER_TIMEOUT_S:g} s")
                if done.exit_code != 0:
                    raise _parser_failed(done.exit_code, _parser_errors(box))
            except SandboxLost as error:
                raise OutcomesError(f"test_parser.py ended its own sandbox: {error}") from error
        if done.truncated:
            raise OutcomesError(f"test_parser.py printed more than {PARSER_OUTPUT_BYTES} bytes")
        return parse_outcomes(done.output, self.settings.max_test_ids)

    @contextmanager
    def _opened(self, environment: Environment, variables: Mapping[str, str]) -> Iterator[Sandbox]:
        with self._backend.open(
            SandboxSpec(environment.reference, self._limits, variables=variables, labels=self._labels)
        ) as box:
            yield box


def _run_parser(box: Sandbox, log: bytes) -> ExecResult:
    return box.run(PARSER_COMMAND, timeout_s=PARSER_TIMEOUT_S, output_bytes=PARSER_OUTPUT_BYTES, stdin=log)


def _parser_errors(box: Sandbox) -> str:
    """The end of what the parser wrote to its standard error."""
    done = box.run("tail -c 600 /tmp/stderr", timeout_s=PARSER_TIMEOUT_S, output_bytes=1000)
    return done.text.strip()


def _parser_failed(exit_code: int, errors: str) -> OutcomesError:
    return OutcomesError(f"test_parser.py ended with exit status {exit_code}: {errors or 'it said nothing'}")


def run_standard_parser(parser: str, log: bytes) -> bytes:
    """The output of the standard parser on `log`. A process of Python starts faster than a sandbox.

    parser: its text as selfplay ships it, not as the artifact's folder holds it. Time and memory are limited,
    because the log is hostile. Raises OutcomesError.
    """
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({PARSER_MEMORY_BYTES},) * 2)"
    limited = f"{limit}; exec({parser!r})"
    for is_last in (False, True):
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-S", "-c", limited],
                input=log,
                capture_output=True,
                timeout=PARSER_TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            raise OutcomesError(f"test_parser.py did not end within {PARSER_TIMEOUT_S:g} s") from None
        except OSError as error:
            raise SandboxUnavailable(
                f"no process can be started: {error}. End other programs, or lower train.workers."
            ) from error
        if done.returncode == 0:
            return done.stdout
        if done.returncode > 0 or is_last:
            break  # a process that a signal ended runs once more, as scripts do
    raise _parser_failed(done.returncode, done.stderr[-600:].decode("utf-8", "replace").strip())


class _Known(Generic[Result]):
    """A cache of results by key. Concurrent calls for one key compute it once, and share its exception.

    keep: whether a result is kept; exceptions never are. size: its bytes.
    """

    def __init__(self, keep: Callable[[Result], bool], size: Callable[[Result], int]) -> None:
        self._keep = keep
        self._size = size
        self._lock = threading.Lock()
        self._pending: dict[str, Future[Result]] = {}
        self._known: OrderedDict[str, Result] = OrderedDict()
        self._bytes = 0

    def get(self, key: str, compute: Callable[[], Result]) -> tuple[Result, bool]:
        """The result, and whether this call computed it."""
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key], False
            future = self._pending.get(key)
            is_mine = future is None
            if future is None:
                future = self._pending[key] = Future()
        if not is_mine:
            return future.result(), False
        try:
            result = compute()
        except BaseException as error:
            with self._lock:
                del self._pending[key]
            future.set_exception(error)
            raise
        with self._lock:
            del self._pending[key]
            if self._keep(result):
                self._add(key, result)
        future.set_result(result)
        return result, True

    def _add(self, key: str, result: Result) -> None:
        """Keep a result, and drop the oldest ones above the limits."""
        self._known[key] = result
        self._bytes += self._size(result)
        while len(self._known) > MAX_KNOWN or (self._bytes > MAX_KNOWN_BYTES and len(self._known) > 1):
            _, oldest = self._known.popitem(last=False)
            self._bytes -= self._size(oldest)


def _single_file(name: str, text: str) -> bytes:
    return Tree({name: FileEntry(text.encode("utf-8"))}).to_tar()


def _key(*parts: str) -> str:
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        sha.update(b"%d:" % len(data) + data)
    return sha.hexdigest()
