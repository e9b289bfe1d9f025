"""A kill while an environment is cached: what is incomplete counts as missing, so it is built again."""

import json
from pathlib import Path
from typing import Any, cast

import pytest

from selfplay.repositories.cache import read_facts
from selfplay.sandbox.bubblewrap_environments import EnvironmentFolder
from selfplay.sandbox.bubblewrap_host import python_identity

NO_SANDBOX: Any = None


class Backend:
    """It has no environment: a kill came before its folder got its name."""

    def environment_exists(self, key: str) -> bool:
        return False


@pytest.mark.parametrize(
    "text",
    ["", '{"repository": "to', '{"build_key": "k"}', json.dumps({"build_key": "k", "image": ""})],
    ids=["empty", "torn", "a key is missing", "its installation is missing"],
)
def test_incomplete_facts_are_no_environment(tmp_path: Path, text: str) -> None:
    facts = tmp_path / "key.json"
    facts.write_text(text)
    assert read_facts(facts, cast(Any, None), cast(Any, Backend()), cast(Any, None)) is None


@pytest.mark.parametrize("left", ["nothing", "an incomplete folder"])
def test_a_complete_build_takes_the_place_of_an_incomplete_one(tmp_path: Path, left: str) -> None:
    environments = EnvironmentFolder(tmp_path, NO_SANDBOX)
    if left != "nothing":
        (tmp_path / "key" / "env").mkdir(parents=True)
    assert not environments.exists("key")
    building = tmp_path / ".building-mine"
    (building / "env").mkdir(parents=True)
    (building / "python").write_text(python_identity())
    environments._publish(building, "key")
    assert environments.exists("key")
