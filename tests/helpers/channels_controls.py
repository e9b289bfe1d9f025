"""Controls of attacks/channels.py: each removes one defence from the real code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count

import pytest

from selfplay.attacks import Ground
from selfplay.sandbox import seccomp
from selfplay.sandbox.base import WORKSPACE, Sandbox
from selfplay.source.trees import Tree
from selfplay.verdicts.test_runs import ScriptRun, TestRunner

FILTER = "selfplay.sandbox.bubblewrap_sandbox.seccomp_filter"


def patched(*changes: tuple[str, object]) -> Callable[[pytest.MonkeyPatch, Ground], None]:
    def control(patch: pytest.MonkeyPatch, _: Ground) -> None:
        for name, value in changes:
            patch.setattr(name, value)

    return control


def share_folders(patch: pytest.MonkeyPatch, _: Ground) -> None:
    """Plain binds, and a filter that believes in overlays."""
    patch.setattr("selfplay.sandbox.bubblewrap_sandbox.can_layer", lambda: False)
    patch.setattr(FILTER, lambda **_: seccomp.seccomp_filter())


def once_more_after_a_signal(patch: pytest.MonkeyPatch, _: Ground) -> None:
    once = TestRunner._run_script_once

    def believing(self: TestRunner, *given: object) -> ScriptRun:
        done = once(self, *given)
        return once(self, *given) if done.exit_code == 128 + 9 else done

    patch.setattr(TestRunner, "_run_script", believing)


def count_users(patch: pytest.MonkeyPatch, _: Ground) -> None:
    numbers = count()
    patch.setattr("selfplay.sandbox.bubblewrap_sandbox.secrets.randbelow", lambda _: next(numbers))


def ask_about_shared_files(patch: pytest.MonkeyPatch, ground: Ground) -> None:
    share_folders(patch, ground)
    patch.setattr(FILTER, lambda **_: b"")


def parse_in_the_environment(patch: pytest.MonkeyPatch, ground: Ground) -> None:
    opened = TestRunner._opened

    @contextmanager
    def with_environment(self: TestRunner, reference: str, variables: dict[str, str]) -> Iterator[Sandbox]:
        with opened(self, reference or ground.environment.reference, variables) as box:
            yield box

    patch.setattr(TestRunner, "_opened", with_environment)


def write_no_repository(box: Sandbox, tree: Tree, _: Sequence[str] = ()) -> None:
    box.write_archive(WORKSPACE, tree.to_tar())


CONTROLS = {
    "vsock": patched((FILTER, lambda **_: b"")),
    "kill-again": once_more_after_a_signal,
    "count-sandboxes": count_users,
    "run-or-episode": patched(("selfplay.verdicts.test_runs.fill_workspace", write_no_repository)),
    "locks": patched((FILTER, lambda **_: b"")),
    "watches": share_folders,
    "file-memory": ask_about_shared_files,
    "parser-environment": parse_in_the_environment,
}
