"""The limits of the source tree, as `python -m benchmarks.layout` prints them."""

import pytest

from benchmarks.layout import (
    MAX_CHAIN,
    MAX_WIDE_SHARE,
    PACKAGE,
    ROOT,
    Module,
    long_files,
    long_functions,
    longest_chain,
    many_parameters,
    read_modules,
    wide_lines,
)


@pytest.fixture(scope="module")
def modules() -> dict[str, Module]:
    return read_modules()


def test_the_root_holds_only_modules_that_every_package_uses():
    assert {path.stem for path in PACKAGE.glob("*.py")} == {
        "__init__",
        "cli",
        "config",
        "errors",
        "metrics",
        "outcomes",
        "parts",
    }


def test_no_circle_of_imports_and_no_long_chain(modules):
    chain = longest_chain(modules)
    assert len(chain) <= MAX_CHAIN, " -> ".join(chain)


def test_no_file_is_too_long(modules):
    assert long_files(modules) == []


def test_no_function_is_too_long(modules):
    assert long_functions(modules) == []


def test_no_function_has_too_many_parameters(modules):
    assert many_parameters(modules) == []


def test_few_lines_are_wide():
    wide, lines = wide_lines(ROOT)
    assert wide <= MAX_WIDE_SHARE * lines


def test_a_circle_is_found(tmp_path):
    def module(name: str, text: str) -> Module:
        return Module(name, tmp_path / f"{name}.py", text)

    circle = {
        "a": module("a", "from selfplay.b import x\n"),
        "b": module("b", "from selfplay import c\n"),
        "c": module("c", "import selfplay.a\n"),
    }
    with pytest.raises(ValueError, match="circle of imports: a -> b -> c -> a"):
        longest_chain(circle)
    late = {**circle, "c": module("c", "def f():\n    import selfplay.a\n")}
    assert longest_chain(late) == ["a", "b", "c"]


def test_files_and_functions_that_are_too_large_are_named(tmp_path):
    body = "\n".join(f"    x = {number}" for number in range(60))
    large = Module(
        "m", ROOT / "m.py", f"def f(a, b, c, d, e, f, g, h):\n{body}\n" + "y = 1\n# note\n\n" * 400
    )
    assert long_files({"m": large}) == ["m.py: 461 lines"]
    assert long_functions({"m": large}) == ["m.py:1 f: 61 lines"]
    assert many_parameters({"m": large}) == ["m.py:1 f: 8 parameters"]
