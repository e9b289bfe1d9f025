"""What is measured of a policy in the making, and its model card. Trains nothing.

Invariant: what is measured was never trained on: a package, functions that are held out by name, identifiers that the corpus lacks.
"""

from __future__ import annotations

import platform
import random
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfplay.runtime.cores import usable_cores
from selfplay.teacher.phrases import show_command, shown_lines
from selfplay.warm_start.settings import WarmStartSettings
from selfplay.warm_start.texts import transcript_of

if TYPE_CHECKING:
    from selfplay.agent.chat import ChatFormat
    from selfplay.warm_start.executed import Collection
    from selfplay.warm_start.fabrication import EpisodeMaker, Package, Transcript

LEAST_COPIED = 0.8  # of unseen identifiers; below it after the first stage, the later ones teach in vain
NAMES = re.compile(r"\b[A-Za-z_][A-Za-z0-9_]{5,}\b")
REBUILD = "selfplay warm-start --config runs/recipes/warm-start.toml --output DIR"


@dataclass(frozen=True)
class StageResult:
    """tokens: padding included, of this stage. seconds: trained; 0 where it is not known."""

    name: str
    tokens: int
    seconds: float
    figures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    copied: float = 0.0


# ---- figures


def measured_texts(maker: EpisodeMaker, count: int, longest: int) -> dict[str, list[Transcript]]:
    """`count` texts of each kind of episode."""
    found: dict[str, list[Transcript]] = {}
    for kind in ("injector", "solver", "solver_short"):
        texts: list[Transcript] = []
        while len(texts) < count:
            text = transcript_of(maker, kind)
            if len(text.ids) <= longest:
                texts.append(text)
        found[kind] = texts
    return found


def measure(
    model: Any, texts: Mapping[str, Sequence[Transcript]], chat: ChatFormat
) -> dict[str, dict[str, float]]:
    """By kind, with every token predicted greedily from the true text before it: shares of texts whose

    `edit` (the last edit call, whole), `line` (its path and line number) and `rest` (all calls that are no edits) are right throughout,
    and `chance`, the mean probability of the edit at temperature 1.
    """
    return {kind: _measure(model, list(some), chat) for kind, some in texts.items()}


def _measure(model: Any, texts: Sequence[Transcript], chat: ChatFormat) -> dict[str, float]:
    import torch

    model.eval()
    sums = dict.fromkeys(("edit", "line", "rest", "chance"), 0.0)
    with torch.no_grad():
        for text in texts:
            logits = model(input_ids=torch.tensor([text.ids])).logits[0].float()  # (seq, vocabulary)
            logprobs = torch.log_softmax(logits[:-1], -1)
            ids = torch.tensor(text.ids[1:])
            right = [True, *(logits[:-1].argmax(-1) == ids).tolist()]
            chances = [0.0, *logprobs.gather(1, ids[:, None])[:, 0].tolist()]
            edits = [range(start, text.ids.index(chat.stop_id, start) + 1) for start in text.edits]
            last = edits[-1]
            marks = next(i for i in last if chat.decode(text.ids[last.start : i + 1]).count("\n") >= 2)
            inside = {i for edit in edits for i in edit}
            sums["edit"] += all(right[i] for i in last)
            sums["line"] += all(right[i] for i in range(last.start, marks))
            sums["rest"] += all(
                right[i] for i in range(len(text.ids)) if text.weight[i] >= 1 and i not in inside
            )
            sums["chance"] += float(torch.tensor([chances[i] for i in last]).sum().exp())
    return {name: value / max(len(texts), 1) for name, value in sums.items()}


@dataclass(frozen=True)
class CopyTest:
    """A shown function and the line of it that a reply to it copies.

    answers: (second, one past last) token of unseen identifiers there: which identifier is meant is another question than copying it.
    """

    ids: Sequence[int]
    answers: Sequence[tuple[int, int]]


def copy_tests(maker: EpisodeMaker, corpus: Sequence[Package], count: int) -> list[CopyTest]:
    """Functions of the maker's packages, each with a line of it begun again as a solver begins an edit.

    Unseen are identifiers that no source of `corpus` has; in every other test all of them are replaced by random ones.
    """
    from selfplay.agent.tools import format_action
    from selfplay.warm_start.fabrication import DRILL, Transcript

    seen = {
        name
        for package in corpus
        for path in package.sources
        for name in NAMES.findall(package.tree.text(path))
    }
    generator, chat = maker.random, maker.chat
    tests: list[CopyTest] = []
    for number in range(20 * count):  # not every function has a line that fits
        package, function, _ = maker.draw()
        shown = shown_lines(package.tree.text(function.path), function.first_line, function.last_line)
        unseen = set(NAMES.findall(shown)) - seen
        if number % 2:
            replaced = {name: _random_name(generator) for name in sorted(unseen)}
            for name, other in replaced.items():
                shown = re.sub(rf"\b{name}\b", other, shown)
            unseen = set(replaced.values())
        lines = [
            line for line in shown.split("\n") if line.isascii() and unseen.intersection(NAMES.findall(line))
        ]
        if not lines:
            continue
        line = generator.choice(lines)
        transcript = Transcript(chat, maker.limits, DRILL)
        transcript.act(
            format_action("bash", show_command(function.path, function.first_line, function.last_line))
        )
        transcript.observe(shown)
        start, spans = len(transcript.ids), chat.spans(line)
        answers = []
        for found in NAMES.finditer(line):
            if found[0] in unseen and chat.decode(transcript.ids).count(
                found[0]
            ):  # else it was cut from what is shown
                inside = [
                    i for i, (first, end) in enumerate(spans) if first < found.end() and end > found.start()
                ]
                answers.append((start + inside[0] + 1, start + inside[-1] + 1))
        answers = [(first, end) for first, end in answers if end > first]
        if answers:
            tests.append(CopyTest([*transcript.ids, *chat.encode(line)], answers))
        if len(tests) == count:
            break
    return tests


def _random_name(generator: random.Random) -> str:
    word = "".join(
        generator.choice("bcdfghjklmnpqrstvwxz") + generator.choice("aeiouy")
        for _ in range(generator.randint(2, 4))
    )
    return f"{word}_{generator.choice('bcdfgk')}{generator.choice('aeiou')}"


def measure_copying(model: Any, tests: Sequence[CopyTest]) -> float:
    """The share of answers whose tokens are all predicted greedily, from the true text before them."""
    import torch

    model.eval()
    right = total = 0
    with torch.no_grad():
        for test in tests:
            predicted = (
                model(input_ids=torch.tensor([list(test.ids)])).logits[0].argmax(-1).tolist()
            )  # (seq,)
            for first, end in test.answers:
                right += all(predicted[i - 1] == test.ids[i] for i in range(first, end))
                total += 1
    return right / max(total, 1)


# ---- the card


def model_card(
    settings: WarmStartSettings,
    packages: Sequence[Package],
    results: Sequence[StageResult],
    parameters: int,
    played: Collection | None,
) -> str:
    """What the policy is, what it was made of, and what was measured of it."""
    rows = [
        f"| {result.name} | {kind} | {f['edit']:.0%} | {f['line']:.0%} | {f['rest']:.0%} | {f['chance']:.1%} |"
        for result in results
        for kind, f in result.figures.items()
    ]
    stages = [f"| {r.name} | {r.tokens / 1e6:.1f}M | {_time(r)} | {r.copied:.0%} |" for r in results]
    sources = [
        f"| {p.name} | {p.licence} | {'held out' if p.name == settings.held_out else len(p.functions)} |"
        for p in packages
    ]
    seconds = sum(result.seconds for result in results)
    return "\n".join(
        [
            "# A small self-play policy",
            "",
            f"{parameters / 1e6:.2f}M parameters, Qwen3 architecture, {settings.shape.vocabulary} tokens, made from nothing; no other",
            'model\'s weights or outputs are in it. It plays both roles with `prompt_style = "terse"`.',
            "",
            "## How it was made",
            "",
            f"By one command (seed {settings.seed}), {time.strftime('%Y-%m-%d')}, on {machine()}:",
            "",
            f"    {REBUILD}",
            "",
            *_differences(settings),
            f"Supervised steps of {settings.rows} x {settings.sequence_tokens} tokens, {seconds / 60:.0f} minutes of them.",
            "copied: of identifiers that the corpus does not have, in a shown line that an edit begins with, the share copied exactly from",
            "their first token on.",
            "",
            "| stage | tokens, padding included | time | copied |",
            "|---|---|---|---|",
            *stages,
            "",
            f"Left out of all of it: {settings.held_out.partition('==')[0]}, and a quarter of all functions, chosen by the hash of their",
            "name (`selfplay.repositories.targets.is_held_out`), in every package: no bug is in them, and nothing shows them but a neighbour's listing.",
            "",
            *(_played(settings, played) if played else ()),
            "## Measured on that package and on held-out functions of the favoured packages",
            "",
            "Shares of fabricated texts, each token predicted greedily from the true text before it: the edit whole, its path and line,",
            "all other calls whole; and the mean probability of the true edit at temperature 1.",
            "",
            "| after | text | edit | line | rest | chance |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            "## Made of",
            "",
            "Source distributions, read and (but for the played episodes) never run; functions of each that were mutated:",
            "",
            "| package | licence | functions |",
            "|---|---|---|",
            *sources,
            "",
        ]
    )


def _time(result: StageResult) -> str:
    return (
        f"{result.seconds / 60:.0f} min, {result.tokens / result.seconds:.0f} tokens/s"
        if result.seconds
        else "not kept"
    )


def _differences(settings: WarmStartSettings) -> list[str]:
    defaults = WarmStartSettings()
    names = [
        name for name in WarmStartSettings.model_fields if getattr(settings, name) != getattr(defaults, name)
    ]
    return [f"with other settings than that recipe's: {', '.join(names)}.", ""] if names else []


def _played(settings: WarmStartSettings, played: Collection) -> list[str]:
    return [
        "## Episodes that were played",
        "",
        "The teacher played both roles in sandboxes, each bug with a mutation of its own. Kept are injector episodes whose artifact the",
        f"validator accepted, and solver episodes whose repair passed, of at most {settings.sequence_tokens} tokens; turns that caused an",
        f"error count nothing. {len(played.attempts)} mutations took {played.seconds / 60:.0f} minutes; most of those that no test",
        "notices were not played. A bug got up to two solver episodes, each shown another failing test that leads to the function.",
        "",
        "| repository | functions | not played | injector played | validated | solver played | repaired |",
        "|---|---|---|---|---|---|---|",
        *played.table(),
        "",
    ]


def machine() -> str:
    """The processor and how many of its cores this process may use."""
    try:
        found = re.search(
            r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE
        )
    except OSError:
        found = None
    return f"{usable_cores()} core(s) of {found[1] if found else platform.processor() or platform.machine()}"
