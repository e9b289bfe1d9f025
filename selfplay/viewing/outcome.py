"""What follows the turns of a replay: the submission, the checks or the bug, the group, the end.

Invariant: text of the policy, or of a sandbox that it used, is shown as visible text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from selfplay.agent.episode import Role
from selfplay.errors import PatchError
from selfplay.source.diffs import parse_patch
from selfplay.verdicts.bug import MAX_STORED_PATCH
from selfplay.verdicts.confirmation import Confirmation
from selfplay.viewing.episode_record import KnownBug, Member, RecordedEpisode, graded, recorded_verdict
from selfplay.viewing.frames import Frames, harmless
from selfplay.viewing.sections import Section, section
from selfplay.viewing.submission import MORE, names_text, submission_parts
from selfplay.viewing.tables import table
from selfplay.viewing.verdict import checks_table

MAX_TESTS = 20


def outcome_sections(found: RecordedEpisode, frames: Frames) -> Iterator[Section]:
    """The submission, what was found about it, the group, and how the episode ended."""
    if found.episode.submission:
        yield section("submission", submission_parts(found.episode.submission, frames), "magenta")
    if checks := _checks(found):
        yield section("checks", checks, "yellow")
    if found.episode.role is Role.SOLVER and (bug := found.bug) is not None:
        shown = section(f"the bug {bug.bug_id}", _bug_parts(bug, found, frames), "yellow")
        yield replace(shown, opens=bug.bug_id)
        title = f"the tests that it breaks: {len(bug.fail_to_pass)}"
        yield section(title, _test_parts(bug, found, frames), "yellow")
    if found.members:
        yield section(_group_title(found), [_group_table(found.members)], "blue")
    yield Section(
        "", (frames.facts([("ended", found.episode.finish.value), *decided(found)]),), name="the end"
    )


# ---- injector


def _checks(found: RecordedEpisode) -> list[RenderableType]:
    """The table of checks, why one failed, and what was counted. Nothing if no artifact was submitted."""
    row = found.verdict
    if row is None or row.failed_check.startswith("not_submitted/"):
        return []
    recorded = recorded_verdict(row)
    checks = recorded["checks"]
    parts: list[RenderableType] = [checks_table(checks, row.accepted)] if checks else []
    failed = [check for check in checks if not check["passed"]]
    parts += [harmless(f"{check['name']} failed: {check.get('reason', '')}", "red") for check in failed]
    if row.accepted and "fail_to_pass" in recorded:
        broken, passing = len(recorded["fail_to_pass"]), len(recorded["pass_to_pass"])
        parts.append(Text(f"accepted: {broken} fail-to-pass and {passing} pass-to-pass tests", "green"))
    if parts:
        cost = f"{row.test_runs} test run(s), {row.cached_runs} from the cache, {row.duration_s:.1f} s"
        parts.append(Text(cost, "dim"))
    return parts


# ---- solver


def _bug_parts(bug: KnownBug, found: RecordedEpisode, frames: Frames) -> Iterator[RenderableType]:
    yield from frames.file("bug_inject.diff", bug.inject, "what the bug changed")
    if bug.attempt_patch:
        yield from frames.file("attempt.diff", bug.attempt_patch, "a failed repair, now a part of the bug")
    yield frames.facts([("files", _compared(bug, found.episode.submission.get("patch", "")))])


def _compared(bug: KnownBug, repair: str) -> str:
    """Which files bug and repair changed: `both m.py; only the bug n.py; only the repair o.py`."""
    try:
        of_bug, of_repair = _paths(bug.inject, bug.attempt_patch), _paths(repair)
    except PatchError as error:
        return f"not compared, a diff cannot be read: {error}"
    if not of_repair:
        return f"the bug changed {names_text(sorted(of_bug))}; the repair changed nothing"
    parts = {
        "both changed": of_bug & of_repair,
        "only the bug": of_bug - of_repair,
        "only the repair": of_repair - of_bug,
    }
    return "; ".join(f"{who} {names_text(sorted(paths))}" for who, paths in parts.items() if paths)


def _paths(*diffs: str) -> set[str]:
    """The paths that diffs change. Raises PatchError."""
    return {path for diff in diffs for path in parse_patch(diff, MAX_STORED_PATCH).changed_paths}


def _test_parts(bug: KnownBug, found: RecordedEpisode, frames: Frames) -> list[RenderableType]:
    """The tests that a repair must make pass, and which of them, and of the others, failed in the grading."""
    passed, reason, failed = _graded_tests(found)
    if not passed and not failed:
        why = f"no results of single tests: {reason}" if reason else "no results of single tests"
        return [_list(bug.fail_to_pass, " ", "", frames), harmless(why, "dim")]
    still = [name for name in bug.fail_to_pass if name in failed]
    now_pass = [name for name in bug.fail_to_pass if name not in failed]
    others = sorted(failed.difference(bug.fail_to_pass))
    parts = [_list(still, "✗", "red", frames)] if still else []
    parts += [_list(now_pass, "✓", "green", frames)] if now_pass else []
    if others:
        parts.append(Text(f"other tests that fail after the repair: {len(others)}", "bold"))
        parts.append(_list(others, "✗", "red", frames))
    return parts


def _graded_tests(found: RecordedEpisode) -> tuple[bool | None, str, frozenset[str]]:
    """(passed, reason, failed tests). An evaluation keeps no failed tests."""
    if (attempt := found.attempt) is not None:
        return attempt.passed, attempt.reason, frozenset(attempt.failed_tests)
    if (result := found.result) is not None:
        return result.passed, result.reason, frozenset()
    return None, "", frozenset()


def _list(names: Sequence[str], mark: str, style: str, frames: Frames) -> RenderableType:
    """A test a line. In a frame a long name folds beside its mark; plain lines stay whole, to be copied."""
    shown = [harmless(name) for name in names[:MAX_TESTS]]
    if (left := len(names) - MAX_TESTS) > 0:
        shown.append(Text(f"… {left} {MORE}", "dim"))
    if frames.plain:
        return Text("\n").join(Text(f"{mark} ") + name for name in shown)
    lines = Table.grid(padding=(0, 1, 0, 0))
    lines.add_column()
    lines.add_column(overflow="fold")
    for place, name in enumerate(shown):
        lines.add_row(Text(mark if place < MAX_TESTS else "", style), name)
    return lines


# ---- both roles


def _group_title(found: RecordedEpisode) -> str:
    if found.row is None:
        return f"the attempts of this evaluation at {found.episode.bug_id}"
    return f"the group {found.episode.group}"


def _group_table(members: Sequence[Member]) -> Table:
    """Rewards and advantages stand in it if the group is of training."""
    numbers = ("reward", "advantage") if any(member.reward is not None for member in members) else ()
    shown = table("", "member", "finish", "result", *numbers, right=("member", *numbers))
    for member in members:
        reward = "masked" if member.masked else _signed(member.reward)
        cells = [Text(member.name), harmless(member.finish), harmless(member.result)]
        values = [Text(reward), Text(_signed(member.advantage))] if numbers else []
        marked = Text("▸" if member.is_shown else "")
        shown.add_row(marked, *cells, *values, style="bold" if member.is_shown else "")
    return shown


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}"


def decided(found: RecordedEpisode) -> list[tuple[str, str]]:
    """The verdict, grade, reward and advantage, as far as the database has them; "" is no value."""
    pairs = []
    if found.verdict is not None:
        verdict = found.verdict
        rejected = f"rejected by {verdict.failed_check}: {verdict.reason}"
        accepted = "accepted" + (f", a duplicate: it repeats {found.repeats}" if found.repeats else "")
        pairs.append(("verdict", accepted if verdict.accepted else rejected))
        made = found.bug.bug_id if found.bug is not None and not found.repeats else ""
        pairs.append(("became", made))
    if found.attempt is not None:
        attempt = found.attempt
        result = graded(attempt.passed)
        why = f": {attempt.reason}" if attempt.reason not in ("", result) else ""
        is_plain = attempt.confirmed in (Confirmation.NOT_NEEDED, Confirmation.CONFIRMED)
        pairs.append(("grade", result + why + ("" if is_plain else f" ({attempt.confirmed.value})")))
        pairs.append(("restored", ", ".join(attempt.restored)))
        pairs.append(("became", f"{found.grown}, a second-order bug" if found.grown else ""))
    if (evaluated := found.result) is not None:
        result = graded(evaluated.passed)
        why = f": {evaluated.reason}" if evaluated.reason not in ("", result) else ""
        pairs.append(("grade", f"{result}{why} (an evaluation's {evaluated.mode} attempt)"))
    if (row := found.row) is not None:
        if row.masked:
            pairs.append(("reward", f"none, masked: {row.note}"))
        elif row.reward is not None:
            pairs.append(("reward", f"{row.reward:+.2f}" + (f", {row.note}" if row.note else "")))
        if row.advantage is not None:
            pairs.append(("advantage", _advantage_text(row.advantage, row.consumed_update)))
    return pairs


def reward_inputs(found: RecordedEpisode) -> str:
    """What the reward was made from, as a reward function gets it (`RewardInputs`); "" without a reward."""
    row, bug = found.row, found.bug
    if row is None or row.reward is None:
        return ""
    turns = f"{row.turns} turns"
    if (verdict := found.verdict) is not None:
        if not verdict.accepted:
            return f"rejected by {verdict.failed_check}, {turns}"
        kind = "accepted, a duplicate" if found.repeats else f"accepted, {row.note}"
        tests = f"{len(bug.fail_to_pass)} fail-to-pass, {len(bug.pass_to_pass)} pass-to-pass" if bug else ""
        return ", ".join(part for part in (kind, tests, turns) if part)
    if (attempt := found.attempt) is not None:
        failed = f"{len(attempt.failed_tests)} failed test(s)" if attempt.failed_tests else "no failed test"
        return f"{graded(attempt.passed)}, {failed}, {turns}"
    return ""


def _advantage_text(advantage: float, update: int | None) -> str:
    if advantage == 0:
        return f"0, so no policy gradient from this episode; counted in update {update}"
    return f"{advantage:+.2f}, trained on in update {update}"
