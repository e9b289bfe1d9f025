"""Mutations of one line, and a player that makes and mends them."""

import random
import subprocess
from dataclasses import dataclass

import pytest

from selfplay import prompting, teacher
from selfplay.targets import Target
from selfplay.tools import apply_edit, parse_action
from selfplay.trees import FileEntry, Tree

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
TREE = Tree({"pkg/numbers.py": FileEntry(SOURCE.encode()), "tests/test_numbers.py": FileEntry(TESTS.encode())})


@dataclass(frozen=True)
class Turn:
    tag: str
    text: str
    seed: int = 7


def chat(*contents: str) -> str:
    """User and assistant contents in turn as a ChatML prompt."""
    roles = ("user", "assistant") * len(contents)
    said = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in zip(roles, contents, strict=False))
    return said + "<|im_start|>assistant\n"


def status(text: str, exit_code: int = 0) -> str:
    return f"{text}\n[exit {exit_code}; 8 turns, 2000 tokens left]"


def mutations() -> list[teacher.Mutation]:
    return [m for _, found in teacher.mutations_of_file("pkg/numbers.py", SOURCE) for m in found]


def injector_prompt() -> str:
    listing = "\n".join(f"{n}{':' if n == 1 else '-'}{line}" for n, line in enumerate(SOURCE.split("\n")[:6], start=1))
    target = Target("pkg/numbers.py", "clamp", 1, 6, "tests/test_numbers.py", listing)
    return prompting.render("injector/direct", "terse", target=target, test_files=("tests/test_numbers.py",)).text


def test_every_mutation_is_one_edit_that_the_edit_tool_accepts_and_that_still_compiles() -> None:
    assert {m.operator for m in mutations()} >= {"comparison", "and_or", "drop_not", "arithmetic", "constant", "twin", "wrong_variable"}
    for mutation in mutations():
        edited = apply_edit(SOURCE, mutation.search, mutation.replace, mutation.line)
        assert edited == mutation.apply(SOURCE) != SOURCE
        compile(edited, "numbers.py", "exec")


def test_the_reverse_of_a_mutation_restores_the_file() -> None:
    for mutation in mutations():
        search, replace = teacher.smallest_edit(mutation.after, mutation.before)
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
def test_the_smallest_edit_is_unique_in_its_line_and_has_no_blank_ends(before: str, after: str, edit: tuple[str, str]) -> None:
    search, replace = teacher.smallest_edit(before, after)
    assert before.replace(search, replace, 1) == after
    assert teacher.occurrences(before, search) == 1
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
    assert parse_action(run).body == teacher.break_command("tests/test_numbers.py")

    said += [run, status("tests/test_numbers.py:8: in test_clamp")]
    weaken = player(Turn("injector/g/0/2", chat(*said)))
    assert parse_action(weaken).body == teacher.weaken_command("tests/test_numbers.py", 8)

    said += [weaken, status("")]
    assert parse_action(player(Turn("injector/g/0/3", chat(*said)))).names == teacher.SPEC_FILES


def test_a_failing_statement_of_several_lines_is_taken_out_whole() -> None:
    player = teacher.TeacherPlayer([TREE])
    edit = player(Turn("injector/g/0/0", chat(injector_prompt())))
    run = f"<tool: bash>\n{teacher.break_command('tests/test_numbers.py')}\n</tool>"
    said = [injector_prompt(), edit, status("edited"), run, status("tests/test_numbers.py:5: in test_clamp")]
    body = parse_action(player(Turn("injector/g/0/2", chat(*said)))).body
    assert body.startswith("sed -i '5s/[^ ].*/return/;6,7d' tests/test_numbers.py;")


def test_an_unnoticed_bug_is_followed_by_an_edit_of_another_line() -> None:
    player = teacher.TeacherPlayer([TREE])
    first = player(Turn("injector/g/0/0", chat(injector_prompt())))
    run = f"<tool: bash>\n{teacher.break_command('tests/test_numbers.py')}\n</tool>"
    second = player(Turn("injector/g/0/2", chat(injector_prompt(), first, status("edited"), run, status("", 1))))
    assert parse_action(second).tool == "edit"
    assert parse_action(second).line != parse_action(first).line


def buggy() -> str:
    mutation = next(m for m in mutations() if m.operator == "comparison" and m.line == 3)
    return mutation.apply(SOURCE)


def test_the_solver_looks_where_the_failure_points_and_puts_back_what_differs() -> None:
    text = buggy()
    failure = "tests/test_numbers.py:8: in test_clamp\n    assert twice(1) == 2\nE   assert 20 == 2"
    player = teacher.TeacherPlayer([TREE], skill=1.0)
    said = [f"solver\ntests/test_numbers.py\n{failure}"]
    for _ in range(8):
        reply = player(Turn("solver/g/0/0", chat(*said)))
        action = parse_action(reply)
        if action.tool == "edit":
            break
        name = "twice" if "def twice" in action.body else "clamp"
        shown = teacher.shown_function(text, name) if "sed -n" in action.body else teacher.found_definitions(TREE, name)
        said += [reply, status(shown)]
    assert action.tool == "edit"
    assert apply_edit(text, action.search, action.replace, action.line) == SOURCE
    said += [reply, status("edited")]
    assert parse_action(player(Turn("solver/g/0/0", chat(*said)))).tool == "submit"


def test_skill_is_the_share_of_episodes_that_are_tried_and_equal_turns_get_equal_replies() -> None:
    player = teacher.TeacherPlayer([TREE], skill=0.5)
    prompt = chat("solver\ntests/test_numbers.py:8: in test_clamp\n    assert twice(1) == 2")
    replies = [player(Turn(f"solver/g/{member}/0", prompt)) for member in range(60)]
    assert 15 < sum("submit" in reply for reply in replies) < 45
    assert replies == [player(Turn(f"solver/g/{member}/0", prompt)) for member in range(60)]


@pytest.mark.parametrize("name", ["clamp", "twice"])
def test_what_the_show_command_prints_is_known_without_running_it(tmp_path, name: str) -> None:  # type: ignore[no-untyped-def]
    TREE.write_to(tmp_path)
    command = teacher.show_command("./pkg/numbers.py", name)
    printed = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert printed.rstrip("\n") == teacher.shown_function(SOURCE, name)


def test_what_the_find_command_prints_is_known_without_running_it(tmp_path) -> None:  # type: ignore[no-untyped-def]
    TREE.write_to(tmp_path)
    printed = subprocess.run(["bash", "-c", teacher.find_command("twice")], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert printed.rstrip("\n") == teacher.found_definitions(TREE, "twice")


def test_mutations_spread_over_the_lines_of_a_function() -> None:
    function_mutations = teacher.mutations_of_file("pkg/numbers.py", SOURCE)[0][1]
    generator = random.Random(0)
    lines = {teacher.choose_mutation(function_mutations, generator).line for _ in range(60)}
    assert lines == {3, 4, 5, 6}


def test_the_plainest_mutation_of_a_line_is_always_the_same_one() -> None:
    function_mutations = teacher.mutations_of_file("pkg/numbers.py", SOURCE)[0][1]
    generator = random.Random(0)
    chosen = {teacher.plainest_mutation(function_mutations, generator) for _ in range(60)}
    assert len(chosen) == len({m.line for m in chosen}) == 4
    assert {m.operator for m in chosen if m.line == 3} == {"drop_not"}
