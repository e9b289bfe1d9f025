"""Finds recipes and repository lists: files, or those that ship, by their names. Reads what people wrote."""

from __future__ import annotations

import difflib
from pathlib import Path

from selfplay.errors import ConfigError, UsageError
from selfplay.runtime.resources import resource


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


def read_text(path: Path, what: str, remedy: str = "") -> str:
    """The text of a file that a person wrote, in UTF-8, with a byte-order mark or without.

    what: its kind, for the message. Raises UsageError that names the file and why it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"it is no text in UTF-8 (byte {error.start})"
    except OSError as error:
        reason = error.strerror or str(error)
    raise UsageError(f"cannot read {what} {path}: {reason}.{remedy and f' {remedy}'}")
