"""Parsing from several threads at once, as grading and preparing do."""

import gc
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from selfplay.source.syntax import parse_module, source_encoding

NESTED = "x = " + "(" * 60 + "a + 1" + ")" * 60 + "\n"
LONG = (
    "\n".join(
        f"def f{n}(a, b):\n    return [i + {n} for i in a if not (i < b and i > {n})]\n" for n in range(60)
    )
    + NESTED
)


@pytest.fixture
def often_interrupted() -> Iterator[None]:
    """Threads that switch very often, and garbage collections that run Python code during a parse."""
    interval, threshold = sys.getswitchinterval(), gc.get_threshold()

    def run_some_python(phase: str, info: dict[str, int]) -> None:
        sum(range(50))

    gc.callbacks.append(run_some_python)
    gc.set_threshold(20)
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)
    gc.set_threshold(*threshold)
    gc.callbacks.remove(run_some_python)


@pytest.mark.usefixtures("often_interrupted")
def test_threads_may_parse_at_the_same_time() -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(parse_module, [LONG] * 40))
    assert all(module is not None and len(module.body) == 61 for module in found)


@pytest.mark.parametrize("source", ["def f(:", b"\xff\xfe", "a\0b", "(" * 5000])
def test_text_that_does_not_parse_is_not_a_module(source: str | bytes) -> None:
    assert parse_module(source) is None


def test_warnings_of_the_compiler_are_suppressed() -> None:
    with warnings.catch_warnings(record=True) as caught:
        assert parse_module("a = '\\d'") is not None
    assert not caught


@pytest.mark.parametrize(
    ("path", "content", "encoding"),
    [
        ("a.py", b"# -*- coding: latin-1 -*-\n# caf\xe9\n", "iso8859-1"),
        ("a.py", b"#!python\n# vim: set fileencoding=shift-jis :\n# \x83\\\n", "shift_jis"),
        ("a.py", b"# coding: latin-1\n", "iso8859-1"),
        ("a.py", "# coding: latin-1\n# caf\xe9\n".encode(), "utf-8"),
        ("a.txt", b"# coding: latin-1\n# caf\xe9\n", "utf-8"),
        ("a.py", b"# caf\xe9\n", "utf-8"),
        ("a.py", b"\xef\xbb\xbf# caf\xe9\n", "utf-8"),
        ("a.py", b"# coding: shift-jis\n# \xff\n", "utf-8"),
        *(("a.py", b"# coding: %s\n# \xe9\n" % name, "utf-8") for name in (b"punycode", b"zlib", b"rot13")),
        *(
            ("a.py", b"# coding: %s\n# \xe9\n" % name, "utf-8")
            for name in (b"os.path", b"undefined", b"utf-7")
        ),
    ],
)
def test_a_files_encoding_reads_it_and_writes_it_back(path: str, content: bytes, encoding: str) -> None:
    found = source_encoding(path, content)
    assert found[0] == encoding
    assert content.decode(*found).encode(*found) == content
