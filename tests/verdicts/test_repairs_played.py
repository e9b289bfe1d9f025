"""Bugs in files of every kind, put in by an injector and taken out by a solver in real sandboxes.

The repository has source in other encodings, with CRLF and a byte order mark, over 1 MiB, ignored by its own
rules, executable, with odd names, and attributes that change what git keeps.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from machine import open_or_skip
from selfplay.agent.chat import ChatFormat, load_tokenizer
from selfplay.agent.episode import Episode
from selfplay.agent.injector import InjectorTask, play_injector
from selfplay.agent.solver import play_solver, prepare_solver, solver_task, spec_text
from selfplay.agent.tool_format import format_action
from selfplay.agent.tools import format_edit
from selfplay.agent.workspaces import EpisodeContext, EpisodeKey, sandbox_limits
from selfplay.config import Config
from selfplay.curriculum.rows import AttemptRow, read, stored
from selfplay.engines.scripted_engine import ScriptedEngine
from selfplay.repositories.build import prepare_environment
from selfplay.repositories.environment import Environment, open_workspace
from selfplay.repositories.fetching import fetch
from selfplay.repositories.git import commit_trees, init_bare
from selfplay.repositories.specs import parse_spec
from selfplay.sandbox.base import WORKSPACE, Limits, SandboxBackend
from selfplay.settings.playing import AgentSettings, EnvironmentSettings, InjectorSettings, SolverSettings
from selfplay.source.apply import diff_trees
from selfplay.source.trees import FileEntry, Tree
from selfplay.verdicts.artifact import Artifact
from selfplay.verdicts.bug import BugState, build_states
from selfplay.verdicts.checks import Thresholds
from selfplay.verdicts.confirmation import Confirmation
from selfplay.verdicts.grading import grade
from selfplay.verdicts.repairs import graded_trees, judge_exact_repair, take_repair
from selfplay.verdicts.test_runs import TestRunner
from selfplay.verdicts.validator import validate
from tiny_policy import build_tiny_tokenizer

pytestmark = pytest.mark.sandbox

LABELS = {"run": "test"}
KEY = EpisodeKey(7, 3, "g/1", 2, LABELS)
CONFIG = Config(
    agent=AgentSettings(prompt_style="terse", max_turns=12, context_tokens=16384, turn_tokens=4096),
    injector=InjectorSettings(strategies={"direct": 1.0}, help=("tests",)),
    solver=SolverSettings(help=("failure",)),
)


def add(coding: str, comment: str, newline: str = "\n", rows: int = 0) -> bytes:
    """A module with a function `add`, in this encoding."""
    lines = [
        f"# -*- coding: {coding} -*-",
        *(f"# row {n}" for n in range(rows)),
        "def add(a, b):",
        f"    # {comment}",
        f"    return a + b  # {comment}",
        "",
    ]
    return newline.join(lines).encode(coding)


MODULES = {
    "shop/latin.py": add("latin-1", "café"),
    "shop/kanji.py": add("shift-jis", "表示ソ", "\r\n"),
    "shop/marked.py": add("utf-8-sig", "café"),
    "shop/large.py": add("ascii", "sum", rows=100_000),
    "shop/hidden.py": add("ascii", "ignored by a nested rule"),
    "build/tools.py": add("latin-1", "ignored, in a folder: ÿ"),
    "shop/gone.py": add("latin-1", "deleted by the bug: é"),
}
TEST = """# -*- coding: latin-1 -*-
import importlib
import os

import pytest

here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def check(name):
    assert importlib.import_module(name).add(1, 2) == 3


def test_latin():
    check("shop.latin")  # café


@pytest.mark.parametrize("name", MODULES)
def test_module(name):
    check(name)


def test_the_data():
    assert importlib.import_module("shop").names() == b"caf\\xe9\\r\\n"


def test_the_tool():
    assert os.access(os.path.join(here, "run"), os.X_OK)


def test_nothing():
    assert here
""".replace("MODULES", repr([path.removesuffix(".py").replace("/", ".") for path in MODULES]))
FILES = {
    **MODULES,
    # The package reads its data: what a test opens itself is no part of a bug.
    "shop/__init__.py": (
        b"import os\n\n\ndef names():\n    here = os.path.dirname(os.path.abspath(__file__))\n"
        b"    with open(os.path.join(here, 'caf\\xe9 data', 'names.txt'), 'rb') as file:\n"
        b"        return file.read()\n"
    ),
    "build/__init__.py": b"",
    "shop/café data/names.txt": b"caf\xe9\r\n",
    "tests/test_shop.py": TEST.encode("latin-1"),
    "pyproject.toml": b'[tool.pytest.ini_options]\ntestpaths = ["tests"]\npythonpath = ["."]\n',
    ".gitignore": b"build/\n__pycache__/\n",
    "shop/.gitignore": b"hidden.py\ngone.py\n",
    ".gitattributes": (
        b"* text=auto eol=crlf\n*.py ident filter=lfs -diff\n*.txt working-tree-encoding=ascii\n"
        b"shop export-ignore\n"
    ),
}
TREE = Tree(
    {path: FileEntry(content) for path, content in FILES.items()} | {"run": FileEntry(b"#!/bin/sh\n", True)}
)
BUG = r"""
for file in shop/latin.py shop/kanji.py shop/marked.py shop/large.py shop/hidden.py build/tools.py; do
    LC_ALL=C sed -i 's/return a + b/return a - b/' $file
done
rm shop/gone.py
printf 'caf\xe8\n' > 'shop/café data/names.txt'
mv run other
git add -A -f; git diff --cached > /submit/bug_inject.diff; git reset -q
"""
WEAKEN = r"""
LC_ALL=C sed -i 's/^    check("shop.latin")/    check/' tests/test_shop.py
git diff tests > /submit/test_weaken.diff
"""
FIVE = "bug_inject.diff\ntest_weaken.diff\ntest_files.txt\ntest_script.sh\ntest_parser.py"
UNDO = r"""
for file in shop/kanji.py shop/marked.py shop/large.py shop/hidden.py build/tools.py; do
    LC_ALL=C sed -i 's/return a - b/return a + b/' $file
done
printf '# -*- coding: latin-1 -*-\ndef add(a, b):\n    # deleted by the bug: \xe9\n' > shop/gone.py
printf '    return a + b  # deleted by the bug: \xe9\n' >> shop/gone.py
printf 'caf\xe9\r\n' > 'shop/café data/names.txt'
mv other run
"""


@dataclass(frozen=True)
class Place:
    """What every test in this file needs. It is built once."""

    backend: SandboxBackend
    environment: Environment
    chat: ChatFormat
    tokenizer: Path

    def context(self, replies: Sequence[str], config: Config = CONFIG) -> EpisodeContext:
        engine = ScriptedEngine(lambda turn: replies[turn.number], load_tokenizer(str(self.tokenizer)))
        return EpisodeContext(config, engine, self.chat, self.backend, sandbox_limits(config))

    def runner(self) -> TestRunner:
        return TestRunner(self.backend, CONFIG.validator, Limits(), LABELS)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    cache = tmp_path_factory.mktemp("cache")
    backend = open_or_skip("bubblewrap", cache)
    repository = tmp_path_factory.mktemp("repository") / "shop"
    init_bare(repository)
    commit_trees(repository, [("All of it", TREE)])
    environment = prepare_environment(
        fetch(parse_spec(f"file://{repository}"), cache),
        backend,
        EnvironmentSettings(baselines=2),
        Limits(),
        cache,
        lambda _: None,
    )
    assert environment.tree == TREE
    tokenizer = build_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    return Place(backend, environment, ChatFormat(load_tokenizer(str(tokenizer))), tokenizer)


@pytest.fixture(scope="module")
def bug(place: Place) -> BugState:
    """The bug that a scripted injector submits and the validator accepts."""
    replies = [*(format_action("bash", script) for script in (BUG, WEAKEN)), format_action("submit", FIVE)]
    task = InjectorTask(place.environment, "direct", None, Thresholds())
    episode = play_injector(task, KEY, place.context(replies))
    artifact = Artifact.from_files(Episode.from_json(json.loads(json.dumps(episode.to_json()))).submission)
    assert "# caf\udce9" in artifact.bug_inject and "# caf\udce9" in artifact.test_weaken
    verdict = validate(artifact, place.environment, Thresholds(5, 9, 9), place.runner(), CONFIG.validator)
    assert verdict.accepted, [check for check in verdict.checks if not check.passed]
    (check,) = [check for check in verdict.checks if check.name == "repairable"]
    assert len(check.evidence["undone"]) == 10
    return BugState(artifact, 1, "", verdict.fail_to_pass, verdict.pass_to_pass)


@pytest.mark.parametrize("given", [("failure",), ("failure", "tests")])
def test_a_solver_repairs_files_of_every_kind(place: Place, bug: BugState, given: tuple[str, ...]) -> None:
    edit = format_edit("shop/latin.py", 4, "return a - b  # café", "return a + b  # café")
    replies = [format_action("edit", edit), format_action("bash", UNDO), format_action("submit", "")]
    config = CONFIG.model_copy(update={"solver": SolverSettings(help=given)})
    task = solver_task(place.environment, "bug-1", bug, "E   assert -1 == 3", config)
    episode = play_solver(task, KEY, place.context(replies, config))
    assert "restored" not in episode.submission
    states = build_states(TREE, bug)
    exact = states.solver_start.restore(TREE, TREE.changed_paths(states.buggy)).to_tar()
    # The validator's check takes the same patch without a sandbox.
    assert episode.submission["patch"] == take_repair(states, states.solver_start, exact, (), 1 << 18).patch
    row = AttemptRow(
        "e", "bug-1", True, "", (), Confirmation.NOT_NEEDED, (), episode.submission["patch"], 0.0
    )
    assert read(AttemptRow, stored(row)) == row
    found = grade(bug, episode.submission["patch"], place.environment, place.runner())
    assert found.passed, found


def test_a_solver_is_shown_the_specification_as_text(place: Place, bug: BugState) -> None:
    spec = spec_text(bug)
    assert '+    check("shop.latin")  # caf\ufffd\n' in spec
    assert spec.encode() and place.chat.encode(spec)


def test_git_in_a_workspace_gives_back_the_bytes_that_were_there(place: Place, bug: BugState) -> None:
    """Whatever `.gitattributes` says of line ends, encodings and filters."""
    task = solver_task(place.environment, "bug-1", bug, "", CONFIG)
    states = build_states(TREE, bug)
    with open_workspace(place.backend, place.environment, states.solver_start, LABELS) as box:
        prepare_solver(box, task, CONFIG)
        assert box.run("git status --short").text == ""
        box.run("echo '# more' >> shop/latin.py; rm -r shop/kanji.py build shop/c*")
        assert "+# more" in box.run("git diff shop/latin.py").text
        done = box.run("git checkout -- . && git status --short")
        assert (done.exit_code, done.text) == (0, "")
        left = take_repair(states, states.solver_start, box.read_archive(WORKSPACE, 64 << 20), (), 1 << 18)
    assert (left.patch, left.restored) == ("", ())


def test_a_change_that_takes_too_long_to_compare_costs_the_attempt_and_not_the_run(
    place: Place, bug: BugState, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = solver_task(place.environment, "bug-1", bug, "", CONFIG)
    build_states(TREE, bug)  # kept for the episode, so git is only asked for its patch
    monkeypatch.setattr("selfplay.source.apply.GIT_TIMEOUT_S", 1e-6)
    replies = [format_action("bash", UNDO), format_action("submit", "")]
    episode = play_solver(task, KEY, place.context(replies))
    assert episode.submission == {"patch": ""} and "did not compare the trees" in episode.error


@pytest.mark.parametrize(
    "name", ["git~1", "GIT~1 ", ".git ", ".git.", ".git::$INDEX_ALLOCATION", "con", "x:y"]
)
def test_no_name_of_a_file_keeps_a_solver_from_its_workspace(place: Place, name: str) -> None:
    """Git refuses some of them by default, which would be the machine's failure for each of its solvers."""
    bug = diff_trees(TREE, TREE.replace({f"shop/{name}": FileEntry(b"x\n")}))
    state = BugState(Artifact(bug, "", ("tests/test_shop.py",), "script", "parser"), 1, "", ("t",), ())
    states = build_states(TREE, state)
    assert judge_exact_repair(states, ("tests/test_shop.py",), 1 << 18).passed
    with open_workspace(place.backend, place.environment, states.solver_start, LABELS) as box:
        prepare_solver(box, solver_task(place.environment, "bug-1", state, "", CONFIG), CONFIG)
        assert box.run(f"git status --short && git ls-files | grep -cxF 'shop/{name}'").text == "1\n"
        box.run(f"rm 'shop/{name}'")
        archive = box.read_archive(WORKSPACE, 64 << 20)
    repair = take_repair(states, states.solver_start, archive, (), 1 << 18)
    assert graded_trees(states, repair.patch, (), 1 << 18).final == TREE
