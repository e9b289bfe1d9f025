"""Every error that selfplay raises on purpose. A message names the thing, the value and the remedy.

SelfplayError
├── UsageError                   what the person typed or wrote is wrong; exit code 2
│   ├── ConfigError              unknown key, wrong type, impossible combination
│   ├── PlacementError           the settings do not fit the machines; the message has the figure
│   └── RepositoryListError      every bad line of a list, with its number
├── PrerequisiteError            this machine lacks something; the message has the command that fixes it
│   └── DiskFullError            no space where selfplay keeps something
├── PartError                    a part of one's own cannot be loaded, fails, or returns what is no number
├── RepositoryError              a repository cannot be fetched or read
├── EnvironmentBuildError        a repository's tests do not run here (`log_tail`: the end of the log)
│   └── MissingPythonError       no Python of the version that a line asks for is here
├── PatchError                   text is no diff, lies, or does not apply (the policy's fault)
│   └── TreeError                paths that no folder can hold; never the machine's fault
├── ArtifactError                a folder cannot be read as an artifact (the policy's fault)
├── OutcomesError                a parser's output is no map of outcomes (the policy's fault)
├── SandboxError
│   ├── SandboxLost              a sandbox is gone and a fresh one works: what ran in it killed it
│   └── SandboxUnavailable       a fresh one fails too: the machine's fault, never a score
│       └── SandboxInterrupted   something outside ended it, although a fresh one works
├── EngineError                  a model cannot be loaded or does not answer
│   ├── ServerLost               a rollout server does not answer any more; its requests go elsewhere
│   └── WeightSyncError          servers do not hold the trainer's weights, or did not take them in time
├── TrainerError                 a process of the trainer died, hung or failed (`rank`, `log_tail`)
├── PromptError                  a template is missing, or uses a variable that it was not given
├── StoreError                   a database is corrupt, newer than this code, or held by another writer
└── RunError                     a run folder cannot be started, resumed or read
"""

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

MAX_FAULTS = 10  # of a file's lines that a message lists
# What the choice of a path leads to; a file that is only missing may be a fault of this program.
PATH_FAULTS = frozenset(
    (
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.EEXIST,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ENAMETOOLONG,
        errno.ELOOP,
    )
)
MAX_RANGES = 4  # of the numbers of lines with the same fault


def listed_faults(faults: Sequence[tuple[int, str]], unit: str = "line") -> str:
    """Faults of a file's lines, as (line number, text): lines with the same text are shown together.

    At most MAX_FAULTS texts, then how many more lines are wrong. What follows "; " in a text is its remedy,
    which is shown once. unit: what is numbered.
    """
    together: dict[str, list[int]] = {}
    for number, text in faults:
        together.setdefault(text, []).append(number)
    shown: list[str] = []
    remedies: set[str] = set()
    for text, numbers in list(together.items())[:MAX_FAULTS]:
        what, _, remedy = text.partition("; ")
        shown.append(f"  {_line_numbers(numbers, unit)}: {what if remedy in remedies else text}")
        remedies |= {remedy} - {""}
    if hidden := sum(len(numbers) for numbers in list(together.values())[MAX_FAULTS:]):
        shown.append(f"  … {hidden} more")
    return "\n".join(shown)


def _line_numbers(numbers: Sequence[int], unit: str) -> str:
    """`line 3`, `lines 1–240` or `lines 1–3, 7`; after MAX_RANGES ranges how many more lines there are."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1].append(number)
        else:
            ranges.append([number])
    texts = [f"{some[0]}–{some[-1]}" if len(some) > 1 else str(some[0]) for some in ranges[:MAX_RANGES]]
    if more := sum(map(len, ranges[MAX_RANGES:])):
        texts.append(f"and {more} more")
    return f"{unit}{'s' if len(numbers) > 1 else ''} {', '.join(texts)}"


class SelfplayError(Exception):
    """Base of all deliberate errors; `exit_code` is what the command line returns."""

    exit_code = 1


class UsageError(SelfplayError):
    exit_code = 2


class ConfigError(UsageError):
    pass


class PartError(SelfplayError):
    """A part of one's own (`package.module:name`) is at fault. The message names the setting and the part."""


class PlacementError(UsageError):
    pass


class RepositoryListError(UsageError):
    """`problems` holds (line number, message), all of them, in order."""

    def __init__(self, path: str, problems: list[tuple[int, str]]) -> None:
        self.path = path
        self.problems = problems
        lines = listed_faults(problems)
        super().__init__(f"{path}: {len(problems)} unusable line(s), nothing was started:\n{lines}")


class PrerequisiteError(SelfplayError):
    pass


class DiskFullError(PrerequisiteError):
    def __init__(self, place: Path, detail: object) -> None:
        super().__init__(
            f"no space is left for {place}: {detail}. Free some there, "
            "or let SELFPLAY_CACHE, TMPDIR and run.folder name another disk."
        )


@contextmanager
def full_disk_reported(place: Path) -> Iterator[None]:
    """Let an OSError that means a full disk be a DiskFullError, which names `place`; others pass."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskFullError(Path(error.filename or place), error.strerror) from error
        raise


def path_fault(error: OSError) -> str:
    """The message for a path that a person chose and that cannot be used so; "" for other errors."""
    place = error.filename
    if not isinstance(place, str | bytes | os.PathLike) or error.errno not in PATH_FAULTS:
        return ""
    return (
        f"cannot use {os.fsdecode(place)}: {error.strerror}. "
        "Give access to it, or name another place (options and settings, SELFPLAY_CACHE, TMPDIR)."
    )


class RepositoryError(SelfplayError):
    pass


class EnvironmentBuildError(SelfplayError):
    """`log_tail` is the end of the build or test log (bytes decoded with replacement).

    of_machine: the network, the index, the disk or a busy machine may be at fault, so another try may end
        otherwise.
    """

    def __init__(self, message: str, log_tail: str = "", of_machine: bool = False) -> None:
        self.log_tail = log_tail
        self.of_machine = of_machine
        super().__init__(message)


class MissingPythonError(EnvironmentBuildError):
    """It may be installed at any time, so the answer is not kept."""

    def __init__(self, message: str) -> None:
        super().__init__(message, of_machine=True)


class PatchError(SelfplayError):
    pass


class TreeError(PatchError):
    pass


class ArtifactError(SelfplayError):
    pass


class OutcomesError(SelfplayError):
    pass


class SandboxError(SelfplayError):
    pass


class SandboxLost(SandboxError):
    pass


class SandboxUnavailable(SandboxError):
    pass


class SandboxInterrupted(SandboxUnavailable):
    pass


class EngineError(SelfplayError):
    pass


class TrainerError(SelfplayError):
    """`rank` is the one to blame, None where none is; `log_tail` is the end of its own log."""

    def __init__(self, message: str, rank: int | None = None, log_tail: str = "") -> None:
        self.rank = rank
        self.log_tail = log_tail
        super().__init__(message)


class ServerLost(EngineError):
    pass


class WeightSyncError(EngineError):
    pass


class PromptError(SelfplayError):
    pass


class StoreError(SelfplayError):
    pass


class RunError(SelfplayError):
    pass
