"""Noise keeps what code does, and no fixed rule strips it. The rule for suspects is tested here too."""

import ast
import dis
import io
import random
import re
import tokenize
import zlib
from pathlib import Path

import pytest

from old_noise import with_marks
from selfplay.source.syntax import parse_module
from selfplay.source.trees import FileEntry, Tree
from selfplay.verdicts.noise.layout import change_comments
from selfplay.verdicts.noise.passes import with_noise
from selfplay.verdicts.noise.source import BINDERS, Source, bound_by, walk
from selfplay.verdicts.noise.words import Vocabulary, Words
from selfplay.verdicts.perturbation import beyond_changes, may_be_random, perturb, perturb_source

SOURCE = '''"""Doc."""
import os
from functools import wraps

LIMIT = 10
__all__ = ["one", "Thing"]


def one(value, step=1):
    """Doc."""
    # a comment
    if value is not None and value < 10:
        result = value + step
    else:
        result = -1
    return result


def two(values):
    total = 0
    for value in values:
        if value == 3: continue
        total += value
    found = [value for value in values if value not in (1, 2)]
    return total, found, len(values)


def gen(count):
    for number in range(count):
        try:
            yield number
        finally:
            last = number
    yield f"{last} of {count!r}"


def names():
    kept = 1
    return sorted(locals())


def counter():
    count = 0
    def add():
        nonlocal count
        count += 1
        return count
    return add


def glob():
    global SEEN
    SEEN = "a" if os.sep == "/" else "b"
    return SEEN


def twice(function):
    @wraps(function)
    def inner(*args, **kwargs):
        return function(*args, **kwargs), function(*args, **kwargs)
    return inner


class Thing:
    """A thing."""
    __slots__ = ("size",)
    kinds = {"a": 1}

    def __init__(self, size): self.size = size
    def grow(self): return self.size * 2 if self.size > 3 else LIMIT
    def only_doc(self): "Doc alone."

    @property
    def text(self):
        try:
            return "%d" % self.size
        except TypeError as error:
            message = str(error)
            return type(error).__name__ + message[:0]

    @twice
    def pair(self, *, key="x"):
        return (lambda other: (other, key))(self.size)


short = lambda a, b=2: a + b
'''


def use(data: bytes) -> list:
    """What the module does."""
    names: dict = {"__name__": "m"}
    exec(compile(data, "m", "exec"), names)
    thing = names["Thing"](4)
    add = names["counter"]()
    with pytest.raises(AttributeError):
        thing.other = 1
    return [
        [names["one"](value) for value in (3, 12, None)],
        names["two"]([1, 2, 3, 4]),
        list(names["gen"](3)),
        names["names"](),
        [add(), add()],
        names["glob"](),
        names["SEEN"],
        [thing.grow(), names["Thing"](1).grow(), names["Thing"]("x").text, thing.text, thing.pair(key=3)],
        [names["short"](1), names["__all__"], names["LIMIT"], sorted(names)],
        sorted(vars(names["Thing"])),
    ]


@pytest.mark.parametrize("seed", range(40))
def test_the_code_does_the_same(seed):
    assert use(perturb_source(SOURCE.encode(), seed)) == use(SOURCE.encode())


FORMS = {
    "dos": SOURCE.replace("\n", "\r\n").encode(),
    "byte order mark": b"\xef\xbb\xbf" + SOURCE.encode(),
    "tabs": SOURCE.replace("    ", "\t").encode(),
    "form feed": SOURCE.replace("\n\n\nclass", "\n\x0c\n\nclass").encode(),
    "latin-1": ("# -*- coding: latin-1 -*-\n" + SOURCE.replace("LIMIT", "LIM\xefT")).encode("latin-1"),
    "utf-8": SOURCE.replace('"%d"', '"\xe9"[:0] + "%d"').encode(),
    "no end": SOURCE.rstrip().encode(),
}


@pytest.mark.parametrize("form", FORMS)
def test_unusual_files_keep_their_form_and_do_the_same(form):
    source = FORMS[form]
    for seed in range(6):
        changed = perturb_source(source, seed)
        compile(changed, "m", "exec")
        if form != "latin-1":
            assert use(changed) == use(source)
        assert changed.startswith(source[:3]) and len(changed) > len(source)
        assert (changed.count(b"\r\n") == changed.count(b"\n")) == (form == "dos")
        assert changed.count(b"def ") > source.count(b"def ") or b"_0" not in changed


@pytest.mark.parametrize("source", [b"def broken(:\n", b"x = '\0'\n"], ids=["syntax", "nul"])
def test_source_that_does_not_parse_is_left_alone(source):
    assert perturb_source(source, 1) == source


@pytest.mark.parametrize("source", [b"", b"x = 1\ry = 2\r", b"x = (\n1)\\\n\n"], ids=["empty", "mac", "end"])
def test_a_file_without_places_for_noise_gets_a_block_at_its_end(source):
    changed = perturb_source(source, 1)
    assert changed != source and compile(changed, "m", "exec")


COMMENTED = '''#!/usr/bin/python
# first
x = "# no"  # é: yes
y = """
# no
"""  # yes
z = f"{x!r:#>5} # no" + f''  # yes
long = (
    "a # no"
    # between parts of one text: not found
    f"{z} # no"  # yes
)
w = rb"# no" \\
    b"# no"  # yes
def f(a,  # yes
      b):  # yes
    return {"#": a}["#"]# yes'''


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_comments_are_found_where_the_tokenizer_finds_them(end):
    text = COMMENTED.replace("\n", end)
    source = Source.parse(text.encode())
    tokens = tokenize.generate_tokens(io.StringIO(text, newline="").readline)
    wanted = [token.string.rstrip("\r") for token in tokens if token.type == tokenize.COMMENT]
    found = [source.data[first:last].decode() for first, last in source.comments]
    assert found == [text for text in wanted if "between" not in text]
    assert len(found) == 10


def test_comments_at_the_ends_of_lines_leave_the_syntax_tree_alone():
    source = Source.parse(COMMENTED.encode())
    texts = {
        source.edited(change_comments(source, Words(random.Random(seed), Vocabulary.of([source.data]))))
        for seed in range(200)
    }
    assert len(texts) > 100
    assert {ast.dump(ast.parse(text)) for text in texts} == {ast.dump(source.module)}


def test_equal_seeds_make_equal_changes_and_others_do_not():
    tree = Tree({"a.py": FileEntry(SOURCE.encode()), "b.py": FileEntry(b"def f(): return 1\n")})
    assert perturb(tree, tree, 7) == perturb(tree, sorted(tree, reverse=True), 7)
    assert len({perturb(tree, tree, seed).digest for seed in range(9)}) == 9


def test_files_in_other_languages_move_too():
    tree = Tree({"a.js": FileEntry(b"f();"), "a.txt": FileEntry(b"f")})
    changed = perturb(tree, tree, 1)
    assert changed["a.js"].content.rstrip() == b"f();" and changed.changed_paths(tree) == ["a.js"]


def test_docstrings_stay_where_something_reads_them():
    source, reader = FileEntry(SOURCE.encode()), FileEntry(b"print(one.__doc__)\n")

    def docs(tree):
        return {
            ast.get_docstring(node)
            for seed in range(8)
            for node in ast.walk(ast.parse(perturb(tree, ["m.py"], seed)["m.py"].content))
            if isinstance(node, ast.FunctionDef) and node.name in ("one", "two")
        }

    assert docs(Tree({"m.py": source, "r.py": reader})) == {"Doc.", None}
    assert len(docs(Tree({"m.py": source}))) > 4


# ---- what an attacker strips

WORDS = set(re.findall(r"\w+", SOURCE))


def erased(source: bytes, keep: str = "") -> ast.Module:
    """The tree without names, constants and docstrings."""
    module = ast.parse(source)
    for node in ast.walk(module):
        for field in ("id", "name", "arg", "attr", "asname"):
            if getattr(node, field, None) and keep != "names":
                setattr(node, field, "_")
        if isinstance(node, ast.Constant):
            node.value = 0
    return module


def stripped(source: bytes) -> bytes:
    """The text without the marks of the first audit, comments and blank lines."""
    text = re.sub(r"_unused_\w+( = _unused_\w+)? = (None|0|\(\)|not None)(; )?", "", source.decode())
    text = text.replace("if False:\n    \n", "").partition("\ndel _unused_")[0]
    return "\n".join(line for line in text.split("\n") if line.strip() and line.strip()[0] != "#").encode()


def functions(source: bytes) -> list:
    code = compile(source, "m", "exec")
    return [part for part in code.co_consts if hasattr(part, "co_code")]


LOOKS = {
    "size": len,
    "size in steps of 500": lambda source: len(source) // 500,
    "lines": lambda source: source.count(b"\n"),
    "stripped text": stripped,
    "names of the source alone": lambda source: sorted(
        node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name) and node.id in WORDS
    ),
    "names": lambda source: sorted({n.id for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Name)}),
    "tree without names": lambda source: ast.dump(erased(source)),
    "definitions sorted": lambda source: sorted(ast.dump(node) for node in erased(source).body),
    "kinds of nodes": lambda source: sorted(type(node).__name__ for node in ast.walk(ast.parse(source))),
    "number of comparisons": lambda source: sum(isinstance(n, ast.Lt) for n in ast.walk(ast.parse(source))),
    "constants": lambda source: sorted(
        repr(node.value) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)
    ),
    "constants of bytecode": lambda source: [repr(code.co_consts) for code in functions(source)],
    "operations": lambda source: [
        [i.opname for i in dis.get_instructions(code)] for code in functions(source)
    ],
    "locals": lambda source: [len(code.co_varnames) for code in functions(source)],
}


def differing(look, noise) -> int:
    return len({zlib.crc32(repr(look(text)).encode()) for text in noise})


@pytest.mark.parametrize("look", LOOKS)
def test_noise_moves_what_an_attacker_sees_after_stripping(look):
    texts = [perturb_source(SOURCE.encode(), seed) for seed in range(9)]
    assert differing(LOOKS[look], texts) >= 5, look


def test_the_first_audits_noise_can_be_stripped():
    texts = [with_marks(SOURCE.encode(), seed) for seed in range(9)]
    assert differing(LOOKS["size"], texts) > 5
    assert differing(LOOKS["names of the source alone"], texts) <= 2


def test_every_function_moves():
    """However it begins: on one line, with a docstring alone, nested."""
    texts = [perturb_source(SOURCE.encode(), seed) for seed in range(9)]
    names = [n.name for n in ast.walk(ast.parse(SOURCE)) if isinstance(n, ast.FunctionDef)]
    for name in names:
        codes = set()
        for text in texts:
            found = [
                n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef) and n.name == name
            ]
            codes.add(ast.dump(found[0]))
        assert len(codes) > 5, name


def test_new_names_have_no_mark_and_are_new():
    vocabulary = Vocabulary.of([SOURCE.encode()])
    before = set(re.findall(r"\w+", SOURCE))
    for seed in range(9):
        changed = with_noise(SOURCE.encode(), seed, vocabulary).decode()
        new = set(re.findall(r"\w+", changed)) - before
        assert new and not any(name.startswith("_") for name in new if name.isidentifier())


@pytest.mark.parametrize("text", ["if a: b\n" * 3000, "x = [" + "a < 3, " * 5000 + "]\n", "#\n" * 40000])
def test_long_files_do_not_stop_it(text):
    assert parse_module(perturb_source(text.encode(), random.Random(1).randint(1, 9))) is not None


# ---- the rule for suspects

PLAIN = "def f(a, b):\n    if a < len(b):\n        return b.pop(a)\n    return None\n"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("<", "<="),
        ("pop(a)", "pop(b)"),
        ("        return b.pop(a)\n", "        pass\n"),
        ("if a", "if not a"),
        ("None", "1 + 2"),
    ],
    ids=["operator", "name", "removed", "not", "constant"],
)
def test_exchanging_operators_and_known_names_cannot_be_random(old, new):
    assert not may_be_random(_one_file(PLAIN), _one_file(PLAIN.replace(old, new)), ["m.py"])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("None", "id(b)"),
        ("None", "len(b)"),
        ("None", "a.b"),
        ("None", "__file__"),
        ("None", "[*{a, b}]"),
        ("len(b)", "hash(b)"),
        ("def f", "import os\ndef f"),
        ("b.pop(a)", "uuid"),
    ],
)
def test_code_that_uses_a_new_name_may_be_random(old, new):
    assert may_be_random(_one_file(PLAIN), _one_file(PLAIN.replace(old, new)), ["m.py"])


def test_a_new_file_may_be_random():
    assert may_be_random(Tree({}), _one_file(PLAIN), ["m.py"])


def _one_file(text):
    return Tree({"m.py": FileEntry(text.encode())})


def test_names_in_another_encoding_are_seen_by_the_rule_for_suspects():
    head = b"# -*- coding: latin-1 -*-\nfrom a import x\ny = x\n"
    before = Tree({"m.py": FileEntry(head + b"z = y\n")})
    after = Tree({"m.py": FileEntry(head + b"z = \xe9\n")})
    assert may_be_random(before, after, ["m.py"])
    assert not may_be_random(after, before, ["m.py"])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "def f(a):\n    return g(a)\ndef h(a):\n    return a\n",
            "def f(a):\n    return a\ndef h(a):\n    return g(a)\n",
        ),
        ("import random\nrandom.seed(1)\nx = 1\n", "import random\nx = 1\n"),
        ("def f(a):\n    b = 'x'\n    return eval(b)\n", "def f(a):\n    b = 'y'\n    return eval(b)\n"),
    ],
    ids=["a call moved from elsewhere", "a seed removed", "evaluated text"],
)
def test_what_the_file_had_elsewhere_may_be_random_too(before, after):
    assert may_be_random(_one_file(before), _one_file(after), ["m.py"])


SUSPECT = PLAIN + "\n\ndef drawn():\n    return hash(open(__file__).read())\n"


@pytest.mark.parametrize(
    "text",
    [
        SUSPECT + "# one\r# two\n",
        "# -*- coding: utf-7 -*-\n" + SUSPECT,
        SUSPECT + "type Name = int\n",
        SUSPECT + f"#{'x' * (1 << 20)}\n",
    ],
    ids=["a carriage return alone", "an odd encoding", "newer syntax", "a great size"],
)
def test_a_suspect_may_not_put_its_file_out_of_reach(text):
    assert beyond_changes(_one_file(PLAIN), _one_file(text), ["m.py"]) == ["m.py"]
    assert not beyond_changes(_one_file(text), _one_file(text + "# three\n"), ["m.py"])


def test_a_suspect_may_not_have_a_file_that_is_not_python():
    before = Tree({"m.py": FileEntry(PLAIN.encode()), "m.txt": FileEntry(b"one")})
    data = before.replace({"m.txt": FileEntry(b"print('two')")})
    assert not beyond_changes(before, data, ["m.txt"])
    both = data.replace({"m.py": FileEntry(SUSPECT.encode())})
    assert beyond_changes(before, both, ["m.py", "m.txt"]) == ["m.txt"]
    assert not beyond_changes(before, both, ["m.py"])


LOCALS = """import sys

def one(value):
    found = value + 1
    return found


def own():
    stack = []
    stack.append(1)
    return sorted(locals()) + stack
"""


@pytest.mark.parametrize(
    ("before", "after", "is_beyond"),
    [
        ("value + 1", "value + len(sys._getframe().f_code.co_varnames)", True),
        ("value + 1", "value + hash(tuple(vars()))", True),
        ("value + 1", "value + hash(one.__code__.co_varnames)", False),  # noise changes these names
        ("sorted(locals())", "sorted(locals(), key=hash)", True),
        ("return found\n", "return found\n\ndef two():\n    return hash(str(locals()))\n", True),
        ("return found\n", "stack = [hash(found)]\n    return stack.pop()\n", False),
    ],
)
def test_a_suspect_may_not_change_a_function_that_sees_its_own_locals(before, after, is_beyond):
    assert before in LOCALS
    trees = _one_file(LOCALS), _one_file(LOCALS.replace(before, after, 1))
    assert may_be_random(*trees, ["m.py"])
    assert bool(beyond_changes(*trees, ["m.py"])) == is_beyond
    names = {
        tuple(names["one"].__code__.co_varnames)
        for seed in range(9)
        for names in [{}]
        if exec(perturb_source(trees[1]["m.py"].content, seed), names) is None
    }
    assert (len(names) > 5) or is_beyond


def test_a_long_number_stays_as_it_is():
    number = "9" * 4300
    for seed in range(20):
        assert number.encode() in perturb_source(f"NUMBER = {number}\n".encode(), seed)


EVERY_FIELD = """
from __future__ import annotations
import os.path as where, sys
async def f(a, /, b: int = 1, *rest, c=2, d, **more) -> str:
    global g
    x = {**more, "k": [*rest, b][1:2:3], **{}}
    match x:
        case {"k": [1, *_], **others} | where.Point(x=0, y=None): pass
        case "s" as text: del text
    try:
        async with a as (p, q), b: return f"{x!r:>{c}} {(lambda z, w=1: z)(d)}"
    except (OSError, ValueError) as error: raise error from None
    async for i, j in [y async for y in a if (n := y)]: await (yield i)
    return {k: v for k, v in x.items()} if not -a < b <= c else (z for z in rest)
"""


@pytest.mark.parametrize("text", [SOURCE, EVERY_FIELD, Path(ast.__file__).read_text("utf-8")])
def test_every_node_is_visited_that_holds_code(text):
    module = ast.parse(text)
    left_out = ast.expr_context | ast.operator | ast.unaryop | ast.boolop | ast.cmpop | ast.type_ignore
    wanted = [node for node in ast.walk(module) if not isinstance(node, left_out | ast.alias)]
    found = list(walk(module))
    assert {id(node) for node in wanted} <= {id(node) for node in found}
    assert all(isinstance(node, ast.AST) for node in found)


def test_every_kind_of_binding_is_found():
    module = ast.parse(EVERY_FIELD)
    bound = {name for node in walk(module) for name in bound_by(node)}
    names = "f a b rest c d more g x others text p q error i j y n k v z w where sys"
    assert bound == {*names.split(), "annotations", "_"} - {"_"}
    assert {type(node) for node in walk(module)} & BINDERS.keys() >= {ast.MatchMapping, ast.ExceptHandler}
