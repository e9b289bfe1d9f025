"""A list of repositories is prepared side by side, and told in the order of the list."""

import io
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from rich.console import Console

from selfplay.config import Config
from selfplay.errors import RunError
from selfplay.repositories import prepare as preparing
from selfplay.repositories.environment import Environment
from selfplay.repositories.prepare import Preparer
from selfplay.repositories.specs import RepositorySpec, parse_spec
from selfplay.sandbox.base import Limits, SandboxBackend
from shop_repository import CODE, PACKAGE, write_shop

pytestmark = pytest.mark.sandbox


@dataclass
class Records:
    """Remembers what was recorded, in order."""

    played: str = ""
    lines: list[str] = field(default_factory=list)

    def has_played(self, repository: str) -> bool:
        return repository == self.played

    def record_ready(self, environment: Environment) -> None:
        self.lines.append(f"{environment.repository} ready")

    def record_failed(self, repository: str, reason: str, log_tail: str) -> None:
        self.lines.append(f"{repository} failed")


@pytest.fixture
def specs(tmp_path: Path) -> list[RepositorySpec]:
    """One that is refused, then two that are admitted, with the same dependencies."""
    kinds = {
        "bad": {**CODE, "tests/test_a.py": "def test_a():\n    assert 0\n"},
        "one": PACKAGE,
        "two": {**PACKAGE, "more.py": "x = 1\n"},
    }
    found = []
    for name, files in kinds.items():
        folder = write_shop(files, tmp_path / name)
        found.append(parse_spec(str(folder.rename(folder.with_name(name)))))
    return found


def preparer(backend: SandboxBackend, records: Records | None, console: Console) -> Preparer:
    return Preparer(backend, Config(), Limits(), console, records)


def test_all_of_a_list_are_prepared_and_recorded_in_its_order(
    specs: list[RepositorySpec],
    backend: SandboxBackend,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SELFPLAY_CACHE", str(cache))
    records, console = Records(), Console(file=io.StringIO(), width=200)
    found = preparer(backend, records, console).prepare_all(specs)
    assert list(found) == ["one", "two"]
    assert records.lines == ["bad failed", "one ready", "two ready"]
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.index("✗ bad: left out.") < text.index("✓ one: 4 tests pass") < text.index("✓ two: 4 tests")


def test_a_repository_that_the_run_has_played_on_stops_it(
    specs: list[RepositorySpec],
    backend: SandboxBackend,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SELFPLAY_CACHE", str(cache))
    records, console = Records(played="bad"), Console(file=io.StringIO())
    with pytest.raises(RunError, match="this run has played on bad, which cannot be prepared now"):
        preparer(backend, records, console).prepare_all(specs)
    assert records.lines == []


def test_two_repositories_are_prepared_at_the_same_time(
    specs: list[RepositorySpec],
    backend: SandboxBackend,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both = threading.Barrier(2)

    def fetch_together(spec: RepositorySpec, cache: Path) -> None:
        both.wait(timeout=60)
        raise preparing.RepositoryError(f"{spec.name}: as asked")

    monkeypatch.setattr(preparing, "fetch", fetch_together)
    monkeypatch.setattr("selfplay.repositories.side_by_side.usable_cores", lambda: 2)
    console = Console(file=io.StringIO())
    assert preparer(backend, None, console).prepare_each(specs[:2]) == [None, None]
    assert "one: as asked" in console.file.getvalue()  # type: ignore[attr-defined]
