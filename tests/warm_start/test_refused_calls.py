"""Refused calls in fabricated texts: each answer is what the tool itself says in a sandbox."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable

import pytest

from selfplay.agent.chat import ChatFormat, load_tokenizer
from selfplay.agent.observations import render_observation
from selfplay.agent.tool_format import BadFormat
from selfplay.sandbox.base import SandboxBackend, SandboxSpec
from selfplay.settings.playing import AgentSettings
from selfplay.teacher.mutations import Mutation, mutations_of_file
from selfplay.warm_start.refused_calls import PossibleEdits, add_refused_calls
from selfplay.warm_start.transcripts import DRILL, PlayLimits, Transcript
from tiny_policy import build_tiny_tokenizer

TEXT = "".join(
    f"def f{n}(a, b):\n    if a < b:\n        return a + {n}\n    return not b\n\n\n" for n in range(3)
)
OTHER = "pack/other.py"  # a file that was shown, and has no bug
RIGHT = 2  # of six lines, the one that nothing that follows edits
KINDS = (
    "is not a file that can be read",
    "does not start in line",
    "It is nowhere in the file",
    "nothing would change",
    f"{OTHER} is unchanged",
)


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> ChatFormat:
    return ChatFormat(load_tokenizer(str(build_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")))))


def refused(chat: ChatFormat, whole_lines: bool) -> list[tuple[str, str]]:
    """(call, answer) of many refused calls. None of the calls counts in training."""
    mutations = [mutation for _, some in mutations_of_file("pack/m.py", TEXT, 22) for mutation in some]
    shown: Callable[[Mutation], str] = lambda mutation: f"{mutation.line}:{mutation.before}"  # noqa: E731
    meant = [mutation for mutation in mutations if mutation.line % 6 != RIGHT]
    unmeant = [mutation for mutation in mutations if mutation.line % 6 == RIGHT]
    edits = PossibleEdits("pack/m.py", {"pack/m.py": TEXT, OTHER: "x = 1\n"}, meant, unmeant, shown)
    transcript = Transcript(chat, PlayLimits(10**6, 400, 10**4, whole_lines), DRILL)
    generator = random.Random(0)
    for _ in range(60):
        add_refused_calls(transcript, edits, generator)
    assert 1.0 not in transcript.weight
    _, turns = chat.read(chat.decode(transcript.ids))
    return list(turns)


def test_some_refused_calls_are_made_twice_in_a_row(chat: ChatFormat) -> None:
    calls = [call for call, _ in refused(chat, True)]
    assert 0 < sum(first == second for first, second in itertools.pairwise(calls)) < len(calls) / 2


@pytest.mark.parametrize("whole_lines", [False, True])
def test_a_call_without_a_change_quotes_a_line_that_is_right(chat: ChatFormat, whole_lines: bool) -> None:
    lines = [
        chat.tools.parse(call).line
        for call, answer in refused(chat, whole_lines)
        if "nothing would change" in answer
    ]
    assert len(lines) > 5
    assert {line % 6 for line in lines if line} == {RIGHT}


@pytest.mark.sandbox
@pytest.mark.parametrize("whole_lines", [False, True])
def test_the_tool_refuses_each_call_in_the_same_words(
    chat: ChatFormat, backend: SandboxBackend, whole_lines: bool
) -> None:
    pairs = refused(chat, whole_lines)
    assert all(any(kind in answer for _, answer in pairs) for kind in KINDS)
    with backend.open(SandboxSpec(environment="")) as box:
        assert box.run("mkdir pack && cat > pack/m.py", stdin=TEXT.encode()).exit_code == 0
        assert box.run(f"echo 'x = 1' > {OTHER}").exit_code == 0
        for call, answer in pairs:
            try:
                action = chat.tools.parse(call)
            except BadFormat as fault:
                said = render_observation(str(fault), 2, 0, 0)
            else:
                seen = chat.tools.execute(action, box, AgentSettings())
                assert seen.is_error
                said = render_observation(seen.text, seen.exit_code, 0, 0)
            assert budgetless(said) == budgetless(answer)
        assert box.run("cat pack/m.py").output == TEXT.encode()


def budgetless(answer: str) -> str:
    """An answer without the turns and tokens that are left."""
    return re.sub(r"\d+ turns, \d+ tokens left", "", answer).strip()
