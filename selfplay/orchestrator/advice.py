"""What to change when a whole update of injectors submits nothing. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from selfplay.agent.episode import FinishReason
from selfplay.curriculum.rows import EpisodeRow

# Finish reason -> what a person can change.
REMEDIES = {
    FinishReason.BAD_FORMAT: (
        "the policy does not write readable calls. A small policy needs the settings that it was "
        "trained with (--config quickstart for the policy that comes with selfplay); "
        "any other one: agent.prompt_style = 'full' and a larger agent.turn_tokens"
    ),
    FinishReason.MAX_TURNS: "raise agent.max_turns, or set injector.help = ['tests', 'target']",
    FinishReason.MAX_TOKENS: "raise agent.context_tokens, or lower agent.observation_tokens",
    FinishReason.STUCK: "the policy repeats itself; set injector.help = ['tests', 'target'] or another model",
    FinishReason.COMMAND_TIMEOUTS: "raise agent.command_timeout_s",
    FinishReason.SANDBOX_LOST: "raise sandbox.memory_mb or sandbox.workspace_mb",
}


def advice_on_submissions(update: int, injectors: Iterable[EpisodeRow]) -> str:
    """A line if no injector episode submitted anything; "" otherwise. injectors: episodes of the update."""
    finishes = Counter(FinishReason(row.finish) for row in injectors if not row.masked)
    if not finishes or FinishReason.SUBMITTED in finishes:
        return ""
    counts = ", ".join(f"{finish} {count}" for finish, count in finishes.most_common())
    most = finishes.most_common(1)[0][0]
    return f"update {update}: no injector submitted an artifact ({counts}). Remedy: {REMEDIES[most]}."
