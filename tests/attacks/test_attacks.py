"""Every attack of `selfplay doctor --attack` is held on each backend. Without its defence, each gets through.

A control removes one defence from the real code, and nothing else.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

import channels_controls
import forged_values_controls
import impossible_trees_controls
import marked_noise_controls
import material_controls
import phases_controls
from machine import open_or_skip
from selfplay import attacks, cli
from selfplay.agent.chat import ChatFormat
from selfplay.agent.tools import STANDARD, Action
from selfplay.agent.workspaces import take_history
from selfplay.attacks import ALL_ATTACKS, Attack, Ground, diffs, open_ground, run_attack
from selfplay.attacks.ground import BOUNDS, CODE, WRONG
from selfplay.commands import doctor
from selfplay.errors import EnvironmentBuildError, PatchError, RepositoryError, SandboxUnavailable
from selfplay.outcomes import TestOutcomes
from selfplay.repositories.git import history_bundle
from selfplay.sandbox import bubblewrap_sandbox, command_server
from selfplay.sandbox.base import WORKSPACE, Sandbox
from selfplay.sandbox.bubblewrap_command import bubblewrap_arguments
from selfplay.sandbox.bubblewrap_sandbox import BubblewrapBackend
from selfplay.sandbox.client import ConnectedSandbox, Connection
from selfplay.settings.playing import ValidatorSettings
from selfplay.source.git_folder import CONFIG
from selfplay.source.trees import FileEntry, Tree, is_safe_path
from selfplay.verdicts.checks import Finding
from selfplay.verdicts.grading import grade
from selfplay.verdicts.test_runs import ParsedLog, ScriptRun, TestRunner

pytestmark = pytest.mark.sandbox

# Removes a defence. Returns the ground to attack then, None for the same one.
Control = Callable[[pytest.MonkeyPatch, Ground], Ground | None]
# attack: why a test cannot remove its defence. docs/security.md gives the same reasons.
NO_CONTROL: dict[str, str] = {}


@contextmanager
def ground_on(kind: str, cache: Path, scratch: Path) -> Iterator[Ground]:
    backend = open_or_skip(kind, cache)
    with open_ground(backend, cache, scratch) as ground:
        yield ground


@pytest.fixture(scope="module", params=["bubblewrap", "docker"])
def ground(
    request: pytest.FixtureRequest, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ground]:
    with ground_on(request.param, cache, tmp_path_factory.mktemp("scratch")) as opened:
        yield opened


@pytest.fixture(scope="module")
def open_to_attack(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """The ground where defences are removed: bubblewrap, since a test can change its command line."""
    with ground_on("bubblewrap", cache, tmp_path_factory.mktemp("scratch")) as opened:
        yield opened


# ---- removing defences


def patched(*changes: tuple[str, object]) -> Control:
    """Replace names in the real code. changes: (dotted name, the value instead)."""

    def control(patch: pytest.MonkeyPatch, _: Ground) -> None:
        for name, value in changes:
            patch.setattr(name, value)

    return control


def all_of(*controls: Control) -> Control:
    def control(patch: pytest.MonkeyPatch, ground: Ground) -> Ground | None:
        for one in controls:
            ground = one(patch, ground) or ground
        return ground

    return control


def same(value: object, *_: object) -> object:
    return value


def passed_check(*_: object) -> Finding:
    return Finding(True)


NO_RESTORING = patched(("selfplay.source.trees.Tree.restore", same))
NO_DISGUISE = patched(("selfplay.verdicts.second_grading.disguise", lambda *_: None))
# The second grading in disguise detects these forgeries too, so both defences are removed.
NOTHING_PROTECTED = all_of(
    NO_DISGUISE,
    patched(
        ("selfplay.verdicts.prediction.is_protected_path", lambda *_: False),
        ("selfplay.verdicts.prediction._is_open", lambda *_: True),
    ),
)
WITH_SOURCE = patched(("selfplay.verdicts.validator.without_source", lambda script, _: script))
MISSING_IS_PASSED = patched(
    *(
        (
            f"selfplay.verdicts.{module}.judge_repair",
            lambda outcomes, ours, others: tuple(sorted({*ours, *others} & outcomes.failed)),
        )
        for module in ("grading", "second_grading")
    )
)
NO_FAILING_TEST = all_of(NO_DISGUISE, patched(("selfplay.verdicts.second_grading.add_canary", same)))
NO_AUDIT = patched(("selfplay.verdicts.validator.noisy", lambda _, tree, *__: tree))
NO_AUDIT_AT_ALL = all_of(NO_AUDIT, WITH_SOURCE)
VANISHED_IS_PASSED = all_of(MISSING_IS_PASSED, NO_FAILING_TEST, phases_controls.no_exit_status)


def command_line(change: Callable[[list[str], Ground], list[str]]) -> Control:
    """Change bubblewrap's command line."""

    def control(patch: pytest.MonkeyPatch, ground: Ground) -> None:
        patch.setattr(
            "selfplay.sandbox.bubblewrap_sandbox.bubblewrap_arguments",
            lambda *given: change(bubblewrap_arguments(*given), ground),
        )

    return control


def without(*options: str) -> Control:
    return command_line(lambda line, _: [word for word in line if word not in options])


def mounted(make: Callable[[Ground], Sequence[str]]) -> Control:
    """Add one mount, the last before the root becomes read-only."""

    def change(line: list[str], ground: Ground) -> list[str]:
        at = next(
            number for number in range(len(line) - 1) if line[number : number + 2] == ["--remount-ro", "/"]
        )
        return [*line[:at], *make(ground), *line[at:]]

    return command_line(change)


def shown_to_all(folder: Path) -> list[str]:
    """The options that mount a folder of the host under its own path."""
    parents = [
        word for parent in reversed(folder.parents[:-1]) for word in ("--perms", "0755", "--dir", str(parent))
    ]
    return [*parents, "--ro-bind", str(folder), str(folder)]


def wider(**limits: int) -> Control:
    """Keep limits, but make them too wide. The bombs bound themselves."""

    def control(patch: pytest.MonkeyPatch, _: Ground) -> None:
        start = BubblewrapBackend._start
        patch.setattr(
            BubblewrapBackend,
            "_start",
            lambda self, spec, *rest: start(
                self, replace(spec, limits=replace(spec.limits, **limits)), *rest
            ),
        )

    return control


def server_with(old: str, new: str) -> Control:
    """Change one line of the command server."""

    def control(patch: pytest.MonkeyPatch, ground: Ground) -> None:
        source = Path(command_server.__file__).read_text()
        assert old in source
        changed = ground.folder("server") / "command_server.py"
        changed.write_text(source.replace(old, new))
        patch.setattr("selfplay.sandbox.bubblewrap_sandbox.command_server.__file__", str(changed))
        patch.setattr(
            "selfplay.sandbox.bubblewrap_sandbox._server_code", bubblewrap_sandbox._server_code.__wrapped__
        )

    return control


def settings(**values: int) -> Control:
    def control(_: pytest.MonkeyPatch, ground: Ground) -> Ground:
        return replace(
            ground, config=ground.config.model_copy(update={"validator": ValidatorSettings(**values)})
        )

    return control


# ---- naive code, as people write it who do not know the attacks


def keep_history(patch: pytest.MonkeyPatch, ground: Ground) -> None:
    history = history_bundle(ground.environment.checkout)
    assert history
    patch.setattr("selfplay.attacks.ground.prepare_solver", lambda box, *_: take_history(box, history))


def git_here(*arguments: str, folder: Path) -> None:
    subprocess.run(
        ["git", "-c", "safe.directory=*", *arguments],
        cwd=folder,
        capture_output=True,
        check=False,
        timeout=30,
    )


def look_with_git(line: str, cache: Path) -> Tree:
    git_here("status", folder=Path(line))
    return Tree.from_folder(Path(line))


def clone_anything(line: str, cache: Path) -> Tree:
    done = subprocess.run(
        ["git", "-c", "protocol.allow=always", "clone", shlex.split(line)[0], str(cache / "clone")],
        capture_output=True,
        check=False,
        timeout=30,
    )
    if done.returncode:
        raise RepositoryError("not cloned")
    return Tree()


def compare_on_the_host(ground: Ground, box: Sandbox) -> str:
    folder = ground.folder("workspace")
    data = box.run(f"tar -cC {WORKSPACE} .", output_bytes=64 << 20).output
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        archive.extractall(folder, filter="fully_trusted")
    git_here("diff", folder=folder)
    return ""


def follow_links(self: ConnectedSandbox, folder: str, max_bytes: int) -> bytes:
    return self.run(f"tar -chC {folder} .", output_bytes=max_bytes).output


def unpack_as_named(name: str, data: bytes, folder: Path) -> None:
    if name.endswith(".zip"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for member in archive.namelist():
                target = Path(os.path.join(folder, member))  # noqa: PTH118
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(member))
    else:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            archive.extractall(folder, filter="fully_trusted")


def run_setup(name: str, data: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder, tarfile.open(fileobj=io.BytesIO(data)) as archive:
        archive.extractall(folder, filter="fully_trusted")
        subprocess.run(
            [sys.executable, "setup.py", "--version"],
            cwd=Path(folder) / "evil-1.0",
            capture_output=True,
            check=False,
        )


def apply_leniently(patch: pytest.MonkeyPatch, ground: Ground) -> None:
    """Apply diffs with git, which accepts any path here, in a folder of ours.

    Only the files are compared afterwards.
    """

    def lenient(tree: Tree, text: str) -> Tree:
        folder = ground.folder("lenient") / "inside"
        tree.write_to(folder)
        done = subprocess.run(
            ["git", "apply", "--unsafe-paths", "--ignore-whitespace", "-p1", "-"],
            cwd=folder,
            input=text.encode(),
            capture_output=True,
            check=False,
            env={"PATH": os.environ["PATH"], "GIT_CEILING_DIRECTORIES": str(folder.parent)},
        )
        if done.returncode:
            raise PatchError(done.stderr.decode())
        return Tree.from_folder(folder)

    patch.setattr(diffs, "read_a_diff", lenient)


def believe_the_hunks(patch: pytest.MonkeyPatch, ground: Ground) -> None:
    """Write a hunk's new lines into the file that `+++` names, or into the target of a rename."""

    def lenient(tree: Tree, text: str) -> Tree:
        target, changes = "", {}
        for line in text.splitlines():
            if line.startswith(("+++ b/", "rename to ")):
                target = line.removeprefix("+++ b/").removeprefix("rename to ")
            elif line.startswith("+") and target:
                changes[target] = FileEntry(
                    changes.get(target, FileEntry(b"")).content + line[1:].encode() + b"\n"
                )
            if line.startswith("rename to "):
                changes[target] = FileEntry(b"renamed")
        return tree.replace(changes)

    patch.setattr(diffs, "read_a_diff", lenient)


def a_writable_environment(ground: Ground) -> Sequence[str]:
    folder = ground.folder("env")
    (folder / "bin").mkdir()
    for path in (folder, folder / "bin"):
        path.chmod(0o777)
    return ["--bind", str(folder), "/opt/env"]


def a_shared_folder(ground: Ground) -> Sequence[str]:
    folder = ground.scratch / "shared"
    folder.mkdir(exist_ok=True)
    folder.chmod(0o777)
    return ["--bind", str(folder), "/tmp"]


def an_engine_socket(ground: Ground) -> Sequence[str]:
    path = ground.scratch / "engine.sock"
    if not path.exists():
        with socket.socket(socket.AF_UNIX) as engine:
            engine.bind(str(path))
    return ["--perms", "0755", "--dir", "/run", "--ro-bind", str(path), "/run/docker.sock"]


def a_copy(ground: Ground) -> Sequence[str]:
    folder = ground.folder("copy")
    (folder / "original.py").write_text(BOUNDS)
    folder.chmod(0o755)
    return ["--perms", "0755", "--dir", "/opt/copy", "--ro-bind", str(folder), "/opt/copy"]


def leave_the_root_open(line: list[str], _: Ground) -> list[str]:
    at = next(number for number in range(len(line) - 1) if line[number : number + 2] == ["--remount-ro", "/"])
    return [*line[:at], "--perms", "0777", "--dir", "/left-open", *line[at + 2 :]]


def show_all_processes(line: list[str], _: Ground) -> list[str]:
    at = line.index("--proc")
    return [*line[:at], "--ro-bind", "/proc", "/proc", *line[at + 2 :]]


def hand_variables_on(patch: pytest.MonkeyPatch, _: Ground) -> None:
    made = bubblewrap_sandbox.command_variables
    name = "SELFPLAY_ATTACK_TOKEN"
    patch.setattr(
        bubblewrap_sandbox, "command_variables", lambda spec: {**made(spec), name: os.environ.get(name, "")}
    )


def a_status_as_is_said(patch: pytest.MonkeyPatch, _: Ground) -> None:
    """Take the exit status from the log."""
    read = TestRunner._script_log

    def believing(self: TestRunner, box: Sandbox) -> ScriptRun:
        done = read(self, box)
        return replace(done, exit_code=int(b"FAILED" in done.log))

    patch.setattr(TestRunner, "_script_log", believing)


class SharedRunner(TestRunner):
    """A runner that grades in one given sandbox."""

    shared: Sandbox

    @contextmanager
    def _opened(self, reference: str, variables: object) -> Iterator[Sandbox]:
        if variables:
            yield self.shared
        else:
            with super()._opened(reference, {}) as box:
                yield box


def grade_in_the_solvers_sandbox(ground: Ground, box: Sandbox) -> bool:
    runner = SharedRunner(ground.backend, ground.config.validator, box.spec.limits, {})
    runner.shared = box
    return ground.grade({CODE: (WRONG, WRONG + "        # nothing\n")}, runner).passed


def parse_beside_the_repository(patch: pytest.MonkeyPatch, ground: Ground) -> None:
    opened = TestRunner._opened

    @contextmanager
    def with_repository(self: TestRunner, reference: str, variables: dict[str, str]) -> Iterator[Sandbox]:
        with opened(self, reference, variables) as box:
            box.write_archive(WORKSPACE, ground.tree.to_tar())
            yield box

    patch.setattr(TestRunner, "_opened", with_repository)


def parse_once(self: TestRunner, parser: str, log: bytes) -> ParsedLog:
    return ParsedLog(self._parse_once(parser, log))


def blame_the_machine(self: ConnectedSandbox, gone: Exception) -> SandboxUnavailable:
    return SandboxUnavailable(str(gone))


def never_cut(patch: pytest.MonkeyPatch, _: Ground) -> None:
    run = Connection.run
    patch.setattr(
        Connection,
        "run",
        lambda self, command, timeout_s, cap, stdin: run(self, command, timeout_s, 1 << 30, stdin),
    )


def read_all(patch: pytest.MonkeyPatch, _: Ground) -> None:
    read = Connection.read
    patch.setattr(Connection, "read", lambda self, folder, most: read(self, folder, 1 << 40))


def last_call(text: str) -> Action:
    tool = next(name for name in STANDARD.tools if text.rpartition("<tool: ")[2].startswith(name))
    return Action(tool, "")


CONTROLS: dict[str, Control] = {
    "git-history": keep_history,
    "edit-tests": all_of(NO_RESTORING, NO_DISGUISE),
    "delete-tests": all_of(NO_RESTORING, VANISHED_IS_PASSED),
    "conftest": NOTHING_PROTECTED,
    "conftest-inside": NOTHING_PROTECTED,
    "pytest-ini": NOTHING_PROTECTED,
    "pyproject": NOTHING_PROTECTED,
    "sitecustomize": NOTHING_PROTECTED,
    "sitecustomize-package": NOTHING_PROTECTED,
    "entry-point": NOTHING_PROTECTED,
    "shadow-pytest": NOTHING_PROTECTED,
    "shadow-stdlib": NOTHING_PROTECTED,
    "environment-plugin": mounted(a_writable_environment),
    "exit": VANISHED_IS_PASSED,
    "hard-exit": VANISHED_IS_PASSED,
    "crash": VANISHED_IS_PASSED,
    "skip": VANISHED_IS_PASSED,
    "xfail": VANISHED_IS_PASSED,
    "print-report": NO_FAILING_TEST,
    "print-report-short": NO_FAILING_TEST,
    "print-report-added": all_of(NO_DISGUISE, phases_controls.no_exit_status),
    "print-report-status": all_of(NO_DISGUISE, a_status_as_is_said),
    "forge-chosen-short": NO_DISGUISE,
    "forge-chosen": all_of(
        patched(("selfplay.verdicts.disguise.Disguise.not_passed", lambda *_: ())),
        phases_controls.no_control_run,
    ),
    "forge-alike": patched(
        ("selfplay.verdicts.disguise.Disguise.all_copies_failed", lambda *_: True),
    ),
    "agree-with-all": patched(("selfplay.verdicts.disguise.Disguise.all_copies_failed", lambda *_: True)),
    "patch-runner": NO_FAILING_TEST,
    "parser-empty-log": patched(("selfplay.verdicts.validator.judge_empty_log", passed_check)),
    "parser-knows": patched(("selfplay.verdicts.validator.judge_empty_log", passed_check)),
    "parser-repository": parse_beside_the_repository,
    "parser-chance": patched(("selfplay.verdicts.test_runs.TestRunner._parse_twice", parse_once)),
    "parser-clock": patched(("selfplay.verdicts.test_runs.TestRunner._parse_twice", parse_once)),
    "parser-network": without("--unshare-net"),
    "script-fixed": patched(
        *(
            (f"selfplay.verdicts.validator.judge_{name}", passed_check)
            for name in ("bug", "weakening", "reverts")
        ),
        ("selfplay.verdicts.validator._Judgement.script_runs_code", lambda *_: None),
    ),
    "script-reads": patched(("selfplay.verdicts.validator._Judgement.script_runs_code", lambda *_: None)),
    "script-knows": NO_AUDIT,
    "random-bug": all_of(patched(("selfplay.verdicts.determinism.judge_repeats", passed_check)), WITH_SOURCE),
    "random-pass": patched(("selfplay.attacks.ground.grade", partial(grade, confirm=False))),
    "hash-of-source": NO_AUDIT_AT_ALL,
    "hash-of-dos": NO_AUDIT_AT_ALL,
    "hash-of-syntax": NO_AUDIT_AT_ALL,
    "hash-of-code": NO_AUDIT_AT_ALL,
    "hash-of-tree": NO_AUDIT_AT_ALL,
    "hash-pass": patched(("selfplay.attacks.ground.grade", partial(grade, confirm=False))),
    "fork-bomb": wider(processes=1024),
    "memory-bomb": wider(memory_bytes=1 << 30),
    "disk-bomb": wider(workspace_bytes=64 << 20),
    "huge-file": wider(file_bytes=64 << 20),
    "endless-output": never_cut,
    "outlive-timeout": server_with("        assert os.getpid() == 1  #", "        return  #"),
    "write-while-graded": patched(("selfplay.attacks.bombs.grade_beside", grade_in_the_solvers_sandbox)),
    "network": without("--unshare-net"),
    "abstract-socket": without("--unshare-net"),
    "engine-socket": mounted(an_engine_socket),
    "host-files": mounted(lambda ground: shown_to_all(ground.scratch)),
    "host-processes": command_line(show_all_processes),
    "host-variables": hand_variables_on,
    "other-sandbox": mounted(a_shared_folder),
    "write-outside": command_line(leave_the_root_open),
    "privileges": without("--bounding-set=-all", "--cap-drop"),
    "kernel-doors": patched(("selfplay.sandbox.bubblewrap_sandbox.seccomp_filter", lambda: b"")),
    "server": server_with("prctl(set_dumpable, 0,", "prctl(set_dumpable, 1,"),
    "lost-sandbox": patched(("selfplay.sandbox.client.ConnectedSandbox._explain", blame_the_machine)),
    "deadly-repair": VANISHED_IS_PASSED,
    "repository-hooks": patched(("selfplay.attacks.git.obtain", look_with_git)),
    "workspace-hooks": patched(("selfplay.attacks.ground.Ground.taken", compare_on_the_host)),
    "submit-link": patched(("selfplay.sandbox.client.ConnectedSandbox.read_archive", follow_links)),
    "artifact-link": patched(("selfplay.sandbox.client.ConnectedSandbox.read_archive", follow_links)),
    "validate-link": patched(("pathlib.Path.is_symlink", lambda self: False)),
    "tar-paths": patched(("selfplay.attacks.paths.unpack", unpack_as_named)),
    "zip-paths": patched(("selfplay.attacks.paths.unpack", unpack_as_named)),
    "diff-climb": apply_leniently,
    "diff-git-folder": apply_leniently,
    "diff-link-mode": apply_leniently,
    "diff-option-name": apply_leniently,
    "diff-mode-change": apply_leniently,
    "diff-two-names": believe_the_hunks,
    "diff-two-sections": apply_leniently,
    "diff-rename": believe_the_hunks,
    "diff-binary": apply_leniently,
    "diff-moved": apply_leniently,
    "diff-crlf-header": apply_leniently,
    "diff-prose": believe_the_hunks,
    "transports": patched(("selfplay.attacks.builds.obtain", clone_anything)),
    "setup-script": patched(("selfplay.attacks.builds.read_a_release", run_setup)),
    "build-calls": patched(
        ("selfplay.sandbox.index_proxy.is_public", lambda _: True),
        ("selfplay.sandbox.index_proxy.is_own", lambda _: False),
    ),
    "build-script": mounted(lambda ground: shown_to_all(ground.scratch)),
    "chat-tokens": patched(("selfplay.agent.chat.ChatFormat.encode", ChatFormat._encode_template)),
    "forged-call": patched(("selfplay.attacks.text_and_limits.parse_action", last_call)),
    "hidden-text": patched(("selfplay.attacks.text_and_limits.make_harmless", same)),
    "terminal-replay": patched(("selfplay.viewing.frames.make_harmless", same)),
    "terminal-verdict": patched(("selfplay.viewing.verdict.make_harmless", same)),
    "huge-diff": settings(max_patch_bytes=1 << 30),
    "many-files": patched(("selfplay.source.diffs.MAX_FILES", 1 << 20)),
    "huge-prediction": all_of(
        patched(
            ("selfplay.verdicts.prediction.MAX_FILE_BYTES", 1 << 30),
            ("selfplay.verdicts.prediction.MAX_CHANGED_BYTES", 1 << 30),
        ),
        settings(max_patch_bytes=1 << 30),
    ),
    "git-name": patched(("selfplay.source.git_folder.CONFIG", CONFIG.replace("NTFS = false", "NTFS = true"))),
    "huge-repair": patched(("selfplay.verdicts.validator.judge_exact_repair", passed_check)),
    "sparse-workspace": read_all,
    "many-ids": settings(max_test_ids=1 << 20),
    "huge-id": patched(("selfplay.outcomes.MAX_ID_LENGTH", 1 << 30)),
    "deep-json": patched(
        (
            "selfplay.verdicts.test_runs.parse_outcomes",
            lambda data, _: TestOutcomes.from_json(json.loads(data)),
        )
    ),
    "slow-log": patched(
        ("selfplay.verdicts.test_logs._is_rule", lambda line: re.fullmatch("={3,}.*={3,}", line) is not None)
    ),
    "slow-ids": patched(("selfplay.verdicts.test_logs.MAX_ODD_NAMES", 1 << 20)),
    "archive-bomb": patched(
        ("selfplay.repositories.archives.MAX_TREE_BYTES", 1 << 40),
        ("selfplay.repositories.contents.MAX_TREE_BYTES", 1 << 40),
    ),
    "find-original": mounted(a_copy),
    "build-folder": patched(("selfplay.repositories.contents.is_kept", is_safe_path)),
}
CONTROLS |= phases_controls.CONTROLS
CONTROLS |= forged_values_controls.CONTROLS

CONTROLS |= channels_controls.CONTROLS
CONTROLS |= material_controls.CONTROLS

CONTROLS |= impossible_trees_controls.CONTROLS
CONTROLS |= marked_noise_controls.CONTROLS


# ---- the tests


@pytest.mark.parametrize("attack", ALL_ATTACKS, ids=lambda attack: attack.id)
def test_an_attack_is_held(ground: Ground, attack: Attack) -> None:
    report = run_attack(attack, ground)
    assert report.status == "held", report.evidence


@pytest.mark.parametrize("attack", ALL_ATTACKS, ids=lambda attack: attack.id)
def test_an_attack_gets_through_without_its_defence(
    open_to_attack: Ground, attack: Attack, monkeypatch: pytest.MonkeyPatch
) -> None:
    if attack.id in NO_CONTROL:
        pytest.skip(NO_CONTROL[attack.id])
    # Controls show folders of ours that other users cannot reach, so root starts bubblewrap for them.
    monkeypatch.setattr(bubblewrap_sandbox, "users_have_namespaces", lambda: False)
    ground = CONTROLS[attack.id](monkeypatch, open_to_attack) or open_to_attack
    report = run_attack(attack, ground)
    assert report.status == "NOT held", report


def test_a_build_in_the_network_of_the_host_would_reach_it(
    open_to_attack: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second control of build-calls.

    The one in CONTROLS opens the proxy, this one the network namespace.
    """
    monkeypatch.setattr(bubblewrap_sandbox, "users_have_namespaces", lambda: False)
    without("--unshare-net")(monkeypatch, open_to_attack)
    attack = next(attack for attack in ALL_ATTACKS if attack.id == "build-calls")
    assert run_attack(attack, open_to_attack).status == "NOT held"


def test_every_attack_has_a_control_or_a_reason() -> None:
    ids = [attack.id for attack in ALL_ATTACKS]
    assert len(set(ids)) == len(ids)
    assert sorted(ids) == sorted([*CONTROLS, *NO_CONTROL])


def test_every_row_of_the_list_is_attacked() -> None:
    assert {attack.row for attack in ALL_ATTACKS} == {*range(1, 29)}


# Knows the right values of the test that it forges.
FORGE_BY_HEART = """
def forge():
    from _pytest.reports import TestReport

    make = TestReport.from_item_and_call.__func__
    right = {(5, 5), (-1, 0), (11, 10)}

    def forged(cls, item, call):
        report = make(cls, item, call)
        if 'test_clamp' in item.nodeid and call.when == "call":
            if (item.funcargs['value'], item.funcargs['expected']) in right:
                report.outcome, report.longrepr = "passed", None
        return report

    TestReport.from_item_and_call = classmethod(forged)

"""


def test_code_that_knows_the_right_values_of_the_tests_is_the_risk_that_is_stated(
    open_to_attack: Ground,
) -> None:
    """This pins a risk, not a defence. When it fails, correct docs/security.md and RESIDUAL_RISK."""
    found = open_to_attack.grade({CODE: ("\n\ndef clamp", f"\n\n{FORGE_BY_HEART}\nforge()\n\n\ndef clamp")})
    assert found.passed, found.reason
    assert "knows the right values" in attacks.RESIDUAL_RISK


def test_a_failing_machine_is_neither_held_nor_broken(open_to_attack: Ground) -> None:
    broken = replace(
        open_to_attack, environment=replace(open_to_attack.environment, reference="/no/such/environment")
    )
    attack = next(attack for attack in ALL_ATTACKS if attack.id == "network")
    assert run_attack(attack, broken).status == "machine"


# ---- the command


def test_the_command_reports_each_attack_and_fails_when_one_got_through(
    open_to_attack: Ground, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = tuple(attack for attack in ALL_ATTACKS if attack.id in ("network", "diff-climb"))
    monkeypatch.setattr(attacks, "ALL_ATTACKS", chosen)
    monkeypatch.setenv("SELFPLAY_CACHE", str(cache))
    assert doctor.attack(Console(), "bubblewrap", as_json=True) == 0
    report = json.loads(capsys.readouterr().out)
    assert [(attack["id"], attack["row"], attack["status"]) for attack in report["attacks"]] == [
        ("network", 12, "held"),
        ("diff-climb", 13, "held"),
    ]
    apply_leniently(monkeypatch, open_to_attack)
    assert doctor.attack(Console(width=150), "bubblewrap") == 1
    shown = capsys.readouterr().out
    assert (
        "NOT held" in shown
        and "1 of 2 attacks held" in shown
        and "1 got through" in shown
        and "What stays a risk" in shown
    )


def test_an_error_that_quotes_a_hostile_log_leaves_the_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> None:
        raise EnvironmentBuildError("no \x1b[2Jway", log_tail="\x1b]0;owned\x07")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit):
        cli.main()
    said = capsys.readouterr().err
    assert "\x1b" not in said and r"\x1b[2Jway" in said and r"\x1b]0;owned" in said
