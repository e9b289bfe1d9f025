"""Which commands of an episode use a shared run of the given script. What they print: test_roles.py."""

import pytest

from selfplay.agent.shared_tests import around_script

SCRIPT = "bash /submit/test_script.sh"


@pytest.mark.parametrize(
    "after",
    [
        "",
        " | tail -n 1",
        " | grep -oE '[0-9]+ (failed|error)' && git checkout -q pkg/a.py",
        " 2>&1 | grep -c PASSED; echo ${PIPESTATUS[*]}",
        " > /tmp/log; echo $?",
        " || true",
        "\necho done",
    ],
)
def test_a_command_that_begins_with_the_script_uses_a_shared_run(after: str) -> None:
    assert around_script(SCRIPT + after) == ("", after)


def test_an_injector_may_store_its_diff_first() -> None:
    store = "git diff > /submit/bug_inject.diff; "
    assert around_script(f"{store}{SCRIPT} | grep -m 3 '^tests/test_a.py:'") == (
        store,
        " | grep -m 3 '^tests/test_a.py:'",
    )


@pytest.mark.parametrize(
    "command",
    [
        f"cd pkg; {SCRIPT}",
        f"git diff > /submit/test_script.sh; {SCRIPT}",
        f"PYTHONHASHSEED=1 {SCRIPT}",
        f"{SCRIPT} -k one",
        f"{SCRIPT}.orig",
        f"{SCRIPT} > /tmp/log & wait $!",
        f"{SCRIPT} &> /tmp/log",
        f"{SCRIPT} | wc -l < pkg/a.py",
        "python -m pytest",
    ],
)
def test_every_other_command_runs_unchanged(command: str) -> None:
    assert around_script(command) is None
