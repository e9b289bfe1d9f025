"""The line that a run prints when none of an update's injectors submits anything."""

import pytest

from selfplay.agent.episode import FinishReason
from selfplay.config import known_keys
from selfplay.orchestrator.advice import REMEDIES, advice_on_submissions
from store_rows import a_group, an_episode


def injectors(*finishes, masked=False):
    group = a_group("i", "injector", size=len(finishes))
    return [an_episode(group, member, finish=finish, masked=masked) for member, finish in enumerate(finishes)]


def test_the_most_frequent_end_decides_the_remedy():
    line = advice_on_submissions(3, injectors("bad_format", "max_turns", "bad_format"))
    assert line.startswith(
        "update 3: no injector submitted an artifact (bad_format 2, max_turns 1). Remedy: "
    )
    assert "--config quickstart " in line


@pytest.mark.parametrize("rows", [[], injectors("bad_format", "submitted"), injectors("stuck", masked=True)])
def test_nothing_is_said_if_one_submits_or_only_the_machine_failed(rows):
    assert advice_on_submissions(1, rows) == ""


def test_every_end_of_the_policy_has_a_remedy_that_names_settings_that_exist():
    assert set(REMEDIES) == set(FinishReason) - {FinishReason.SUBMITTED, FinishReason.ENV_ERROR}
    words = " ".join(REMEDIES.values()).replace(",", " ").replace(";", " ").split()
    named = [word for word in words if "." in word and word.split(".")[0] in ("agent", "injector", "sandbox")]
    assert named and set(named) <= set(known_keys())
