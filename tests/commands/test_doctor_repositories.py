"""`selfplay doctor` names what prepared repositories leave out, and which were refused."""

import json
from pathlib import Path

from selfplay.commands.prepared_repositories import MOST, prepared_repositories
from selfplay.errors import EnvironmentBuildError
from selfplay.repositories.refusals import write_refusal


def write(facts: Path, name: str, **record: object) -> None:
    (facts / f"{name}.json").write_text(json.dumps({"repository": name, **record}))


def test_an_empty_cache_is_not_mentioned(tmp_path: Path) -> None:
    assert prepared_repositories(tmp_path / "absent") == []


def test_refusals_and_what_is_left_out_are_named_with_their_reasons(tmp_path: Path) -> None:
    write(tmp_path, "inn")
    write(tmp_path, "shop", notes=["left out links: a"], test_notes=["left out, too long: t.py (30 s)"])
    refusal = tmp_path / "0123.refused.json"
    write_refusal(refusal, EnvironmentBuildError("bad-1.0: no test passes\nmore"), "conditions")
    (tmp_path / "damaged.json").write_text("{")
    counts, refused, shop = prepared_repositories(tmp_path)
    assert counts.detail == f"2 prepared, 1 refused in {tmp_path}"
    assert (refused.ok, refused.detail, refused.required) == (False, "bad-1.0: no test passes", False)
    assert refused.remedy == f"to try again, delete {refusal}"
    assert shop.detail == "shop: left out links: a; left out, too long: t.py (30 s)"


def test_a_long_list_is_cut_and_says_so(tmp_path: Path) -> None:
    for number in range(MOST + 3):
        write(tmp_path, f"shop-{number:02}", notes=["left out"])
    counts, *told = prepared_repositories(tmp_path)
    assert len(told) == MOST
    assert counts.detail.endswith("; 3 more are not shown")
