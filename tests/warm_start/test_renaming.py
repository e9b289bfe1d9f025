"""Packages under made-up names: what a text shows is consistent, and names nobody knows."""

import random
import re
from pathlib import Path

import pytest

from selfplay.agent.chat import ChatFormat, load_tokenizer
from selfplay.agent.editing import apply_edit
from selfplay.agent.tools import parse_action
from selfplay.source.syntax import parse_module
from selfplay.source.trees import FileEntry, Tree
from selfplay.teacher.mutations import occurrences
from selfplay.warm_start.fabrication import EpisodeMaker
from selfplay.warm_start.packages import Package
from selfplay.warm_start.renaming import KEPT, NewNames, RenamedPackage
from selfplay.warm_start.sampler import FunctionSampler
from selfplay.warm_start.transcripts import PlayLimits
from tiny_policy import build_tiny_tokenizer

SOURCE = """\
import os


class QueueReader:
    LIMIT_OF_ROWS = 3

    def first_rows(self, count):
        _found = [row for row in self.rows if row.count != count]
        return sorted(_found)[: self.LIMIT_OF_ROWS]


def read_queue(count, other):
    if count < other:
        return os.path.join(count, other)
    return QueueReader().first_rows(count + 1)
"""
TESTS = """\
from pack.queues import QueueReader, read_queue


def test_read_queue():
    assert read_queue(1, 2) == 3
    assert QueueReader().first_rows(2) == []
"""


def package() -> Package:
    files = {"pack/queues.py": SOURCE, "pack/others.py": SOURCE, "tests/test_queues.py": TESTS}
    tree = Tree({path: FileEntry(text.encode()) for path, text in files.items()})
    return Package("pack==1", "MIT", tree, 22, 100)


def renamed(seed: int = 0) -> RenamedPackage:
    made = package()
    return RenamedPackage.of(made, NewNames(made.own_words, ["borrowed_words"], seed))


def test_a_renamed_package_keeps_its_lines_and_its_shape() -> None:
    made, new = package(), renamed()
    for path in made.tree:
        text = new.text(new.names(path))
        assert new.names.old(text) == made.text(path)
        assert text.count("\n") == made.text(path).count("\n") and parse_module(text) is not None
    text = new.text(new.names("pack/queues.py"))
    for name in ("QueueReader", "first_rows", "read_queue", "LIMIT_OF_ROWS", "_found", "queues", "pack"):
        assert not re.search(rf"\b{name}\b", text + new.names("pack/queues.py")), name
        style = [part.isupper() for part in (name, name[0])], name.startswith("_")
        got = new.names(name)
        assert ([part.isupper() for part in (got, got[0])], got.startswith("_")) == style
    assert all(kept in text for kept in ("import os", "return sorted(", "os.path.join", "self, "))


def test_a_test_is_named_after_what_it_tests() -> None:
    new = renamed()
    module, tests = new.names("pack/queues.py"), new.names("tests/test_queues.py")
    assert tests == f"tests/test_{Path(module).name}"
    assert f"def test_{new.names('read_queue')}()" in new.text(tests)
    assert new.tested_at(new.names("read_queue")) == [(tests, 5)]
    assert new.assertions_in(tests) and new.callers_of(new.names("first_rows"))


def test_its_mutations_fit_its_lines() -> None:
    new = renamed()
    path, name = new.names("pack/queues.py"), new.names("read_queue")
    mutations = new.mutations_in(path, name)
    assert len(mutations) == len(package().mutations_in("pack/queues.py", "read_queue")) > 3
    for mutation in mutations:
        assert mutation.path == path and occurrences(mutation.before, mutation.search) == 1
        assert mutation.apply(new.text(path)) != new.text(path)


def test_different_words_get_different_names_and_python_keeps_its_own() -> None:
    words = [f"word_{chr(97 + n % 26)}{n}" for n in range(3000)] + ["self", "return", "len", "os"]
    names = NewNames(words, ["word"], 0)
    new = [names(word) for word in words]
    assert len(set(new)) == len(words) and new[-4:] == words[-4:]
    assert not set(new[:-4]) & KEPT and not set(new[:-4]) & set(words)
    assert [names.old(name) for name in new] == words


@pytest.mark.parametrize("order", [["alpha", "beta", "test_beta"], ["test_beta", "alpha", "beta"]])
def test_a_new_name_is_none_that_stays_elsewhere(order: list[str]) -> None:
    found = set()
    for seed in range(40):
        names = NewNames(["alpha"], ["beta"], seed)
        new = [names(word) for word in order]
        assert [names.old(word) for word in new] == order
        assert len(set(new)) == len(order)
        found.add(names("alpha"))
    assert ("beta" in found) == (order[0] == "alpha")  # borrowed, unless it was met before


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_of_the_samples_has_new_names(share: float) -> None:
    sampler = FunctionSampler([package()], random.Random(0), share)
    got = [isinstance(sampler.sample().package, RenamedPackage) for _ in range(200)]
    assert abs(sum(got) / 200 - share) < 0.1


def test_equal_seeds_give_equal_texts_and_new_ones_new_names(tmp_path: Path) -> None:
    chat = ChatFormat(load_tokenizer(str(build_tiny_tokenizer(tmp_path))))

    def texts(seed: int) -> list[str]:
        maker = EpisodeMaker([package()], chat, PlayLimits(6000), random.Random(seed), 1.0)
        return [
            chat.decode(maker.transcript(kind).ids) for kind in ("solver", "injector", "solver_drill") * 3
        ]

    assert texts(1) == texts(1)
    paths = {path for text in texts(1) for path in re.findall(r"^(\S+\.py):\d+$", text, re.MULTILINE)}
    assert len(paths) > 5 and not paths & set(package().tree)


def test_edits_of_renamed_injector_texts_apply(tmp_path: Path) -> None:
    chat = ChatFormat(load_tokenizer(str(build_tiny_tokenizer(tmp_path))))
    new = renamed()
    for mutation in new.mutations_in(new.names("pack/queues.py"), new.names("QueueReader.first_rows")):
        text = new.text(mutation.path)
        assert apply_edit(text, mutation.search, mutation.replace, mutation.line) == mutation.apply(text)
    maker = EpisodeMaker([package()], chat, PlayLimits(6000, whole_lines=True), random.Random(0), 1.0)
    _, turns = chat.read(chat.decode(maker.transcript("injector_drill").ids))
    edits = [parse_action(call) for call, _ in turns]
    assert edits and all(action and action.tool == "edit" for action in edits)
