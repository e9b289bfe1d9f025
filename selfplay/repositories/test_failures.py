"""Why pytest found or passed no test, read from its log: the reason, and what a user can do about it.

Pure functions of text. Invariant: a log is hostile input. The work for a line is bounded, and what is quoted
from a log is short and printable.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from selfplay.repositories.import_failures import (
    MISSING_MODULE,
    SHOWN,
    Cause,
    Hints,
    all_causes,
    cause_of_import,
    cause_of_missing_module,
)
from selfplay.repositories.pytest_options import plugin_of

if TYPE_CHECKING:
    from selfplay.source.trees import Tree

MAX_LINES = 20_000  # of a log that are read, from its end
MAX_LINE = 400  # characters

INTERNAL = "INTERNALERROR>"  # begins each line of a failure of pytest itself
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
# What code changes to hide or change pytest's report.
HIDES_REPORT = re.compile(
    r"no_summary|reportchars|terminal_?reporter|(?<=option\.)(color|verbose|quiet|tbstyle)|get_terminal_writer"
)
COLLECTING = re.compile(r"_{3,} ERROR collecting (\S.*?) _{3,}")
ENDED = re.compile(r"(?:=+ )?((?:\d+ [a-z]+)(?:, \d+ [a-z]+)*) in \d[\d.]*s.*")
ERROR_LINE = re.compile(r"E {3,}([A-Za-z_][\w.]*(?:Error|Exception|Warning|Failed|Exit|NotFound)): ?(.*)")

NEEDS_COMPILED = re.compile(r"\bC[ -]?extension|extension module|not compiled", re.IGNORECASE)
COMPILED_REMEDY = (
    "Extension modules that a build compiles are not supported; an image may have them: docker:IMAGE#/FOLDER"
)

FIXTURES = {
    "aiohttp_client": "pytest-aiohttp",
    "benchmark": "pytest-benchmark",
    "celery_app": "pytest-celery",
    "cov": "pytest-cov",
    "datadir": "pytest-datadir",
    "django_user_model": "pytest-django",
    "db": "pytest-django",
    "event_loop": "'pytest-asyncio<1'",
    "faker": "Faker",
    "freezer": "pytest-freezer",
    "fs": "pyfakefs",
    "httpserver": "pytest-httpserver",
    "httpx_mock": "pytest-httpx",
    "mocker": "pytest-mock",
    "qtbot": "pytest-qt",
    "requests_mock": "requests-mock",
    "respx_mock": "respx",
    "settings": "pytest-django",
    "snapshot": "syrupy",
    "subtests": "pytest-subtests",
    "testdir": "",
    "tmpdir": "",
    "worker_id": "pytest-xdist",
}


@dataclass(frozen=True)
class Log:
    """The lines of a log, and the repository."""

    lines: Sequence[str]
    tree: Tree

    def find(self, pattern: str) -> re.Match[str] | None:
        """The first match of a pattern that begins a line."""
        return next((found for line in self.lines if (found := re.match(pattern, line))), None)

    def search(self, pattern: re.Pattern[str]) -> list[re.Match[str]]:
        return [found for line in self.lines if (found := pattern.search(line))]


def explain(log: str, tree: Tree) -> Cause | None:
    """The first known cause that the log shows, the most specific ones first. None if no cause is known."""
    found = Log([ESCAPE.sub("", line[:MAX_LINE]) for line in log.split("\n")[-MAX_LINES:]], tree)
    cause = next((cause for rule in RULES if (cause := rule(found)) is not None), None)
    return replace(cause, reason=_plain(cause.reason)) if cause else None


def with_cause(what: str, log: str, tree: Tree, given: Hints) -> str:
    """`what` with the cause that a log shows, if it is known. given: the hints that a remedy extends."""
    cause = explain(log, tree)
    return f"{what}: {cause.text(given)}" if cause else what


def refused_options(log: str) -> frozenset[str]:
    """The options that pytest refuses: unknown ones, and strict markers if a plugin's marker is missing."""
    found: set[str] = set()
    for line in log.split("\n") if INTERNAL not in log else ():
        unknown = re.search(r"error: unrecognized arguments: (.*)", line)
        if unknown:
            found |= {word for word in unknown[1].split(" ") if word.startswith("-")}
        if re.search(r"not found in `markers` configuration option", line):
            found.add("--strict-markers")
    return frozenset(found)


def ends_python(log: str) -> bool:
    """Whether a file ended Python when it was imported: pytest failed with it, or printed nothing."""
    return bool(re.search(rf"^{INTERNAL} SystemExit", log, re.MULTILINE)) or not log.strip()


# ---- what pytest says about its call


def _unknown_options(log: Log) -> Cause | None:
    found = next(iter(log.search(re.compile(r"error: unrecognized arguments: (.*)"))), None)
    # A test file that calls unittest.main() when it is imported prints such a line too.
    if found is None or any(line.startswith(INTERNAL) for line in log.lines):
        return None
    words = [word for word in found[1].split(" ") if word.startswith("-")] or [found[1]]
    file = log.find(r"\s+(?:inifile|configfile): (\S+)")
    where = f" ({_inside(file[1])} or the hint names them)" if file and file[1] != "None" else ""
    plugins = tuple(sorted({plugin for word in words if (plugin := plugin_of(word))}))
    remedy = (
        ""
        if plugins
        else 'Leave it out of the hint test="pytest …", or install the plugin that brings it with the hint '
        'install="…"'
    )
    brings = f", which {' and '.join(plugins)} bring{'s' if len(plugins) == 1 else ''}" if plugins else ""
    return Cause(
        f"pytest does not know the option {', '.join(words)}{brings}{where}", remedy, projects=plugins
    )


def _option_value(log: Log) -> Cause | None:
    found = next(iter(log.search(re.compile(r": error: (argument .*|ambiguous option.*)"))), None)
    return (
        Cause(f"pytest refuses an option: {found[1]}", 'Change the hint test="pytest …"') if found else None
    )


def _missing_plugins(log: Log) -> Cause | None:
    found = log.find(r"ERROR: Missing required plugins: (.*)")
    if found is None:
        return None
    names = found[1].replace(",", "").split()
    return Cause(f"its required_plugins are missing: {', '.join(names)}", projects=tuple(names))


def _minimum_version(log: Log) -> Cause | None:
    found = log.find(r"ERROR: (.*): 'minversion' requires pytest-([\w.]+), actual pytest-([\w.]+)")
    if found is None:
        return None
    reason = f"minversion in {_inside(found[1])} asks for pytest {found[2]}, and {found[3]} is installed"
    return Cause(
        reason, f"Install it with install=\"pip install 'pytest>={found[2]}' …\", or lower minversion"
    )


def _missing_path(log: Log) -> Cause | None:
    found = log.find(r"ERROR: (?:file or directory not found|not found): (.*)")
    return (
        Cause(f"pytest does not find {found[1]}", 'Name it in the hint test="pytest PATH"') if found else None
    )


def _bad_configuration(log: Log) -> Cause | None:
    found = log.find(r"ERROR: (/testbed/\S+(?:\.ini|\.toml|\.cfg|:\d+):? .*)") or log.find(
        r"ERROR: (.*(?:Unknown config option|Wrong expression|Invalid|invalid).*)"
    )
    return Cause(f"pytest refuses its configuration: {_inside(found[1])}") if found else None


def _plugin_import(log: Log) -> Cause | None:
    found = next(iter(log.search(re.compile(r"Error importing plugin ['\"]([^'\"]+)['\"]: (.*)"))), None)
    if found is None:
        return None
    reason = f"the plugin {found[1]} (option -p, or pytest_plugins) cannot be imported: {found[2]}"
    missing = MISSING_MODULE.search(found[2])
    return replace(cause_of_missing_module(missing[1], log.tree), reason=reason) if missing else Cause(reason)


def _conftest(log: Log) -> Cause | None:
    found = next(iter(log.search(re.compile(r"ImportError while loading conftest '([^']+)'"))), None)
    if found is None:
        return None
    error = _last_error(log)
    known = cause_of_import(error, log.tree) or Cause(error or "see the log")
    return replace(known, reason=f"{_inside(found[1])} cannot be loaded: {known.reason}")


def _internal_error(log: Log) -> Cause | None:
    lines = [line for line in log.lines if line.startswith(INTERNAL)]
    if not lines:
        return None
    places = [found for line in lines if (found := re.search(r'File "/testbed/([^"]+)", line (\d+)', line))]
    where = f" ({places[-1][1]}, line {places[-1][2]})" if places else ""
    error = lines[-1].removeprefix(INTERNAL).strip()
    if places and error.startswith("SystemExit"):
        return Cause(
            f"a test file ends Python when it is imported: {error}{where}",
            'Name the other test files in the hint test="pytest …", or guard the call there with '
            'if __name__ == "__main__"',
        )
    return Cause(
        f"pytest itself failed: {error}{where}",
        "" if places else 'If a plugin is too old, choose versions with the hint install="pip install …"',
    )


def _ended(log: Log) -> Cause | None:
    """Code that pytest imported ended the process."""
    fatal = log.find(r"Fatal Python error: (.*)")
    if fatal:
        return Cause(f"Python crashed: {fatal[1]}")
    if any(line.strip() for line in log.lines):
        return None
    return Cause("pytest printed nothing: a conftest.py, a plugin or a test file ended its process")


def _other_error(log: Log) -> Cause | None:
    for number, line in enumerate(log.lines):
        if line.startswith("ERROR: "):
            following = next((text.strip() for text in log.lines[number + 1 :] if text.strip()), "")
            return Cause(f"pytest ends with an error: {_inside(line[7:])} {following}".rstrip())
    return None


# ---- what pytest says about test files


def _mismatch(log: Log) -> Cause | None:
    if log.find(r"import file mismatch:") is None:
        return None
    return Cause(
        "two test files have the same module name", 'Use the hint test="pytest --import-mode=importlib"'
    )


def _collection_errors(log: Log) -> Cause | None:
    files = {found[1] for line in log.lines if (found := COLLECTING.fullmatch(line.strip()))}
    files |= {
        found[1].partition(" - ")[0]
        for line in log.lines
        if (found := re.fullmatch(r"ERROR (\S+\.py(?: - .*)?)", line))
    }
    if not files:
        return None
    errors = [error for line in log.lines if (error := _error_of(line))]
    if not errors:
        names = ", ".join(sorted(files)[:SHOWN])
        return Cause(f"{len(files)} of its test files cannot be imported ({names})")
    common = all_causes(cause_of_import(error, log.tree) or Cause(error) for error in errors)
    return replace(common, reason=f"{len(files)} of its test files cannot be imported: {common.reason}")


# ---- what pytest says about tests


def _fixtures(log: Log) -> Cause | None:
    names = Counter(found[1] for found in log.search(re.compile(r"fixture '(\w+)' not found")))
    if not names:
        return None
    projects = tuple(sorted({FIXTURES[name] for name in names if FIXTURES.get(name)}))
    listed = ", ".join(name for name, _ in names.most_common(SHOWN))
    remedy = "" if projects else 'Install the plugin that brings it with the hint install="…"'
    return Cause(f"tests ask for a fixture that no installed plugin has: {listed}", remedy, projects=projects)


def _asynchronous(log: Log) -> Cause | None:
    if not log.search(re.compile(r"async def functions are not natively supported")):
        return None
    return Cause(
        "its tests are coroutines, and no installed plugin runs them",
        'Use the hint test="pytest --asyncio-mode=auto"',
        projects=("pytest-asyncio",),
    )


def _network(log: Log) -> Cause | None:
    pattern = r"(socket\.gaierror|Temporary failure in name resolution|Network is unreachable)"
    if not log.search(re.compile(pattern)):
        return None
    return Cause("its tests need the network, which a sandbox has not", 'Choose others: test="pytest -k …"')


def _hidden_report(log: Log) -> Cause | None:
    """Tests passed, but the short summary is not there: something of the project hides it."""
    ended = [found[1] for line in log.lines if (found := ENDED.fullmatch(line.strip()))]
    passed = [text for text in ended if re.search(r"\b[1-9]\d* passed", text)]
    if not passed:
        return None
    summaries = sum("short test summary info" in line for line in log.lines)
    places = [
        f"{path} changes {found[0]}"
        for path in sorted(log.tree)
        if path.rpartition("/")[2] == "conftest.py" and (found := HIDES_REPORT.search(log.tree.text(path)))
    ]
    what = {0: "pytest printed no summary of them", 1: "the summary has colours or another form"}.get(
        summaries, f"the log has {summaries} summaries"
    )
    by = "; ".join(places[:SHOWN]) or "an option, a plugin or a conftest.py of the project is the cause"
    return Cause(
        f"its tests ran ({passed[-1]}), but {what}: {by}",
        'If a plugin is the cause, switch it off with the hint test="pytest -p no:PLUGIN"',
    )


def _all_skipped(log: Log) -> Cause | None:
    ended = [found[1] for line in log.lines if (found := ENDED.fullmatch(line.strip()))]
    if (
        not ended
        or not re.search(r"\b\d+ skipped", ended[-1])
        or re.search(r"passed|failed|error", ended[-1])
    ):
        return None
    found = log.find(r"SKIPPED \[\d+\] \S+: (.*)")
    return Cause(f"all tests were skipped ({ended[-1]})" + (f": {found[1]}" if found else ""))


def _all_deselected(log: Log) -> Cause | None:
    found = next(iter(log.search(re.compile(r"\b(\d+) deselected"))), None)
    if found is None or log.search(re.compile(r"\b[1-9]\d* passed")):
        return None
    return Cause(
        f"the options -k, -m and --deselect leave out all of its tests ({found[1]})",
        'Choose others with the hint test="pytest …"',
    )


def _all_failed(log: Log) -> Cause | None:
    ended = [found[1] for line in log.lines if (found := ENDED.fullmatch(line.strip()))]
    if not ended or not re.search(r"failed|error", ended[-1]):
        return None
    errors = Counter(error for line in log.lines if (error := _error_of(line)))
    shown = "; ".join(error for error, _ in errors.most_common(SHOWN))
    remedy = COMPILED_REMEDY if NEEDS_COMPILED.search(shown) else ""
    return Cause(f"all tests fail ({ended[-1]})" + (f": {shown}" if shown else ""), remedy)


def _nothing_collected(log: Log) -> Cause | None:
    if not log.search(re.compile(r"no tests (ran|collected)|collected 0 items")):
        return None
    skipped = [found[1] for found in log.search(re.compile(r"^SKIPPED \[\d+\] \S+: (.*)"))]
    if skipped:
        missing = next((found for reason in skipped if (found := MISSING_MODULE.search(reason))), None)
        known = cause_of_missing_module(missing[1], log.tree) if missing else Cause("")
        return replace(known, reason=f"its test files are skipped: {'; '.join(dict.fromkeys(skipped))}")
    return Cause(
        "no file or function matches pytest's patterns",
        'Name the files with the hint test="pytest PATH", or say how the tests run with test="COMMAND" '
        "parser=tap",
    )


def _markers(log: Log) -> Cause | None:
    pattern = re.compile(r"'(\w+)' not found in `markers` configuration option")
    names = dict.fromkeys(found[1] for found in log.search(pattern))
    if not names:
        return None
    return Cause(
        f"strict markers: {', '.join(names)} is the marker of a plugin that is not installed",
        'Use the hint test="pytest -o strict_markers=false", or install the plugin with install="…"',
    )


Rule = Callable[[Log], Cause | None]
RULES: tuple[Rule, ...] = (
    _ended,
    _unknown_options,
    _option_value,
    _missing_plugins,
    _minimum_version,
    _plugin_import,
    _conftest,
    _missing_path,
    _bad_configuration,
    _internal_error,
    _mismatch,
    _markers,
    _collection_errors,
    _fixtures,
    _asynchronous,
    _network,
    _hidden_report,
    _all_skipped,
    _all_failed,
    _all_deselected,
    _other_error,
    _nothing_collected,
)


# ---- texts


def _last_error(log: Log) -> str:
    return next((error for line in reversed(log.lines) if (error := _error_of(line))), "")


def _error_of(line: str) -> str:
    """`ModuleNotFoundError: …` of a line of a traceback, "" for other lines."""
    found = ERROR_LINE.match(line)
    return f"{found[1].rpartition('.')[2]}: {found[2]}".rstrip(": ") if found else ""


def _inside(path: str) -> str:
    """A path without the workspace's folder."""
    return path.replace("/testbed/", "")


def _plain(text: str) -> str:
    short = text if len(text) <= MAX_LINE else f"{text[:MAX_LINE]}…"
    return "".join(char if char.isprintable() else " " for char in short)
