"""A repository that was refused is refused at once the next time, until something changes."""

from pathlib import Path

import pytest

from selfplay.errors import EnvironmentBuildError
from selfplay.repositories import refusals
from selfplay.repositories.refusals import is_of_machine
from selfplay.sandbox.base import SandboxBackend
from shop_repository import CODE, PACKAGE, prepared_shop, shop_checkout

FAILING = {**CODE, "tests/test_a.py": "def test_a():\n    assert 0, 'odd'\n"}


def refused(
    files: dict[str, str],
    backend: SandboxBackend,
    cache: Path,
    folder: Path,
    hints: str = "",
    **settings: float,
) -> tuple[EnvironmentBuildError, list[str]]:
    """The refusal, and what the person who waited was told before."""
    said: list[str] = []
    with pytest.raises(EnvironmentBuildError) as caught:
        prepared_shop(shop_checkout(files, folder, cache, hints), backend, cache, said, **settings)
    return caught.value, said


@pytest.mark.sandbox
def test_a_refusal_is_known_the_second_time_and_says_how_to_try_again(
    backend: SandboxBackend, cache: Path, tmp_path: Path
) -> None:
    first, said = refused(FAILING, backend, cache, tmp_path)
    assert said
    second, said = refused(FAILING, backend, cache, tmp_path)
    assert said == []
    assert second.log_tail == first.log_tail
    reason, again = str(second).split("\n")
    assert reason == str(first)
    assert again.startswith(
        "Known from an earlier try. To try again, change its line or a setting, or delete "
    )

    Path(again.rpartition(" delete ")[2]).unlink()
    assert refused(FAILING, backend, cache, tmp_path)[1]


@pytest.mark.sandbox
def test_a_changed_line_setting_tree_or_version_tries_again(
    backend: SandboxBackend, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {**FAILING, "tests/test_b.py": "def test_b():\n    assert 0, 'changed'\n"}
    refused(files, backend, cache, tmp_path)
    assert refused(files, backend, cache, tmp_path)[1] == []
    assert refused(files, backend, cache, tmp_path, 'test="pytest tests"')[1]
    assert refused(files, backend, cache, tmp_path, test_timeout_s=100)[1]
    monkeypatch.setattr(refusals, "_sources_digest", lambda: "another version")
    assert refused(files, backend, cache, tmp_path)[1]
    monkeypatch.undo()
    prepared_shop(shop_checkout({**files, **PACKAGE}, tmp_path, cache), backend, cache)


@pytest.mark.sandbox
@pytest.mark.parametrize(
    ("script", "is_kept"),
    [
        ("echo No matching distribution found for shop-parts; exit 1", True),
        ('echo "WARNING: Retrying (Retry(total=4)) after connection broken by"; exit 1', False),
        ('echo "OSError: [Errno 28] No space left on device"; exit 1', False),
    ],
)
def test_a_refusal_that_the_machine_may_have_caused_is_not_kept(
    script: str, is_kept: bool, backend: SandboxBackend, cache: Path, tmp_path: Path
) -> None:
    for number in range(2):
        error, said = refused(PACKAGE, backend, cache, tmp_path, f"install='{script}'")
        assert error.of_machine is not is_kept or number
        assert bool(said) is not (is_kept and number == 1)


@pytest.mark.sandbox
def test_an_installation_that_takes_too_long_is_not_kept(
    backend: SandboxBackend, cache: Path, tmp_path: Path
) -> None:
    for _ in range(2):
        error, said = refused(PACKAGE, backend, cache, tmp_path, "install='sleep 1000'", build_timeout_s=5)
        assert error.of_machine and said


@pytest.mark.parametrize(
    "line",
    [
        "ReadTimeoutError: HTTPSConnectionPool(host='index', port=443): Read timed out.",
        "ERROR: HTTP error 503 while getting https://index/a.whl",
        "socket.gaierror: [Errno -3] Temporary failure in name resolution",
        "the build of environment 12 did not end within 600 s; whole log: build-1.log",
    ],
)
def test_faults_of_the_network_are_known_by_what_pip_says(line: str) -> None:
    assert is_of_machine(f"Collecting a\n{line}\n")


def test_a_fault_of_the_requirements_is_none_of_the_machine() -> None:
    assert not is_of_machine(
        "ERROR: Could not find a version that satisfies the requirement nothing==99 (from versions: 1.0)\n"
        "ERROR: No matching distribution found for nothing==99\n"
        "error: subprocess-exited-with-error\ngcc: command not found\n"
    )
