"""Mutations of one line, and a player that makes and undoes them."""

import random
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from selfplay.agent import prompting
from selfplay.agent.chat import ChatFormat, load_tokenizer
from selfplay.agent.editing import apply_edit
from selfplay.agent.tools import Action, parse_action, toolbox
from selfplay.errors import ConfigError
from selfplay.repositories.targets import Target
from selfplay.settings.playing import AgentSettings
from selfplay.source.trees import FileEntry, Tree
from selfplay.teacher import player as teacher
from selfplay.teacher.conversations import STILL_FAILING
from selfplay.teacher.mutations import (
    Mutation,
    choose_mutation,
    mutations_of_file,
    occurrences,
    plainest_mutation,
    smallest_edit,
)
from selfplay.teacher.phrases import (
    SPEC_FILES,
    break_command,
    show_command,
    shown_lines,
    try_command,
    weaken_command,
)
from tiny_policy import LLAMA, QWEN, build_tiny_tokenizer

SOURCE = '''\
def clamp(value, low, high):
    """Not below `low`, not above `high`."""
    if value < low and not high == low:
        return low
    total = value + 1
    return max(total, high)


def twice(value):
    return clamp(value, 0, 10) * 2
'''
TESTS = """\
from pkg.numbers import clamp, twice


def test_clamp():
    assert clamp(
        1, 2, 3
    ) == 3
    assert twice(1) == 2
"""
TREE = Tree(
    {"pkg/numbers.py": FileEntry(SOURCE.encode()), "tests/test_numbers.py": FileEntry(TESTS.encode())}
)


@dataclass(frozen=True)
class Turn:
    tag: str
    text: str
    seed: int = 7


def chat(*contents: str) -> str:
    """A ChatML prompt of user and assistant messages in turn."""
    roles = ("user", "assistant") * len(contents)
    said = "".join(
        f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in zip(roles, contents, strict=False)
    )
    return said + "<|im_start|>assistant\n"


def status(text: str, exit_code: int = 0) -> str:
    return f"{text}\n[exit {exit_code}; 8 turns, 2000 tokens left]"


def mutations() -> list[Mutation]:
    return [m for _, found in mutations_of_file("pkg/numbers.py", SOURCE) for m in found]


def injector_prompt() -> str:
    listing = "\n".join(
        f"{n}{':' if n == 1 else '-'}{line}" for n, line in enumerate(SOURCE.split("\n")[:6], start=1)
    )
    target = Target("pkg/numbers.py", "clamp", 1, 6, "tests/test_numbers.py", listing)
    return prompting.render(
        "injector/direct", "terse", target=target, test_files=("tests/test_numbers.py",)
    ).text


def test_every_mutation_is_one_edit_that_the_edit_tool_accepts_and_that_still_compiles() -> None:
    assert {m.operator for m in mutations()} >= {
        "comparison",
        "and_or",
        "drop_not",
        "arithmetic",
        "constant",
        "twin",
        "wrong_variable",
    }
    for mutation in mutations():
        edited = apply_edit(SOURCE, mutation.search, mutation.replace, mutation.line)
        assert edited == mutation.apply(SOURCE) != SOURCE
        compile(edited, "numbers.py", "exec")


def test_the_reverse_of_a_mutation_restores_the_file() -> None:
    for mutation in mutations():
        search, replace = smallest_edit(mutation.after, mutation.before)
        assert apply_edit(mutation.apply(SOURCE), search, replace, mutation.line) == SOURCE


def test_a_docstring_is_never_mutated() -> None:
    assert 2 not in {m.line for m in mutations()}


@pytest.mark.parametrize(
    ("before", "after", "edit"),
    [
        ("    if a < b:", "    if a <= b:", ("b", "= b")),
        ("    return x", "    return not x", ("x", "not x")),
        ("    a = a + a", "    a = a - a", ("+", "-")),
        ("f(1, 11)", "f(2, 11)", ("(1", "(2")),
    ],
)
def test_the_smallest_edit_is_unique_in_its_line_and_has_no_blank_ends(
    before: str, after: str, edit: tuple[str, str]
) -> None:
    search, replace = smallest_edit(before, after)
    assert before.replace(search, replace, 1) == after
    assert occurrences(before, search) == 1
    assert search == search.strip()
    assert len(search) <= len(edit[0]) + 3


def test_mutations_are_refused_for_another_text() -> None:
    with pytest.raises(ValueError, match="was made for"):
        mutations()[0].apply(SOURCE.replace("if value", "while value"))


def test_the_injector_breaks_the_target_runs_the_tests_weakens_them_and_submits() -> None:
    player = teacher.TeacherPlayer([TREE])
    said = [injector_prompt()]
    edit = player(Turn("injector/g/0/0", chat(*said)))
    action = parse_action(edit)
    assert (action.tool, action.path) == ("edit", "pkg/numbers.py")
    assert 1 <= (action.line or 0) <= 6
    apply_edit(SOURCE, action.search, action.replace, action.line)

    said += [edit, status(f"edited pkg/numbers.py:{action.line}")]
    run = player(Turn("injector/g/0/1", chat(*said)))
    assert parse_action(run).body == break_command("tests/test_numbers.py")

    said += [run, status("tests/test_numbers.py:8: in test_clamp")]
    weaken = player(Turn("injector/g/0/2", chat(*said)))
    assert parse_action(weaken).body == weaken_command("tests/test_numbers.py", 8)

    said += [weaken, status("")]
    assert parse_action(player(Turn("injector/g/0/3", chat(*said)))).names == SPEC_FILES


def test_a_failing_statement_of_several_lines_is_removed_whole() -> None:
    player = teacher.TeacherPlayer([TREE])
    edit = player(Turn("injector/g/0/0", chat(injector_prompt())))
    run = f"<tool: bash>\n{break_command('tests/test_numbers.py')}\n</tool>"
    said = [injector_prompt(), edit, status("edited"), run, status("tests/test_numbers.py:5: in test_clamp")]
    body = parse_action(player(Turn("injector/g/0/2", chat(*said)))).body
    assert body.startswith("sed -i '5s/[^ ].*/return/;6,7d' tests/test_numbers.py;")


@pytest.mark.parametrize("whole_lines", [False, True])
def test_an_unnoticed_bug_is_followed_by_an_edit_of_another_line(whole_lines: bool) -> None:
    player = teacher.TeacherPlayer([TREE], whole_lines=whole_lines)
    first = player(Turn("injector/g/0/0", chat(injector_prompt())))
    run = f"<tool: bash>\n{break_command('tests/test_numbers.py')}\n</tool>"
    second = player(
        Turn("injector/g/0/2", chat(injector_prompt(), first, status("edited"), run, status("", 1)))
    )
    assert parse_action(second).tool == "edit"
    one, other = parse_action(first), parse_action(second)
    assert (one.line, one.search) != (other.line, other.search)
    assert not whole_lines or one.search != other.search


def buggy() -> str:
    mutation = next(m for m in mutations() if m.operator == "comparison" and m.line == 3)
    return mutation.apply(SOURCE)


@pytest.mark.parametrize(("template", "tool_format"), [(QWEN, "hermes"), (LLAMA, "qwen-xml")])
def test_the_player_reads_and_writes_any_template_and_format(
    tmp_path: Path, template: str, tool_format: str
) -> None:
    tokenizer = load_tokenizer(str(build_tiny_tokenizer(tmp_path)))
    tokenizer.chat_template = template
    form = ChatFormat(tokenizer, tools=toolbox(AgentSettings(tool_format=tool_format)))
    player = teacher.TeacherPlayer([TREE], chat=form)
    ids = form.start("", injector_prompt())
    wanted = ["edit", "bash", "bash", "submit"]
    outputs = ["edited pkg/numbers.py:3", "tests/test_numbers.py:8: in test_clamp", ""]
    for number, (tool, output) in enumerate(zip(wanted, [*outputs, ""], strict=True)):
        reply = player(Turn(f"injector/g/0/{number}", tokenizer.decode(ids)))
        assert form.tools.parse(reply).tool == tool
        ids += [*form.encode_call(reply), form.stop_id, *form.extend(status(output), tool)]
    assert form.tools.parse(reply).names == SPEC_FILES


def test_the_player_needs_the_tools_that_it_calls() -> None:
    with pytest.raises(ConfigError, match="agent.tools lacks edit.*another agent.tool_format"):
        teacher.check_tools(toolbox(AgentSettings(tools=("bash", "submit"), tool_format="bash-block")))


FAILURE = "tests/test_numbers.py:8: in test_clamp\n    assert twice(1) == 2\nE   assert 20 == 2"
SUSPECTS = (
    "grep -n '' pkg/numbers.py | sed -n '9,10p' # twice\ngrep -n '' pkg/numbers.py | sed -n '1,6p' # clamp"
)


def play_solver(
    player: teacher.TeacherPlayer, task: str, text: str, tests: list[str], seed: int = 0
) -> list[Action]:
    """The solver's calls on a file of `text`. tests: the outputs of its test runs, in order."""
    said, actions, left = [task], list[Action](), list(tests)
    while not actions or actions[-1].tool != "submit":
        reply = player(Turn(f"solver/g/0/{len(actions)}", chat(*said), seed + len(actions)))
        actions.append(parse_action(reply))
        shown = re.search(r"sed -n '(\d+),(\d+)p'", reply)
        output = shown_lines(text, int(shown[1]), int(shown[2])) if shown else "edited"
        said += [reply, status(left.pop(0) if "test_script.sh" in reply else output)]
        assert len(actions) < 12
    return actions


@pytest.mark.parametrize("suspects", ["", "\n" + SUSPECTS])
def test_the_solver_shows_the_suspects_restores_what_differs_and_runs_the_tests(suspects: str) -> None:
    text = buggy()
    actions = play_solver(
        teacher.TeacherPlayer([TREE], skill=1.0),
        f"solver\ntests/test_numbers.py\n{FAILURE}{suspects}",
        text,
        [""],
    )
    *looks, edit, tried, _ = actions
    assert looks and all(look.body.startswith("grep -n '' pkg/numbers.py | sed -n '") for look in looks)
    assert apply_edit(text, edit.search, edit.replace, edit.line) == SOURCE
    assert tried.body == try_command("pkg/numbers.py")


def test_suspects_are_shown_in_their_order() -> None:
    assert teacher.TeacherPlayer([TREE]).listings(f"{FAILURE}\n{SUSPECTS}") == [
        ("pkg/numbers.py", 9, 10),
        ("pkg/numbers.py", 1, 6),
    ]


def test_failing_tests_undo_an_edit_and_show_the_next_suspect_and_no_edit_is_made_twice() -> None:
    text, prompt = buggy(), f"solver\ntests/test_numbers.py\n{FAILURE}\n{SUSPECTS}"
    repaired = 0
    for seed in range(20):
        player = teacher.TeacherPlayer([TREE], skill=1.0, guess_rate=0.6)
        actions = play_solver(player, prompt, text, ["2 failed", "2 failed", "2 failed", ""], seed)
        edits = [(a.line, a.search, a.replace) for a in actions if a.tool == "edit"]
        assert len(set(edits)) == len(edits)
        bodies = [a.body for a in actions if a.tool == "bash"]
        tried = [body for body in bodies if "git checkout" in body]
        # The command that undoes an edit shows the next suspect too, so only the first needs its own call.
        if len(bodies) - len(tried) == 1 and tried:
            assert tried[0] == try_command("pkg/numbers.py", ("pkg/numbers.py", 1, 6))
        assert all(body == try_command("pkg/numbers.py") for body in tried[1:])
        repaired += len(edits) > 1 and apply_edit(text, edits[-1][1], edits[-1][2], edits[-1][0]) == SOURCE
    assert repaired


def test_a_task_leads_to_a_mutation_if_the_solver_shows_its_line() -> None:
    player, mutation = teacher.TeacherPlayer([TREE]), mutations()[0]
    task = f"tests/test_numbers.py:8: in test_other\n    assert other(1)\n{SUSPECTS}"
    assert player.leads_to(task, mutation)
    assert not player.leads_to(task.rpartition("\n")[0], mutation)


def test_skill_is_the_share_of_episodes_that_try_and_equal_turns_get_equal_replies() -> None:
    player = teacher.TeacherPlayer([TREE], skill=0.5)
    prompt = chat("solver\ntests/test_numbers.py:8: in test_clamp\n    assert twice(1) == 2")
    replies = [player(Turn(f"solver/g/{member}/0", prompt)) for member in range(60)]
    assert 15 < sum("submit" in reply for reply in replies) < 45
    assert replies == [player(Turn(f"solver/g/{member}/0", prompt)) for member in range(60)]


DOCUMENTED = '''def one():
    """One line."""
    return 1


def two():
    r"""Several,

    with "quotes".
    """
    text = """in one line"""
    return text
'''


@pytest.mark.parametrize("span", [(1, 3), (6, 12), (7, 12), (1, 40)])
def test_shown_lines_are_what_the_show_command_prints(tmp_path: Path, span: tuple[int, int]) -> None:
    (tmp_path / "numbers.py").write_text(DOCUMENTED)
    printed = subprocess.run(
        ["bash", "-c", show_command("numbers.py", *span)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed.rstrip("\n") == shown_lines(DOCUMENTED, *span)


@pytest.mark.parametrize(
    ("printed", "status", "kept"), [("1 failed, 3 passed", 1, False), ("4 passed in 0.1s", 0, True)]
)
def test_the_try_command_undoes_an_edit_if_tests_fail(
    tmp_path: Path, printed: str, status: int, kept: bool
) -> None:
    script = tmp_path / "test_script.sh"
    script.write_text(f"echo '{printed}'; exit {status}\n")
    code = tmp_path / "code.py"
    code.write_text("old\n")
    for command in (
        ["init", "-q"],
        ["add", "code.py"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "all"],
    ):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    code.write_text("new\n")
    command = try_command("code.py").replace("/submit/test_script.sh", str(script))
    output = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True).stdout
    assert code.read_text() == ("new\n" if kept else "old\n")
    assert bool(STILL_FAILING.search(output)) is not kept


def test_mutations_spread_over_the_lines_of_a_function() -> None:
    function_mutations = mutations_of_file("pkg/numbers.py", SOURCE)[0][1]
    generator = random.Random(0)
    lines = {choose_mutation(function_mutations, generator).line for _ in range(60)}
    assert lines == {3, 4, 5, 6}


def test_the_plainest_mutation_of_a_line_is_always_the_same_one() -> None:
    function_mutations = mutations_of_file("pkg/numbers.py", SOURCE)[0][1]
    generator = random.Random(0)
    chosen = {plainest_mutation(function_mutations, generator) for _ in range(60)}
    assert len(chosen) == len({m.line for m in chosen}) == 4
    assert {m.operator for m in chosen if m.line == 3} == {"drop_not"}
