"""Finds the data that ships with the code: prompts, image recipes, run recipes, the carried policy.

The same name works in a checkout and in an installed wheel.
"""

from __future__ import annotations

from pathlib import Path

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
