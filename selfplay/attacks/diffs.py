"""Attacks by diffs that lie: rows 13 and 14.

Each diff does something other than its header says, and must be refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from selfplay.attacks.base import Attack, Broken, Held, Outcome
from selfplay.attacks.ground import CODE, RIGHT, WRONG, Ground
from selfplay.errors import PatchError
from selfplay.source.apply import apply_patch
from selfplay.source.trees import Tree

HEAD = f"diff --git a/{CODE} b/{CODE}\n--- a/{CODE}\n+++ b/{CODE}\n"
HUNK = f"@@ -8,3 +8,3 @@\n     if value > highest_allowed:\n-{RIGHT}+{WRONG}     return value\n"
NEW = "new file mode 100644\n--- /dev/null\n+++ b/{0}\n@@ -0,0 +1 @@\n+x = 1\n"


def new_file(path: str) -> str:
    return f"diff --git a/{path} b/{path}\n" + NEW.format(path)


# name: (row of docs/security.md, title, the diffs)
LYING_DIFFS = {
    "climb": (
        13,
        "name a path with ../ or an absolute one in a diff",
        (new_file("../climbed.py"), new_file("/selfplay-none/climbed.py")),
    ),
    "git-folder": (
        13,
        "write into .git/hooks by a diff",
        (new_file(".git/hooks/post-checkout"), new_file("heron/.GIT/config")),
    ),
    "link-mode": (
        13,
        "make a symbolic link by a diff",
        (
            "diff --git a/heron/link b/heron/link\nnew file mode 120000\n"
            "--- /dev/null\n+++ b/heron/link\n@@ -0,0 +1 @@\n+/etc/passwd\n",
        ),
    ),
    "option-name": (
        14,
        "name a file like an option of a command",
        (new_file("--output=x"), new_file("heron/-rf")),
    ),
    "mode-change": (
        14,
        "change a mode in silence",
        (
            f"diff --git a/{CODE} b/{CODE}\nold mode 100644\nnew mode 100755\n"
            f"--- a/{CODE}\n+++ b/{CODE}\n{HUNK}",
        ),
    ),
    "two-names": (
        14,
        "name one file in the header and change another",
        (f"diff --git a/heron/words.py b/heron/words.py\n--- a/{CODE}\n+++ b/{CODE}\n{HUNK}",),
    ),
    "two-sections": (
        14,
        "change one file in two sections",
        (f'{HEAD}{HUNK}{HEAD}@@ -1,2 +1,2 @@\n-"""Numbers within bounds."""\n+"""Numbers."""\n \n',),
    ),
    "rename": (
        14,
        "rename code to a test's name, or a test away",
        (
            "diff --git a/heron/words.py b/tests/test_words.py\nsimilarity index 100%\n"
            "rename from heron/words.py\nrename to tests/test_words.py\n",
            "diff --git a/heron/words.py b/heron/words.py\n"
            "rename from tests/test_words.py\nrename to heron/other.py\n",
        ),
    ),
    "binary": (
        14,
        "hide content in a binary hunk",
        (
            "diff --git a/heron/x.bin b/heron/x.bin\nnew file mode 100644\n"
            "index 0000000000000000000000000000000000000000..bdc955b7b2e610ad5a72302b139a2e6cb325519a\n"
            "GIT binary patch\nliteral 2\nJcmZQz1ONa700IC2\n\nliteral 0\nHcmV?d00001\n\n",
        ),
    ),
    "moved": (
        14,
        "name one line in a hunk and change another",
        (HEAD + HUNK.replace("-8,3 +8,3", "-15,3 +15,3"),),
    ),
    "crlf-header": (14, "end headers with carriage returns", ((HEAD + HUNK).replace(".py\n", ".py\r\n"),)),
    "prose": (
        14,
        "hide a second change in the text between sections",
        (f"Some prose\n--- a/{CODE}\n+++ b/{CODE}\n{HUNK}{HEAD}{HUNK}",),
    ),
}


def read_a_diff(tree: Tree, text: str) -> Tree:
    return apply_patch(tree, text)


def lie(texts: Sequence[str]) -> Callable[[Ground], Outcome]:
    """The attack that hands in each of these diffs. All of them must be refused."""

    def run(ground: Ground) -> Outcome:
        reason = ""
        for text in texts:
            try:
                after = read_a_diff(ground.tree, text)
            except PatchError as error:
                reason = str(error)
                continue
            return Broken(f"accepted, changing {ground.tree.changed_paths(after)}: {text[:120]!r}")
        return Held(reason)

    return run


ATTACKS = (
    *(Attack(f"diff-{name}", row, title, lie(texts)) for name, (row, title, texts) in LYING_DIFFS.items()),
)
