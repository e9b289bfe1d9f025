"""`selfplay train --dry-run` with the recipes that ship."""

from pathlib import Path

import pytest

from selfplay.cluster import machines
from selfplay.commands import dry_run
from selfplay.errors import UsageError
from selfplay.runtime.resources import resource

RECIPES = sorted(
    recipe.stem for recipe in resource("recipes").glob("*.toml") if not recipe.stem.startswith("warm-start")
)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_has_a_plan(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machines, "_cached", lambda _: None)  # no model is on this machine
    monkeypatch.chdir(tmp_path)
    dry_run.dry_run_training(Path("quickstart-repos"), Path(recipe), [])
    said = capsys.readouterr().out
    assert "parameters" in said
    assert "Placement" in said


def test_the_paper_s_recipe_plans_the_paper_s_policy(capsys: pytest.CaptureFixture[str]) -> None:
    dry_run.dry_run_training(Path("quickstart-repos"), Path("paper"), [])
    said = capsys.readouterr().out
    assert "facebook/cwm-sft: 32.58 billion parameters" in said


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.reference_share=0.5", "needs reference bugs: set train.bugs"),
        ('evaluation.tasks=["no-such-set"]', "no-such-set"),
    ],
)
def test_bugs_and_tasks_are_checked_as_a_run_checks_them(override: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        dry_run.dry_run_training(Path("quickstart-repos"), Path("quickstart"), [override])
