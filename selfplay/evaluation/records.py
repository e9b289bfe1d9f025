"""The shapes of task records in the field, turned into the one that `tasks` reads. Pure.

Known are SWE-bench (Lite, Verified, Pro, SWE-Gym, SWE-rebench), SWE-smith, R2E-Gym and Multi-SWE.

Invariants: a record of selfplay's own comes back as it is. What a record says and selfplay cannot do becomes
`Setup.left_out`, a reason for a person, and never a guess. A value of a wrong type raises ValueError that
names the field.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from selfplay.evaluation.record_fields import decoded, has, ids_of, python_version, shown, text_of, texts_of
from selfplay.repositories.specs import parse_spec
from selfplay.source.apply import diff_trees
from selfplay.source.path_policy import is_test_path
from selfplay.source.trees import FileEntry, Tree

GIT_HOST = "https://github.com"
OWNER_AND_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
COMMIT = re.compile(r"[0-9a-f]{7,40}")
SMITH = re.compile(r"(?:[\w.-]+/)?([\w.-]+?)__([\w.-]+)\.([0-9a-f]{7,40})")  # OWNER__NAME.COMMIT
# R2E-Gym gives names without owners.
R2E_OWNERS = {
    "aiohttp": "aio-libs/aiohttp",
    "coveragepy": "nedbat/coveragepy",
    "datalad": "datalad/datalad",
    "numpy": "numpy/numpy",
    "orange3": "biolab/orange3",
    "pandas": "pandas-dev/pandas",
    "pillow": "python-pillow/Pillow",
    "pyramid": "Pylons/pyramid",
    "scrapy": "scrapy/scrapy",
    "sympy": "sympy/sympy",
    "tornado": "tornadoweb/tornado",
}
R2E_TESTS = "r2e_tests"  # the folder in which its tests run
# Projects of SWE-bench whose tests pytest does not run: the command and the parser of its log.
RUNNERS = {
    "django/django": (
        "python tests/runtests.py --verbosity 2 --settings=test_sqlite --parallel 1 {modules}",
        "unittest",
    ),
    "sympy/sympy": ("python bin/test -C --verbose {files}", "sympy"),
}

# Names of log parsers in `install_config` -> parsers that selfplay has. Pytest's need none.
LOG_PARSERS = {
    "parse_log_django": "unittest",
    "parse_log_gotest": "pass-fail",
    "parse_log_sympy": "sympy",
    "parse_log_tap": "tap",
}


@dataclass(frozen=True)
class Setup:
    """What a record says about running its tests.

    images        names of Docker images, tried in this order
    folder        where the repository lies in them, else it is looked for in their WORKDIR
    python        the version that the tests need
    packages      requirements, beyond those that the repository names
    test          the command that runs the tests, with {files} or {modules}; "" for pytest
    parser        what reads its log; "" for pytest's
    image_only    no environment can be built, since the tests are not Python's
    patch_is_bug  `patch` makes the bug in `repo`; else `repo` has the bug and `patch` repairs it
    left_out      why the task cannot be played, "" if it may be
    """

    images: tuple[str, ...] = ()
    folder: str = "/testbed"
    python: str = ""
    packages: tuple[str, ...] = ()
    test: str = ""
    parser: str = ""
    image_only: bool = False
    patch_is_bug: bool = False
    left_out: str = ""

    def to_json(self) -> dict[str, Any]:
        """The values that are not the default."""
        usual = Setup()
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
            if value != getattr(usual, name)
        }

    @classmethod
    def from_json(cls, value: object) -> Setup:
        """Raises ValueError, which names the field."""
        if not isinstance(value, Mapping):
            raise ValueError(f"selfplay.setup is {shown(value)}, not an object")
        found: dict[str, Any] = {}
        known = {one.name: one for one in fields(cls)}
        for name, given in value.items():
            if name not in known:
                raise ValueError(f"selfplay.setup.{name} is not known; known are {', '.join(known)}")
            usual = known[name].default
            if isinstance(usual, tuple):
                found[name] = texts_of(given, f"selfplay.setup.{name}")
            elif not isinstance(given, type(usual)):
                raise ValueError(f"selfplay.setup.{name} is {shown(given)}, not a {type(usual).__name__}")
            else:
                found[name] = given
        return cls(**found)


# ---- which shape


def as_task_record(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The record in selfplay's shape. Raises ValueError, which names the field, its value and the remedy."""
    extra = record.get("selfplay")
    if isinstance(extra, Mapping) and (extra.get("artifact") or extra.get("setup")):
        # `selfplay export` writes OWNER/NAME into `repo`, as the field does, and the list's line here.
        return {"test_patch": "", **record, "repo": extra["repo"]} if "repo" in extra else record
    if {"org", "repo", "number", "base"} <= record.keys():
        return _from_multi_swe(record)
    if "repo_name" in record and ("parsed_commit_content" in record or "docker_image" in record):
        return _from_r2e(record)
    repo = record.get("repo")
    if not isinstance(repo, str) or not OWNER_AND_NAME.fullmatch(repo):
        return _pinned(record)
    if not has(record, "base_commit") and (has(record, "image_name") or SMITH.fullmatch(repo)):
        return _from_swe_smith(record)
    return _from_swe_bench(record)


def _pinned(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """A plain record, whose `repo` is a repository list's line; `base_commit` pins it."""
    repo, commit = record.get("repo"), record.get("base_commit")
    if not isinstance(repo, str) or not commit:
        return record
    spec = parse_spec(repo)
    if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
        raise ValueError(f"base_commit is {shown(commit)}, not a commit id of 7 to 40 hexadecimal digits")
    if spec.kind not in ("git", "path"):
        raise ValueError(
            f"base_commit is {commit}, and repo is {repo!r}, which has no commits: "
            "leave base_commit out, or give the git repository"
        )
    if spec.rev:
        if COMMIT.fullmatch(spec.rev) and not (commit.startswith(spec.rev) or spec.rev.startswith(commit)):
            raise ValueError(f"base_commit is {commit}, and repo names {spec.rev}: keep one of them")
        if COMMIT.fullmatch(spec.rev):
            return record
        raise ValueError(
            f"base_commit is {commit}, and repo names the revision {spec.rev!r}: leave one of them out"
        )
    first, space, hints = repo.strip().partition(" ")
    return {**record, "repo": f"{first}@{commit}{space}{hints}"}


# ---- SWE-bench and what has its fields


def _from_swe_bench(record: Mapping[str, Any]) -> dict[str, Any]:
    """SWE-bench, Lite, Verified, Pro; SWE-Gym; SWE-rebench, which adds `install_config`."""
    repo, instance = text_of(record, "repo"), text_of(record, "instance_id")
    if not has(record, "base_commit"):
        raise ValueError("lacks base_commit; add the commit that `patch` repairs")
    commit = text_of(record, "base_commit")
    if not COMMIT.fullmatch(commit):
        raise ValueError(f"base_commit is {shown(commit)}, not a commit id of 7 to 40 hexadecimal digits")
    config = record.get("install_config") or {}
    config = decoded(config, "install_config")
    if not isinstance(config, Mapping):
        raise ValueError(f"install_config is {shown(config)}, not an object")
    test, parser = RUNNERS.get(repo, ("", ""))
    problem = _language_problem(record, "repo_language", "language")
    command = config.get("test_cmd") or ""
    if not isinstance(command, str):
        command = " && ".join(texts_of(command, "install_config.test_cmd"))
    packages = texts_of(config.get("pip_packages") or [], "install_config.pip_packages")
    own_parser = LOG_PARSERS.get(str(config.get("log_parser")), "")
    has_image = any(has(record, name) for name in ("image_name", "docker_image"))
    image_only = bool(problem and command and own_parser and has_image)
    if image_only:
        test, parser, problem = command, own_parser, ""
    elif not problem and not test and command and "pytest" not in command and "py.test" not in command:
        problem = f"its tests run with {command[:80]!r} (install_config.test_cmd), and only pytest is read"
    if options := [text for text in packages if text.startswith("-")]:
        problem = problem or f"install_config.pip_packages holds {options[0]!r}, an option of pip"
    setup = Setup(
        images=_swe_bench_images(record, instance),
        folder="/app" if has(record, "dockerhub_tag") else "/testbed",
        python=python_version(config.get("python")),
        packages=packages,
        test=test,
        parser=parser,
        image_only=image_only,
        left_out=problem,
    )
    issue = [text_of(record, "problem_statement", "")]
    # SWE-bench Pro gives its solvers these two with the issue.
    for name, title in (("requirements", "Requirements"), ("interface", "Interface")):
        if has(record, "dockerhub_tag") and (text := text_of(record, name, "").strip()):
            issue.append(f"{title}:\n\n{text}")
    return {
        "instance_id": instance,
        "repo": f"{GIT_HOST}/{repo}@{commit}",
        "patch": text_of(record, "patch"),
        "test_patch": text_of(record, "test_patch"),
        "FAIL_TO_PASS": ids_of(record, "FAIL_TO_PASS", "fail_to_pass"),
        "PASS_TO_PASS": ids_of(record, "PASS_TO_PASS", "pass_to_pass"),
        "problem_statement": "\n\n".join(part for part in issue if part),
        "selfplay": {"setup": setup.to_json()},
    }


def _swe_bench_images(record: Mapping[str, Any], instance: str) -> tuple[str, ...]:
    """The image that the record names, else the names under which the field's projects publish theirs."""
    named = [text_of(record, name, "") for name in ("image_name", "docker_image")]
    if tag := text_of(record, "dockerhub_tag", ""):
        named.append(f"jefzda/sweap-images:{tag}")
    if any(named):
        return tuple(name for name in named if name)
    name = instance.lower()
    return (
        f"sweb.eval.x86_64.{name}:latest",
        f"swebench/sweb.eval.x86_64.{name.replace('__', '_1776_')}:latest",
        f"xingyaoww/sweb.eval.x86_64.{name.replace('__', '_s_')}:latest",
    )


def _language_problem(record: Mapping[str, Any], *names: str) -> str:
    """Why a record of another language than Python is left out; "" for Python."""
    for name in names:
        language = text_of(record, name, "").lower()
        if language and language not in ("python", "py"):
            return (
                f"its tests are in {language} ({name}), and the record brings no image with a log parser "
                "that selfplay has"
            )
    return ""


def _unnamed_language(record: Mapping[str, Any]) -> str:
    """Why a Multi-SWE record that names no language is left out; "" if its patches are of Python."""
    if has(record, "lang") or has(record, "language"):
        return ""
    paths = re.findall(r"^\+\+\+ b/(\S+)", text_of(record, "test_patch", ""), re.MULTILINE)
    if any(path.endswith(".py") for path in paths):
        return ""
    return (
        "it names no language (lang), and its test_patch changes no Python file; only Python's tests are read"
    )


# ---- SWE-smith


def _from_swe_smith(record: Mapping[str, Any]) -> dict[str, Any]:
    """`repo` is swesmith/OWNER__NAME.COMMIT, and `patch` makes the bug."""
    repo = text_of(record, "repo")
    found = SMITH.fullmatch(repo)
    if found is None:
        raise ValueError(
            f"repo is {repo!r} and there is no base_commit: "
            "add base_commit, or write repo as swesmith/OWNER__NAME.COMMIT"
        )
    setup = Setup(images=_swe_smith_images(text_of(record, "image_name", ""), found), patch_is_bug=True)
    return {
        "instance_id": text_of(record, "instance_id"),
        "repo": f"{GIT_HOST}/{found[1]}/{found[2]}@{found[3]}",
        "patch": text_of(record, "patch"),
        "test_patch": "",
        "FAIL_TO_PASS": ids_of(record, "FAIL_TO_PASS"),
        "PASS_TO_PASS": ids_of(record, "PASS_TO_PASS"),
        "problem_statement": text_of(record, "problem_statement", ""),
        "selfplay": {"setup": setup.to_json()},
    }


def _swe_smith_images(named: str, repo: re.Match[str]) -> tuple[str, ...]:
    """The image that the record names, and the name under which the project publishes it.

    Older records leave the user out and write `__` as the separator.
    """
    plain = named.rpartition("/")[2] or f"swesmith.x86_64.{repo[1]}__{repo[2]}.{repo[3]}"
    published = f"jyangballin/{plain.replace('__', '_1776_')}".lower()
    return tuple(dict.fromkeys(filter(None, [named, published])))


# ---- R2E-Gym


def _from_r2e(record: Mapping[str, Any]) -> dict[str, Any]:
    """The commit's diff is in `parsed_commit_content`, tests and their logs are in
    `execution_result_content`.
    """
    name = text_of(record, "repo_name")
    commit = decoded(record.get("parsed_commit_content"), "parsed_commit_content")
    run = decoded(record.get("execution_result_content"), "execution_result_content")
    if not isinstance(commit, Mapping) or not isinstance(run, Mapping):
        raise ValueError(
            "parsed_commit_content and execution_result_content must be objects: "
            "they hold the repair and the tests"
        )
    new_commit = text_of(commit, "new_commit_hash", "") or text_of(record, "commit_hash", "")
    old_commit = text_of(commit, "old_commit_hash", "") or f"{new_commit}^"
    base = old_commit.removesuffix("^")
    if not COMMIT.fullmatch(base):
        raise ValueError(f"parsed_commit_content.old_commit_hash is {shown(old_commit)}, not a commit id")
    owner = R2E_OWNERS.get(name.lower(), name if "/" in name else "")
    problem = "" if owner else f"the owner of the repository {name!r} (repo_name) is not known"
    if old_commit.endswith("^"):
        problem = problem or "it names no commit before the repair (parsed_commit_content.old_commit_hash)"
    images = tuple(filter(None, [text_of(record, "docker_image", "")]))
    names = texts_of(run.get("test_file_names") or [], "execution_result_content.test_file_names")
    codes = texts_of(run.get("test_file_codes") or [], "execution_result_content.test_file_codes")
    if len(names) != len(codes) or not names:
        raise ValueError(
            f"execution_result_content has {len(names)} test_file_names and {len(codes)} test_file_codes; "
            "there must be as many of both"
        )
    tests = {f"{R2E_TESTS}/{path.rpartition('/')[2]}": text for path, text in zip(names, codes, strict=True)}
    expected = decoded(record.get("expected_output_json"), "expected_output_json")
    wanted = (
        {test for test, outcome in expected.items() if outcome == "PASSED"}
        if isinstance(expected, Mapping)
        else set()
    )
    before = _pytest_passes(text_of(run, "old_commit_res_stdout", ""))
    after = {
        test
        for test in _pytest_passes(text_of(run, "new_commit_res_stdout", ""))
        if not wanted or ".".join(test.split("::")[1:]) in wanted
    }
    return {
        "instance_id": text_of(record, "instance_id", "") or f"{name}__{(new_commit or base)[:12]}",
        "repo": f"{GIT_HOST}/{owner or f'unknown/{name}'}@{base}",
        "patch": _repair_of(commit),
        "test_patch": _diff({}, tests),
        "FAIL_TO_PASS": sorted(after - before),
        "PASS_TO_PASS": sorted(after & before),
        "problem_statement": _r2e_issue(text_of(record, "problem_statement", "")),
        "selfplay": {"setup": Setup(images=images, left_out=problem).to_json()},
    }


def _r2e_issue(text: str) -> str:
    """The issue stands between [ISSUE] and [/ISSUE]."""
    found = re.search(r"\[ISSUE\](.*)\[/ISSUE\]", text, re.DOTALL)
    return found[1].strip() if found else text


def _repair_of(commit: Mapping[str, Any]) -> str:
    """The commit's diff of files that are no tests, from the contents that the record holds."""
    before: dict[str, str] = {}
    after: dict[str, str] = {}
    changes = commit.get("file_diffs")
    for change in changes if isinstance(changes, list) else []:
        path = change.get("header", {}).get("file", {}).get("path") if isinstance(change, Mapping) else None
        if not isinstance(path, str) or is_test_path(path):
            continue
        if old := change.get("old_file_content"):
            before[path] = str(old)
        if new := change.get("new_file_content"):
            after[path] = str(new)
    if not before and not after:
        raise ValueError("parsed_commit_content.file_diffs holds no change of a file that is no test")
    return _diff(before, after)


def _pytest_passes(log: str) -> set[str]:
    """The ids of passed tests in the summary that `pytest -rA` prints."""
    return {
        found[1].strip() for line in log.split("\n") if (found := re.match(r"PASSED (\S+::.*)", line.strip()))
    }


def _diff(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """The diff between two sets of files, path -> text."""
    trees = [
        Tree({path: FileEntry(text.encode()) for path, text in files.items()}) for files in (before, after)
    ]
    return diff_trees(*trees)


# ---- Multi-SWE


def _from_multi_swe(record: Mapping[str, Any]) -> dict[str, Any]:
    """Ids are the keys of four objects: what the repair makes pass is f2p, s2p and n2p together."""
    base = record["base"]
    commit = text_of(base, "sha") if isinstance(base, Mapping) else ""
    if not COMMIT.fullmatch(commit):
        raise ValueError(f"base.sha is {shown(commit)}, not a commit id")
    org, repo, number = text_of(record, "org"), text_of(record, "repo"), str(record["number"])
    issues = record.get("resolved_issues")
    texts = [
        f"{issue.get('title') or ''}\n\n{issue.get('body') or ''}".strip()
        for issue in (issues if isinstance(issues, list) else [])
        if isinstance(issue, Mapping)
    ]
    setup = Setup(
        images=(f"mswebench/{org}_m_{repo}:pr-{number}".lower(),),
        folder=f"/home/{repo}",
        left_out=_language_problem(record, "lang", "language") or _unnamed_language(record),
    )

    def ids(*names: str) -> list[str]:
        return sorted({test for name in names for test in _keys(record.get(name), name)})

    return {
        "instance_id": text_of(record, "instance_id", "") or f"{org}__{repo}-{number}",
        "repo": f"{GIT_HOST}/{org}/{repo}@{commit}",
        "patch": text_of(record, "fix_patch"),
        "test_patch": text_of(record, "test_patch"),
        "FAIL_TO_PASS": ids("f2p_tests", "s2p_tests", "n2p_tests"),
        "PASS_TO_PASS": ids("p2p_tests"),
        "problem_statement": "\n\n".join(texts) or text_of(record, "body", ""),
        "selfplay": {"setup": setup.to_json()},
    }


def _keys(value: object, name: str) -> list[str]:
    """The keys of an object of tests. In Parquet each record has the keys of all records, others' as null."""
    if isinstance(value, Mapping):
        return [str(test) for test, status in value.items() if status is not None]
    return list(texts_of(value or [], name))
