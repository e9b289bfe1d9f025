"""Finds data that ships with the code: prompts, image recipes, run recipes, the carried policy. The same from a checkout and a wheel."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def resource(name: str) -> Path:
    """The folder of `prompts`, `sandboxes`, `recipes` or `data/…`, whether installed or in a checkout.

    Raises FileNotFoundError naming both places.
    """
    if name.startswith("data"):
        return PACKAGE / name
    checkout = PACKAGE.parent / ("runs/recipes" if name == "recipes" else name)
    installed = PACKAGE / "_resources" / name
    for place in (checkout, installed):
        if place.is_dir():
            return place
    raise FileNotFoundError(
        f"selfplay's own {name!r} folder is neither at {checkout} nor at {installed}; reinstall the package."
    )
