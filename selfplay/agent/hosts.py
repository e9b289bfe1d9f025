"""The contract of episode hosts: what one gets to play and to judge, and what it returns.

Training and evaluation play on hosts. A host does not choose what to play. Invariant: arguments and results
are plain values, without environments, engines or connections. So a host can be another process, on another
machine. `local_host` is the one in this process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from selfplay.agent.episode import Episode
from selfplay.agent.workspaces import EpisodeKey
from selfplay.engines.base import Sampling
from selfplay.repositories.suspects import Suspect
from selfplay.repositories.targets import Target
from selfplay.verdicts.bug import BugState
from selfplay.verdicts.checks import Thresholds
from selfplay.verdicts.verdict import Verdict

if TYPE_CHECKING:
    from selfplay.verdicts.grading import Grade


@dataclass(frozen=True)
class InjectorWork:
    """An injector's task, with its repository by name."""

    repository: str
    strategy: str
    target: Target | None
    thresholds: Thresholds


@dataclass(frozen=True)
class SolverWork:
    """A solver's task, with its repository by name.

    suspects  filled by `EpisodeHost.prepare`, once for all members of a group
    issue     what is wrong, in words; a solver gets it in place of the tests
    sampling  of an attempt in an evaluation, which resamples no turn; None: training's
    """

    repository: str
    bug_id: str
    bug: BugState
    failure: str
    suspects: tuple[Suspect, ...] = ()
    issue: str = ""
    sampling: Sampling | None = None


class EpisodeHost(Protocol):
    """Methods block, and many threads call them at once.

    If the machine fails, `play` returns an episode that ended with env_error; the other methods raise
    SandboxUnavailable.
    """

    def prepare(self, work: SolverWork) -> SolverWork:
        """The work, with what the members of the group share.

        Raises PatchError if the bug does not fit the repository.
        """
        ...

    def play(self, work: InjectorWork | SolverWork, key: EpisodeKey) -> Episode:
        """Play one episode with the engine's current weights. Raises EngineError."""
        ...

    def judge(self, work: InjectorWork, episode: Episode) -> Verdict:
        """Decide whether the episode's submission is a bug."""
        ...

    def grade(self, work: SolverWork, patch: str) -> Grade:
        """Decide whether `patch` repairs the bug."""
        ...

    def judge_second_order(self, work: SolverWork, patch: str, thresholds: Thresholds) -> Verdict:
        """Decide whether `patch`, a failed repair, is a bug on top of the work's bug."""
        ...

    def engine_busy_s(self) -> float:
        """Seconds since the host began in which the engine had at least one request in flight."""
        ...
