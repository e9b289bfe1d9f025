"""Which tests fit into the time of a run."""

import json

from selfplay.repositories.durations import Durations, choose, read_durations


def record(*lines: tuple[float, str, str]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def durations(functions: dict[str, float], **other: frozenset[str]) -> Durations:
    empty = frozenset[str]()
    given = {"stuck": empty, "passed": frozenset(functions), "cut_short": empty} | other
    return Durations(1.0, functions, **given)


def test_a_function_lasts_until_the_next_one_begins() -> None:
    found = read_durations(
        record(
            (2, "test", "t/a.py::one"),
            (3, "passed", "t/a.py::one"),
            (5, "test", "t/b.py::two"),
            (6, "whole", "t/b.py"),
            (6, "test", "t/a.py::one"),
            (7.5, "whole", "t/a.py"),
            (7.5, "end", ""),
        ),
        90,
    )
    assert found.start_s == 2
    assert found.functions == {"t/a.py::one": 4.5, "t/b.py::two": 1}
    assert found.files == {"t/a.py": 4.5, "t/b.py": 1}
    assert found.passed == {"t/a.py::one"}
    assert found.is_whole and not found.running


def test_a_run_that_was_killed_names_the_function_that_ran() -> None:
    lines = (1, "test", "t/a.py::one"), (2, "whole", "t/a.py"), (2, "test", "t/b.py::two")
    found = read_durations(record(*lines), 45)
    assert (found.is_whole, found.running) == (False, "t/b.py::two")
    assert found.functions == {"t/a.py::one": 1, "t/b.py::two": 43}
    assert found.files == {"t/a.py": 1}, "a file that did not run to its end has no time"
    assert read_durations(b"", 45).running == ""


def test_a_file_has_no_time_while_some_of_its_tests_wait_behind_those_of_other_files() -> None:
    lines = (1, "test", "t/a.py::one"), (2, "test", "t/b.py::two"), (3, "test", "t/c.py::three")
    assert read_durations(record(*lines, (9, "whole", "t/b.py")), 45).files == {"t/b.py": 1}


def test_what_a_hostile_record_says_in_another_form_is_left_out() -> None:
    bad = (
        b'nonsense\n[1, 2]\n[1e999, "test", "a"]\n["1", "test", "a"]\n[1, "test", ["a"]]\n{}\n' + b"[" * 9999
    )
    odd = record((1, "test", "t/a.py::x"), (2, "test", "t/a.py::x\n"), (0, "end", ""))
    assert read_durations(bad + b"\n" + odd, 9).functions == {"t/a.py::x": 0}


def test_the_longest_files_are_left_out_with_their_seconds() -> None:
    took = durations({"t/a.py::a": 3, "t/b.py::b": 2, "t/c.py::c": 30.4, "t/d.py::d": 3})
    chosen = choose(["t/a.py", "t/b.py", "t/c.py", "t/d.py"], took, 10)
    assert (chosen.files, chosen.without) == (("t/a.py", "t/b.py", "t/d.py"), ())
    assert chosen.notes == (
        "the tests are those that fit into 10 s, a share of environment.test_timeout_s",
        "left out, too long: t/c.py (30 s)",
    )


def test_single_slow_tests_are_left_out_before_whole_files() -> None:
    took = durations({"t/a.py::slow": 20, "t/a.py::quick": 1, "t/b.py::b": 2})
    chosen = choose(["t/a.py", "t/b.py"], took, 10)
    assert (chosen.files, chosen.without) == (("t/a.py", "t/b.py"), ("t/a.py::slow",))
    assert chosen.notes[1] == "left out, too long: t/a.py::slow (20 s)"


def test_tests_that_do_not_pass_go_first() -> None:
    took = durations({"t/a.py::fails": 4, "t/a.py::passes": 8, "t/b.py::b": 1, "t/c.py::no": 1})
    took = Durations(
        1, took.functions, took.stuck, frozenset(("t/a.py::passes", "t/b.py::b")), took.cut_short
    )
    chosen = choose(["t/a.py", "t/b.py", "t/c.py"], took, 10)
    assert (chosen.files, chosen.without) == (("t/a.py", "t/b.py"), ("t/a.py::fails",))
    assert chosen.notes[2] == "left out, no test passes: t/c.py"


def test_a_file_that_was_cut_short_is_left_out_and_one_test_that_ends_python_is_left_out_alone() -> None:
    took = durations({"t/a.py::a": 1, "t/b.py::b": 1, "t/c.py::c": 1}, cut_short=frozenset(["t/b.py"]))
    chosen = choose(["t/a.py", "t/b.py", "t/c.py"], took, 10, harmful=["t/c.py::kills"])
    assert (chosen.files, chosen.without) == (("t/a.py", "t/c.py"), ("t/c.py::kills",))
    assert chosen.notes[1:] == (
        "left out, too long: t/b.py",
        "left out, ends Python, or cannot be ended: t/c.py::kills",
    )


def test_a_later_run_replaces_what_an_earlier_one_says_of_its_files() -> None:
    lines = (1, "test", "t/a.py::a"), (2, "whole", "t/a.py"), (2, "test", "t/b.py::b")
    earlier = read_durations(record(*lines), 45)
    lines = (1, "test", "t/b.py::b"), (4, "whole", "t/b.py"), (4, "test", "t/c.py::c")
    later = read_durations(record(*lines, (5, "whole", "t/c.py"), (5, "end", "")), 45)
    joined = earlier.joined(later)
    assert joined.files == {"t/a.py": 1, "t/b.py": 3, "t/c.py": 1}
    assert joined.cut_short == frozenset()


def test_equal_durations_give_an_equal_choice_whatever_their_order() -> None:
    functions = {f"t/{name}.py::x": 3.0 for name in "dbca"}
    files = [f"t/{name}.py" for name in "abcd"]
    first = choose(files, durations(functions), 10)
    assert first == choose(files, durations(dict(sorted(functions.items()))), 10)
    assert first.files == ("t/b.py", "t/c.py", "t/d.py")
