"""What is hidden from a repository, given what the search in its environment found: no sandbox is needed.

`tests/attacks` has the search itself, on real sandboxes.
"""

from pathlib import Path

import pytest

from selfplay.errors import EnvironmentBuildError
from selfplay.repositories.checkouts import Checkout
from selfplay.repositories.dependencies import Dependencies
from selfplay.repositories.hiding import hide_all, hiding_plans, refuse_copies
from selfplay.repositories.installation import Requirements, build_script
from selfplay.repositories.probe import EqualFile, ProbeResult
from selfplay.repositories.specs import parse_spec
from selfplay.repositories.targets import touched_functions_of
from selfplay.repositories.trial import BuildJob
from selfplay.sandbox.base import Limits
from selfplay.sandbox.bubblewrap_sandbox import BubblewrapBackend
from selfplay.settings.playing import EnvironmentSettings
from selfplay.source.trees import FileEntry, Tree

STANDARD = "/opt/python/lib/python3.11/tomllib/_parser.py"
OTHER = "/opt/env/lib/python3.11/site-packages/other/texts.py"
PARSE, DESCRIBE = ("tomli/_parser.py", "parse"), ("tomli/_parser.py", "describe")
SEEN = ProbeResult(
    python="3.11",
    has_hypothesis=False,
    same=("/usr/lib/python3.11/tomllib/_types.py",),
    equal={STANDARD: EqualFile((PARSE,), ()), OTHER: EqualFile((DESCRIBE,), (f"{OTHER}c",))},
    releases=("/opt/env/lib/python3.11/site-packages/setuptools/_vendor/tomli/",),
    archives=("/opt/wheels/tomli.whl",),
    stores=("/srv/mirror.git/",),
)


def test_all_but_the_standard_library_is_hidden_and_its_functions_are_no_bugs() -> None:
    hiding = hide_all(SEEN)
    assert set(hiding.paths) == {OTHER, f"{OTHER}c", *SEEN.releases, *SEEN.archives, *SEEN.stores}
    assert hiding.copied == (PARSE,)
    last = hiding_plans(SEEN)[-1]
    assert OTHER not in last.paths and set(last.copied) == {PARSE, DESCRIBE}


def test_there_is_one_plan_if_only_stores_and_releases_are_found() -> None:
    plain = ProbeResult("3.11", False, releases=("/a/heron/",), stores=("/b/.git/", "/c/.git/"))
    assert [plan.paths for plan in hiding_plans(plain)] == [("/a/heron/", "/b/.git/", "/c/.git/")]


def test_a_copy_is_refused_unless_it_is_in_the_standard_library(
    tmp_path: Path,
) -> None:
    spec = parse_spec("pypi:tomli==1.0")
    checkout = Checkout(spec, "tomli", "0" * 40, Tree(), None, 1, "")
    backend = BubblewrapBackend(tmp_path)
    job = BuildJob(checkout, backend, EnvironmentSettings(), Limits(), tmp_path, lambda _: None)
    refuse_copies(job, SEEN)
    elsewhere = ProbeResult("3.11", False, same=("/app/tomli/_parser.py",))
    with pytest.raises(EnvironmentBuildError, match="/app/tomli/_parser.py.*Name dependencies"):
        refuse_copies(job, elsewhere)


def test_a_bug_in_a_copied_function_is_noticed_and_one_beside_it_is_not() -> None:
    text = "class A:\n    def parse(self):\n        return 1\n\n\ndef parse(x):\n    return 2\n\n\n"
    text += "def more():\n    return 3\n"
    before = Tree({"tomli/_parser.py": FileEntry(text.encode())})

    def after(old: str, new: str) -> Tree:
        return Tree({"tomli/_parser.py": FileEntry(text.replace(old, new).encode())})

    assert touched_functions_of((PARSE,), before, after("3", "4")) == []
    assert touched_functions_of((PARSE,), before, after("2", "4")) == ["tomli/_parser.py: parse"]
    assert touched_functions_of((PARSE,), before, after("self", "other")) == ["tomli/_parser.py: A.parse"]
    assert len(touched_functions_of((PARSE,), before, Tree())) == 2


def test_a_build_ends_without_another_release_and_with_the_metadata_of_the_workspace() -> None:
    script = build_script(Requirements(Dependencies("heron", "1.0", ("other",), (), ())), None, {})
    removed = script.index("pip uninstall --quiet --yes heron")
    assert script.index("install --quiet") < removed < script.rindex("heron-1.0.dist-info")
