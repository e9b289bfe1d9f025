"""Measures how well a policy copies identifiers that it has never seen.

A policy that cannot copy cannot edit, because an edit repeats a shown line. Invariant: the corpus has none of
these identifiers.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from selfplay.teacher.phrases import show_command, shown_lines
from selfplay.warm_start.transcripts import DRILL, Transcript

if TYPE_CHECKING:
    from selfplay.warm_start.fabrication import EpisodeMaker
    from selfplay.warm_start.packages import Package

LEAST_COPIED = 0.8  # share of answers; with less after the first stage, the later stages teach nothing
NAMES = re.compile(r"\b[A-Za-z_][A-Za-z0-9_]{5,}\b")
TRIES = 20  # functions sampled for one test: not every function has a fitting line


@dataclass(frozen=True)
class CopyTest:
    """A shown function, followed by one of its lines as an edit call begins with it.

    answers: (first, one past last) token of each identifier in that line, without the identifier's first
    token. That token tells which identifier follows; the others can be copied.
    """

    ids: Sequence[int]
    answers: Sequence[tuple[int, int]]


def copy_tests(maker: EpisodeMaker, corpus: Sequence[Package], count: int) -> list[CopyTest]:
    """Up to `count` tests from functions of the maker's packages.

    Tested are identifiers that no source of `corpus` has. Every other test replaces them by random ones.
    """
    seen = {
        name for package in corpus for path in package.sources for name in NAMES.findall(package.text(path))
    }
    generator = maker.random
    tests: list[CopyTest] = []
    for number in range(TRIES * count):
        package, function, _ = maker.functions.sample()
        shown = shown_lines(package.text(function.path), function.first_line, function.last_line)
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
        transcript = Transcript(maker.chat, maker.limits, DRILL)
        command = show_command(function.path, function.first_line, function.last_line)
        transcript.bash(command)
        transcript.observe(shown)
        answers = _answers(transcript, line, unseen)
        if answers:
            tests.append(CopyTest([*transcript.ids, *maker.chat.encode(line)], answers))
        if len(tests) == count:
            break
    return tests


def _answers(transcript: Transcript, line: str, unseen: set[str]) -> list[tuple[int, int]]:
    """The answers of a test in which `line` follows the transcript."""
    chat, start = transcript.chat, len(transcript.ids)
    spans, text = chat.spans(line), chat.decode(transcript.ids)
    answers = []
    for name in NAMES.finditer(line):
        # A name that the text lacks was cut from the observation.
        if name[0] in unseen and name[0] in text:
            inside = [i for i, (first, end) in enumerate(spans) if first < name.end() and end > name.start()]
            answers.append((start + inside[0] + 1, start + inside[-1] + 1))
    return [(first, end) for first, end in answers if end > first]


def _random_name(generator: random.Random) -> str:
    word = "".join(
        generator.choice("bcdfghjklmnpqrstvwxz") + generator.choice("aeiouy")
        for _ in range(generator.randint(2, 4))
    )
    return f"{word}_{generator.choice('bcdfgk')}{generator.choice('aeiou')}"


def measure_copying(model: Any, tests: Sequence[CopyTest]) -> float:
    """Share of answers of which the model predicts every token greedily, given the true tokens before it."""
    import torch

    model.eval()
    right = total = 0
    with torch.no_grad():
        for test in tests:
            logits = model(input_ids=torch.tensor([list(test.ids)])).logits[0]  # (seq, vocabulary)
            predicted = logits.argmax(-1).tolist()  # (seq,)
            for first, end in test.answers:
                right += all(predicted[i - 1] == test.ids[i] for i in range(first, end))
                total += 1
    return right / max(total, 1)
