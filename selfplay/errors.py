"""Every error that selfplay raises on purpose. A message names the thing, the value and the remedy.

SelfplayError
├── UsageError                    what the person typed or wrote is wrong; exit code 2
│   ├── ConfigError               unknown key, wrong type, impossible combination
│   ├── PlacementError            what the settings ask for does not fit the machines, with the figure
│   └── RepositoryListError       every bad line of a list, with its number
├── PrerequisiteError             something this machine lacks, with the command that mends it
│   └── DiskFullError             no space where selfplay keeps something
├── PartError                     a part of one's own cannot be loaded, raised, or returned what is no number
├── RepositoryError               a repository cannot be fetched or read
├── EnvironmentBuildError         its tests do not run here (`log_tail` holds the end of the log)
├── PatchError                    a diff that is not one, lies, or does not apply (the policy's fault)
├── ArtifactError                 an artifact folder that cannot be read as one (the policy's fault)
├── OutcomesError                 a test-outcome map that is not one (the policy's fault)
├── SandboxError
│   ├── SandboxLost               gone, and a fresh one works: what ran in it killed it
│   └── SandboxUnavailable        gone, and a fresh one fails too: the machine's fault, never a score
│       └── SandboxInterrupted    gone by what was done to it from outside, although a fresh one works
├── EngineError                   a model cannot be loaded or does not answer
│   ├── ServerLost                a rollout server does not answer any more; its requests go elsewhere
│   └── WeightSyncError           trainer and servers do not hold the same weights, or a server did not take them in time
├── TrainerError                 a process of the trainer died, hung or failed (`rank` and the end of its log, `log_tail`)
├── PromptError                   a template is missing, or uses a variable that it was not given
├── StoreError                    a database that is corrupt, newer than this code, or held by another writer
└── RunError                      a run folder that cannot be started, resumed or read
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
    """A part of one's own (`package.module:name` in a setting) is at fault; the message names setting and part."""


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
            f"no space is left for {place}: {detail}. Free some there, or let SELFPLAY_CACHE, TMPDIR and run.folder name another disk."
        )


@contextmanager
def full_disk_told(place: Path) -> Iterator[None]:
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
