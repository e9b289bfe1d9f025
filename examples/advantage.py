"""An advantage of one's own: reward minus the group's median, which one lucky episode does not move.

selfplay train --repos LIST --set trainer.advantage=examples.advantage:median_baseline
"""

import statistics

from selfplay.algorithm.advantages import Group


def median_baseline(group: Group) -> list[float]:
    """One number for each episode. Groups of equal rewards never come here: they get zeros."""
    median = statistics.median(group.rewards)
    return [reward - median for reward in group.rewards]
