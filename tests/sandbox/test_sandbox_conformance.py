"""Both backends keep the sandbox contract: each check runs against the real backend."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from machine import open_or_skip
from selfplay.sandbox import conformance
from selfplay.sandbox.base import SandboxBackend, SandboxSpec

pytestmark = pytest.mark.sandbox


@pytest.fixture(scope="module", params=["bubblewrap", "docker"])
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SandboxBackend:
    return open_or_skip(request.param, tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("check", conformance.ALL_CHECKS, ids=lambda check: check.__name__)
def test_a_sandbox(check: Callable[[SandboxBackend, SandboxSpec], None], backend: SandboxBackend) -> None:
    check(backend, SandboxSpec(environment=""))
