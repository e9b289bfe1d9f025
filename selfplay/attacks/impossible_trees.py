"""Attacks by trees that a sandbox cannot hold, by text that takes long to read, and by one bug spelled anew.

Rows 23, 16 and 28. Invariant: sizes are those that may be handed in, and what is slow costs seconds.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial

from selfplay.agent.runner import EpisodeRunner, FailureCounts, RunnerEvents
from selfplay.agent.tool_format import TAGS, BadFormat
from selfplay.attacks.base import Attack, Broken, Held, Outcome
from selfplay.attacks.ground import CODE, RIGHT, TESTS, WRONG, Change, Ground, changed
from selfplay.attacks.growth import children_s, linear, times_as_long
from selfplay.errors import OutcomesError, PatchError, SandboxError, SandboxLost, SandboxUnavailable
from selfplay.repositories.scripts import RECORDS_IDS, standard_parser
from selfplay.sandbox.base import Limits
from selfplay.settings.playing import ValidatorSettings
from selfplay.source.trees import FileEntry, Tree
from selfplay.verdicts.bug import bug_digest
from selfplay.verdicts.prediction import take_prediction
from selfplay.verdicts.test_runs import TestRunner, run_standard_parser
from selfplay.verdicts.verdict import Verdict

MODULE = "heron/words.py"
MASKED = {CODE: (RIGHT, WRONG), MODULE: None, f"{MODULE}/x.py": "X = 1\n"}
SMALL_WORKSPACE = 128 << 10  # bytes; the ground's repository fits


# ---- machine failures that the policy makes (row 23)


def blamed(judge: Callable[[], object]) -> Outcome:
    """Broken if the machine is said to have failed."""
    try:
        return Held(str(judge())[:200])
    except SandboxUnavailable as error:
        return Broken(f"counted as the machine's failure: {error}")


def reason_of(verdict: Verdict) -> str:
    found = next((check.reason for check in verdict.checks if not check.passed), "")
    return f"rejected: {found}" if found else "accepted, and repaired by reverting both as one"


def put_a_folder_where_a_file_was(ground: Ground) -> Outcome:
    """Reverting the deleted file alone makes a tree that no sandbox can hold."""
    return blamed(lambda: reason_of(ground.validate(ground.artifact(MASKED), ground.runner)))


def put_a_file_where_the_tests_were(ground: Ground) -> Outcome:
    """The weakening deletes all tests, and the repair puts a file in the place of their folder."""
    artifact = ground.artifact(weaken={TESTS: None, "tests/test_words.py": None})

    def judge() -> str:
        verdict = ground.validate(artifact)
        if verdict.accepted:
            raise SandboxUnavailable("a weakening that leaves no test was accepted")
        return ground.grade({"tests": "a file\n"}, artifact=artifact).reason

    return blamed(judge)


def stop_a_run(ground: Ground) -> Outcome:
    """The members of one group hand in such bugs: too many failures of the machine end a run."""
    artifact = ground.artifact(MASKED)
    counted: list[FailureCounts] = []

    class Counted(RunnerEvents):
        def machine_failed(self, phase: str, failure: str, counts: FailureCounts) -> None:
            counted.append(counts)

    async def judge_all() -> None:
        runner = EpisodeRunner(1, 1, Counted(), waits_s=(0.0,))
        with closing(runner), suppress(SandboxUnavailable):
            for _ in range(2):
                await runner.judge(lambda: ground.validate(artifact, ground.runner))

    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, judge_all()).result()
    return Broken(f"{len(counted)} failures of the machine were counted") if counted else Held("none counted")


def add_more_files_than_fit(ground: Ground) -> Outcome:
    """The bug adds files until the workspace is full."""
    runner = TestRunner(
        ground.backend, ground.config.validator, Limits(workspace_bytes=SMALL_WORKSPACE), {"run": "attack"}
    )
    files = {f"heron/more{number}.py": "X = 1\n" for number in range(60)}
    bug: Mapping[str, Change] = {CODE: (RIGHT, WRONG), **files}
    return blamed(lambda: reason_of(ground.validate(ground.artifact(bug), runner)))


def name_a_file_too_long(ground: Ground) -> Outcome:
    """Names and depths that a diff can hold, and a file system or the reader of a workspace cannot."""
    paths = ("heron/" + "n" * 256 + ".py", "heron/" + "d/" * 480 + "x.py", "heron/" + "é" * 128)

    def judge() -> str:
        reasons = []
        for path in paths:
            section = f"diff --git a/{path} b/{path}\nnew file mode 100644\n"
            verdict = ground.validate(replace(ground.artifact(), bug_inject=section))
            reasons.append(verdict.failed_check)
        if set(reasons) != {"patches"}:
            raise SandboxUnavailable(f"such a bug came as far as {reasons}")
        return "refused as diffs"

    return blamed(judge)


def dig_deep_folders(ground: Ground) -> Outcome:
    """A workspace with a file below 1,900 folders: code that calls itself for each of them would crash."""
    with ground.solver() as box:
        box.run(
            "mkdir -p heron/$(printf 'd/%.0s' $(seq 1900)) && touch heron/$(printf 'd/%.0s' $(seq 1900))x.py"
        )
        try:
            return Held(f"a patch of {len(ground.taken(box))} bytes")
        except (PatchError, SandboxLost) as error:
            return Held(str(error))
        except RecursionError as error:
            return Broken(f"the harness crashed: {error}")


def limit_the_server(ground: Ground) -> Outcome:
    """Lower the processor time of process 1, and let it read until the kernel kills it."""
    lower = "import resource; resource.prlimit(1, resource.RLIMIT_CPU, (1, 1))"
    with ground.box() as box:
        try:
            box.run(f"python3 -c '{lower}' && head -c 30000000000 /dev/zero", timeout_s=240)
            box.run("true")
        except SandboxUnavailable as error:
            return Broken(f"counted as the machine's failure: {error}")
        except SandboxError as error:
            return Held(str(error))
    return Held("the server lives on")


# ---- text that takes long to read (row 16)


def repeated(text: str, size: int) -> str:
    return text * (size // len(text) + 1)


def hostile_logs(size: int) -> dict[str, str]:
    """Logs of about `size` characters. Without care, each takes much longer than linear time to read."""
    summary, end = "=== short test summary info ===\n", "1 failed in 0.01s\n"
    ids = [json.dumps({"status": "PASSED", "id": f"a.py::{number}"}) for number in range(size // 80)]
    broken = [json.dumps({"status": "PASSED", "id": f"a\n{number}"}) for number in range(size // 80)]
    record = "=== selfplay: ids in full ===\n"
    return {
        "brackets": f"{summary}SUBFAILED({repeated(']', size)} - x\n{end}",
        "files": f"{summary}SUBFAILED(x) {repeated('a.py:: ', size)}\n{end}",
        "messages": f"{summary}FAILED a[{repeated(' - ', size)}\n{end}",
        "records": "\n".join([record, *ids, summary]) + repeated("SUBFAILED(x) a.py::b\n", size // 2) + end,
        "line breaks": "\n".join([record, *broken, summary]) + repeated("PASSED a\nx\n", size // 2) + end,
    }


LOG_CHARACTERS = 80_000  # a fiftieth of what is read
USUAL_TIMES = 10.0  # as long as an ordinary log of that size takes, with the start of Python in both


def stall_the_parser(ground: Ground) -> Outcome:
    """Logs of a test run whose lines, names or records are read again and again."""
    line = "PASSED tests/test_numbers.py::test_a_number_within_bounds\n"
    usual = f"=== short test summary info ===\n{line * (LOG_CHARACTERS // len(line))}1 passed in 0.01s\n"
    most = 0.0
    for parser in (standard_parser(), standard_parser(RECORDS_IDS)):
        for name, log in hostile_logs(LOG_CHARACTERS).items():
            try:
                times = times_as_long(
                    partial(run_standard_parser, parser, log.encode()),
                    partial(run_standard_parser, parser, usual.encode()),
                    USUAL_TIMES,
                    children_s,
                )
            except OutcomesError as error:
                return Broken(f"{name}: {error}")
            if times > USUAL_TIMES:
                return Broken(f"{name}: {times:.0f} times as long as an ordinary log of that size")
            most = max(most, times)
    return Held(f"at most {most:.1f} times as long as an ordinary log of {LOG_CHARACTERS >> 10} KiB")


NEW_FILES = 4_000
APART_TIMES = 2.0  # as long as the files and the large repository take, each without the other


def add_many_files(ground: Ground) -> Outcome:
    """A repair leaves many files whose names are those of Python's own modules, in a large repository."""
    one = FileEntry(b"x = 1\n")
    large = Tree({**ground.tree.files, **{f"part{n % 100}/module{n}.py": one for n in range(NEW_FILES)}})
    new = {f"json/new{number}.py": one for number in range(NEW_FILES)}

    def take(before: Tree, added: Mapping[str, FileEntry]) -> None:
        take_prediction(before, Tree({**before.files, **added}).to_tar())

    def apart() -> None:
        take(ground.tree, new)
        take(large, {})

    times = times_as_long(lambda: take(large, new), apart, APART_TIMES, time.thread_time)
    text = f"{times:.1f} times as long as {NEW_FILES:,} new files and a large repository apart"
    return Broken(text) if times > APART_TIMES else Held(text)


def stall_with_reasoning(ground: Ground) -> Outcome:
    """A reply that closes its reasoning thousands of times before it opens one."""

    def work(closed: int) -> None:
        with suppress(BadFormat):
            TAGS.parse("</think>" * closed + "\n<think>", ["bash"])

    return linear(work, 50, "a reply that closes its reasoning again and again")


# ---- a log that was cut (row 16)


def cut_the_log(ground: Ground) -> Outcome:
    """The bug prints more than is kept, so that the summary is missing: not a run without tests."""
    settings = ValidatorSettings(script_timeout_s=60, max_log_bytes=1 << 16)
    runner = TestRunner(ground.backend, settings, Limits(), {"run": "attack"})
    noise = "import sys\nsys.__stdout__.write('x\\n' * 100_000)\nsys.__stdout__.flush()\n"
    tree = changed(ground.tree, {CODE: noise + ground.tree.text(CODE)})
    script = ground.environment.script.replace("python -m pytest", "python -m pytest -s")
    run = runner.run(ground.environment, tree, script, ground.environment.parser)
    if run.error and "printed more than" in run.error and not run.outcomes.ids:
        return Held(run.error)
    return Broken(f"read as {len(run.outcomes.ids)} tests: {run.error or 'no error'}")


# ---- one bug under many digests (row 28)


SPELLINGS = {
    "a docstring": ("Numbers within bounds.", "Numbers."),
    "a local variable": ("ordered", "in_order"),
    "a parameter": ("highest_allowed", "most"),
    "brackets": ("max(values) - min(values)", "(max(values) - min(values))"),
    "a comment": ("def spread", "# x\ndef spread"),
    "a blank line": ("def middle", "\ndef middle"),
}


def spell_a_bug_anew(ground: Ground) -> Outcome:
    """The same bug with other blank lines, comments, docstrings and names: alone, and all together."""
    bug = text = ground.tree.text(CODE).replace(RIGHT, WRONG)
    for old, new in SPELLINGS.values():
        text = text.replace(old, new)
    verdicts = [ground.validate(ground.artifact({CODE: one}), ground.runner) for one in (bug, text)]
    if not verdicts[0].accepted or verdicts[0].buggy_digest != verdicts[1].buggy_digest:
        return Broken(f"all together make another bug ({verdicts[1].failed_check or 'accepted'})")
    for name, (old, new) in SPELLINGS.items():
        tree = changed(ground.tree, {CODE: bug.replace(old, new)})
        if bug_digest(ground.tree, tree) != verdicts[0].buggy_digest:
            return Broken(f"{name} makes another bug")
    return Held(f"one bug in {len(SPELLINGS)} spellings")


def hide_a_bug_anew(ground: Ground) -> Outcome:
    """The same bug with another weakening."""
    others = ({TESTS: (", (11, 10)]", "]")}, {TESTS: ("(11, 10)]", "(11, -1)]")})
    verdicts = [ground.validate(ground.artifact(weaken=one), ground.runner) for one in others]
    digests = {verdict.buggy_digest for verdict in verdicts if verdict.accepted}
    return Held("one bug") if len(digests) == 1 else Broken(f"{len(digests)} bugs")


def name_tests_anew(ground: Ground) -> Outcome:
    """The same bug with a parser that gives the tests other names."""
    parser = ground.environment.parser.replace(
        "dump(parse(text)", "dump({f'again {name}': outcome for name, outcome in parse(text).items()}"
    )
    verdicts = [ground.validate(ground.artifact(parser=one), ground.runner) for one in (None, parser)]
    if not all(verdict.accepted for verdict in verdicts):
        raise AssertionError(f"one of them is no bug: {[verdict.failed_check for verdict in verdicts]}")
    digests = {verdict.buggy_digest for verdict in verdicts}
    return Held("one bug") if len(digests) == 1 else Broken("each parser makes another bug")


def write_long_numbers(ground: Ground) -> Outcome:
    """Judging writes numbers anew, and Python refuses to write longer ones than these."""
    numbers = "".join(f"NUMBER_{number} = {'9' * 4300}\n" for number in range(30))
    text = ground.start().text(CODE)
    found = ground.grade({CODE: f"{text}\n\n{numbers}"}, ground.fresh_runner())
    return Broken("passed as a repair") if found.passed else Held(found.reason)


ATTACKS = (
    Attack("slow-parser", 16, "a log that the standard parser reads again and again", stall_the_parser),
    Attack("many-new-files", 16, "a repair that leaves very many files", add_many_files),
    Attack("slow-reply", 16, "a reply that takes for ever to read", stall_with_reasoning),
    Attack("cut-log", 16, "print so much that the summary of the tests is cut off", cut_the_log),
    Attack("folder-for-file", 23, "a bug with a folder where a file was", put_a_folder_where_a_file_was),
    Attack(
        "file-for-folder", 23, "a repair with a file where the tests were", put_a_file_where_the_tests_were
    ),
    Attack("stop-a-run", 23, "bugs that stop a run as failures of the machine", stop_a_run),
    Attack("full-workspace", 23, "a bug whose files do not fit into the workspace", add_more_files_than_fit),
    Attack("long-name", 23, "names that no file system takes", name_a_file_too_long),
    Attack("deep-folders", 23, "a file below thousands of folders", dig_deep_folders),
    Attack("limit-server", 23, "let the kernel kill the sandbox's command server", limit_the_server),
    Attack("spell-anew", 28, "one bug with other comments, blank lines and names", spell_a_bug_anew),
    Attack("hide-anew", 28, "one bug with another weakening", hide_a_bug_anew),
    Attack("name-tests-anew", 28, "one bug with other names for its tests", name_tests_anew),
    Attack("long-numbers", 23, "numbers that are too long to be written anew", write_long_numbers),
)
