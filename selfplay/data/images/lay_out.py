"""Runs once in a container of a record's image, without network: takes the repository out of the image.

    python lay_out.py COMMITS FOLDER...

The first FOLDER with a git repository is the repository's, else the first with files. COMMITS: names of commits
with a comma between them; the first that the repository has is the one that a solver starts from. Its files go
to /opt/selfplay/tree. What lies beside them and git does not know, such as a virtual environment or a built
extension, goes to /opt/selfplay/beside. The folder, its history, and files that tell the repair are removed; a
link to the workspace takes the folder's place, so that installed paths stay right. /opt/selfplay/report.json
says what was found. Images may have an old Python: 3.6 is enough.
"""

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys

HOME = "/opt/selfplay"
WORKSPACE = "/testbed"
MIN_COPY_BYTES = 200  # smaller files may be equal by chance
# Files of the field's projects that hold hidden tests, their results, or the repair.
TELLS_BESIDE = {
    "r2e_tests",
    "run_tests.sh",
    "execution_result.json",
    "expected_test_output.json",
    "modified_entities.json",
    "modified_files.json",
    "parsed_commit.json",
    "syn_issue.json",
}
TELLS = (
    *("/r2e_tests", "/root/r2e_tests", "/run_tests.sh", "/root/run_tests.sh", "/eval.sh", "/root/eval.sh"),
    *("/home/fix.patch", "/home/test.patch", "/home/run.sh", "/home/test-run.sh", "/home/fix-run.sh"),
)
ENVIRONMENTS = (".venv", "venv", "env", "node_modules", ".tox", ".eggs")
BUILT = (".so", ".pyd", ".dylib", ".pth", ".egg-link")


def main(commits, folders):
    folder = find_folder(folders)
    if folder is None:
        return {"problem": "no folder with a repository: looked at %s" % ", ".join(folders)}
    has_git = os.path.exists(folder + "/.git") and git(folder, "rev-parse", "HEAD") is not None
    commit = next((name for name in commits if has_git and has_commit(folder, name)), "")
    os.makedirs(HOME + "/tree")
    if commit:
        changed, known, digests = take_commit(folder, commit)
    else:
        changed, (known, digests) = [], take_files(folder)
    beside = take_beside(folder, known, digests)
    remove(folder)
    if folder != WORKSPACE:
        os.symlink(WORKSPACE, folder)
    for path in TELLS:
        remove(path)
    for path in (HOME, "/root"):
        open_to_all(path)
    return {"folder": folder, "has_git": has_git, "commit": commit, "changed": changed, "beside": beside}


def find_folder(folders):
    there = [os.path.realpath(path) for path in folders if os.path.isdir(path)]
    there = [path for path in there if path.count("/") and path not in ("/", "/root", "/home", "/opt", "/usr")]
    with_git = [path for path in there if os.path.exists(path + "/.git")]
    return next(iter(with_git + [path for path in there if os.listdir(path)]), None)


# ---- git


def git(folder, *words, **options):
    settings = ["-c", "safe.directory=*", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null"]
    try:
        return subprocess.run(
            ["git", "-C", folder] + settings + list(words),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=True,
            **options
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def has_commit(folder, name):
    return git(folder, "cat-file", "-e", name + "^{commit}") is not None


def listed(folder, commit):
    """path -> (mode, digest) of the commit's files and links."""
    found = {}
    for entry in (git(folder, "ls-tree", "-r", "-z", "--full-tree", commit) or b"").split(b"\0"):
        if entry:
            words, _, path = entry.partition(b"\t")
            mode, kind, digest = words.decode().split()
            if kind == "blob":
                found[os.fsdecode(path)] = (mode, digest)
    return found


def take_commit(folder, commit):
    """Write the commit's files. Returns those that differ in the folder, all that git knows, and digests."""
    wanted = listed(folder, commit)
    changed = []
    for path, (mode, digest) in sorted(wanted.items()):
        source, target = os.path.join(folder, path), os.path.join(HOME, "tree", path)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if content_of(source, mode) == digest:
            shutil.copy2(source, target, follow_symlinks=False)
            continue
        changed.append(path)
        data = git(folder, "cat-file", "blob", digest) or b""
        if mode == "120000":
            os.symlink(data, os.fsencode(target))
            continue
        with open(target, "wb") as file:
            file.write(data)
        os.chmod(target, 0o755 if mode == "100755" else 0o644)
    head = listed(folder, "HEAD")
    indexed = (git(folder, "ls-files", "-z") or b"").split(b"\0")
    known = set(wanted) | set(head) | {os.fsdecode(path) for path in indexed if path}
    return changed, known, {digest for _, digest in list(wanted.values()) + list(head.values())}


def content_of(path, mode):
    """The digest that git gives to the file or link; "" if it is not of this mode."""
    try:
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode):
            data = os.fsencode(os.readlink(path))
            return blob_digest(data) if mode == "120000" else ""
        if not stat.S_ISREG(status.st_mode) or mode == "120000":
            return ""
        if bool(status.st_mode & 0o100) != (mode == "100755"):
            return ""
        with open(path, "rb") as file:
            return blob_digest(file.read())
    except OSError:
        return ""


def blob_digest(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


# ---- without git


def take_files(folder):
    """Copy what is no environment and not built. Returns the paths and digests of what was copied."""
    known, digests = set(), set()
    for current, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not is_beside(os.path.join(current, name))]
        for name in names + [one for one in folders if os.path.islink(os.path.join(current, one))]:
            source = os.path.join(current, name)
            path = os.path.relpath(source, folder)
            if name.endswith(BUILT) or path in TELLS_BESIDE or not os.path.lexists(source):
                continue
            target = os.path.join(HOME, "tree", path)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
            known.add(path)
            digests.add(content_of(source, "100755" if os.stat(source).st_mode & 0o100 else "100644"))
    return known, digests


def is_beside(path):
    name = os.path.basename(path)
    return (
        name in (".git", "__pycache__", "r2e_tests")
        or name in ENVIRONMENTS
        or name.endswith((".egg-info", ".dist-info"))
        or os.path.exists(path + "/pyvenv.cfg")
    )


# ---- beside


def take_beside(folder, known, digests):
    """Move what git does not know. Returns the moved paths; a whole folder is one of them if git knows none
    of its files.
    """
    inner = set()  # folders that hold known files
    for path in known:
        while "/" in path:
            path = path.rpartition("/")[0]
            inner.add(path)
    moved, waiting = [], [""]
    while waiting:
        current = waiting.pop()
        for name in sorted(os.listdir(os.path.join(folder, current))):
            path = os.path.join(current, name)
            source = os.path.join(folder, path)
            if path in known or path in TELLS_BESIDE or name in (".git", "__pycache__"):
                continue
            if name.endswith(".pyc"):
                continue
            is_folder = os.path.isdir(source) and not os.path.islink(source)
            if path in inner and is_folder:
                waiting.append(path)
                continue
            if is_folder and not is_environment(source):
                drop_copies(source, digests)
            elif not is_folder and is_copy(source, digests):
                continue
            target = os.path.join(HOME, "beside", path)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            shutil.move(source, target)
            moved.append(path)
    return sorted(moved)


def is_environment(path):
    return os.path.basename(path) in ENVIRONMENTS or os.path.exists(path + "/pyvenv.cfg")


def drop_copies(folder, digests):
    """Remove copies of the repository's files, such as those in build/lib, and bytecode."""
    for current, folders, names in os.walk(folder):
        for name in list(folders):
            if name in (".git", "__pycache__"):
                folders.remove(name)
                remove(os.path.join(current, name))
        for name in names:
            path = os.path.join(current, name)
            if name.endswith(".pyc") or is_copy(path, digests):
                remove(path)


def is_copy(path, digests):
    try:
        if os.path.islink(path) or os.path.getsize(path) < MIN_COPY_BYTES:
            return False
        with open(path, "rb") as file:
            return blob_digest(file.read()) in digests
    except OSError:
        return False


def remove(path):
    if os.path.islink(path) or os.path.isfile(path):
        os.remove(path)
    elif os.path.isdir(path):
        shutil.rmtree(path)


def open_to_all(folder):
    """Let the user of a sandbox read it. A mode that is right already costs nothing."""
    for current, folders, names in os.walk(folder):
        for path in [current] + [os.path.join(current, name) for name in names]:
            status = os.lstat(path)
            if stat.S_ISLNK(status.st_mode):
                continue
            is_program = stat.S_ISDIR(status.st_mode) or status.st_mode & 0o111
            wanted = status.st_mode | (0o555 if is_program else 0o444)
            if wanted != status.st_mode:
                os.chmod(path, stat.S_IMODE(wanted))


if __name__ == "__main__":
    os.makedirs(HOME + "/beside", exist_ok=True)
    report = main([name for name in sys.argv[1].split(",") if name], sys.argv[2:])
    with open(HOME + "/report.json", "w") as file:
        json.dump(report, file)
    os.chmod(HOME + "/report.json", 0o644)
