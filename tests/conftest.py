"""Fixtures that many modules use, and the profiles of hypothesis.

By default a property gets a few fixed examples, with HYPOTHESIS_PROFILE=fuzz (`make fuzz`) many random ones.
"""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from machine import open_or_skip
from selfplay.sandbox.base import SandboxBackend

SLOW_MACHINES = [HealthCheck.too_slow, HealthCheck.data_too_large]

settings.register_profile(
    "fast",
    max_examples=40,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=SLOW_MACHINES,
)
settings.register_profile(
    "fuzz",
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "300")),
    deadline=None,
    print_blob=True,
    suppress_health_check=SLOW_MACHINES,
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty cache folder for the tests of one module."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def backend(cache: Path) -> SandboxBackend:
    """Bubblewrap with that cache. Tests are skipped without it."""
    return open_or_skip("bubblewrap", cache)
