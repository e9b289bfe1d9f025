"""Attacks through git: a fix in the repository's history (row 1), programs that git runs on the host (13), a
name that git refuses (17).

Invariant: only a program that runs on the host can create the canary file. Hostile repositories
lie in our own folder.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

from selfplay.agent.workspaces import take_history
from selfplay.attacks.base import Attack, Broken, Held, Outcome
from selfplay.attacks.ground import CODE, RIGHT, WRONG, Ground
from selfplay.attacks.probes import ran
from selfplay.errors import SandboxUnavailable
from selfplay.repositories.environment import open_workspace
from selfplay.repositories.fetching import fetch
from selfplay.repositories.history import packed_history
from selfplay.repositories.specs import parse_spec
from selfplay.source.trees import FileEntry, Tree

# ---- the fix, from git (row 1)

# Prints every object that git keeps, reachable or not, and finds other files that could hold objects.
LOOK = """cd /testbed
git cat-file --batch-all-objects --batch 2>/dev/null
refs="HEAD~1 ORIG_HEAD FETCH_HEAD HEAD@{1} stash@{0} $(git for-each-ref --format='%(refname)' 2>/dev/null)"
for ref in $refs; do git show $ref:FILE; done 2>/dev/null
git log --all --reflog -p 2>/dev/null
find / -xdev \\( -name '*.bundle' -o -name '*.pack' -o -name ORIG_HEAD \\
    -o -name alternates -o -name worktrees \\) 2>/dev/null
"""


def read_the_fix_from_git(ground: Ground) -> Outcome:
    with ground.solver() as box:
        said = box.run(LOOK.replace("FILE", CODE), timeout_s=60, output_bytes=4 << 20).text
        commits = box.run("git rev-list --all --reflog --count").text.strip()
    if WRONG.strip() not in said:
        return Broken("git shows nothing at all, so nothing was tried")
    return (
        Broken("the repaired line lies in a git object")
        if RIGHT.strip() in said or commits != "1"
        else Held("one commit")
    )


# ---- git on the host (row 13)

HOOKS = (
    "post-checkout",
    "pre-commit",
    "post-index-change",
    "reference-transaction",
    "post-merge",
    "fsmonitor-watchman",
    "pre-push",
)


def hostile_configuration(canary: Path) -> str:
    """A .git/config in which each setting that names a program names one that creates `canary`."""
    program = f"touch {shlex.quote(str(canary))}; true"
    return (
        f'[core]\n\tfsmonitor = "{program}"\n\tpager = "{program}"\n\tsshCommand = "{program}"\n'
        "\thooksPath = .git/hooks\n"
        f'[diff]\n\texternal = "{program}"\n'
        f'[diff "evil"]\n\ttextconv = "{program}"\n\tcommand = "{program}"\n'
        f'[filter "evil"]\n\tclean = "{program}"\n\tsmudge = "{program}"\n\trequired = true\n'
        f'[uploadpack]\n\tpackObjectsHook = "{program}"\n[alias]\n\tstatus = "!{program}"\n'
    )


def hostile_repository(folder: Path, canary: Path) -> None:
    """Make a git repository whose configuration, hooks and attributes run programs that create `canary`."""
    variables = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(folder),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
    }
    who = ("-c", "user.name=x", "-c", "user.email=x@localhost")
    (folder / "evil.py").write_text("x = 1\n")
    (folder / ".gitattributes").write_text("* filter=evil diff=evil\n")
    for arguments in (("init", "-q", "-b", "main"), ("add", "."), (*who, "commit", "-q", "-m", "one")):
        subprocess.run(["git", *arguments], cwd=folder, env=variables, check=True, capture_output=True)
    with (folder / ".git/config").open("a") as config:
        config.write(hostile_configuration(canary))
    for name in HOOKS:
        hook = folder / ".git/hooks" / name
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(f"#!/bin/sh\ntouch {shlex.quote(str(canary))}\n")
        hook.chmod(0o755)
    (folder / "evil.py").write_text("x = 2\n")


def run_hooks_of_a_repository(ground: Ground) -> Outcome:
    canary, folder = ground.canary("hook-ran"), ground.folder("hostile")
    hostile_repository(folder, canary)
    if canary.exists():
        return Broken("making the repository ran its hooks, so nothing was tried")
    obtain(str(folder), ground.folder("cache"))
    return ran(canary, "reading a repository")


def obtain(line: str, cache: Path) -> Tree:
    return fetch(parse_spec(line), cache).tree


def run_hooks_of_a_workspace(ground: Ground) -> Outcome:
    """The host compares the workspace with its start, after the policy has left a hostile .git in it."""
    canary = ground.canary("workspace-ran")
    attributes = "* filter=evil diff=evil\n"
    plant = (
        f"printf %s {shlex.quote(hostile_configuration(canary))} >> .git/config; "
        f"printf %s {shlex.quote(attributes)} > .gitattributes; "
        f"printf %s {shlex.quote(attributes)} > heron/.gitattributes; "
        f"for h in {' '.join(HOOKS)}; do "
        f"printf '#!/bin/sh\\ntouch {canary}\\n' > .git/hooks/$h; chmod +x .git/hooks/$h; done; "
        f"echo '# more' >> {CODE}"
    )
    with ground.solver() as box:
        box.run(f"mkdir -p .git/hooks; {plant}")
        ground.taken(box)
    return ran(canary, "taking the workspace's change")


# ---- a workspace that cannot be made, so that the machine seems to fail (row 17)


def name_a_file_as_git_refuses_it(ground: Ground) -> Outcome:
    """A bug may add a file with such a name: git would stop in the workspace of each of its solvers."""
    tree = ground.tree.replace({"heron/git~1": FileEntry(b"x\n")})
    try:
        with open_workspace(ground.backend, ground.environment, tree, {"run": "attack"}) as box:
            said = box.run("git status --short && git diff HEAD --stat")
            if said.exit_code:
                return Broken(f"git in the workspace fails: {said.text.strip()}")
            checkout = ground.environment.checkout
            if checkout.git_dir is not None:
                take_history(box, packed_history(checkout.git_dir, checkout.commit))
            return Held(f"{len(said.text.splitlines())} files are left out")
    except SandboxUnavailable as failure:
        return Broken(str(failure))


ATTACKS = (
    Attack(
        "git-history",
        1,
        "read the fix from git: parents, reflog, dangling objects, refs, stash, worktrees",
        read_the_fix_from_git,
    ),
    Attack(
        "repository-hooks",
        13,
        "a repository whose hooks, filters and core.fsmonitor run programs",
        run_hooks_of_a_repository,
    ),
    Attack(
        "workspace-hooks",
        13,
        "plant hooks, filters and core.fsmonitor in the workspace that is compared",
        run_hooks_of_a_workspace,
    ),
    Attack("git-name", 17, "a bug with a file name that git refuses", name_a_file_as_git_refuses_it),
)
