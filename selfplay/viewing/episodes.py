"""Prints the episodes of a run as a list, or the members of one group side by side.

Only reads the database: `viewing.replay` shows what happened in an episode.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from selfplay.curriculum.rows import AttemptRow, EpisodeRow, GroupRow, VerdictRow
from selfplay.curriculum.store import Store
from selfplay.errors import UsageError
from selfplay.viewing.duplicates import repeated_bugs
from selfplay.viewing.episode_record import graded
from selfplay.viewing.shell import replay_command
from selfplay.viewing.tables import Column, Listing, print_note, shown_text

EPISODE_COLUMNS = (
    Column("episode"),
    Column("repository", rank=6, least=12),
    Column("finish", rank=3),
    Column("turns", rank=5, right=True),
    Column("tokens", rank=7, right=True),
    Column("seconds", rank=8, right=True),
    Column("result", rank=2, least=12),
    Column("reward", right=True),
    Column("advantage", rank=1, right=True),
    Column("trained in", rank=4, right=True),
)


@dataclass(frozen=True)
class EpisodeFilter:
    """Which episodes to list. None means any.

    check       rejected by this check
    bug         attempts at this bug, or the injection of it: its id or the start of it
    group       a group's id or the start of it
    limit       the newest so many
    A bound on the reward leaves out episodes without a reward.
    """

    role: str | None = None
    finish: str | None = None
    min_reward: float | None = None
    max_reward: float | None = None
    check: str | None = None
    update: int | None = None
    bug: str | None = None
    group: str | None = None
    limit: int | None = None


@dataclass(frozen=True)
class ListedEpisode:
    """An episode with what was decided about it. repeats: the bug that its artifact repeats, or ""."""

    row: EpisodeRow
    verdict: VerdictRow | None = None
    attempt: AttemptRow | None = None
    repeats: str = ""

    @property
    def result(self) -> str:
        """The grade, or the verdict: "accepted", or the check that rejected; "" without one."""
        if self.row.masked:
            return "masked"
        if self.verdict is not None:
            if self.verdict.accepted:
                return f"repeats {self.repeats}" if self.repeats else "accepted"
            return self.verdict.failed_check
        if self.attempt is not None:
            return graded(self.attempt.passed)
        return ""

    def to_json(self) -> dict[str, Any]:
        verdict, attempt = self.verdict, self.attempt
        return {
            **asdict(self.row),
            "result": self.result,
            "failed_check": verdict.failed_check if verdict is not None else None,
            "reason": verdict.reason if verdict is not None else attempt.reason if attempt else "",
            "passed": attempt.passed if attempt is not None else None,
            "repeats": self.repeats or None,
        }


def listed_episodes(store: Store, wanted: EpisodeFilter) -> list[ListedEpisode]:
    """The episodes that pass the filter, in the order of update, group and member; all, whatever the limit.

    Raises UsageError or StoreError if no group or bug has this start of an id, or several have.
    """
    verdicts = {verdict.episode_id: verdict for verdict in store.verdicts()}
    attempts = {attempt.episode_id: attempt for attempt in store.attempts()}
    repeats = repeated_bugs(store)
    found = [
        ListedEpisode(
            row, verdicts.get(row.episode_id), attempts.get(row.episode_id), repeats.get(row.episode_id, "")
        )
        for row in store.episodes(update=wanted.update, role=wanted.role)
    ]
    group = _group(store, wanted.group).group_id if wanted.group is not None else None
    bug = store.bug(wanted.bug) if wanted.bug is not None else None
    return [
        one
        for one in found
        if wanted.finish in (None, one.row.finish)
        and group in (None, one.row.group_id)
        and (bug is None or bug.bug_id == one.row.bug_id or bug.injector_episode_id == one.row.episode_id)
        and (wanted.check is None or (one.verdict is not None and one.verdict.failed_check == wanted.check))
        and _is_between(one.row.reward, wanted.min_reward, wanted.max_reward)
    ]


def show_episodes(store: Store, wanted: EpisodeFilter, console: Console, as_json: bool = False) -> None:
    """Print the episodes that pass the filter. JSON goes to stdout."""
    everything = listed_episodes(store, wanted)
    shown = everything[-wanted.limit :] if wanted.limit is not None else everything
    if as_json:
        print(json.dumps([one.to_json() for one in shown], indent=2))
        return
    if not shown:
        count = len(store.episodes())
        console.print(f"No episodes: none of the {count} fits." if count else "No episodes were played yet.")
        return
    if wanted.group is not None:
        console.print(group_heading(_group(store, wanted.group), shown), highlight=False)
    console.print(episode_listing(shown), highlight=False)
    count_text = f"{len(shown)} of {len(everything)} episodes" if len(shown) < len(everything) else ""
    note = f"{count_text or f'{len(shown)} episode(s)'}."
    print_note(console, note, replay_command(store.run_folder, shown[-1].row.episode_id))


def episode_listing(episodes: Iterable[ListedEpisode]) -> Listing:
    return Listing(EPISODE_COLUMNS, [episode_texts(one) for one in episodes])


def group_heading(group: GroupRow, members: Iterable[ListedEpisode]) -> Text:
    """The task of a group, and the mean of its rewards."""
    rewards = [one.row.reward for one in members if one.row.reward is not None]
    mean = f", mean reward {sum(rewards) / len(rewards):+.2f}" if rewards else ""
    task = f"on {group.bug_id}" if group.bug_id else f"strategy {group.strategy}"
    return shown_text(
        f"group {group.group_id}: {group.size} {group.role} episodes, {task}, in {group.repository}, "
        f"{group.status}{mean}\n"
    )


def episode_texts(one: ListedEpisode) -> Mapping[str, str]:
    """The texts of EPISODE_COLUMNS."""
    row = one.row
    return {
        "episode": row.episode_id,
        "repository": row.repository,
        "finish": row.finish,
        "turns": str(row.turns),
        "tokens": str(row.action_tokens),
        "seconds": f"{row.duration_s:.1f}",
        "result": one.result or "–",
        "reward": f"{row.reward:+.2f}" if row.reward is not None else "–",
        "advantage": f"{row.advantage:+.2f}" if row.advantage else "–" if row.advantage is None else "0",
        "trained in": str(row.consumed_update) if row.advantage else "–",
    }


def _group(store: Store, wanted: str) -> GroupRow:
    """The group with this id or this start of an id."""
    groups = store.groups()
    exact = [group for group in groups if group.group_id == wanted]
    fitting = exact or [group for group in groups if group.group_id.startswith(wanted)]
    if len(fitting) == 1:
        return fitting[0]
    some = ", ".join(group.group_id for group in (fitting or groups)[:8])
    if fitting:
        raise UsageError(f"--group {wanted!r} begins the ids of {len(fitting)} groups: {some}, …")
    raise UsageError(f"--group {wanted!r}: this run has {len(groups)} groups, for instance {some or 'none'}.")


def _is_between(reward: float | None, low: float | None, high: float | None) -> bool:
    if low is None and high is None:
        return True
    return reward is not None and (low is None or reward >= low) and (high is None or reward <= high)
