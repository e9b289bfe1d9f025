"""TestRunner: script and parser over a tree, each in a fresh sandbox of its own. What the outcomes mean, others decide.

Invariant: nothing that ran with the repository can reach the parser but its log; equal runs happen once unless asked for afresh.
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

from selfplay.config import ValidatorSettings
from selfplay.errors import ArtifactError, OutcomesError, SandboxLost, SandboxUnavailable
from selfplay.outcomes import TestOutcomes, parse_outcomes
from selfplay.repositories.environment import standard_parser
from selfplay.sandbox.base import SUBMIT, WORKSPACE, Limits, Sandbox, SandboxBackend, SandboxSpec
from selfplay.source.trees import FileEntry, Tree

if TYPE_CHECKING:
    from selfplay.repositories.environment import Environment

SCRIPT_COMMAND = f"cd {WORKSPACE} && bash {SUBMIT}/test_script.sh"
PARSER_COMMAND = f"python3 -I {SUBMIT}/test_parser.py 2>/tmp/stderr"
PARSER_TIMEOUT_S = 30.0
PARSER_OUTPUT_BYTES = 16 << 20
PARSER_MEMORY_BYTES = 1 << 30  # of the house's own
KILLED = 128 + 9  # the exit status of what SIGKILL ended
MAX_KNOWN_BYTES = 64 << 20  # of logs kept for equal runs
MAX_KNOWN = 4096

Result = TypeVar("Result")


@dataclass(frozen=True)
class Timings:
    """Where one run's time went, in seconds."""

    open_s: float = 0.0
    transfer_s: float = 0.0
    script_s: float = 0.0
    parser_s: float = 0.0


@dataclass(frozen=True)
class ScriptRun:
    """What test_script.sh printed and how it ended. `error` is why that does not count, "" when it does."""

    log: bytes
    exit_code: int
    error: str = ""
    timings: Timings = field(default_factory=Timings)


@dataclass(frozen=True)
class TestRun:
    """One run. `error` is why there are no outcomes, as the artifact's author needs to read it; "" when there are.

    exit_code: the script's own, as process 1 of the sandbox was told by the kernel, whatever the log says.
    """

    __test__ = False  # pytest: a value, not a test class

    outcomes: TestOutcomes
    log: bytes = b""
    error: str = ""
    cached: bool = False
    timings: Timings = field(default_factory=Timings)
    exit_code: int = 0


@dataclass(frozen=True)
class Confirmation:
    """What a second grading of a pass came to. agrees: None when the code was caught forging results."""

    agrees: bool | None
    reason: str = ""
    failed_tests: tuple[str, ...] = ()


@dataclass(frozen=True)
class ParsedLog:
    outcomes: TestOutcomes
    error: str = ""
    duration_s: float = 0.0


class TestRunner:
    """Runs tests in `backend`'s sandboxes and remembers what it saw. Thread-safe; a failure of the machine raises SandboxUnavailable."""

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
        self._confirmed: _Known[Confirmation] = _Known(
            keep=lambda found: found.agrees is True, size=lambda _: 64
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
        """The outcomes of `script` on `tree`, the environment's excluded tests left out.

        A script's run that is known (same tree, script, environment, seed) is taken again unless `fresh`; failed ones are never kept.
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
            parsed.outcomes.without(environment.excluded_ids),
            done.log,
            parsed.error,
            not is_new,
            timings,
            done.exit_code,
        )

    def script(self, environment: Environment, tree: Tree, script: str) -> ScriptRun:
        """What `script` prints on `tree` in a fresh sandbox: the first half of `run`, and known to it from then on."""
        return self._known_script(environment, tree, script, 0)[0]

    def parse(self, environment: Environment, parser: str, log: bytes) -> ParsedLog:
        """What `parser` makes of `log`, twice, each time in a fresh sandbox without the repository: it must say the same.

        The house's own parser, which no policy and no repository wrote, is asked once, in a process of its own without a sandbox. A
        failure is not remembered: a machine that was too slow or short of memory for a moment must not decide of every artifact whose
        original prints this log.
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
        make: Callable[[], Confirmation],
    ) -> Confirmation:
        """What `make` finds, made once for attempts that end in one tree and must pass the `wanted` tests; only agreement is remembered."""
        key = _key(environment.key, environment.reference, tree.digest, script, parser, *wanted)
        return self._confirmed.get(key, make)[0]

    def suits_disguise(self, environment: Environment, script: str, fail_to_pass: Sequence[str]) -> bool:
        """False once `refuse_disguise` was told that even the original does not pass these tests in disguise."""
        with self._lock:
            return _key(environment.key, script, *fail_to_pass) not in self._undisguised

    def refuse_disguise(self, environment: Environment, script: str, fail_to_pass: Sequence[str]) -> None:
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
        """In a fresh sandbox. A run that SIGKILL ended is made once more: if the machine sent it, the second one shows."""
        done = self._run_script_once(environment, tree, script, hash_seed)
        return (
            done
            if done.exit_code != KILLED or done.error
            else self._run_script_once(environment, tree, script, hash_seed)
        )

    def _run_script_once(
        self, environment: Environment, tree: Tree, script: str, hash_seed: int
    ) -> ScriptRun:
        variables = {**environment.variables, "PYTHONHASHSEED": str(hash_seed)}
        started = time.monotonic()
        with self._opened(environment, variables) as box:
            opened = time.monotonic()
            try:
                box.write_archive(WORKSPACE, tree.to_tar())
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
        """The output, the exit status (which failing tests set, so that it is no error) and "", or why the output does not count."""
        settings = self.settings
        try:
            done = box.run(
                SCRIPT_COMMAND, timeout_s=settings.script_timeout_s, output_bytes=settings.max_log_bytes
            )
        except SandboxLost as error:
            return b"", 0, f"test_script.sh ended its own sandbox: {error}"
        problem = ""
        if done.timed_out:
            problem = f"test_script.sh did not end within {settings.script_timeout_s:g} s (validator.script_timeout_s)"
        elif done.truncated:
            problem = (
                f"test_script.sh printed more than {settings.max_log_bytes} bytes (validator.max_log_bytes)"
            )
        return done.output, done.exit_code, problem

    def _parse_twice(self, environment: Environment, parser: str, log: bytes) -> ParsedLog:
        started = time.monotonic()
        try:
            if parser == standard_parser():
                first = second = parse_outcomes(run_own_parser(parser, log), self.settings.max_test_ids)
            else:
                first, second = (
                    self._parse_once(environment, parser, log),
                    self._parse_once(environment, parser, log),
                )
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
        with self._opened(environment, {}) as box:
            try:
                box.write_archive(SUBMIT, _single_file("test_parser.py", parser))
                done = box.run(
                    PARSER_COMMAND, timeout_s=PARSER_TIMEOUT_S, output_bytes=PARSER_OUTPUT_BYTES, stdin=log
                )
                if done.exit_code == KILLED:  # as with scripts
                    done = box.run(
                        PARSER_COMMAND,
                        timeout_s=PARSER_TIMEOUT_S,
                        output_bytes=PARSER_OUTPUT_BYTES,
                        stdin=log,
                    )
                if done.timed_out:
                    raise OutcomesError(f"test_parser.py did not end within {PARSER_TIMEOUT_S:g} s")
                if done.exit_code != 0:
                    complaint = box.run(
                        "tail -c 600 /tmp/stderr", timeout_s=PARSER_TIMEOUT_S, output_bytes=1000
                    ).text.strip()
                    raise OutcomesError(
                        f"test_parser.py ended with exit status {done.exit_code}: {complaint or 'it said nothing'}"
                    )
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


def run_own_parser(parser: str, log: bytes) -> bytes:
    """What the house's own parser prints: our code, read from us and not from the artifact's folder, with a limit on time and memory since
    the log is anybody's. A start of Python in place of a sandbox's. Raises OutcomesError."""
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({PARSER_MEMORY_BYTES},) * 2); exec({parser!r})"
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
            break  # one that a signal ended is asked once more, as with scripts
    complaint = done.stderr[-600:].decode("utf-8", "replace").strip()
    raise OutcomesError(
        f"test_parser.py ended with exit status {done.returncode}: {complaint or 'it said nothing'}"
    )


class _Known(Generic[Result]):
    """Results by key. Who asks for one that is being made waits for it; a failure is told to all who wait and forgotten."""

    def __init__(self, keep: Callable[[Result], bool], size: Callable[[Result], int]) -> None:
        self._keep = keep
        self._size = size
        self._lock = threading.Lock()
        self._making: dict[str, Future[Result]] = {}
        self._known: OrderedDict[str, Result] = OrderedDict()
        self._bytes = 0

    def get(self, key: str, make: Callable[[], Result]) -> tuple[Result, bool]:
        """The result, and whether it was made by this call."""
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key], False
            future = self._making.get(key)
            mine = future is None
            if future is None:
                future = self._making[key] = Future()
        if not mine:
            return future.result(), False
        try:
            result = make()
        except BaseException as error:
            with self._lock:
                del self._making[key]
            future.set_exception(error)
            raise
        with self._lock:
            del self._making[key]
            if self._keep(result):
                self._known[key] = result
                self._bytes += self._size(result)
                while len(self._known) > MAX_KNOWN or (
                    self._bytes > MAX_KNOWN_BYTES and len(self._known) > 1
                ):
                    _, oldest = self._known.popitem(last=False)
                    self._bytes -= self._size(oldest)
        future.set_result(result)
        return result, True


def _single_file(name: str, text: str) -> bytes:
    return Tree({name: FileEntry(text.encode("utf-8"))}).to_tar()


def _key(*parts: str) -> str:
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        sha.update(b"%d:" % len(data) + data)
    return sha.hexdigest()
