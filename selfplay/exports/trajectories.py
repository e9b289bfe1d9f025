"""Episodes in formats of agents' trajectories: ATIF v1.8, mini-swe-agent 1.1, supervised training.

ATIF: one JSON file for each episode. `metrics` of a step hold the ids and log-probabilities of its tokens.
The whole sequence with its mask and weight versions, the reward and the advantage are in `extra`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from selfplay import __version__
from selfplay.agent.episode import Episode, Turn
from selfplay.agent.tool_format import TAGS, BadFormat
from selfplay.curriculum.rows import BugRow
from selfplay.exports.base import PlayedEpisode, RunExport, clean, instance_id, write_lines

ATIF_VERSION = "ATIF-v1.8"
MINI_VERSION = "mini-swe-agent-1.1"
# How mini-swe-agent names the end of an episode; another finish keeps its own name.
MINI_EXITS = {"submitted": "Submitted", "max_turns": "LimitsExceeded", "max_tokens": "LimitsExceeded"}


def write_atif(run: RunExport, path: Path) -> int:
    """A folder with one ATIF file for each episode of both roles."""
    path.mkdir()
    count = 0
    for played in run.episodes():
        text = json.dumps(atif(played, run.folder.path.name, run.model))
        (path / f"{played.row.episode_id}.json").write_text(text + "\n", encoding="utf-8")
        count += 1
    return count


def atif(played: PlayedEpisode, run: str, model: str) -> dict[str, Any]:
    """The episode as an ATIF trajectory. A prompt's tokens are in the first agent step only."""
    episode, row = played.episode, played.row
    steps: list[dict[str, Any]] = [
        {"source": message.get("role", "user"), "message": clean(message.get("content", ""))}
        for message in _prompt(episode)
    ]
    first = True
    for number, turn in enumerate(episode.turns, 1):
        steps.append(_agent_step(episode, turn, number, first))
        first = False
    began = datetime.fromtimestamp(episode.started_at, UTC).isoformat()
    numbered = [{"step_id": number, **step} for number, step in enumerate(steps, 1)]
    if not numbered:
        numbered = [{"step_id": 1, "source": "system", "message": ""}]
    numbered[0]["timestamp"] = began
    return {
        "schema_version": ATIF_VERSION,
        "session_id": run,
        "trajectory_id": episode.episode_id,
        "agent": {
            "name": "selfplay",
            "version": __version__,
            "model_name": model,
            "extra": {"role": str(episode.role)},
        },
        "steps": numbered,
        "final_metrics": {
            "total_completion_tokens": episode.action_tokens,
            "total_steps": len(numbered),
            "extra": {"total_tokens": len(episode.token_ids), "duration_s": episode.duration_s},
        },
        "extra": {
            "reward": row.reward,
            "advantage": row.advantage,
            "masked": row.masked,
            "consumed_update": row.consumed_update,
            "finish": str(episode.finish),
            **result_of(played),
            **{
                name: clean(getattr(episode, name)) for name in ("repository", "strategy", "target", "bug_id")
            },
            "update": episode.update,
            "group": episode.group,
            "member": episode.member,
            "seed": episode.seed,
            "token_ids": list(episode.token_ids),
            "loss_mask": list(episode.loss_mask),
            "weight_versions": [list(span) for span in episode.weight_versions],
            "submission": {name: clean(text) for name, text in episode.submission.items()},
        },
    }


def _agent_step(episode: Episode, turn: Turn, number: int, with_prompt: bool) -> dict[str, Any]:
    begin, end = turn.tokens
    metrics: dict[str, Any] = {
        "prompt_tokens": begin,
        "completion_tokens": end - begin,
        "completion_token_ids": list(episode.token_ids[begin:end]),
        "logprobs": list(episode.logprobs[begin:end]),
        "extra": {
            "first_token": begin,
            "weight_version": _version(episode.weight_versions, begin),
            "rejected_samples": turn.rejected,
            "generate_s": turn.generate_s,
        },
    }
    if with_prompt:
        metrics["prompt_token_ids"] = list(episode.token_ids[:begin])
    step: dict[str, Any] = {"source": "agent", "message": clean(turn.text), "metrics": metrics}
    call_id = f"call-{number}"
    if turn.tool:
        call = {"tool_call_id": call_id, "function_name": turn.tool, "arguments": _arguments(turn)}
        step["tool_calls"] = [call]
    if turn.observation:
        known = {"exit_code": turn.exit_code, "is_error": turn.is_error, "act_s": turn.act_s}
        result = {"content": clean(turn.observation), "extra": known}
        step["observation"] = {"results": [{"source_call_id": call_id, **result} if turn.tool else result]}
    return step


def _arguments(turn: Turn) -> dict[str, str]:
    """The body of the call. In another format than the standard one it is the whole text."""
    try:
        return {"body": clean(TAGS.parse(turn.text, [turn.tool]).body)}
    except BadFormat:
        return {"text": clean(turn.text)}


def _version(spans: Sequence[tuple[int, int]], token: int) -> int | None:
    """The version of the weights that sampled this token."""
    return max((span for span in spans if span[0] <= token), default=(0, None))[1]


def _prompt(episode: Episode) -> Sequence[Mapping[str, str]]:
    """The messages before the policy's first action."""
    roles = [message.get("role") for message in episode.messages]
    return episode.messages[: roles.index("assistant") if "assistant" in roles else len(roles)]


def result_of(played: PlayedEpisode) -> dict[str, Any]:
    """What was decided: whether a repair passed, or whether an artifact was accepted; {} before."""
    if (attempt := played.attempt) is not None:
        return {"passed": attempt.passed, "reason": clean(attempt.reason)}
    if (verdict := played.verdict) is not None:
        return {
            "accepted": verdict.accepted,
            "failed_check": verdict.failed_check,
            "reason": clean(verdict.reason),
        }
    return {}


# ---- mini-swe-agent


def write_mini_swe_agent(run: RunExport, path: Path) -> int:
    """A folder of solvers' episodes, as `INSTANCE/EPISODE.traj.json`."""
    path.mkdir()
    count = 0
    for played, bug in _attempts(run):
        folder = path / file_name(instance_id(bug))
        folder.mkdir(exist_ok=True)
        text = json.dumps(mini_swe_agent(played, bug, run.model), indent=2)
        (folder / f"{played.row.episode_id}.traj.json").write_text(text + "\n", encoding="utf-8")
        count += 1
    return count


def mini_swe_agent(played: PlayedEpisode, bug: BugRow, model: str) -> dict[str, Any]:
    """The episode as mini-swe-agent saves one."""
    episode = played.episode
    finish = str(episode.finish)
    patch = clean(played.attempt.patch if played.attempt else episode.submission.get("patch", ""))
    ended = {"exit_status": MINI_EXITS.get(finish, finish), "submission": patch}
    messages: list[dict[str, Any]] = [
        {"role": message.get("role", "user"), "content": clean(message.get("content", ""))}
        for message in episode.messages
    ]
    messages.append({"role": "exit", "content": finish, "extra": ended})
    config = {
        "agent": {},
        "agent_type": "selfplay.agent.agent",
        "model": {"model_name": model},
        "model_type": "selfplay.engines",
        "environment": {},
        "environment_type": "selfplay.sandbox",
    }
    stats = {"instance_cost": 0.0, "api_calls": len(episode.turns)}
    return {
        "info": {
            "model_stats": stats,
            "config": config,
            "mini_version": f"selfplay {__version__}",
            **ended,
            "selfplay": {"reward": played.row.reward, **result_of(played)},
        },
        "messages": messages,
        "trajectory_format": MINI_VERSION,
        "instance_id": instance_id(bug),
    }


# ---- supervised training


def write_sft(run: RunExport, path: Path) -> int:
    """A line for each graded repair, with the fields of SWE-smith's trajectories."""
    return write_lines(_sft_records(run), path)


def _sft_records(run: RunExport) -> Iterator[dict[str, Any]]:
    for played, bug in _attempts(run):
        attempt = played.attempt
        if attempt is None or attempt.passed is None:
            run.left_out["repairs were not graded"] += 1
            continue
        messages = [
            {"role": message.get("role", "user"), "content": clean(message.get("content", ""))}
            for message in played.episode.messages
        ]
        yield {
            "messages": messages,
            "instance_id": instance_id(bug),
            "resolved": attempt.passed,
            "model": run.model,
            "traj_id": played.row.episode_id,
            "patch": clean(attempt.patch),
        }


def _attempts(run: RunExport) -> Iterator[tuple[PlayedEpisode, BugRow]]:
    """The solvers' episodes whose bug is known."""
    for played in run.episodes("solver"):
        if played.bug is None:
            run.left_out["repairs are of bugs that the run does not know"] += 1
        else:
            yield played, played.bug


def file_name(name: str) -> str:
    """A name for a file or folder: letters, digits and `._-`, not too long."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in name)[:120].lstrip(".")
