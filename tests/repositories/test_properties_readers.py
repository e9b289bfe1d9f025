"""Properties of readers: trees, archives, outcomes, artifacts, logs, call records, lists, tasks."""

from __future__ import annotations

import io
import json
import math
import os
import re
import subprocess
import tarfile
import tempfile
import unicodedata
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import event, example, given
from hypothesis import strategies as st

from hostile_texts import NAMES, contents, lines, names
from selfplay.data.pytest.test_parser import parse
from selfplay.errors import ArtifactError, OutcomesError, TreeError, UsageError
from selfplay.evaluation.tasks import parse_task, read_tasks, task_record
from selfplay.outcomes import TestOutcomes, parse_outcomes
from selfplay.repositories.specs import parse_spec
from selfplay.repositories.targets import find_calls, find_targets, pack_calls, read_calls, unpack_calls
from selfplay.source.trees import FileEntry, Tree, ignore_rules, is_safe_path
from selfplay.verdicts.artifact import ALIASES, FILE_NAMES, Artifact

any_text = st.text(max_size=30)  # half characters included
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_text, inner, max_size=4),
    max_leaves=8,
)


# ---- trees

file_names = (
    names
    | st.sampled_from(["\udcff.py", ".gitignore", "a\tb", "a\rb", "y" * 255, "/".join(["z" * 60] * 5)])
    | st.text(min_size=1, max_size=8)
)
entries = st.builds(FileEntry, st.binary(max_size=40) | st.just(b"\0" * 1024), st.booleans())


@given(
    files=st.dictionaries(file_names.filter(is_safe_path), entries, max_size=5),
    other=st.dictionaries(names, entries, max_size=3),
)
@example(files={"\udcff": FileEntry(b"")}, other={})
def test_a_tree_reads_back_equal_from_its_archive_and_its_digest_identifies_it(
    files: dict[str, FileEntry], other: dict[str, FileEntry]
) -> None:
    tree, second = Tree(files), Tree(other)
    assert Tree.from_tar(tree.to_tar()) == tree
    assert Tree.from_tar(tree.to_tar()).digest == tree.digest
    assert (tree.digest == second.digest) is (tree == second)
    assert (tree.to_tar() == second.to_tar()) is (tree == second)
    for path, entry in tree.items():
        assert tree.replace({path: FileEntry(entry.content, not entry.executable)}).digest != tree.digest
    assert tree.restore(second, tree.changed_paths(second)) == second


parts = st.sampled_from(
    [
        "",
        ".",
        "..",
        "...",
        "a",
        "b c",
        ".git",
        ".GiT",
        ".gitignore",
        "\\",
        "\0",
        "\n",
        "\ud800",
        "\udcff",
        "~",
    ]
)


@given(name=st.lists(parts, max_size=4).map("/".join) | st.text(max_size=12))
@example(name="../x")
@example(name="\ud800")
def test_a_name_is_refused_or_can_be_a_file_within(name: str) -> None:
    if not is_safe_path(name):
        with pytest.raises(TreeError, match="unsafe path"):
            Tree({name: FileEntry(b"")})
        return
    with tempfile.TemporaryDirectory() as folder:
        assert os.path.normpath(name) == name and not name.startswith(("/", ".." + "/")) and name != ".."
        Tree({name: FileEntry(b"x")}).write_to(Path(folder))
        found = [path for path in Path(folder).rglob("*") if path.is_file()]
        assert [path.relative_to(folder).as_posix() for path in found] == [name]
        assert ".git" not in PurePosixPath(name.lower()).parts


MEMBERS = st.tuples(
    st.sampled_from([*NAMES[:5], "../x", "/x", "./a.py", ".git/config", "a//b", "a/./b", "x/.."]),
    st.sampled_from(
        [
            tarfile.REGTYPE,
            tarfile.SYMTYPE,
            tarfile.LNKTYPE,
            tarfile.DIRTYPE,
            tarfile.FIFOTYPE,
            tarfile.CHRTYPE,
        ]
    ),
    st.binary(max_size=5),
)


@given(members=st.lists(MEMBERS, max_size=6))
def test_only_plain_files_with_safe_names_are_read_from_an_archive(
    members: list[tuple[str, bytes, bytes]],
) -> None:
    buffer = io.BytesIO()
    expected: dict[str, FileEntry] = {}
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            info.linkname = "a.py" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            info.size = len(content) if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(content))
            path = name.removeprefix("./")
            if kind == tarfile.REGTYPE and is_safe_path(path):
                expected[path] = FileEntry(content)
    assert Tree.from_tar(buffer.getvalue()) == Tree(expected)


RULES = (
    *(
        "a",
        "b",
        "*.log",
        "/a",
        "a/",
        "a/b",
        "/a/b",
        "**/b",
        "a/**",
        "a/**/b",
        "!b",
        "!a/b",
        "!*.log",
        "!/a",
        "?",
        "[ab]",
        "[!a]",
        "x*y",
    ),
    *(
        "# a",
        "\\#a",
        "\\!b",
        "",
        " ",
        "a ",
        "b\\ ",
        " a",
        "!",
        "/",
        "\\",
        "[a",
        "!*.pyc",
        "!__pycache__/",
        "a\r",
        "é",
        "\f",
        "***",
        "//",
    ),
)
FOLDERS = ("", "a/", "b/", "[ab]/", "#x/", "!x/", "-/", "a/b/", "a/-/", "x*y/")
# Only ASCII names, because to git `?` is one byte.
LEAVES = ("a", "b", "c", "x.log", "xzy", "#a", "!b", "b ", " a")


def ignored_by_git(tree: Tree, paths: list[str]) -> set[str]:
    with tempfile.TemporaryDirectory() as name:
        tree.write_to(Path(name))
        variables = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": name,
            "GIT_CONFIG_NOSYSTEM": "1",
            "LC_ALL": "C",
        }
        subprocess.run(["git", "init", "-q"], cwd=name, env=variables, check=True)
        done = subprocess.run(
            ["git", "check-ignore", "--no-index", "-z", "--stdin"],
            cwd=name,
            env=variables,
            input="\0".join(paths).encode(),
            capture_output=True,
        )
        assert done.returncode in (0, 1), done.stderr
        return set(done.stdout.decode().split("\0")) - {""}


@given(
    rules=st.dictionaries(
        st.sampled_from(FOLDERS),
        st.lists(st.sampled_from(RULES), min_size=1, max_size=4),
        min_size=1,
        max_size=3,
    ),
    files=st.sets(
        st.builds(lambda folder, leaf: folder + leaf, st.sampled_from(FOLDERS), st.sampled_from(LEAVES)),
        min_size=1,
        max_size=8,
    ),
)
@example(rules={"": ["!"]}, files={"c"})
@example(rules={"[ab]/": ["a"]}, files={"[ab]/a", "a/a"})
@example(rules={"#x/": ["a"]}, files={"#x/a"})
@example(rules={"": ["a"], "-/": ["!a"]}, files={"-/a"})
@example(rules={"": ["# a", " a"]}, files={" a", "a"})
@example(rules={"": ["a", "!/a"]}, files={"a/a"})
@example(rules={"": ["a"], "a/": ["!/a"]}, files={"a/a"})
def test_ignore_rules_are_gits(rules: dict[str, list[str]], files: set[str]) -> None:
    plain = {
        path
        for path in files
        if f"{path}/" not in FOLDERS and not any(other.startswith(f"{path}/") for other in files)
    }
    tree = Tree(
        {f"{folder}.gitignore": FileEntry("\n".join(some).encode()) for folder, some in rules.items()}
        | {p: FileEntry(b"") for p in plain}
    )
    ours = ignore_rules(tree)
    assert {path for path in plain if ours.match_file(path)} == ignored_by_git(tree, sorted(plain))


@given(rules=st.lists(st.sampled_from(RULES) | lines | any_text, max_size=6), folder=st.sampled_from(FOLDERS))
@example(rules=["!*.pyc", "!__pycache__/"], folder="")
def test_any_ignore_file_is_read_and_bytecode_is_always_ignored(rules: list[str], folder: str) -> None:
    text = "\n".join(rules).encode("utf-8", "replace")
    ours = ignore_rules(Tree({f"{folder}.gitignore": FileEntry(text)}))
    assert (
        ours.match_file(f"{folder}x.pyc")
        and ours.match_file("x.pyc")
        and ours.match_file(f"{folder}__pycache__/x")
    )


# ---- outcomes

ids = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=12)
outcomes = st.builds(
    lambda passed, failed: TestOutcomes(passed - failed, failed), st.frozensets(ids), st.frozensets(ids)
)


def json_lookalikes() -> st.SearchStrategy[bytes]:
    pieces = st.sampled_from(
        [
            '{"a":"passed"',
            "{",
            "}",
            "[",
            "]",
            '"',
            ",",
            ":",
            '"failed"',
            '"\\ud800"',
            "NaN",
            "1e999",
            "1" * 5000,
            "\\",
            "\ufeff",
            '"a":1',
        ]
    )
    return st.lists(pieces, max_size=8).map("".join).map(str.encode)


@given(
    data=st.binary(max_size=60)
    | json_lookalikes()
    | json_values.map(lambda value: json.dumps(value).encode()),
    most=st.integers(0, 4),
)
@example(data=b"[" * 100_000, most=50)
@example(data=b'{"a":' * 20_000, most=50)
@example(data=b'{"a":' + b"[" * 900 + b"]" * 900 + b"}", most=50)
def test_the_output_of_a_parser_is_outcomes_or_is_refused(data: bytes, most: int) -> None:
    try:
        found = parse_outcomes(data, most)
    except OutcomesError as error:
        assert str(error).isprintable() and len(str(error)) < 500
        return
    assert len(found.ids) <= most
    assert found.to_json() == json.loads(data)


some_ids = st.sampled_from(
    ["a.py::f", "a.py::g", "é\u2028", "", "\x1b", "\x85", "\ud800", "x" * 4096, "y" * 4097]
)
said = st.sampled_from(
    [
        "passed",
        "passed",
        "failed",
        "failed",
        "failed",
        "skipped",
        "Passed",
        None,
        True,
        ["passed"],
        {"passed": 1},
        1.5,
    ]
)


@given(pairs=st.lists(st.tuples(some_ids, said), max_size=4), most=st.integers(1, 4))
@example(pairs=[("a", "passed"), ("a", "passed")], most=4)
@example(pairs=[("a", "passed"), ("a", "failed")], most=4)
@example(pairs=[("a", "passed"), ("b", "failed")], most=1)
@example(pairs=[("a", "skipped")], most=1)
def test_a_map_is_read_exactly_when_it_is_plain(pairs: list[tuple[str, object]], most: int) -> None:
    data = ("{" + ", ".join(f"{json.dumps(name)}: {json.dumps(what)}" for name, what in pairs) + "}").encode()
    distinct = dict(pairs)
    plain = len(distinct) == len(pairs) <= most and all(
        what in ("passed", "failed") for what in distinct.values()
    )
    plain = plain and all(
        0 < len(name) <= 4096 and not {unicodedata.category(c) for c in name} & {"Cc", "Cs"}
        for name in distinct
    )
    try:
        assert parse_outcomes(data, most).to_json() == distinct
        assert plain
    except OutcomesError:
        assert not plain


@given(one=outcomes)
def test_outcomes_read_back_equal_from_json(one: TestOutcomes) -> None:
    assert TestOutcomes.from_json(one.to_json()) == one
    assert parse_outcomes(json.dumps(one.to_json()).encode(), 1000) == one


@given(one=outcomes, other=outcomes, gone=st.frozensets(ids))
def test_the_set_arithmetic_of_outcomes(one: TestOutcomes, other: TestOutcomes, gone: frozenset[str]) -> None:
    some = gone | frozenset(sorted(one.ids)[::2])
    left = one.without(some)
    assert left.ids == one.ids - some and left.passed <= one.passed and left.failed <= one.failed
    assert left.without(some) == left
    assert one.differing(other) == other.differing(one)
    assert (one.differing(other) == ()) is (one == other)
    assert set(one.differing(left)) == one.ids & some
    for name in one.ids | other.ids:
        same = one.to_json().get(name) == other.to_json().get(name)
        assert (name not in one.differing(other)) is same


# ---- artifacts

artifact_names = st.sampled_from([*FILE_NAMES, *ALIASES, "other", "", "../x", "test_files.txt\n"])
test_files = st.lists(
    st.sampled_from(["a.py", "./a.py", "././b.py", " ./ ./c.py", "./", ".", "\u2028", "d e.py\r", ".//x"]),
    max_size=5,
).map("\n".join)
artifact_texts = (
    contents()
    | test_files
    | any_text
    | st.sampled_from(["LARGE", "LARGEx", "xLARGE", "a\0b", "\ud800", " \n"])
)
whole_artifacts = st.builds(
    lambda odd: {**dict.fromkeys(FILE_NAMES, "x"), **odd},
    st.dictionaries(st.sampled_from(FILE_NAMES), artifact_texts, max_size=3),
)


@given(files=whole_artifacts | st.dictionaries(artifact_names, artifact_texts, max_size=7))
@example(files={**dict.fromkeys(FILE_NAMES, "x"), "test_files.txt": "././a.py"})
@example(files={**dict.fromkeys(FILE_NAMES, "x"), "test_files.txt": "LARGE"})
@example(files={**dict.fromkeys(FILE_NAMES, "x"), "test_script.sh": "\ud800"})
@example(files={**dict.fromkeys(FILE_NAMES, "x"), "bug_inject.diff": "\0"})
def test_any_texts_are_an_artifact_that_reads_back_or_are_refused(files: dict[str, str]) -> None:
    files = {name: text.replace("LARGE", "é" * (1 << 19)) for name, text in files.items()}
    try:
        artifact = Artifact.from_files(files)
    except ArtifactError as error:
        event("refused")
        assert str(error).isprintable() and len(str(error)) < 1000
        return
    event("read")
    again = Artifact.from_files(artifact.to_files())
    assert again == artifact and again.digest == artifact.digest
    assert all(
        path and path == path.strip(" \t\r\n") and not path.startswith("./") for path in artifact.test_files
    )
    assert len(set(artifact.test_files)) == len(artifact.test_files)
    assert all("\0" not in text and len(text.encode()) <= 1 << 20 for text in artifact.to_files().values())


# ---- the standard parser of logs

parameters = st.lists(st.sampled_from(["a", "é", " - ", "[", "/", "::", ":", " "]), max_size=5).map("".join)
test_ids = st.builds(
    lambda file, name, inner: f"{file}::{name}" + (f"[{inner}]" if inner else ""),
    st.sampled_from(["a.py", "tests/test_b.py"]),
    st.sampled_from(["f", "C::g"]),
    parameters,
)
LOG_LINES = st.sampled_from(
    [
        *(
            "=== short test summary info ===",
            "1 passed in 0.01s",
            "= 1 failed, 2 passed in 1.00s (0:00:01) =",
            "no tests ran in 0.00s",
            "",
        ),
        *(
            "PASSED a.py::f",
            "FAILED a.py::f - assert 1",
            "ERROR a.py",
            "SUBFAILED(i=1) a.py::f - x",
            "SUBFAIL a.py::C::g",
            "SKIPPED [1] a.py:3",
        ),
        *(
            "PASSED a.py::\x1b[31m",
            "PASSED ",
            "FAILED ",
            "PASSED " + "x" * 5000,
            "XFAIL a.py::x",
            "passed",
            "FAILED a.py::f[a - b] - c]",
            "PASSED \ud800",
        ),
    ]
)


log_rows = st.lists(LOG_LINES | lines | any_text, max_size=14)
summaries = st.lists(LOG_LINES, max_size=8).map(
    lambda rows: ["=== short test summary info ===", *rows, "=== 1 passed in 0.01s ==="]
)


@given(rows=log_rows | summaries, newline=st.sampled_from(["\n", "\r\n"]))
def test_any_log_gives_outcomes(rows: list[str], newline: str) -> None:
    found = parse(newline.join(rows))
    assert set(found.values()) <= {"passed", "failed"}
    assert parse_outcomes(json.dumps(found).encode(), 1000).to_json() == found
    if (
        sum(
            bool(re.fullmatch("=+ short test summary info =+", row))
            for row in newline.join(rows).replace("\r\n", "\n").split("\n")
        )
        == 0
    ):
        assert found == {}


@given(
    results=st.dictionaries(
        test_ids, st.sampled_from(["PASSED", "FAILED", "ERROR", "SKIPPED", "XFAIL"]), max_size=6
    ),
    message=st.sampled_from(["", " - assert 1 == 2", " - x [y]", " - a - b"]),
    data=st.data(),
)
def test_a_summary_of_pytest_is_read_correctly_and_only_if_it_is_complete(
    results: dict[str, str], message: str, data: st.DataObject
) -> None:
    rows = [
        f"{what} {name}{message if what in ('FAILED', 'ERROR') else ''}" for name, what in results.items()
    ]
    log = ["....", "=== short test summary info ===", *rows, "=== 1 passed in 0.01s ==="]
    meant = {"PASSED": "passed", "FAILED": "failed", "ERROR": "failed"}
    wanted = {name: meant[what] for name, what in results.items() if what in meant and name.isprintable()}
    assert parse("\n".join(log)) == wanted
    assert parse("\n".join(log[: data.draw(st.integers(0, len(log) - 1))])) == {}
    at = data.draw(st.integers(0, len(log)))
    assert parse("\n".join([*log[:at], "== short test summary info ==", *log[at:]])) == (
        {} if at < len(log) else parse("\n".join(log)) and {}
    )


# ---- call records

places = st.tuples(st.sampled_from(["a.py", "b.py"]), st.integers(1, 3), st.sampled_from(["f", "g"])).map(
    list
)
places |= st.lists(st.sampled_from(["a.py", 1, "f", None, 1.5, [], {}]), min_size=3, max_size=3) | json_values
indices = st.lists(st.integers(-2, 4) | json_values, max_size=4)
durations = st.sampled_from([0.5, 1e300, float("inf"), float("nan"), 1, "1"])
entries_of_files = (
    st.fixed_dictionaries({"calls": st.integers(), "duration_s": durations, "functions": indices})
    | json_values
)
records = st.fixed_dictionaries(
    {"functions": st.lists(places, max_size=4) | json_values},
    optional={
        "files": st.dictionaries(any_text, entries_of_files, max_size=3) | json_values,
        "tests": st.dictionaries(any_text, indices | json_values, max_size=3) | json_values,
    },
)
CODE = Tree(
    {
        "a.py": FileEntry(b"def f():\n    pass\n\ndef g():\n    pass\n"),
        "b.py": FileEntry(b"\ndef g():\n    pass\n"),
    }
)


LISTED = [["a.py", 1, "f"], [1, None, []], ["a.py", "1", "g"]]
ENDLESS = {"calls": 1, "duration_s": float("inf"), "functions": [0]}


@given(record=records | json_values)
@example(record={"functions": LISTED, "files": {"t": ENDLESS}, "tests": {"x": [0, 1, 2, 3, -1, True, None]}})
def test_any_call_record_is_read_and_names_only_what_it_lists(record: Any) -> None:
    found = read_calls(record)
    listed = record.get("functions") if isinstance(record, dict) else None
    known = (
        {
            tuple(item)
            for item in listed
            if isinstance(item, list) and [type(part) for part in item] in ([str, int, str], [str, bool, str])
        }
        if isinstance(listed, list)
        else set()
    )
    chosen = [entry.functions for entry in found.files.values()] + list(found.tests.values())
    assert all(place in known for some in chosen for place in some)
    assert all(math.isfinite(entry.duration_s) for entry in found.files.values())
    calls = find_calls(CODE, found.tests)
    assert calls.keys() == found.tests.keys()
    assert unpack_calls(json.loads(json.dumps(pack_calls(calls)))) == calls
    for target in find_targets(CODE, found.files, list(found.files)):
        assert target.test_file in found.files and target.source.startswith(f"{target.first_line}:def ")


# ---- repository lines

WORDS = (
    *(
        "pypi:toolz==1.0.0",
        "pypi:toolz==0.9.0..1.0.0",
        "https://host/owner/name@rev",
        "https://host/..",
        "ssh://-o/x",
        "git@host:owner/name",
        "./a",
        "./a@b",
    ),
    *(
        "~nosuchuser/x",
        "~",
        "/",
        "/..",
        "docker:image:tag#/testbed",
        "docker:a/#/x",
        "docker:..#/x",
        "ext::sh",
        "file:///x/y.git",
        "pypi:a==1" + "0" * 5000,
        "./" + "a" * 300 + "@x",
    ),
    *(
        "python=3.11",
        "python=\u0663.11",
        "python=",
        'install="pip  install ."',
        "test='a b'",
        "test='a\\nb'",
        'test="',
        "#",
        "hint=1",
        "\0",
        "\n",
        "\t",
        "\u2028",
        "\ud800",
        "  ",
    ),
)


@given(
    line=st.lists(st.sampled_from(WORDS) | st.text(max_size=6), min_size=1, max_size=4).map(" ".join)
    | st.text(max_size=30)
)
@example(line="~nosuchuser/x")
@example(line="./" + "a" * 300 + "@x")
@example(line="pypi:a==" + "1" * 5000)
@example(line="https://host/..")
@example(line="docker:a/#/x")
@example(line='pypi:a==1 test="a\nb"')
@example(line='pypi:a==1 test="a  b"')
@example(line="pypi:a==1 python=\u0663.11")
def test_any_line_is_a_repository_or_refused(line: str) -> None:
    base = Path("/")  # there is one, so that long names are looked up
    try:
        spec = parse_spec(line, base)
    except UsageError:
        event("refused")
        return
    event("read")
    assert re.fullmatch(r"[A-Za-z0-9._-]+", spec.name) and spec.name.strip(".")
    assert len(spec.text.splitlines()) == 1 and "\0" not in spec.location
    assert parse_spec(spec.text, base) == spec
    assert spec.python is None or re.fullmatch(r"[0-9]+\.[0-9]+", spec.python)
    assert not (spec.rev or "").startswith("-") and not spec.location.startswith("-")


# ---- task records

GOOD = {
    "instance_id": "a",
    "repo": "pypi:toolz==1.0.0",
    "patch": "",
    "test_patch": "",
    "FAIL_TO_PASS": ["x"],
    "PASS_TO_PASS": "[]",
}
own_parts = st.fixed_dictionaries(
    {},
    optional={
        "artifact": st.dictionaries(any_text, any_text, max_size=2) | json_values,
        "attempt_patch": any_text | json_values,
        "failure": any_text | json_values,
        "order": st.integers(0, 3) | json_values,
        "set": any_text | json_values,
        "part": json_values,
    },
)
task_records = st.builds(
    lambda parts, own: {**GOOD, **parts, **own},
    st.dictionaries(st.sampled_from([*GOOD, "extra"]), json_values | any_text, max_size=2),
    st.just({}) | st.fixed_dictionaries({"selfplay": own_parts | json_values}),
)


@given(record=task_records | json_values)
@example(
    record={
        **GOOD,
        "selfplay": {
            "artifact": {"a": "b"},
            "attempt_patch": "c",
            "failure": "d",
            "order": 2,
            "set": "e",
            "part": "f",
        },
    }
)
@example(record={**GOOD, "patch": None})
@example(record={**GOOD, "selfplay": {"order": float("inf")}})
@example(record={**GOOD, "selfplay": [1]})
@example(record={**GOOD, "selfplay": {"artifact": {"test_script.sh": 1}}})
@example(record={**GOOD, "FAIL_TO_PASS": "[" * 100_000})
def test_any_record_is_a_task_or_refused(record: Any) -> None:
    try:
        task = parse_task(record)
    except ValueError as error:
        assert str(error)
        return
    assert parse_task(json.loads(json.dumps(task_record(task)))) == task
    assert task.patch == record["patch"]
    texts = (
        task.instance_id,
        task.repo,
        task.patch,
        task.test_patch,
        task.attempt_patch,
        task.failure,
        task.set,
        task.part,
    )
    assert all(
        isinstance(text, str)
        for text in (*texts, *task.fail_to_pass, *task.pass_to_pass, *task.artifact, *task.artifact.values())
    )


@given(patch=contents(), ascii_only=st.booleans(), newline=st.sampled_from(["\n", "\r\n"]))
@example(patch="a\u2028b", ascii_only=False, newline="\n")
def test_task_files_of_other_tools_are_read(patch: str, ascii_only: bool, newline: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tasks.jsonl"
        path.write_bytes((json.dumps({**GOOD, "patch": patch}, ensure_ascii=ascii_only) + newline).encode())
        assert [task.patch for task in read_tasks(path)] == [patch]


@given(
    text=st.lists(
        st.sampled_from(["{", "}", "[" * 100_000, json.dumps(GOOD), "\n", "null", "1", '"x"', "\r"]),
        max_size=5,
    ).map("".join)
)
@example(text="[" * 100_000)
def test_any_task_file_is_read_or_refused(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tasks.jsonl"
        path.write_text(text)
        try:
            assert read_tasks(path)
        except UsageError as error:
            assert str(path) in str(error)
