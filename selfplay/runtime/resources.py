"""Finds the data that ships with the code: prompts, image recipes, run recipes, the carried policy.

The same name works in a checkout and in an installed wheel.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from selfplay.errors import ConfigError

PACKAGE = Path(__file__).resolve().parents[1]


def resource(name: str) -> Path:
    """The folder called `prompts`, `sandboxes`, `recipes` or `data/…`.

    Raises FileNotFoundError, naming the folder of the checkout and of the wheel, when neither exists.
    """
    if name.startswith("data"):
        return PACKAGE / name
    checkout = PACKAGE.parent / ("runs/recipes" if name == "recipes" else name)
    installed = PACKAGE / "_resources" / name
    for folder in (checkout, installed):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"selfplay's own {name!r} folder is neither at {checkout} nor at {installed}; reinstall the package."
    )


def find_recipe(given: Path, what: str, suffix: str = ".toml") -> Path:
    """The file `given` if there is one, else the recipe of that name, with or without its suffix.

    what: its kind, for the message. suffix: ".toml" for settings, ".txt" for repository lists.
    Raises ConfigError that names the recipes.
    """
    if given.exists() and not given.is_dir():  # /dev/stdin is read too
        return given
    folder = resource("recipes")
    name = given.name if given.suffix == suffix else f"{given.name}{suffix}"
    if given.parent == Path() and (folder / name).is_file():
        return folder / name
    problem = "it is a folder" if given.is_dir() else "there is no such file"
    names = sorted(recipe.stem for recipe in folder.glob(f"*{suffix}"))
    close = difflib.get_close_matches(given.stem, names, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise ConfigError(
        f"cannot read {what} {given}: {problem}. Recipes that ship, in {folder}: {', '.join(names)}.{hint}"
    )
