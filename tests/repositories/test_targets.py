"""Targets from a tree and a call record: pure, so no sandbox is needed."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from selfplay.config import build_config
from selfplay.errors import RunError
from selfplay.orchestrator.build import check_targets
from selfplay.repositories import targets as targets_module
from selfplay.repositories.targets import (
    CallRecord,
    FileCalls,
    Target,
    find_calls,
    find_targets,
    function_spans,
    is_held_out,
    pack_calls,
    read_calls,
    unpack_calls,
    usable_targets,
)
from selfplay.runtime.resources import resource
from selfplay.source.apply import MAX_COMPARED_BYTES
from selfplay.source.trees import FileEntry, Tree
from simulated_game import an_environment

SOURCE = """\
import functools

@functools.cache
@functools.wraps(print)
def decorated(
    a,
):
    def inner():
        return a
    return inner()

class A:
    def __init__(self): pass
    class B:
        async def method(self):
            return 1

try:
    from x import y
except ImportError:
    def y(): return 2
"""


def test_functions_and_methods_have_exact_spans() -> None:
    assert [(s.name, s.code_line, s.first_line, s.last_line) for s in function_spans(SOURCE.encode())] == [
        ("decorated", 3, 5, 10),
        ("A.B.method", 15, 15, 16),
        ("y", 21, 21, 21),
    ]


def test_a_file_that_does_not_parse_has_no_functions() -> None:
    assert function_spans(b"def (:") == function_spans(b"\0") == function_spans(b"(" * 100_000) == []


def test_the_cheapest_test_file_that_calls_a_function_is_chosen() -> None:
    tree = Tree(
        {"a.py": FileEntry(SOURCE.encode()), "tests/test_a.py": FileEntry(b"def helper():\n    pass\n")}
    )
    places = frozenset(
        {("a.py", 3, "decorated"), ("a.py", 21, "other_name"), ("tests/test_a.py", 1, "helper")}
    )
    calls = {
        "t/slow.py": FileCalls(10, 3.5, places),
        "t/busy.py": FileCalls(900, 0.2, places),
        "t/quick.py": FileCalls(90, 0.9, places),
        "t/dropped.py": FileCalls(1, 0.0, places),
    }
    (found,) = find_targets(tree, calls, ["t/slow.py", "t/busy.py", "t/quick.py"])
    assert (found.path, found.name, found.test_file) == ("a.py", "decorated", "t/quick.py")
    assert found.source.splitlines()[:2] == ["5:def decorated(", "6-    a,"]


def test_code_and_tests_that_no_diff_can_change_are_no_targets() -> None:
    source = FileEntry(SOURCE.encode())
    large = FileEntry(SOURCE.encode() + b"#\n" * (MAX_COMPARED_BYTES // 2))
    latin_1 = FileEntry(b"# -*- coding: latin-1 -*- caf\xe9\n" + SOURCE.encode())
    files = {"a.py": source, "-a/b.py": source, 'a"b.py': source, "large.py": large, "latin.py": latin_1}
    tree = Tree(files | {"t/test_a.py": FileEntry(b""), "t/-test_a.py": FileEntry(b"")})
    called = frozenset((path, 3 + (path == "latin.py"), "decorated") for path in files)
    calls = {name: FileCalls(1, 0.0, called) for name in ("t/test_a.py", "t/-test_a.py")}
    assert [target.path for target in find_targets(tree, calls, list(calls))] == ["a.py", "latin.py"]
    assert find_targets(tree, calls, ["t/-test_a.py"]) == ()


def test_a_record_of_another_form_is_left_out() -> None:
    functions = [["a.py", 1, "f"], ["a.py", "1", "f"], 7, ["a.py", 1]]
    good = {"calls": 1, "duration_s": 0.5, "functions": [0, 1, 2, 3, 4, -1, "0", None]}
    record = {
        "functions": functions,
        "files": {"t.py": good, "u.py": {**good, "duration_s": float("nan")}, "v.py": [], "w.py": {}},
        "tests": {
            "t.py::a": [0, 1, 9, "0", []],
            "t.py::b": 0,
            "t.py::d": [-4],
            "t.py::c": {"0": 0},
            "t.py::" + "x" * 4096: [0],
        },
    }
    f = frozenset({("a.py", 1, "f")})
    assert read_calls(record) == CallRecord(
        {"t.py": FileCalls(1, 0.5, f)}, {"t.py::a": f, "t.py::d": frozenset()}
    )


@pytest.mark.parametrize(
    "record",
    [None, [1], {}, {"files": [], "tests": 3}, {"functions": {}, "files": {"t.py": 1}, "tests": None}],
)
def test_a_record_without_any_of_its_parts_is_empty(record: object) -> None:
    assert read_calls(record) == CallRecord({}, {})


def test_the_tests_of_a_record_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets_module, "MAX_TESTS", 2)
    assert list(read_calls({"tests": {"a": [], "b": [], "c": []}}).tests) == ["a", "b"]


def test_calls_are_only_of_named_functions_outside_of_tests() -> None:
    tree = Tree(
        {path: FileEntry(SOURCE.encode()) for path in ("a.py", "tests/test_a.py", "conftest.py", "b.txt")}
    )
    places = {
        (path, line, name)
        for path in tree
        for line, name in ((3, "decorated"), (8, "inner"), (13, "__init__"), (15, "method"))
    }
    calls = find_calls(
        tree,
        {
            "one": frozenset(places),
            "none": frozenset({("a.py", 4, "decorated"), ("gone.py", 3, "decorated")}),
        },
    )
    assert calls == {"one": (("a.py", "A.B.method"), ("a.py", "decorated")), "none": ()}


def test_packed_calls_name_each_function_once_and_unpack_equal() -> None:
    calls = {"one": (("a.py", "f"), ("b.py", "C.g")), "two": (("b.py", "C.g"),), "none": ()}
    text = json.dumps(pack_calls(calls))
    assert unpack_calls(json.loads(text)) == calls
    assert text.count("C.g") == 1


def test_a_target_is_short_and_its_test_file_can_carry_an_artifact() -> None:
    def target(lines: int, test_file: str) -> Target:
        return Target("a.py", f"f{lines}", 1, lines, test_file, "")

    passing = ["tests/test_a.py::one", "tests/test_a.py::two[x::y]", "tests/test_b.py::one"]
    targets = [target(5, "tests/test_a.py"), target(6, "tests/test_a.py"), target(5, "tests/test_b.py")]
    assert usable_targets(targets, passing, max_lines=5, min_passing_tests=2) == [targets[0]]


def test_no_target_is_a_function_held_out_for_evaluation() -> None:
    targets = [Target("a.py", f"C.f{n}", 1, 2, "tests/test_a.py", "") for n in range(40)]
    kept = usable_targets(targets, ["tests/test_a.py::one"], max_lines=5, min_passing_tests=1)
    assert kept == [target for target in targets if not is_held_out(target.name)]
    assert 20 < len(kept) < 40


def test_a_recorder_without_room_drops_tests_and_keeps_what_test_files_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = load_recorder(tmp_path, monkeypatch, MAX_TEST_CHARACTERS=len('{"t.py::a": [0]}'))
    for name in ("t.py::a", "t.py::b"):
        recorder.tests[name] = recorder.Test()
        recorder.tests[name].watch(sys._getframe(), "call", None)
        recorder.tests[name].watch(sys._getframe(1), "call", None)  # of pytest's own code
    recorder.pytest_sessionfinish()
    seen = read_calls(json.loads((tmp_path / "calls.json").read_text()))
    here = frozenset(
        {(Path(__file__).name, sys._getframe().f_code.co_firstlineno, sys._getframe().f_code.co_name)}
    )
    assert (seen.files["t.py"].calls, seen.files["t.py"].functions, seen.tests) == (
        4,
        here,
        {"t.py::a": here},
    )


def test_a_test_is_watched_for_a_number_of_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def early() -> None: ...

    def late() -> None: ...

    test = load_recorder(tmp_path, monkeypatch, MAX_CALLS=2).Test()
    sys.setprofile(test.watch)
    for function in (early, early, late):
        function()
    watching = sys.getprofile()
    sys.setprofile(None)
    assert {name for _, _, name in test.functions()} == {"early"}
    assert watching is None


def load_recorder(folder: Path, monkeypatch: pytest.MonkeyPatch, **constants: object) -> ModuleType:
    """The plugin, for code of this folder; in a sandbox pytest loads it."""
    spec = importlib.util.spec_from_file_location(
        "call_recorder", resource("data/pytest") / "call_recorder.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, value in {
        "ROOT": f"{Path(__file__).parent}/",
        "OUTPUT": str(folder / "calls.json"),
        **constants,
    }.items():
        monkeypatch.setattr(module, name, value)
    return module


def test_a_repository_without_a_target_is_left_out_and_reported():
    environments, messages = {"bare": an_environment()}, []
    with pytest.raises(RunError, match="no repository has a covered function of at most 7 lines"):
        check_targets(
            build_config({"injector": {"help": ["target"], "max_target_lines": 7}}),
            environments,
            messages.append,
        )
    assert environments == {}
    assert [line.partition(":")[0] for line in messages] == ["bare is left out of the game"]
