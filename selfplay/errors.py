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
├── PatchError                   text is no diff, lies, or does not apply (the policy's fault)
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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
        lines = "\n".join(f"  line {number}: {message}" for number, message in problems)
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


class RepositoryError(SelfplayError):
    pass


class EnvironmentBuildError(SelfplayError):
    """`log_tail` is the end of the build or test log (bytes decoded with replacement)."""

    def __init__(self, message: str, log_tail: str = "") -> None:
        self.log_tail = log_tail
        super().__init__(message)


class PatchError(SelfplayError):
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
