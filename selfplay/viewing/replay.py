"""Replays one recorded episode in the terminal: the policy's turns, the observations, the verdict and reward.

Reads the episode's file and its rows in the run's database. Invariant: control characters of a recording are
shown as visible text, so a recording cannot control the terminal.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from rich.box import ROUNDED, SIMPLE
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from selfplay.agent.episode import Episode, Turn
from selfplay.agent.observations import make_harmless
from selfplay.curriculum.rows import AttemptRow, EpisodeRow, VerdictRow
from selfplay.curriculum.store import Store
from selfplay.errors import RunError, StoreError
from selfplay.evaluation.folder import AttemptResult, Folder
from selfplay.verdicts.confirmation import Confirmation
from selfplay.viewing.duplicates import repeated_bug
from selfplay.viewing.progress import duration_text

MAX_PAUSE_S = 5.0  # of a replay with `speed`
SUFFIX = ".json.gz"
# Where episodes are below the folder of a run, of an evaluation, or of several runs.
PLACES = ("episodes", "evaluations/*/episodes", "*/episodes", "*/evaluations/*/episodes")


@dataclass(frozen=True)
class RecordedEpisode:
    """An episode with its rows: None where the run's database has none, or there is no database.

    repeats: the bug that its artifact repeats, "" if it is no duplicate.
    result: the recorded attempt of an evaluation, None for an episode of training.
    """

    episode: Episode
    path: Path
    row: EpisodeRow | None = None
    verdict: VerdictRow | None = None
    attempt: AttemptRow | None = None
    repeats: str = ""
    result: AttemptResult | None = None


def find_episode(folder: Path, wanted: str) -> RecordedEpisode:
    """Find an episode by its file, its id or the start of its id.

    folder: the folder of one run or evaluation, or one that holds several runs.
    Raises RunError if no episode or several match, or if the file cannot be read.
    """
    given = Path(wanted)
    if wanted.endswith(SUFFIX) and given.is_file():
        return _load(given)
    found = sorted({path for place in PLACES for path in folder.glob(f"{place}/*{SUFFIX}")})
    exact = [path for path in found if _id(path) == wanted]
    fitting = exact or [path for path in found if _id(path).startswith(wanted)]
    if len({_id(path) for path in fitting}) == 1:
        exact = fitting
    if len(fitting) == 1:
        return _load(fitting[0])
    if not found:
        raise RunError(f"there are no episodes in {folder}. Play some: `selfplay train --repos list.txt`.")
    if not fitting:
        some = ", ".join(_id(path) for path in found[-6:])
        raise RunError(
            f"no episode id in {folder} begins with {wanted!r} (there are {len(found)}, for instance {some})."
        )
    if exact:
        names = [_run_name(path, folder) for path in exact]
        what = "evaluations" if all("/" in name for name in names) else "runs"
        raise RunError(
            f"{len(exact)} {what} have an episode {_id(exact[0])!r}: {', '.join(names[:6])}. "
            f"Choose one, for instance with --run {shlex.quote(names[0])}"
        )
    some = ", ".join(_id(path) for path in fitting[:6]) + (", …" if len(fitting) > 6 else "")
    raise RunError(f"the ids of {len(fitting)} episodes begin with {wanted!r}: {some}. Give more of the id.")


def _id(path: Path) -> str:
    return path.name.removesuffix(SUFFIX)


def _run_name(path: Path, folder: Path) -> str:
    """What `--run` takes to find this episode: `quick`, or `quick/evaluations/u0008`."""
    name = path.parent.parent.relative_to(folder).as_posix()
    is_one_run = name == "." or name.startswith("evaluations/")
    return (Path(folder.name) / name).as_posix() if is_one_run else name


def _load(path: Path) -> RecordedEpisode:
    try:
        episode = Episode.read(path)
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{path} cannot be read as an episode: {error}. Resuming its run plays the episode again."
        ) from error
    database = path.parent.parent / "selfplay.db"
    if not database.is_file():
        return RecordedEpisode(episode, path, result=_result(episode, Folder(path.parent.parent)))
    try:
        with closing(Store.open(database, writer=False)) as store:
            verdict = store.verdict(episode.episode_id)
            return RecordedEpisode(
                episode,
                path,
                store.episode(episode.episode_id),
                verdict,
                store.attempt(episode.episode_id),
                repeated_bug(store.bugs(), verdict),
            )
    except StoreError:
        return RecordedEpisode(episode, path)


def _result(episode: Episode, folder: Folder) -> AttemptResult | None:
    """The episode's line in the results of an evaluation. A greedy attempt is of a group of its own."""
    mode = "sampled" if episode.group == episode.bug_id else "greedy"
    wanted = (episode.bug_id, mode, episode.member)
    return next((result for result in folder.results() if result.key == wanted), None)


def replay(
    found: RecordedEpisode,
    console: Console,
    step: bool = False,
    speed: float | None = None,
    plain: bool = False,
    wait: Callable[[], str] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Show the episode from its prompt to its submission.

    step    wait for Enter after each turn (q ends). Ignored if the input is not a terminal.
    speed   pause before each turn and observation: its recorded seconds / speed, at most MAX_PAUSE_S
    plain   headings instead of frames and colours. Always so if the output is not a terminal.
    wait    asks the person for a line, instead of `input`
    sleep   pauses for some seconds, instead of `time.sleep`
    """
    plain = plain or not console.is_terminal
    asks = wait or (_ask if sys.stdin.isatty() else None)
    episode = found.episode
    console.print(_header(found), highlight=False)
    for message in episode.messages[: _prompt_length(episode)]:
        _show(console, message.get("role", ""), [_text(message.get("content", ""))], "blue", plain)
    for number, turn in enumerate(episode.turns, 1):
        if speed:
            sleep(min(turn.generate_s / speed, MAX_PAUSE_S))
        _show(console, _turn_title(number, len(episode.turns), turn), [_text(turn.text)], "cyan", plain)
        if speed:
            sleep(min(turn.act_s / speed, MAX_PAUSE_S))
        if turn.observation:
            failed = turn.is_error or bool(turn.exit_code)
            _show(
                console,
                _observation_title(turn),
                [_text(turn.observation)],
                "red" if failed else "green",
                plain,
            )
        last = number == len(episode.turns)
        if step and asks is not None and not last and asks().strip().lower() == "q":
            return
    if episode.submission:
        parts: list[RenderableType] = []
        for name, text in sorted(episode.submission.items()):
            parts += [Text(make_harmless(name), style="bold"), diff_or_text(name, text, plain)]
        _show(console, "submission", parts, "magenta", plain)
    console.print(_outcome(found), highlight=False)


def diff_or_text(name: str, text: str, plain: bool = False) -> RenderableType:
    """The text, highlighted as the file's name suggests. Control characters are shown as visible escapes."""
    lexers = {".diff": "diff", ".py": "python", ".sh": "bash"}
    lexer = "diff" if name == "patch" else lexers.get(Path(name).suffix)
    if plain or lexer is None:
        return _text(text)
    return Syntax(
        make_harmless(text.rstrip("\n")), lexer, theme="ansi_dark", background_color="default", word_wrap=True
    )


def _text(text: str) -> Text:
    return Text(make_harmless(text.rstrip("\n")))


def _show(console: Console, title: str, parts: Iterable[RenderableType], colour: str, plain: bool) -> None:
    heading = Text(make_harmless(title))
    if plain:
        console.print(Text("── ") + heading, highlight=False, soft_wrap=True)
        for part in parts:
            console.print(part, highlight=False, soft_wrap=True)
    else:
        console.print(
            Panel(Group(*parts), title=heading, title_align="left", border_style=colour, box=ROUNDED),
            highlight=False,
        )


def _prompt_length(episode: Episode) -> int:
    """How many messages precede the policy's first action."""
    roles = [message.get("role") for message in episode.messages]
    return roles.index("assistant") if "assistant" in roles else min(2, len(roles))


def _turn_title(number: int, count: int, turn: Turn) -> str:
    tokens = turn.tokens[1] - turn.tokens[0]
    rejected = f" · after {turn.rejected} rejected sample(s)" if turn.rejected else ""
    return (
        f"turn {number} of {count} · {turn.tool or 'no tool call'} · "
        f"{tokens} tokens in {turn.generate_s:.1f} s{rejected}"
    )


def _observation_title(turn: Turn) -> str:
    status = (
        f" · exit {turn.exit_code}" if turn.exit_code is not None else " · refused" if turn.is_error else ""
    )
    return f"observation{status} · {turn.act_s:.1f} s"


def _facts(pairs: Iterable[tuple[str, str]]) -> Table:
    shown = Table(box=SIMPLE, show_header=False, pad_edge=False)
    shown.add_column(style="dim", no_wrap=True)
    shown.add_column(overflow="fold")
    for name, value in pairs:
        if value:
            shown.add_row(name, Text(make_harmless(value)))
    return shown


def _header(found: RecordedEpisode) -> Table:
    episode = found.episode
    started = (
        time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(episode.started_at)) if episode.started_at else ""
    )
    return _facts(
        [
            ("episode", episode.episode_id),
            (
                "role",
                f"{episode.role} in {episode.repository}, update {episode.update}, member {episode.member}",
            ),
            ("task", " · ".join(part for part in (episode.strategy, episode.bug_id, episode.target) if part)),
            ("played", f"{started} in {duration_text(episode.duration_s)}, {len(episode.turns)} turns"),
            ("tokens", f"{episode.action_tokens} of {len(episode.token_ids)} are the policy's"),
            ("ended", episode.finish.value + (f": {episode.error}" if episode.error else "")),
            *_decided(found),
        ]
    )


def _decided(found: RecordedEpisode) -> list[tuple[str, str]]:
    """The verdict, grade, reward and advantage, as far as the database has them."""
    pairs = []
    if found.verdict is not None:
        verdict = found.verdict
        rejected = f"rejected by {verdict.failed_check}: {verdict.reason}"
        accepted = "accepted" + (f", a duplicate: it repeats {found.repeats}" if found.repeats else "")
        pairs.append(("verdict", accepted if verdict.accepted else rejected))
    if found.attempt is not None:
        attempt = found.attempt
        result = {True: "repaired", False: "not repaired", None: "not graded"}[attempt.passed]
        why = f": {attempt.reason}" if attempt.reason not in ("", result) else ""
        disagreed = attempt.confirmed is Confirmation.NOT_CONFIRMED
        pairs.append(("grade", result + why + (" (the second grading disagreed)" if disagreed else "")))
    if (evaluated := found.result) is not None:
        result = {True: "repaired", False: "not repaired", None: "not graded"}[evaluated.passed]
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


def _advantage_text(advantage: float, update: int | None) -> str:
    if advantage == 0:
        return f"0, so no policy gradient from this episode; counted in update {update}"
    return f"{advantage:+.2f}, trained on in update {update}"


def _outcome(found: RecordedEpisode) -> Table:
    return _facts([("ended", found.episode.finish.value), *_decided(found)])


def _ask() -> str:
    try:
        return input("Enter: next turn, q: end ")
    except EOFError:
        return "q"
