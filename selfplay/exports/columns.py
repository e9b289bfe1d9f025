"""Episodes as the rows of a Parquet file: what happened, what was decided, and all tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from selfplay.errors import PrerequisiteError
from selfplay.evaluation.reading import INSTALL_PYARROW
from selfplay.exports.base import PlayedEpisode, RunExport, clean
from selfplay.exports.trajectories import result_of

ROWS_AT_A_TIME = 256


def write_parquet(run: RunExport, path: Path) -> int:
    """One row for each episode of both roles. Raises PrerequisiteError without pyarrow."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise PrerequisiteError(
            f"the format parquet needs pyarrow, which is not installed. Install it with: {INSTALL_PYARROW}."
        ) from error
    text, whole, number = pyarrow.string(), pyarrow.int64(), pyarrow.float64()
    schema = pyarrow.schema(
        [
            *((name, text) for name in ("episode_id", "role", "repository", "strategy", "target", "bug_id")),
            *((name, text) for name in ("group", "finish", "result", "reason")),
            *((name, whole) for name in ("update", "member", "consumed_update")),
            *((name, number) for name in ("reward", "advantage", "started_at", "duration_s")),
            ("success", pyarrow.bool_()),
            ("masked", pyarrow.bool_()),
            ("messages", pyarrow.list_(pyarrow.struct([("role", text), ("content", text)]))),
            ("submission", text),
            ("token_ids", pyarrow.list_(pyarrow.int32())),
            ("loss_mask", pyarrow.list_(pyarrow.int8())),
            ("logprobs", pyarrow.list_(pyarrow.float32())),
            ("weight_versions", pyarrow.list_(pyarrow.list_(whole))),
        ]
    )
    count, rows = 0, []
    with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for played in run.episodes():
            rows.append(row_of(played))
            count += 1
            if len(rows) == ROWS_AT_A_TIME:
                writer.write_table(pyarrow.Table.from_pylist(rows, schema))
                rows = []
        writer.write_table(pyarrow.Table.from_pylist(rows, schema))
    return count


def row_of(played: PlayedEpisode) -> dict[str, Any]:
    """The columns of an episode. success: repaired or accepted. result: the check that rejected, or ""."""
    episode, row = played.episode, played.row
    result = result_of(played)
    return {
        "episode_id": episode.episode_id,
        "role": str(episode.role),
        **{name: clean(getattr(episode, name)) for name in ("repository", "strategy", "target", "bug_id")},
        "group": episode.group,
        "finish": str(episode.finish),
        "result": result.get("failed_check", ""),
        "reason": result.get("reason", ""),
        "update": episode.update,
        "member": episode.member,
        "consumed_update": row.consumed_update,
        "reward": row.reward,
        "advantage": row.advantage,
        "started_at": episode.started_at,
        "duration_s": episode.duration_s,
        "success": result.get("passed", result.get("accepted")),
        "masked": row.masked,
        "messages": [
            {"role": message.get("role", ""), "content": clean(message.get("content", ""))}
            for message in episode.messages
        ],
        "submission": json.dumps({name: clean(text) for name, text in episode.submission.items()}),
        "token_ids": list(episode.token_ids),
        "loss_mask": list(episode.loss_mask),
        "logprobs": list(episode.logprobs),
        "weight_versions": [list(span) for span in episode.weight_versions],
    }
