"""Reads a repository's own pytest configuration as pytest does: which file counts, and what it sets.

Runs nothing. Invariant: a damaged file gives no options here; pytest itself then says what is wrong with it.
"""

from __future__ import annotations

import configparser
import contextlib
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfplay.source.trees import Tree

# In the order in which pytest looks for them in a folder.
NAMES = ("pytest.toml", ".pytest.toml", "pytest.ini", ".pytest.ini", "pyproject.toml", "tox.ini", "setup.cfg")
DEDICATED = ("pytest.toml", ".pytest.toml", "pytest.ini", ".pytest.ini")  # they count even if they are empty


@dataclass(frozen=True)
class Configuration:
    """path: the file, "" if there is none; settings: names and values, lists as lists."""

    path: str
    settings: Mapping[str, Any]

    def words(self, name: str) -> list[str]:
        """A setting that is a list of words, as pytest splits it. [] if it cannot be split."""
        value = self.settings.get(name, "")
        if isinstance(value, list):
            return [str(word) for word in value]
        with contextlib.suppress(ValueError):
            return shlex.split(str(value))
        return []

    def with_setting(self, name: str, value: str) -> Configuration:
        return Configuration(self.path, {**self.settings, name: value})

    def is_true(self, name: str) -> bool:
        return str(self.settings.get(name, "")).lower() in ("1", "true", "yes", "on")


def find_configuration(tree: Tree, roots: Sequence[str], named: str = "") -> Configuration:
    """The configuration that pytest uses for tests below `roots` (folders or files; none: the workspace).

    named: the file of `-c`.
    """
    if named:
        return Configuration(named, _settings(tree, named, is_named=True) or {})
    ancestor = PurePosixPath(_common_folder(tree, roots))
    for folder in (ancestor, *ancestor.parents):
        for name in NAMES:
            path = str(folder / name)
            settings = _settings(tree, path) if path in tree else None
            if settings is not None:
                return Configuration(path, settings)
    return Configuration("", {})


def other_configurations(tree: Tree, used: str) -> bool:
    """Whether a folder holds a configuration that pytest would take for the files below it instead."""
    return any(
        path.rpartition("/")[2] in NAMES
        and path != used
        and "/" in path
        and _settings(tree, path) is not None
        for path in tree
    )


def _common_folder(tree: Tree, roots: Sequence[str]) -> str:
    folders = [PurePosixPath(root).parent if root in tree else PurePosixPath(root) for root in roots]
    if not folders:
        return "."
    first = folders[0]
    for folder in (first, *first.parents):
        if all(folder == other or folder in other.parents for other in folders):
            return str(folder)
    return "."


def _settings(tree: Tree, path: str, is_named: bool = False) -> Mapping[str, Any] | None:
    """The settings in a file, None if it configures no pytest."""
    if path not in tree:
        return None
    name, text = path.rpartition("/")[2], tree.text(path)
    if name.endswith(".toml"):
        return _toml_settings(name, text, is_named)
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    with contextlib.suppress(configparser.Error):
        parser.read_string(text)
    section = "tool:pytest" if name.endswith(".cfg") else "pytest"
    if parser.has_section(section):
        return dict(parser.items(section))
    return {} if name in DEDICATED else None


def _toml_settings(name: str, text: str, is_named: bool) -> Mapping[str, Any] | None:
    document: Any = {}
    with contextlib.suppress(tomllib.TOMLDecodeError, RecursionError):
        document = tomllib.loads(text)
    if name in DEDICATED or is_named:
        found = document.get("pytest")
        if isinstance(found, dict):
            return found
    tool = document.get("tool")
    found = tool.get("pytest") if isinstance(tool, dict) else None
    if isinstance(found, dict) and found:
        older = found.get("ini_options")
        return older if isinstance(older, dict) else found
    return {} if name in DEDICATED else None
