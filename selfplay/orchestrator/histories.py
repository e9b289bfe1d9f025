"""Which strategies a repository can be played with: those that read its commits need more than one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from selfplay.agent.prompting import find_strategy
from selfplay.config import Config
from selfplay.errors import RunError
from selfplay.repositories.environment import Environment
from selfplay.repositories.history import has_history, history_of, known_commits
from selfplay.repositories.specs import RepositorySpec

LARGE_BYTES = 48 << 20  # a history that is worth a word, since every sandbox with it holds it in memory


def strategies_for(weights: Mapping[str, float], has_commits: bool) -> dict[str, float]:
    """The strategies with a weight, without those that read commits if there is one only.

    Raises PartError if one's own cannot be loaded.
    """
    return {
        str(name): weight
        for name, weight in weights.items()
        if weight > 0 and (has_commits or not find_strategy(str(name)).needs_history)
    }


def check_histories(
    config: Config, environments: dict[str, Environment], report: Callable[[str], None]
) -> None:
    """Report which repositories some strategy is not played on, and leave out those that no strategy is.

    Packs the histories. Raises RunError when no repository is left, and RepositoryError.
    """
    weights = config.injector.strategies
    wanting = _wanting(weights)
    if not wanting or not config.train.injector_groups:
        return
    for name, environment in list(environments.items()):
        if not has_history(environment.checkout):
            report(one_commit(name, wanting, weights))
            if not strategies_for(weights, has_commits=False):
                del environments[name]
            continue
        history = history_of(environment.checkout)
        if history is not None and history.size > LARGE_BYTES:
            report(
                f"{name}: its history has {history.size >> 20} MiB. Each of its sandboxes of the strategy "
                f"{' and '.join(wanting)} holds them in memory, beyond sandbox.memory_mb."
            )
    if not environments:
        raise RunError(
            f"every strategy of injector.strategies reads a project's commits ({', '.join(wanting)}), and no "
            "repository has more than one. List a git repository or a range of releases "
            "(pypi:NAME==FIRST..LAST), or name another strategy."
        )


def foreseen_histories(config: Config, specs: Sequence[RepositorySpec]) -> list[str]:
    """What `check_histories` will report of lines that are known to stand for one commit, unfetched."""
    weights = config.injector.strategies
    wanting = _wanting(weights)
    if not wanting or not config.train.injector_groups:
        return []
    return [one_commit(spec.name, wanting, weights) for spec in specs if known_commits(spec) == 1]


def one_commit(name: str, wanting: Sequence[str], weights: Mapping[str, float]) -> str:
    what = "that strategy" if strategies_for(weights, has_commits=False) else "the game"
    return f"{name} has one commit, and the strategy {' and '.join(wanting)} needs more: left out of {what}."


def _wanting(weights: Mapping[str, float]) -> list[str]:
    """The strategies of the run that read commits."""
    return sorted(strategies_for(weights, True).keys() - strategies_for(weights, False).keys())
