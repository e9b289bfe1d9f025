"""The options of a pytest command line: which ones a run keeps, and which plugins they need. Runs nothing.

Options that choose or configure tests stay. Others are left out: those that change what is printed, since the
standard parser reads the log; those that end a run early; those that change the order or the number of runs.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

Option = tuple[str, ...]  # an option and its value: ("-k", "not slow"), ("--import-mode=importlib",)

# Options with a value of their own word. Other options take the next word if it is no file.
WITH_VALUE_NAMES = """
    --maxfail --verbosity --tb --show-capture --color --code-highlight --capture --junit-xml --junitxml
    --junit-prefix --junitprefix --import-mode --ignore --ignore-glob --deselect --rootdir --confcutdir
    --basetemp --durations --durations-min --pdbcls --log-level --log-format --log-date-format
    --log-cli-level --log-cli-format --log-cli-date-format --log-file --log-file-mode --log-file-level
    --log-file-format --log-file-date-format --log-auto-indent --log-disable --doctest-glob
    --doctest-report --override-ini --config-file --assert --pythonwarnings --pastebin --max-warnings
    --last-failed-no-failures --lfnf --numprocesses --maxprocesses --dist --tx --max-worker-restart
    --cov --cov-report --cov-config --cov-context --cov-fail-under --asyncio-mode --timeout
    --timeout-method --ds --dc --reruns --reruns-delay --only-rerun --random-order-bucket
    --random-order-seed --randomly-seed --hypothesis-profile --hypothesis-seed --hypothesis-verbosity
    --html --css --json-report-file --report-log --count
"""
WITH_VALUE = frozenset(WITH_VALUE_NAMES.split())
FLAGS_NAMES = """
    --verbose --quiet --exitfirst --no-header --no-summary --showlocals --full-trace --strict
    --strict-markers --strict-config --doctest-modules --doctest-continue-on-failure
    --doctest-ignore-import-errors --runxfail --disable-warnings --disable-pytest-warnings --pyargs
    --noconftest --keep-duplicates --collect-in-virtualenv --continue-on-collection-errors --lf
    --last-failed --ff --failed-first --nf --new-first --sw --stepwise --stepwise-skip --sw-skip
    --cache-clear --force-short-summary --no-cov --no-cov-on-fail --cov-append --cov-branch --trace
    --pdb --setup-show --no-showlocals --no-fold-skipped
"""
FLAGS = frozenset(FLAGS_NAMES.split())
SHORT_FLAGS = "qvxslhVfd"
SHORT_WITH_VALUE = "rkmpcoWn"
LONG_NAMES = {"-c": "--config-file", "-o": "--override-ini", "-W": "--pythonwarnings", "-n": "--numprocesses"}

RUNS_NO_TEST_NAMES = """
    --collect-only --co --collectonly --setup-only --setuponly --setup-plan --setupplan --fixtures
    --funcargs --fixtures-per-test --markers --help -h --version -V --cache-show
"""
RUNS_NO_TEST = frozenset(RUNS_NO_TEST_NAMES.split())
# Change what is printed, end a run early or call a debugger.
PRINTED = re.compile(
    r"-[qvxslr]|--(verbose|quiet|verbosity|no-?header|no-?summary|tb|color|code-highlight|show-?capture"
    r"|disable-(pytest-)?warnings|(no-)?showlocals|full-?trace|durations(-min)?|force-short-summary"
    r"|no-fold-skipped|xfail-tb|exitfirst|maxfail|max-warnings|continue-on-collection-errors"
    r"|setup-?show|pdb|pdbcls|trace|trace-config|debug|pastebin|junit-?(xml|prefix)|log-cli-.*|log-file.*"
    r"|report-log.*|json-report.*|html.*|self-contained-html|css|md.*|emoji.*|pretty|instafail|sugar.*"
    r"|(force|old)-sugar|spec.*|tap-.*|tap|hypothesis-(show-statistics|verbosity)|doctest-report"
    r"|show-progress|nunit-xml|ctrf|allure.*|alluredir|clean-alluredir|github-.*|azure-.*)"
)
# Need the cache, or plugins that are not installed (strict); change the order of tests, repeat or distribute
# them, measure coverage, check style.
DISTURBING = re.compile(
    r"-[nfd]|--(strict|strict-config|lf|last-failed|ff|failed-first|nf|new-first|lfnf|last-failed-no-failures|sw|stepwise.*"
    r"|sw-.*|cache-clear|rootdir|basetemp|numprocesses|maxprocesses|dist|tx|max-worker-restart|boxed|forked"
    r"|looponfail|rsyncdir|testrunuid|(no-)?cov(-.*)?|(only-)?reruns?(-.*)?|flake-finder|flake-runs"
    r"|random-order.*|randomly-.*|testmon.*|picked.*|mypy.*|ruff.*|flake8|black|isort|pylint.*|pycodestyle"
    r"|pydocstyle|checkdocs|codspeed.*|perf.*|enabler.*|memray.*|profile.*|splits?|group|typeguard-.*"
    r"|benchmark-(only|autosave|save.*|compare.*|histogram.*|json.*|verbose|columns|sort|group-by))"
)
DISTURBING_PLUGINS = re.compile(
    r"no:(terminal|terminalreporter|python|main|runner|cacheprovider)"
    r"|(pytest[_-])?(cov|xdist(\.plugin)?|randomly|random_order|rerunfailures|sugar|testmon|pytest_cov)"
)
PRINTING_INI = re.compile(
    r"(addopts|required_plugins|console_output_style|cache_dir|log_cli.*|log_file.*|junit_.*|verbosity_.*)="
)

# Options and ini settings that a plugin brings -> the plugin's requirement.
PLUGINS = (
    (re.compile(r"--asyncio-|asyncio_(mode|default|debug)"), "pytest-asyncio"),
    (
        re.compile(r"--(ds|dc|reuse-db|create-db|no-migrations|nomigrations)\b|DJANGO_|django_"),
        "pytest-django",
    ),
    (re.compile(r"--timeout|timeout(_method|_func_only)?$"), "pytest-timeout"),
    (re.compile(r"--benchmark-"), "pytest-benchmark"),
    (re.compile(r"--mpl|mpl-"), "pytest-mpl"),
    (
        re.compile(r"--doctest-(plus|rst|only|ufunc)|doctest_(plus|rst|subpackage_requires)"),
        "pytest-doctestplus",
    ),
    (re.compile(r"--remote-data|remote_data_strict"), "pytest-remotedata"),
    (re.compile(r"--snapshot-|--inline-snapshot"), "syrupy"),
    (re.compile(r"--(disable|enable|force-enable)-socket|--allow-(hosts|unix-socket)"), "pytest-socket"),
    (re.compile(r"--hypothesis-"), "hypothesis"),
    (re.compile(r"--aiohttp-|aiohttp_"), "pytest-aiohttp"),
    (re.compile(r"--trio|trio_mode"), "pytest-trio"),
    (re.compile(r"anyio_mode"), "anyio"),
    (re.compile(r"--twisted|--reactor"), "pytest-twisted"),
    (re.compile(r"--nbval|--nbmake"), "nbval"),
    (re.compile(r"--count\b|--repeat"), "pytest-repeat"),
    (re.compile(r"--order-|--sparse-ordering"), "pytest-order"),
    (re.compile(r"--(no-)?qt-|qt_(api|log)"), "pytest-qt"),
    (re.compile(r"--mock-|mock_(use|traceback)"), "pytest-mock"),
    (re.compile(r"--freezegun|freezegun_"), "pytest-freezegun"),
    (re.compile(r"--cram|--shelltest"), "pytest-cram"),
    (re.compile(r"--cov|--no-cov"), "pytest-cov"),
    (re.compile(r"--(numprocesses|dist|tx|maxprocesses)|-n"), "pytest-xdist"),
    (re.compile(r"--reruns|--only-rerun"), "pytest-rerunfailures"),
    (re.compile(r"--random-order"), "pytest-random-order"),
    (re.compile(r"--randomly-"), "pytest-randomly"),
    (re.compile(r"env$|env_files$|env_override"), "pytest-env"),
)
# Plugins of `-p NAME` -> requirement; a name that is not here may be a module of the repository.
NAMED_PLUGINS = {
    "asyncio": "pytest-asyncio",
    "pytest_asyncio": "pytest-asyncio",
    "pytest_asyncio.plugin": "pytest-asyncio",
    "anyio": "anyio",
    "django": "pytest-django",
    "pytest_django": "pytest-django",
    "timeout": "pytest-timeout",
    "pytest_timeout": "pytest-timeout",
    "pytest_mock": "pytest-mock",
    "pytest_httpserver": "pytest-httpserver",
    "aiohttp.pytest_plugin": "aiohttp",
    "hypothesis": "hypothesis",
    "pytest_benchmark.plugin": "pytest-benchmark",
    "pytest_subtests": "pytest-subtests",
    "pytest_twisted": "pytest-twisted",
}


@dataclass(frozen=True)
class Words:
    """The words of a command line. arguments: those that are no option, in order."""

    options: tuple[Option, ...] = ()
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sorted:
    """Options by what becomes of them. ini: values of `-o NAME=VALUE` that were taken out for the caller."""

    kept: tuple[Option, ...] = ()
    left_out: tuple[Option, ...] = ()
    configuration: str = ""
    ini: dict[str, str] = field(default_factory=dict)


def split_words(words: Sequence[str], paths: Collection[str]) -> Words:
    """Group the words of a command line. paths: the files and folders that a word can name."""
    options: list[Option] = []
    arguments: list[str] = []
    position = 0
    while position < len(words):
        word = words[position]
        following = words[position + 1] if position + 1 < len(words) else None
        position += 1
        if word == "--":
            arguments += words[position:]
            break
        if not word.startswith("-") or word == "-":
            arguments.append(word)
        elif word.startswith("--"):
            takes = _takes_next(word, following, paths)
            options.append((word, following) if takes and following is not None else (word,))
            position += takes
        else:
            found, takes = _short_options(word, following)
            options += found
            position += takes
    return Words(tuple(options), tuple(arguments))


def _takes_next(word: str, following: str | None, paths: Collection[str]) -> bool:
    """Whether the value of a long option is the next word."""
    if "=" in word or following is None or word in FLAGS or word in RUNS_NO_TEST:
        return False
    if word in WITH_VALUE:
        return word != "--cov" or not following.startswith("-")
    return not following.startswith("-") and not names_path(following, paths)


def _short_options(word: str, following: str | None) -> tuple[list[Option], bool]:
    """The options of `-vvk`, and whether the last one takes the next word."""
    found: list[Option] = []
    for index, letter in enumerate(word[1:], start=1):
        if letter in SHORT_WITH_VALUE:
            value = word[index + 1 :].removeprefix("=")
            if value or following is None:
                return [*found, (f"-{letter}", value)], False
            return [*found, (f"-{letter}", following)], True
        if letter not in SHORT_FLAGS:
            return [*found, (f"-{word[index:]}",)], False
        found.append((f"-{letter}",))
    return found, False


def names_path(word: str, paths: Collection[str]) -> bool:
    """Whether a word names files or folders of the repository, or tests in one of them."""
    return bool(matching_paths(word.partition("::")[0], paths))


def matching_paths(word: str, paths: Collection[str]) -> tuple[str, ...]:
    """The files and folders that a word names, in order. `.` and patterns of a shell count."""
    path = plain_path(word)
    if path in paths:
        return (path,)
    if re.search(r"[*?\[]", path):
        depth = path.count("/")
        return tuple(
            sorted(p for p in paths if p.count("/") == depth and fnmatch.fnmatchcase(p, path) and p != ".")
        )
    return ()


def plain_path(word: str) -> str:
    """A path relative to the workspace, without `./` and a slash at the end."""
    path = re.sub(r"^(?:/testbed(?:/|$)|(?:\./+)+)", "", word).rstrip("/")
    return path or "."


def sort_options(options: Iterable[Option]) -> Sorted:
    """Decide which options of a command line stay."""
    kept: list[Option] = []
    left_out: list[Option] = []
    configuration = ""
    ini: dict[str, str] = {}
    for option in options:
        name, value = _named(option)
        if name == "--config-file":
            configuration = plain_path(value)
        elif name == "--override-ini" and re.match(r"(addopts|required_plugins)=", value):
            key, _, text = value.partition("=")
            ini[key] = text
        elif _is_left_out(name, value):
            left_out.append(option)
        else:
            kept.append(option)
    return Sorted(tuple(kept), tuple(left_out), configuration, ini)


def _named(option: Option) -> tuple[str, str]:
    """The option's long name if it has one, and its value, "" for none."""
    name, equals, value = option[0].partition("=") if option[0].startswith("--") else (option[0], "", "")
    if not equals and len(option) > 1:
        value = option[1]
    return LONG_NAMES.get(name, name), value


def _is_left_out(name: str, value: str) -> bool:
    if name == "-p":
        return DISTURBING_PLUGINS.fullmatch(value) is not None
    if name == "--override-ini":
        return PRINTING_INI.match(value) is not None
    if name == "--capture":
        return value not in ("sys", "fd")
    return (
        name in RUNS_NO_TEST or PRINTED.fullmatch(name) is not None or DISTURBING.fullmatch(name) is not None
    )


def without_options(options: Iterable[Option], refused: Collection[str]) -> tuple[Option, ...]:
    """The options without those whose name, or whole first word, is refused."""
    return tuple(
        option
        for option in options
        if option[0] not in refused and option[0].partition("=")[0] not in refused
    )


def plugins_of(options: Iterable[Option], ini: Iterable[str]) -> tuple[str, ...]:
    """The requirements of plugins that known options and ini settings need, sorted."""
    found = {plugin_of(_named(option)[0]) for option in options} | {plugin_of(name) for name in ini}
    found |= {NAMED_PLUGINS.get(_named(option)[1], "") for option in options if option[0] == "-p"}
    return tuple(sorted(found - {""}))


def plugin_of(name: str) -> str:
    """The requirement of the plugin that brings an option or an ini setting, "" if it is not known."""
    return next((requirement for pattern, requirement in PLUGINS if pattern.match(name)), "")
