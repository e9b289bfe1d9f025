"""Attacks through git and through paths: rows 1, 13, 14 and 19. Hostile repositories, archives and diffs lie in our own folder.

Invariant: a canary file is made by whatever runs on the host that should not, and by nothing else.
"""

from __future__ import annotations

import io
import os
import shlex
import socket
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from selfplay.agent.workspaces import read_submission
from selfplay.attacks.base import Attack, Broken, Held, Outcome
from selfplay.attacks.escapes import METADATA_SERVICE, listening, own_addresses
from selfplay.attacks.ground import CODE, RIGHT, WRONG, Ground
from selfplay.errors import (
    ArtifactError,
    EnvironmentBuildError,
    PatchError,
    SandboxUnavailable,
    SelfplayError,
)
from selfplay.repositories.archives import read_archive
from selfplay.repositories.dependencies import read_dependencies
from selfplay.repositories.fetching import fetch
from selfplay.repositories.licences import licence_of
from selfplay.repositories.specs import parse_spec
from selfplay.sandbox.base import Limits
from selfplay.source.apply import apply_patch
from selfplay.source.trees import Tree
from selfplay.verdicts.artifact import Artifact

ACCOUNTS = "root:"  # how /etc/passwd begins, inside as outside


def ran(canary: Path, how: str) -> Outcome:
    return Broken(f"{how} ran a program on the host") if canary.exists() else Held("nothing was run")


# ---- the fix, from git (row 1)

# Everything that git keeps, reachable or not, and every other thing that could hold an object.
LOOK = """cd /testbed
git cat-file --batch-all-objects --batch 2>/dev/null
refs="HEAD~1 ORIG_HEAD FETCH_HEAD HEAD@{1} stash@{0} $(git for-each-ref --format='%(refname)' 2>/dev/null)"
for ref in $refs; do git show $ref:FILE; done 2>/dev/null
git log --all --reflog -p 2>/dev/null
find / -xdev \\( -name '*.bundle' -o -name '*.pack' -o -name ORIG_HEAD -o -name alternates -o -name worktrees \\) 2>/dev/null
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
    program = f"touch {shlex.quote(str(canary))}; true"
    return (
        f'[core]\n\tfsmonitor = "{program}"\n\tpager = "{program}"\n\tsshCommand = "{program}"\n\thooksPath = .git/hooks\n'
        f'[diff]\n\texternal = "{program}"\n[diff "evil"]\n\ttextconv = "{program}"\n\tcommand = "{program}"\n'
        f'[filter "evil"]\n\tclean = "{program}"\n\tsmudge = "{program}"\n\trequired = true\n'
        f'[uploadpack]\n\tpackObjectsHook = "{program}"\n[alias]\n\tstatus = "!{program}"\n'
    )


def hostile_repository(folder: Path, canary: Path) -> None:
    """A git repository in `folder` whose configuration, hooks and attributes each run a program that makes `canary`."""
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
    """What the policy leaves in its workspace is compared on the host."""
    canary = ground.canary("workspace-ran")
    attributes = "* filter=evil diff=evil\n"
    plant = (
        f"printf %s {shlex.quote(hostile_configuration(canary))} >> .git/config; printf %s {shlex.quote(attributes)} > .gitattributes; "
        f"printf %s {shlex.quote(attributes)} > heron/.gitattributes; "
        f"for h in {' '.join(HOOKS)}; do printf '#!/bin/sh\\ntouch {canary}\\n' > .git/hooks/$h; chmod +x .git/hooks/$h; done; "
        f"echo '# more' >> {CODE}"
    )
    with ground.solver() as box:
        box.run(f"mkdir -p .git/hooks; {plant}")
        ground.taken(box)
    return ran(canary, "taking the workspace's change")


# ---- links (row 13)


def submit_a_link(ground: Ground) -> Outcome:
    with ground.solver() as box:
        box.run(
            f"rm {CODE}; ln -s /etc/passwd {CODE}; ln -s /etc heron/etc; ln -s /etc/passwd heron/link.py; mkfifo heron/pipe.py"
        )
        patch = ground.taken(box)
    return (
        Broken("a link was followed into the prediction")
        if ACCOUNTS in patch or "heron/etc" in patch
        else Held("left out")
    )


def submit_a_linked_artifact(ground: Ground) -> Outcome:
    with ground.box() as box:
        box.run(
            "cd /submit; for f in bug_inject.diff test_script.sh; do ln -s /etc/passwd $f; done; ln -s /etc test_weaken.diff"
        )
        found = read_submission(box, Limits(), ())
    return Broken(f"{sorted(found)} were read through links") if found else Held("left out")


def validate_a_linked_artifact(ground: Ground) -> Outcome:
    """`selfplay validate DIR` on the host."""
    secret = ground.canary("private.txt")
    secret.write_text("a private file\n")
    folder = ground.folder("artifact")
    ground.artifact().write(folder)
    (folder / "test_script.sh").unlink()
    (folder / "test_script.sh").symlink_to(secret)
    try:
        artifact = Artifact.read(folder)
    except ArtifactError as error:
        return Held(str(error).partition(";")[0])
    return Broken(f"a file outside the artifact was read: {artifact.test_script!r}")


# ---- archives (row 13)


def hostile_tar(outside: Path) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name in (
            "../climbed",
            str(outside / "absolute"),
            "a/../../climbed",
            "top/fine.py",
            "top/link/through",
        ):
            if name.endswith("through"):
                link = tarfile.TarInfo("top/link")
                link.type, link.linkname = tarfile.SYMTYPE, str(outside)
                archive.addfile(link)
            member = tarfile.TarInfo(name)
            member.size = 5
            archive.addfile(member, io.BytesIO(b"x = 1"))
        device = tarfile.TarInfo("top/device")
        device.type = tarfile.FIFOTYPE
        archive.addfile(device)
    return out.getvalue()


def hostile_zip(outside: Path) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in ("../climbed", str(outside / "absolute"), "top/fine.py"):
            archive.writestr(name, "x = 1")
        link = zipfile.ZipInfo("top/link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, str(outside))
    return out.getvalue()


def unpack(name: str, data: bytes, folder: Path) -> None:
    read_archive(name, data).write_to(folder)


def climb_out_of_an_archive(make: Callable[[Path], bytes], name: str) -> Callable[[Ground], Outcome]:
    def run(ground: Ground) -> Outcome:
        outside = ground.folder("outside")
        inside = outside / "inside"
        inside.mkdir()
        try:
            unpack(name, make(outside), inside)
        except SelfplayError as error:
            return Held(str(error))
        strange = [
            path for path in inside.rglob("*") if path.is_symlink() or not (path.is_file() or path.is_dir())
        ]
        found = [path.name for path in outside.iterdir() if path != inside] + [path.name for path in strange]
        return (
            Broken(f"unpacking made {found} outside its folder, or as links or devices")
            if found
            else Held("left out")
        )

    return run


# ---- diffs (rows 13 and 14)

HEAD = f"diff --git a/{CODE} b/{CODE}\n--- a/{CODE}\n+++ b/{CODE}\n"
HUNK = f"@@ -8,3 +8,3 @@\n     if value > highest_allowed:\n-{RIGHT}+{WRONG}     return value\n"
NEW = "new file mode 100644\n--- /dev/null\n+++ b/{0}\n@@ -0,0 +1 @@\n+x = 1\n"


def new_file(path: str) -> str:
    return f"diff --git a/{path} b/{path}\n" + NEW.format(path)


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
            "diff --git a/heron/link b/heron/link\nnew file mode 120000\n--- /dev/null\n+++ b/heron/link\n@@ -0,0 +1 @@\n+/etc/passwd\n",
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
            f"diff --git a/{CODE} b/{CODE}\nold mode 100644\nnew mode 100755\n--- a/{CODE}\n+++ b/{CODE}\n{HUNK}",
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
            "diff --git a/heron/words.py b/heron/words.py\nrename from tests/test_words.py\nrename to heron/other.py\n",
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
    """The attack that hands in each of these diffs: each must be refused."""

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


# ---- while an environment is built (row 19)

TRANSPORTS = (
    "ext::sh -c touch% {canary}",
    "git+ext::sh -c touch% {canary}",
    "https://-oProxyCommand=touch {canary}/x",
    "git://127.0.0.1/x",
)


def fetch_by_a_program(ground: Ground) -> Outcome:
    canary = ground.canary("transport-ran")
    for line in TRANSPORTS:
        try:
            obtain(shlex.quote(line.format(canary=canary)), ground.folder("cache"))
        except SelfplayError:
            continue
        return Broken(f"{line} was fetched")
    return ran(canary, "a transport")


def run_a_setup_script(ground: Ground) -> Outcome:
    canary = ground.canary("setup-ran")
    program = f"open({str(canary)!r}, 'w').close()\n"
    files = {
        "evil-1.0/setup.py": f"{program}from setuptools import setup\nsetup(name='evil')\n",
        "evil-1.0/pyproject.toml": (
            '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n[project]\nname = "evil"\n'
        ),
        "evil-1.0/backend.py": program,
        "evil-1.0/conftest.py": program,
        "evil-1.0/evil/__init__.py": f"{program}__version__ = '1.0'\n",
    }
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    read_a_release("evil-1.0.tar.gz", out.getvalue())
    return ran(canary, "reading a release")


def read_a_release(name: str, data: bytes) -> None:
    """All that is done on the host with a release's archive."""
    tree = read_archive(name, data)
    licence_of(tree)
    read_dependencies(tree, "evil")


def attack_from_a_build(ground: Ground) -> Outcome:
    """Install scripts run in a sandbox with network; nothing else of this machine may be there."""
    secret, canary = ground.canary("build-secret.txt"), ground.canary("build-ran")
    secret.write_text("stolen from the host")
    secret.chmod(0o644)
    script = (
        f"cat {secret} /proc/1/root{secret}; touch {canary} /proc/1/root{canary}; "
        "cat /proc/[0-9]*/environ | tr '\\0' '\\n' | grep ATTACK_TOKEN; "
        "ls /var/run/docker.sock && echo 'stolen socket'; ls -A /root /home/*/.ssh && echo 'stolen homes'; exit 3"
    )
    os.environ["SELFPLAY_ATTACK_TOKEN"] = "stolen variable"
    log = ground.scratch / "build.log"
    try:
        ground.backend.build_environment("attack", script, 300, log)
    except EnvironmentBuildError:
        said = log.read_text(errors="replace") if log.exists() else ""
        return (
            Broken(said[-200:])
            if "stolen" in said or canary.exists()
            else Held("nothing of the host is there")
        )
    finally:
        del os.environ["SELFPLAY_ATTACK_TOKEN"]
    return Broken("a failing build was kept")


# A build backend in the package's own folder: pip runs it, as it runs that of any source distribution.
BACKEND = """
import json, os, socket

def call(place, ask=b''):
    try:
        with socket.create_connection(place, 2) as there:
            there.sendall(ask)
            return there.recv(1000) if ask else b'reached'
    except OSError as error:
        return str(error).encode()

def build_wheel(folder, settings=None, metadata=None):
    ports = {ports}
    for port in ports:
        for host in {hosts}:
            print('calling', host, port, call((host.strip('[]'), port)), flush=True)
            url = os.environ.get('https_proxy', '').rpartition(':')[2]
            if url:
                for ask in (f'CONNECT {{host}}:{{port}} HTTP/1.1', f'GET http://{{host}}:{{port}}/ HTTP/1.1'):
                    print('asking', ask, call(('127.0.0.1', int(url)), ask.encode() + bytes([13, 10, 13, 10])), flush=True)
    raise SystemExit('no wheel')

build_editable = prepare_metadata_for_build_wheel = build_wheel
get_requires_for_build_wheel = lambda settings=None: []
"""
PROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n[project]\nname = "heron"\nversion = "1"\n'
# The same place by other names, for whoever compares texts.
LOOPBACK = (
    "localhost",
    "0.0.0.0",
    "127.1",
    "2130706433",
    "0x7f000001",
    "[::1]",
    "[::ffff:127.0.0.1]",
    "localhost.",
    "127.0.0.1.",
)


def call_from_a_build(ground: Ground) -> Outcome:
    """A build backend calls a service on this machine's loopback interface: straight, and through whatever leads to the index."""
    with listening(socket.AF_INET, ("0.0.0.0", 0)) as (listener, callers):
        port = listener.getsockname()[1]
        backend = BACKEND.format(ports=[port], hosts=[*own_addresses(), *LOOPBACK, METADATA_SERVICE[0]])
        script = (
            f"mkdir heron; cd heron; printf %s {shlex.quote(PROJECT)} > pyproject.toml; printf %s {shlex.quote(backend)} > backend.py; "
            "python=/opt/env/bin/python; $python -m pip install -v --no-deps --no-index --no-build-isolation . ; exit 3"
        )
        log = ground.scratch / "build-calls.log"
        try:
            ground.backend.build_environment("attack-calls", script, 300, log)
        except EnvironmentBuildError as error:
            said = log.read_text(errors="replace") if log.exists() else str(error)
        else:
            return Broken("a failing build was kept")
    if callers:
        return Broken(f"a service of this machine was called: {callers[0]}")
    if "calling 127.0.0.1" not in said:
        raise SandboxUnavailable(f"the build backend did not run: {said[-200:]}")
    return Held("no call arrived")


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
    Attack("submit-link", 13, "hand in links to other files as code", submit_a_link),
    Attack("artifact-link", 13, "hand in links as the artifact's files", submit_a_linked_artifact),
    Attack(
        "validate-link", 13, "an artifact folder with a link to a private file", validate_a_linked_artifact
    ),
    Attack(
        "tar-paths",
        13,
        "a tar with ../, absolute names, links and devices",
        climb_out_of_an_archive(hostile_tar, "evil-1.0.tar.gz"),
    ),
    Attack(
        "zip-paths",
        13,
        "a zip with ../, absolute names and links",
        climb_out_of_an_archive(hostile_zip, "evil-1.0.zip"),
    ),
    *(Attack(f"diff-{name}", row, title, lie(texts)) for name, (row, title, texts) in LYING_DIFFS.items()),
    Attack(
        "transports",
        19,
        "a repository line whose transport runs a program (ext::, -oProxyCommand)",
        fetch_by_a_program,
    ),
    Attack(
        "setup-script",
        19,
        "a release whose setup.py and build backend run programs when it is read",
        run_a_setup_script,
    ),
    Attack(
        "build-calls",
        19,
        "a build backend that calls a service on the host's loopback interface",
        call_from_a_build,
    ),
    Attack(
        "build-script",
        19,
        "an install script that reads the host's files, variables and sockets",
        attack_from_a_build,
    ),
)
