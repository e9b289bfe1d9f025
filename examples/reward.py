"""An injector reward of one's own: SSR's, minus 0.01 for each changed line, so that small bugs pay more.

selfplay train --repos LIST --set injector.reward=examples.reward:small_bugs
"""

from selfplay.algorithm.rewards import RewardInputs, ssr_injector_reward

LINE_COST = 0.01
MOST = 0.5  # the cost of a large diff


def small_bugs(inputs: RewardInputs) -> float:
    """Invalid artifacts and duplicates earn what SSR gives them."""
    reward = ssr_injector_reward(inputs)
    if not inputs.is_accepted or inputs.is_duplicate:
        return reward
    return reward - min(MOST, LINE_COST * inputs.diff_lines)
