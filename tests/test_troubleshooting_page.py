"""docs/troubleshooting.md quotes messages of the program, and names settings and commands that there are."""

import re
from pathlib import Path

import pytest

from commands_page import commands
from selfplay.agent.episode import FinishReason
from selfplay.config import known_keys
from source_texts import holds, texts, texts_of_package

PAGE = (Path(__file__).parents[1] / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith("| what you see")
]
SPAN = re.compile(r"`([^`]+)`")
# What other programs say, and names of figures.
ELSEWHERE = {"Killed", "kl", "entropy", "metrics.jsonl", *FinishReason}
MESSAGES = [span for row in ROWS for span in SPAN.findall(row[0]) if span not in ELSEWHERE]
SOURCE = texts_of_package()


def test_the_page_has_its_symptoms():
    assert len(ROWS) >= 25 and len(MESSAGES) >= 25
    assert all(len(row) == 3 and all(row) for row in ROWS)


@pytest.mark.parametrize("message", MESSAGES)
def test_a_quoted_message_is_in_the_source(message):
    assert any(holds(text, message) for text in SOURCE), f"no text of the program is: {message}"


def test_a_message_that_changed_or_stands_in_a_docstring_is_not_found():
    found = [*texts('"""no disk is left."""\nraise E(f"no space is left for {place}: "\n"{more}")')]
    assert any(holds(text, "no space is left for …: …") for text in found)
    assert not any(holds(text, "no room is left for …") for text in found)
    assert not any(holds(text, "no disk is left.") for text in found)


def test_the_settings_that_it_names_exist():
    sections = {key.partition(".")[0] for key in known_keys() if "." in key}
    spans = [span for span in SPAN.findall(PAGE) if re.fullmatch(r"[a-z_]+\.[a-z_]+", span)]
    named = {span for span in spans if span.partition(".")[0] in sections and span not in ELSEWHERE}
    named |= set(re.findall(r"--set ([a-z_]+\.[a-z_]+)=", PAGE))
    assert len(named) > 20 and named <= set(known_keys())


def test_the_commands_that_it_names_exist():
    spans = [span.split() for span in SPAN.findall(PAGE) if span.startswith("selfplay ")]
    assert len(spans) > 5
    for _, name, *words in spans:
        known = {option for param in commands()[name].params for option in param.opts}
        assert {word for word in words if word.startswith("-")} <= known
