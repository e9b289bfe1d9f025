"""An injector strategy of one's own: off-by-one errors. Its two prompts are in examples/prompts/.

selfplay train --repos LIST --set 'injector.strategies={"examples.strategy:OFF_BY_ONE" = 1.0}'
"""

from pathlib import Path

from selfplay.agent.prompting import Strategy

OFF_BY_ONE = Strategy("off_by_one", folder=Path(__file__).parent / "prompts")
