"""What stops a run whose figures say that it no longer learns from what it played. Pure.

Invariant: an alarm comes after an update's step and before its checkpoint, so nothing of the update is kept.
"""

from __future__ import annotations

from collections.abc import Mapping

from selfplay.config import Config
from selfplay.errors import RunError


def check_logprob_diff(metrics: Mapping[str, float], config: Config, update: int, run: str) -> None:
    """Raise RunError if a role's `rollout_logprob_diff` is above `trainer.max_rollout_logprob_diff`.

    metrics: of the update's step. A figure that is not finite is above every limit.
    """
    limit = config.trainer.max_rollout_logprob_diff
    if not limit:
        return
    for role in ("injector", "solver"):
        found = metrics.get(f"{role}/rollout_logprob_diff")
        if found is None or found <= limit:
            continue
        raise RunError(
            f"update {update}: the log-probabilities of the {role}'s tokens in trainer and rollout differ by "
            f"{found:.3g} nats on average, and trainer.max_rollout_logprob_diff is {limit:g}. Nothing of "
            "this update is kept. Either the engine computes with other weights or another precision than "
            "the trainer (compare sync/rollout_logprob_diff in metrics.jsonl), or the episodes are too old "
            "(lower max_lag in a new run). To accept it, raise the limit: selfplay train --resume "
            f"{run} --set trainer.max_rollout_logprob_diff=NUMBER"
        )
