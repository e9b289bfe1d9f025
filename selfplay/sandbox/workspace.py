"""Fills the workspace of a fresh sandbox. Judges, episodes and builds use the same function.

Invariant: code in a sandbox cannot tell by its workspace who filled it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from selfplay.sandbox.base import WORKSPACE, Sandbox
from selfplay.source.git_folder import git_archive

if TYPE_CHECKING:
    from selfplay.source.trees import Tree

BESIDE = "/opt/selfplay/beside"  # in the image of a record: what belongs into a workspace beside the tree
# A parent that is a file gets no link. A patch can do that, and only its own tests fail then.
LINK = f"""\
cd {WORKSPACE} && while IFS= read -r -d '' path; do
    [ "$path" = "${{path%/*}}" ] || mkdir -p -- "${{path%/*}}" 2>/dev/null
    ln -s -- "{BESIDE}/$path" "$path" 2>/dev/null
done
true
"""
LINK_TIMEOUT_S = 120.0


def fill_workspace(box: Sandbox, tree: Tree, beside: Sequence[str] = ()) -> None:
    """Write `tree` and its git repository into the workspace, and link what lies beside it in the image.

    beside: paths below BESIDE. A link wins over what the tree has in its place: a patch could bring its own
    runner of the tests. Raises ArtifactError if the tree does not fit.
    """
    linked = frozenset(beside)
    taken = [path for path in tree if linked and not linked.isdisjoint(_with_parents(path))]
    box.write_archive(WORKSPACE, tree.replace(dict.fromkeys(taken)).to_tar() if taken else tree.to_tar())
    box.write_archive(WORKSPACE, git_archive(tree))
    if beside:
        paths = b"".join(path.encode("utf-8", "surrogateescape") + b"\0" for path in beside)
        box.run(f"(\n{LINK})", LINK_TIMEOUT_S, stdin=paths)


def _with_parents(path: str) -> Iterator[str]:
    while path:
        yield path
        path = path.rpartition("/")[0]
