"""Where a test is changed so that right code fails it, and what stands there instead."""

import ast
import random
import re

import pytest

from selfplay.verdicts.altered_tests import Source, find_spots, raised_exceptions


def changes(text: str, seed: int = 0) -> tuple[str, set[str]]:
    """The source with `…` where it is changed, and what can stand there."""
    content = text.encode()
    module = ast.parse(content)
    spots = find_spots(Source(content), module.body[-1], raised_exceptions(module), random.Random(seed))
    marked = content
    for spot in sorted(spots, key=lambda spot: -spot.start):
        marked = marked[: spot.start] + "…".encode() + marked[spot.end :]
    for number in range(min((len(spot.texts) for spot in spots), default=0)):
        changed = content
        for spot in sorted(spots, key=lambda spot: -spot.start):
            changed = changed[: spot.start] + spot.texts[number] + changed[spot.end :]
        assert ast.dump(ast.parse(changed)) != ast.dump(module)
    return marked.decode(), {text.decode() for spot in spots for text in spot.texts}


def in_test(line: str) -> str:
    return f"def test(self):\n    {line}\n"


@pytest.mark.parametrize(
    ("line", "marked"),
    [
        ("assert f(1) == 2", "assert f(1) == …"),
        ("assert 2 == f(1)", "assert … == f(1)"),
        ("assert f(1) == 100", "assert f(1) == …00"),
        ("assert f(1) == -2.50", "assert f(1) == -2.…0"),
        ("assert f(1) == 'no 7'", "assert f(1) == 'no …'"),
        ("assert f(x) == g(2)", "assert f(x) == g(…)"),
        ("assert f(x) == [g(2)]", "assert f(x) == [g(…)]"),
        ("assert f(x) == g(y)", "assert f(x) … g(y)"),
        ("assert f(1) == {'é': 2}", "assert f(1) == {'é': …}"),
        ("assert f(1) == set([2])", "assert f(1) == set([…])"),
        ("assert f(1) == pytest.approx(0.25)", "assert f(1) == pytest.approx(0.2…)"),
        ("assert f(1) and g(2) == 3", "assert f(1) and g(2) == …"),
        ("assert all(f(n) == 3 for n in (1, 2))", "assert all(f(n) == … for n in (1, 2))"),
        ("assert f(1) == 3 or f(1) == 4", "assert f(1) == 3 or f(1) == 4"),
        ("assert not f(1) == 3", "assert …f(1) == 3"),
        ("x = 3; assert f(1) == x", "x = …; assert f(1) == x"),
        ("x = 3; assert f(x) == x", "x = 3; assert f(x) … x"),
        ("x = 3; self.check_shown(f(1), x)", "x = …; self.check_shown(f(1), x)"),
        ("self.check_shown('a', g('1'))", "self.check_shown('a', g('…'))"),
        ("x = f(1); assert x == 3", "x = f(1); assert x == …"),
        ("for a, b in [(1, 2)]: assert f(a) == b", "for a, b in [(1, …)]: assert f(a) == b"),
        ("assert f(1) is True", "assert f(1) is …"),
        ("assert f(1) is None", "assert f(1) … None"),
        ("assert f(1) == None", "assert f(1) … None"),
        ("self.assertIn('a', f(1))", "self.…('a', f(1))"),
        ("assert f(1) < 2", "assert f(1) … 2"),
        ("assert 1 in f(1)", "assert 1 … f(1)"),
        ("assert f(1)", "assert …f(1)"),
        ("assert not f(1)", "assert …f(1)"),
        ("self.assertEqual(f(1), 2)", "self.assertEqual(f(1), …)"),
        ("self.assertEqual(2, f(1))", "self.assertEqual(…, f(1))"),
        ("self.assertTrue(f(1) == 2)", "self.assertTrue(f(1) == …)"),
        ("self.assertTrue(f(1))", "self.…(f(1))"),
        ("self.assertShown('in 1', 'out 2')", "self.assertShown('in 1', 'out …')"),
        ("with pytest.raises(KeyError): f(1)", "with pytest.raises(…): f(1)"),
        (
            "with pytest.raises(KeyError, match='no 1'): f(1)",
            "with pytest.raises(KeyError, match='no …'): f(1)",
        ),
        ("self.assertRaises(KeyError, f, 1)", "self.assertRaises(…, f, 1)"),
        ("m.assert_called_once_with(1)", "m.assert_called_once_with(…)"),
        ("assert f(x) == f'{2}'", "assert f(x) … f'{2}'"),
        ("f(1)", "f(1)"),
    ],
)
def test_what_a_test_expects_is_changed_and_never_what_the_code_gets(line, marked):
    assert changes(in_test(line))[0] == in_test(marked)


@pytest.mark.parametrize(
    ("literal", "instead"),
    [
        ("2", "[0-9]"),
        ("100", "[1-9]"),
        ("'ba'", "[a-z]"),
        ("'B'", "[A-Z]"),
        ("b'b'", "[a-z]"),
        ("('a'\n            'b')", "[a-z]"),
        ("'''\n    e\n    '''", "[aiou]"),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_a_character_of_a_literal_gives_way_to_another_of_its_kind(literal, instead, seed):
    _, texts = changes(in_test(f"assert f(1) == {literal}"), seed)
    assert len(texts) >= 3 and all(re.fullmatch(instead, text) for text in texts)


def test_each_case_of_a_parametrised_test_is_changed():
    text = (
        "@pytest.mark.parametrize(('n', 'm'), [(1, 2), pytest.param(3, 'k4', id='x')], ids=['a1', None])\n"
        "def test(n, m):\n    assert f(n) == m\n"
    )
    marked, _ = changes(text)
    assert marked == text.replace("(1, 2)", "(1, …)").replace("'k4'", "'k…'")
    only = "@pytest.mark.parametrize('m', [1, 2])\ndef test(m):\n    assert f() == m\n"
    assert changes(only)[0] == only.replace("[1, 2]", "[…, …]")


@pytest.mark.parametrize(
    "cases",
    ["CASES", "[(1, 2), OTHER]", "[(1, g(2))]", "[(1, 2), (3, None)]", "[]", "[(1, 2, 3), (1, 2, 3)]"],
)
def test_a_parametrised_test_whose_cases_hold_no_literal_is_changed_in_its_body(cases):
    body = "def test(n, m):\n    assert f(n) == m; assert g(n) == 8\n"
    text = f"@pytest.mark.parametrize('n, m', {cases})\n{body}"
    assert changes(text)[0].endswith("assert g(n) == …\n")


def test_an_assertion_that_always_runs_is_preferred():
    text = in_test("if x: assert f(1) == 2\n    else: assert f(3) == 4\n    assert f(5) == 6")
    assert all(changes(text, seed)[0].endswith("assert f(5) == …\n") for seed in range(10))


def test_an_exception_gives_way_to_another_that_the_module_expects():
    text = "with raises(pkg.Odd): pass\nwith raises(Even): pass\ndef test():\n    with raises(pkg.Odd): f()\n"
    assert changes(text)[1] == {"Even"}
    assert "KeyError" in changes(in_test("with raises(ValueError): f()"))[1]
    assert "NotImplementedError" not in changes(in_test("with raises(RuntimeError): f()"))[1]
    assert changes(in_test("with raises(Exception): f()"))[1] == set()


@pytest.mark.parametrize("names", ["{[]}", "NAMES", "1", "()", "'n' * 9"])
def test_parameters_without_readable_names_are_left_alone(names):
    text = f"@pytest.mark.parametrize({names}, [1])\ndef test(n):\n    assert f(n) == 8\n"
    assert changes(text)[0] == text.replace("8", "…")
