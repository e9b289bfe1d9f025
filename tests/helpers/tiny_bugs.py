"""Makes artifacts on the tiny repository from changes of code and tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from selfplay.repositories.build import prepare_environment
from selfplay.repositories.environment import Environment
from selfplay.repositories.fetching import fetch
from selfplay.repositories.specs import parse_spec
from selfplay.sandbox.base import Limits, SandboxBackend
from selfplay.settings.playing import EnvironmentSettings
from selfplay.source.apply import diff_trees
from selfplay.source.trees import FileEntry, Tree
from selfplay.verdicts.artifact import Artifact
from tiny_repository import build_tiny_repository

# Path -> the new text, or (old, new) for a part of it, or None to delete the file.
Changes = Mapping[str, str | tuple[str, str] | None]

TESTS = ("tests/test_numbers.py", "tests/test_text.py")
CLAMP_BUG = {"tiny/numbers.py": ("        return high\n", "        return low\n")}
CLAMP_WEAKENED = {"tests/test_numbers.py": (", (11, 10)]", "]")}
CLAMP_TEST = "tests/test_numbers.py::test_clamp[11-10]"
TWO_FILES_BUG = {**CLAMP_BUG, "tiny/text.py": ("word[0].upper()", "word[0]")}
VOWELS_BUG = {"tiny/letters.py": None}
VOWELS_WEAKENED = {
    "tests/test_text.py": ('    assert count_vowels("Education") == 5\n', "    assert count_vowels\n")
}
VOWELS_TEST = "tests/test_text.py::test_count_vowels"


def prepare_tiny(backend: SandboxBackend, folder: Path, cache: Path, git: bool = False) -> Environment:
    checkout = fetch(parse_spec(str(build_tiny_repository(folder / "tiny", git))), cache)
    return prepare_environment(
        checkout, backend, EnvironmentSettings(baselines=2), Limits(), cache, lambda _: None
    )


def changed(tree: Tree, changes: Changes) -> Tree:
    entries: dict[str, FileEntry | None] = {}
    for path, change in changes.items():
        if isinstance(change, tuple):
            text = tree.text(path)
            assert change[0] in text, f"{change[0]!r} is not in {path}"
            entries[path] = FileEntry(text.replace(*change).encode())
        else:
            entries[path] = None if change is None else FileEntry(change.encode())
    return tree.replace(entries)


def diff(tree: Tree, changes: Changes) -> str:
    return diff_trees(tree, changed(tree, changes))


def make_artifact(
    environment: Environment,
    bug: Changes | str = CLAMP_BUG,
    weaken: Changes | str = CLAMP_WEAKENED,
    test_files: Sequence[str] = TESTS,
    script: str | None = None,
    parser: str | None = None,
) -> Artifact:
    """bug, weaken: changes of the original files, or a diff that is used as it is."""
    tree = environment.tree
    return Artifact(
        bug if isinstance(bug, str) else diff(tree, bug),
        weaken if isinstance(weaken, str) else diff(tree, weaken),
        tuple(test_files),
        script or environment.script,
        parser or environment.parser,
    )
