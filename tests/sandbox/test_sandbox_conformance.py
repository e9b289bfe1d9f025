"""Both backends keep the sandbox contract: each check runs against the real backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from machine import open_or_skip
from selfplay.sandbox import conformance
from selfplay.sandbox.base import Sandbox, SandboxBackend, SandboxSpec
from selfplay.sandbox.bubblewrap_sandbox import BubblewrapBackend

pytestmark = pytest.mark.sandbox


@pytest.fixture(scope="module", params=["bubblewrap", "docker"])
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SandboxBackend:
    return open_or_skip(request.param, tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("check", conformance.ALL_CHECKS, ids=lambda check: check.__name__)
def test_a_sandbox(check: Callable[[SandboxBackend, SandboxSpec], None], backend: SandboxBackend) -> None:
    check(backend, SandboxSpec(environment=""))


class ForgetfulBackend(BubblewrapBackend):
    """Bubblewrap without the spec's variables."""

    @contextmanager
    def open(self, spec: SandboxSpec) -> Iterator[Sandbox]:
        with super().open(replace(spec, variables={})) as sandbox:
            yield sandbox


def test_a_back_end_that_breaks_a_promise_is_told_which(cache: Path) -> None:
    open_or_skip("bubblewrap", cache)
    failures = conformance.failed_checks(ForgetfulBackend(cache), SandboxSpec(environment=""))
    assert list(failures) == ["starts_from_a_clean_environment"]
    assert failures["starts_from_a_clean_environment"].startswith("not true: assert ")
