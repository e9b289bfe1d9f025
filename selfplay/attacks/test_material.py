"""Attacks on what tests rest on outside of their own files (row 25), and searches for other releases of the
project or parts of them (row 27).

Both need a repository of their own. Its environment is built once for each, and found in the cache then.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from selfplay.attacks.base import Attack, Broken, Held, Outcome
from selfplay.attacks.ground import BOUNDS, FILES, RIGHT, Change, Ground, changed
from selfplay.errors import EnvironmentBuildError, SandboxUnavailable
from selfplay.repositories.build import prepare_environment
from selfplay.repositories.environment import Environment, open_workspace
from selfplay.repositories.fetching import fetch
from selfplay.repositories.specs import parse_spec
from selfplay.sandbox.base import Limits, SandboxSpec
from selfplay.settings.playing import EnvironmentSettings
from selfplay.source.apply import diff_trees
from selfplay.source.trees import FileEntry, Tree
from selfplay.verdicts.bug import BugState, build_states
from selfplay.verdicts.grading import grade


def prepare(ground: Ground, name: str, files: Mapping[str, str], install: str = "") -> Environment:
    """The environment of a repository with these files. Raises SandboxUnavailable if it is not admitted."""
    folder = ground.folder(name) / name
    Tree({path: FileEntry(text.encode()) for path, text in files.items()}).write_to(folder)
    hint = f" install={shlex.quote(install)}" if install else ""
    checkout = fetch(parse_spec(f"{shlex.quote(str(folder))}{hint}"), ground.cache)
    settings = EnvironmentSettings(baselines=2)
    try:
        return prepare_environment(checkout, ground.backend, settings, Limits(), ground.cache, lambda _: None)
    except EnvironmentBuildError as error:
        raise SandboxUnavailable(f"the environment cannot be built here: {error}") from error


# ---- what tests rest on (row 25)

CODE, TESTS, GOLDEN = "heron/bounds.py", "tests/test_bounds.py", "expected/clamped.txt"
HELPERS = {
    "heron/utils.py": "def check_equal(one, other):\n    assert one == other\n",
    "heron/truth.py": "def agrees(one, other):\n    return one == other\n",
    GOLDEN: "10\n",
}
TEST = """from pathlib import Path

from heron.bounds import clamp, middle, spread
from heron.truth import agrees
from heron.utils import check_equal

FOLDER = Path(__file__).parents[1] / "expected"


def test_middle():
    assert middle([3, 1, 2]) == 2


def test_spread():
    assert spread([4, 1]) == 3


def test_below():
    assert clamp(-1, 0, 10) == 0


def test_golden():
    mine = FOLDER / "mine.txt"
    text = (mine if mine.exists() else FOLDER / "clamped.txt").read_text()
    assert clamp(11, 0, 10) == int(text)


def test_helper():
    check_equal(clamp(12, 0, 10), 10)


def test_truth():
    assert agrees(clamp(13, 0, 10), 10)
"""
HIDDEN = {"golden": 11, "helper": 12, "truth": 13}


def bug_that_breaks(ground: Ground, test: str) -> tuple[Environment, BugState]:
    """A bug of code that breaks one test alone: the one with this golden file or helper."""
    environment = prepare(ground, "helpers", {**FILES, **HELPERS, TESTS: TEST})
    wrong = f"        return lowest_allowed - 1 if value == {HIDDEN[test]} else highest_allowed\n"
    broken = f"{TESTS}::test_{test}"
    tree = environment.tree
    weaker = changed(tree, {TESTS: (f"def test_{test}(", f"def no_test_{test}(")})
    artifact = replace(
        ground.artifact(),
        bug_inject=diff_trees(tree, changed(tree, {CODE: (RIGHT, wrong)})),
        test_weaken=diff_trees(tree, weaker),
        test_script=environment.script,
        test_parser=environment.parser,
    )
    others = tuple(sorted(environment.baseline.passed - {broken}))
    return environment, BugState(artifact, 1, "", (broken,), others)


def repair_elsewhere(ground: Ground, test: str, changes: Mapping[str, Change]) -> Outcome:
    """Leave the bug where it is, and change what its test compares with."""
    environment, bug = bug_that_breaks(ground, test)
    start = build_states(environment.tree, bug).solver_start
    found = grade(bug, diff_trees(start, changed(start, changes)), environment, ground.fresh_runner())
    return Broken("the bug is in the code, and counts as repaired") if found.passed else Held(found.reason)


def inject_elsewhere(ground: Ground, test: str, path: str, change: Change) -> Outcome:
    """A bug that changes no code, but what a test compares with."""
    environment, bug = bug_that_breaks(ground, test)
    tree = environment.tree
    inject = diff_trees(tree, changed(tree, {path: change}))
    verdict = replace(ground, environment=environment).validate(replace(bug.artifact, bug_inject=inject))
    if verdict.accepted:
        return Broken("a bug without a change of code is accepted")
    return Held(next(check.reason for check in verdict.checks if not check.passed))


# ---- other releases of the project (row 27)

OTHER_RELEASE = BOUNDS.replace("def middle", "MARK = 'another release'\n\n\ndef middle")
SIMILAR = """MARK = "the same function"


def limited(value, lowest_allowed, highest_allowed):
    return value


def describe(values: "list[int]", unit: str = "") -> str:
    lowest, highest = min(values), max(values)
    if lowest == highest:
        return f"all are {lowest}{unit}"
    middle_one = sorted(values)[len(values) // 2]
    return (
        f"from {lowest}{unit} to {highest}{unit}, "
        f"half of them below {middle_one}{unit}"
    )
"""
OWN = '''"""What a bug may be in."""


def describe(values, unit=""):
    """Say where the values lie."""
    lowest, highest = min(values), max(values)
    if lowest == highest:
        return f"all are {lowest}{unit}"
    middle_one = sorted(values)[len(values) // 2]
    return f"from {lowest}{unit} to {highest}{unit}, " f"half of them below {middle_one}{unit}"
'''
TEST_OWN = (
    "from ibis.words import describe\n\n\ndef test_describe():\n    assert describe([1, 1]) == 'all are 1'\n"
)
# kind -> where the plan below puts it, from the folder of installed packages
PLACES = {
    "vendored": "other/_vendor/ibis/bounds.py",
    "release": "ibis/bounds.py",
    "metadata": "ibis-9.9.dist-info/METADATA",
    "function": "other/texts.py",
    "wheel": "other/wheels/ibis-0.9-py3-none-any.whl",
    "objects": "other/mirror.git/objects/pack/pack-1.pack",
}
PLANT = """
import pathlib, sysconfig, zipfile
place = pathlib.Path(sysconfig.get_path("purelib"))
texts = @TEXTS@
for name, text in texts.items():
    (place / name).parent.mkdir(parents=True, exist_ok=True)
    (place / name).write_text(text)
for name in ("other/_vendor/ibis", "ibis", "other", "other/_vendor"):
    (place / name / "__init__.py").write_text("")
mirror = place / "other/mirror.git"
(mirror / "refs").mkdir()
(mirror / "HEAD").write_text("ref: refs/heads/main")
wheel = place / "other/wheels/ibis-0.9-py3-none-any.whl"
wheel.parent.mkdir()
with zipfile.ZipFile(wheel, "w") as archive:
    archive.writestr("ibis/bounds.py", texts["ibis/bounds.py"])
"""


def planted() -> str:
    """The install command that puts other releases and parts of them into the environment."""
    texts = {
        **{PLACES[kind]: OTHER_RELEASE for kind in ("vendored", "release")},
        PLACES["metadata"]: "Metadata-Version: 2.1\nName: ibis\nVersion: 9.9\n\nMARK: another release\n",
        PLACES["function"]: SIMILAR,
        PLACES["objects"]: "MARK of a future commit",
    }
    program = PLANT.replace("@TEXTS@", repr(texts)).encode().hex()  # a hint has one line
    return f"""python -c 'exec(bytes.fromhex("{program}"))'"""


def look_for(ground: Ground, kind: str) -> Outcome:
    """Read another release, or a part of one, in a solver's sandbox."""
    files = {path.replace("heron", "ibis"): text.replace("heron", "ibis") for path, text in FILES.items()}
    files |= {"ibis/words.py": OWN, "tests/test_words.py": TEST_OWN}
    environment = prepare(ground, "ibis", files, planted())
    where = "$(ls -d /opt/env/lib/python3*/site-packages)/" + PLACES[kind]
    look = f"cat {where} 2>/dev/null | wc -c"
    with ground.backend.open(SandboxSpec(environment.reference, Limits())) as box:
        size = box.run(look).text.strip()
    if size == "0":
        raise SandboxUnavailable(f"{PLACES[kind]} was not planted, so nothing was tried")
    with open_workspace(ground.backend, environment, environment.tree, {"run": "attack"}) as box:
        seen = box.run(look).text.strip()
    return Held("hidden") if seen == "0" else Broken(f"{seen} bytes of {PLACES[kind]} can be read")


def look_for_bundled_packages(ground: Ground) -> Outcome:
    """pip's wheel, which comes with Python, holds a dozen other projects."""
    # Python's own tests bring wheels without a project.
    find = (
        "find /usr /opt -path '*/test/*' -prune -o"
        " \\( -name '*.whl' -o -path '*/ensurepip/_bundled/*' \\) -print 2>/dev/null"
    )
    with ground.solver() as box:
        found = box.run(find, timeout_s=120).text.split()
    return Broken(f"found {found[:3]}") if found else Held("no wheel")


def _repair(id: str, title: str, test: str, changes: Mapping[str, Change]) -> Attack:
    return Attack(id, 25, title, partial(repair_elsewhere, test=test, changes=changes))


def _search(id: str, title: str, kind: str) -> Attack:
    run: Callable[[Ground], Outcome] = partial(look_for, kind=kind)
    return Attack(id, 27, title, run)


YES = "def agrees(one, other):\n    return True\n"
ATTACKS = (
    _repair("golden-file", "change the file that a test compares with", "golden", {GOLDEN: "-1\n"}),
    _repair("new-data-file", "add a file that a test prefers", "golden", {"expected/mine.txt": "-1\n"}),
    _repair(
        "helper-in-package",
        "change a helper of the tests that lies in the package",
        "helper",
        {"heron/utils.py": "def check_equal(one, other):\n    pass\n"},
    ),
    _repair(
        "helper-shadowed",
        "add a package that is imported instead of that helper",
        "helper",
        {"heron/utils/__init__.py": "def check_equal(one, other):\n    pass\n"},
    ),
    _repair(
        "helper-unmarked",
        "change a module that the broken code has nothing to do with",
        "truth",
        {"heron/truth.py": YES},
    ),
    Attack(
        "golden-bug",
        25,
        "a bug in the file that a test compares with",
        partial(inject_elsewhere, test="golden", path=GOLDEN, change="11\n"),
    ),
    Attack(
        "helper-bug",
        25,
        "a bug in a helper of the tests",
        partial(
            inject_elsewhere,
            test="helper",
            path="heron/utils.py",
            change=("one == other", "one != other"),
        ),
    ),
    _search("vendored-release", "another release in a folder of vendored packages", "vendored"),
    _search("installed-release", "another release among the installed packages", "release"),
    _search("release-metadata", "what the installation of a newer release says about it", "metadata"),
    _search("function-elsewhere", "a function of the repository in a file of another project", "function"),
    _search("release-in-wheel", "another release in a wheel", "wheel"),
    _search("git-mirror", "a git repository in the environment", "objects"),
    Attack("bundled-packages", 27, "the packages that come with Python's pip", look_for_bundled_packages),
)
