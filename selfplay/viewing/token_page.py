"""The tokens of an episode as sections: log-probability, ratio, mask and weights of each; its diffs alone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.text import Text

from selfplay.agent.episode import Episode
from selfplay.agent.token_ratios import ratios_file, read_ratios
from selfplay.metrics import read_metrics
from selfplay.runtime.resources import resource
from selfplay.viewing.episode_record import RecordedEpisode
from selfplay.viewing.folding import Folded, Piece, one_line
from selfplay.viewing.frames import Frames
from selfplay.viewing.sections import Section, section
from selfplay.viewing.turns import version_at, weight_versions

Decode = Callable[[int], str]  # token id -> its text

# Probability of a sampled token, at least -> its style.
STYLES = ((0.9, "green"), (0.5, "yellow"), (0.1, "magenta"), (0.0, "bold red"))
MASKED = "bright_black"
# Distance of a ratio from 1, at least -> its style. The first is where clipping begins by default.
RATIO_STYLES = ((0.2, "bold red"), (0.05, "yellow"), (0.0, ""))


def token_sections(
    found: RecordedEpisode, decode: Decode | str, frames: Frames, details: bool = False
) -> Iterator[Section]:
    """A section for the prompt, for each action, and for what the policy was shown after it.

    decode: the text of a token, or why there is none. details: a line for each sampled token.
    """
    episode = found.episode
    read: Decode = decode if callable(decode) else str
    ratios = _ratios(found)
    yield Section("", (frames.facts(_facts(found, decode, ratios)), _legend()), name="the beginning")
    end = 0
    for number, turn in enumerate(episode.turns, 1):
        first, last = turn.tokens
        if first > end:
            yield _shown_tokens(episode, end, first, read, "prompt" if number == 1 else "shown")
        title = f"turn {number} · tokens {first}–{max(first, last - 1)}{_summary(episode, first, last)}"
        body = _table(episode, first, last, read, ratios) if details else _flow(episode, first, last, read)
        yield Section(title, (body,), "cyan", f"turn {number}", is_turn=True)
        end = last
    if end < len(episode.token_ids):
        yield _shown_tokens(episode, end, len(episode.token_ids), read, "shown")


def diff_sections(found: RecordedEpisode, frames: Frames) -> Iterator[Section]:
    """The diffs that the episode submitted, and those of its bug."""
    diffs = [
        (name, text)
        for name, text in found.episode.submission.items()
        if name.endswith(".diff") or name == "patch"
    ]
    for name, text in diffs:
        yield section(f"submitted: {name}", frames.file(name, text), "magenta")
    if (bug := found.bug) is not None:
        title = f"the bug {bug.bug_id}: what it changed"
        yield section(title, frames.file("bug_inject.diff", bug.inject), "yellow")
        if bug.attempt_patch:
            failed = frames.file("attempt.diff", bug.attempt_patch)
            yield section("the failed repair in it", failed, "yellow")
    if not diffs and found.bug is None:
        yield Section("", (Text("This episode submitted no diff.", "dim"),))


def tokenizer_of(path: Path, episode: Episode) -> Decode | str:
    """What decodes the tokens of an episode's file, from the policy of its run; or why nothing does.

    Nothing is fetched, and only `tokenizer.json` is read. It must give the text of a turn that was recorded:
    the folder may hold another policy by now.
    """
    configs = (folder / "config.json" for folder in path.parents)
    config = next((file for file in configs if file.is_file()), None)
    try:
        model = json.loads(config.read_text(encoding="utf-8"))["policy"]["model"] if config else "carried"
    except (OSError, ValueError, KeyError, TypeError):
        return "ids, since the run's config.json names no policy"
    folder = Path(resource("data/policy")) if model == "carried" else Path(model)
    file = folder / "tokenizer.json"
    if not file.is_file():
        return f"ids, since {file} is not there"
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # it raises Exception itself
        return f"ids, since {file} cannot be read: {error}"

    for turn in episode.turns[:1]:
        text = tokenizer.decode(list(episode.token_ids[slice(*turn.tokens)]), skip_special_tokens=True)
        if text.strip() != turn.text.strip():
            return f"ids, since {file} is not the tokenizer that the episode was played with"

    def decode(token: int) -> str:
        return str(tokenizer.decode([token], skip_special_tokens=False))

    return decode


# ---- parts


def _facts(
    found: RecordedEpisode, decode: Decode | str, ratios: Sequence[float | None]
) -> list[tuple[str, str]]:
    episode = found.episode
    versions = weight_versions(episode, 0, len(episode.token_ids))
    return [
        ("episode", episode.episode_id),
        ("tokens", f"{len(episode.token_ids)}, {episode.action_tokens} of them sampled (mask 1)"),
        ("weights", f"version {', '.join(map(str, versions))}" if versions else ""),
        ("ratio", _ratio_text(found, ratios)),
        ("shown as", decode if isinstance(decode, str) else ""),
    ]


def _ratios(found: RecordedEpisode) -> list[float | None]:
    """The ratio of each token in the update that trained on the episode; empty if none are recorded."""
    if found.row is None or found.row.consumed_update is None:
        return []
    file = ratios_file(found.path.parent.parent, found.row.consumed_update)
    ratios = read_ratios(file, found.episode.episode_id)
    return ratios if len(ratios) == len(found.episode.token_ids) else []


def _ratio_text(found: RecordedEpisode, ratios: Sequence[float | None]) -> str:
    """The ratios of the episode, and the mean of its role in the update that trained on it."""
    row = found.row
    own = [ratio for ratio in ratios if ratio is not None]
    if row is None or row.consumed_update is None or not (own or row.advantage):
        return "no update trained on this episode"
    rows = read_metrics(found.path.parent.parent / "metrics.jsonl")
    name = f"{found.episode.role}/ratio"
    values = [
        each.get(name, each.get(f"train/{name}"))
        for each in rows
        if each.get("update") == row.consumed_update
    ]
    known = [value for value in values if isinstance(value, int | float)]
    mean = (
        f"{known[-1]:.4f}, the {found.episode.role}'s mean in update {row.consumed_update}; " if known else ""
    )
    return mean + (f"{min(own):.4g} to {max(own):.4g} here" if own else "of single tokens not recorded")


def _legend() -> Text:
    legend = Text("probability when it was sampled  ")
    for least, style in STYLES:
        legend.append(f" ≥ {least:g} " if least else " less ", f"{style} reverse")
    return legend.append(" mask 0 ", f"{MASKED} reverse").append("\n")


def _summary(episode: Episode, first: int, end: int) -> str:
    sampled = [value for value, mask in zip(*_slices(episode, first, end), strict=True) if mask]
    versions = ", ".join(map(str, weight_versions(episode, first, end)))
    mean = f" · mean log-probability {sum(sampled) / len(sampled):.3f}" if sampled else ""
    return f"{mean} · weights {versions}" if versions else mean


def _slices(episode: Episode, first: int, end: int) -> tuple[tuple[float, ...], tuple[int, ...]]:
    return episode.logprobs[first:end], episode.loss_mask[first:end]


def _shown_tokens(episode: Episode, first: int, end: int, read: Decode, what: str) -> Section:
    title = f"{what} · tokens {first}–{end - 1} · mask 0"
    return Section(title, (_flow(episode, first, end, read),), "bright_black", "prompt" * (what == "prompt"))


def _style(episode: Episode, index: int) -> str:
    if not episode.loss_mask[index]:
        return MASKED
    probability = math.exp(min(episode.logprobs[index], 0.0))
    return next(style for least, style in STYLES if probability >= least)


def _flow(episode: Episode, first: int, end: int, read: Decode) -> Folded:
    """The tokens as running text, each in the colour of its probability. Weights that change are named."""
    lines: list[list[Piece]] = [[]]
    version = version_at(episode, first) if first < end else None
    separator = "" if read is not str else " "
    for index in range(first, end):
        if (now := version_at(episode, index)) != version and now is not None:
            lines[-1].append((f"‹weights {now}›", "bold reverse"))
            version = now
        text, style = read(episode.token_ids[index]), _style(episode, index)
        for number, part in enumerate(text.split("\n")):
            if number:
                lines.append([])
            lines[-1].append((one_line(part) + separator, style))
    return Folded(lines)


def _table(episode: Episode, first: int, end: int, read: Decode, ratios: Sequence[float | None]) -> Folded:
    """A line for each token. ratios: of all tokens, or empty."""
    lines: list[list[Piece]] = [
        [(f"{'index':>7} {'id':>7} mask {'log-prob':>9} {'prob':>7} {'ratio':>6} weights  text", "dim")]
    ]
    for index in range(first, end):
        value, version = episode.logprobs[index], version_at(episode, index)
        ratio = ratios[index] if ratios else None
        away = 0.0 if ratio is None else abs(ratio - 1)
        figures = (
            f"{index:>7} {episode.token_ids[index]:>7} {episode.loss_mask[index]:>4} {value:>9.4f} "
            f"{math.exp(min(value, 0.0)):>7.4f} "
        )
        pieces: list[Piece] = [
            (figures, ""),
            (
                f"{'–' if ratio is None else f'{ratio:.3f}':>6}",
                next(s for least, s in RATIO_STYLES if away >= least),
            ),
            (f" {'–' if version is None else version:>7}  ", ""),
            (one_line(read(episode.token_ids[index])), _style(episode, index)),
        ]
        lines.append(pieces)
    return Folded(lines)
