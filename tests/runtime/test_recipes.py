"""Recipes are found by name from any folder, in a checkout and in an installed package."""

import shutil
from pathlib import Path

import pytest

from selfplay.config import load_config
from selfplay.errors import ConfigError
from selfplay.repositories.specs import read_repository_list
from selfplay.runtime import resources
from selfplay.warm_start.settings import read_settings


@pytest.fixture(params=["checkout", "installed"])
def elsewhere(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: one without recipes. An installed package has its recipes inside itself."""
    if request.param == "installed":
        package = tmp_path / "site-packages" / "selfplay"
        shutil.copytree(resources.resource("recipes"), package / "_resources" / "recipes")
        monkeypatch.setattr(resources, "PACKAGE", package)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("name", ["quickstart", "quickstart.toml"])
def test_a_recipe_is_found_by_its_name(elsewhere: Path, name: str) -> None:
    (elsewhere / "quickstart").mkdir()  # a folder of that name is no recipe
    assert load_config(Path(name)).train.updates == 8
    assert read_settings(Path("warm-start"), []).stages[-1].name == "executed"
    assert "toolz" in {spec.name.partition("-")[0] for spec in read_repository_list(Path("quickstart-repos"))}


def test_a_file_wins_over_a_recipe(elsewhere: Path) -> None:
    (elsewhere / "quickstart.toml").write_text("seed = 77\n")
    (elsewhere / "quickstart-repos.txt").write_text("pypi:parse==1.20.2\n")
    assert load_config(Path("quickstart.toml")).seed == 77
    assert load_config(elsewhere / "quickstart.toml").seed == 77
    assert len(read_repository_list(Path("quickstart-repos.txt"))) == 1


def test_a_wrong_name_lists_the_recipes(elsewhere: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"quickstrat: there is no such file.*cluster-1.*paper, pretrained, quickstart, warm-start",
    ) as e:
        load_config(Path("quickstrat"))
    assert "Did you mean quickstart?" in str(e.value)
    with pytest.raises(
        ConfigError, match=r"my/quickstart\.toml: there is no such file.*Did you mean quickstart\?"
    ):
        load_config(Path("my/quickstart.toml"))
    with pytest.raises(
        ConfigError, match="list repos: there is no such file.*learning-repos, quickstart-repos"
    ):
        read_repository_list(Path("repos"))
    with pytest.raises(ConfigError, match="settings nothing: there is no such file.*warm-start"):
        read_settings(Path("nothing"), [])
