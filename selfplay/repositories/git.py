"""Runs git on bare repositories of the cache: fetches commits, reads them as trees, writes trees as commits.

Invariant: git objects are read without a work tree, hooks or filters, so nothing of a repository runs.
Commits made here depend on content alone, so equal trees have equal commits on every machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from selfplay.errors import PrerequisiteError, RepositoryError
from selfplay.repositories.checkouts import Checkout, new_folder
from selfplay.repositories.contents import SUBMODULE, Contents, Gathering, check_size
from selfplay.repositories.licences import licence_of
from selfplay.repositories.specs import GIT_SCHEMES, RepositorySpec, plain_name
from selfplay.repositories.versions import archived_version, version_of_description
from selfplay.source.trees import FileEntry, Tree

FETCH_OPTIONS = ("--quiet", "--no-recurse-submodules", "--no-auto-gc")
MIRROR_OPTIONS = ("--update-shallow", "--prune", "--update-head-ok")
REFS = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*", "+HEAD:refs/selfplay/HEAD")
SAFE_SETTINGS = {
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.attributesFile": "/dev/null",
    "submodule.recurse": "false",
    "fetch.recurseSubmodules": "false",
    "gc.auto": "0",
    "maintenance.auto": "false",
}
LINK_MODE = "120000"
FIRST_COMMIT_TIME = 946_684_800  # 2000-01-01, in seconds; each further commit is a day later
AUTHOR = "selfplay <selfplay@localhost>"


# ---- running git


def run_git(git_dir: Path | None, *arguments: str, stdin: bytes = b"", own_config: bool = False) -> bytes:
    """Run git on a bare repository and return its output.

    own_config: read the configuration of the user and of the system too, for instance credentials.
    Raises RepositoryError with git's own message, and PrerequisiteError without git.
    """
    try:
        import git
    except ImportError as error:
        raise PrerequisiteError(
            "git was not found on PATH. Install it, for instance with: apt-get install git"
        ) from error
    command = ["git", *(part for key, value in SAFE_SETTINGS.items() for part in ("-c", f"{key}={value}"))]
    if git_dir is not None:
        command.append(f"--git-dir={git_dir}")
    with tempfile.TemporaryDirectory(prefix="selfplay-git-") as temporary:
        variables = _variables(git_dir, None if own_config else Path(temporary) / "config")
        with tempfile.TemporaryFile() as feed:
            feed.write(stdin)
            feed.seek(0)
            status, output, errors = git.Git(temporary).execute(
                [*command, *arguments],
                istream=feed,
                env=variables,
                with_extended_output=True,
                with_exceptions=False,
                stdout_as_string=False,
                strip_newline_in_stdout=False,
            )
    if status != 0:
        said = errors.decode(errors="replace") if isinstance(errors, bytes) else str(errors)
        raise RepositoryError(f"git {arguments[0]}: {said.strip()[-2000:] or f'exit status {status}'}")
    return output if isinstance(output, bytes) else str(output).encode()


def _variables(git_dir: Path | None, config: Path | None) -> dict[str, str]:
    """Variables for git. config: a file to write, instead of the configuration of the user and system."""
    variables = {
        "GIT_ALLOW_PROTOCOL": ":".join(GIT_SCHEMES),
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_LFS_SKIP_SMUDGE": "1",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_CONFIG_COUNT": "0",
        "GIT_CONFIG_PARAMETERS": "",
        "LC_ALL": "C",
    }
    if config is not None:
        # A local repository may belong to another user; only a file can allow that for upload-pack.
        config.write_text("[safe]\n\tdirectory = *\n")
        variables |= {
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_SYSTEM": "/dev/null",
            "GIT_CONFIG_GLOBAL": str(config),
        }
    if git_dir is not None:
        variables["GIT_OBJECT_DIRECTORY"] = str(git_dir / "objects")
    return variables


def init_bare(git_dir: Path) -> None:
    """Make an empty bare repository without templates, so without hooks."""
    run_git(None, "init", "--quiet", "--bare", "--template=", "--initial-branch=main", str(git_dir))


# ---- commits and trees


def read_commit(git_dir: Path, commit: str) -> Tree:
    """The tree of `read_contents`."""
    return read_contents(git_dir, commit).tree


def read_contents(git_dir: Path, commit: str) -> Contents:
    """Read the files of a commit, without its submodules. Raises as `gather_commit` does."""
    gathering = gather_commit(git_dir, commit)
    for path in gathering.submodules:
        gathering.leave_out(path, SUBMODULE)
    return gathering.contents()


def gather_commit(git_dir: Path, commit: str) -> Gathering:
    """Read the files of a commit. Raises RepositoryError if they are too many or too large.

    Reads git objects, because `git archive` would obey the export rules of the repository.
    """
    gathering = Gathering(commit)
    wanted: list[tuple[str, str, str]] = []
    total = 0
    for record in run_git(git_dir, "ls-tree", "-r", "-l", "-z", "--full-tree", commit).split(b"\0"):
        meta, _, name = record.partition(b"\t")
        path = name.decode("utf-8", errors="surrogateescape")
        if not meta or not gathering.takes(path):
            continue
        mode, kind, blob, size = meta.decode().split()
        if kind == "blob":
            total += int(size)
            wanted.append((path, blob, mode))
        else:
            gathering.submodules[path] = blob
    check_size(len(wanted), total, commit)
    data = run_git(
        git_dir, "cat-file", "--batch", stdin="".join(f"{blob}\n" for _, blob, _ in wanted).encode()
    )
    position = 0
    for path, blob, mode in wanted:
        end = data.index(b"\n", position)
        header = data[position:end].split()
        if len(header) != 3:
            raise RepositoryError(
                f"{git_dir}: object {blob} of {path} is missing; delete this folder to fetch it anew"
            )
        start, length = end + 1, int(header[2])
        content = data[start : start + length]
        if mode == LINK_MODE:
            gathering.add_link(path, os.fsdecode(content))
        else:
            gathering.add_file(path, FileEntry(content, mode == "100755"))
        position = start + length + 1
    return gathering


def commit_trees(git_dir: Path, trees: Sequence[tuple[str, Tree]]) -> str:
    """Commit (message, tree) pairs one after the other on branch main. Returns the last commit."""
    stream = io.BytesIO()
    for index, (message, tree) in enumerate(trees):
        text = message.encode()
        time = FIRST_COMMIT_TIME + index * 86_400
        stream.write(f"commit refs/heads/main\ncommitter {AUTHOR} {time} +0000\n".encode())
        stream.write(b"data %d\n%s\ndeleteall\n" % (len(text), text))
        for path in sorted(tree):
            entry = tree[path]
            quoted = path.replace('"', '\\"').encode("utf-8", errors="surrogateescape")
            stream.write(b'M %s inline "%s"\n' % (b"100755" if entry.executable else b"100644", quoted))
            stream.write(b"data %d\n%s\n" % (len(entry.content), entry.content))
    stream.write(b"done\n")
    run_git(git_dir, "fast-import", "--quiet", "--done", "--date-format=raw", stdin=stream.getvalue())
    return run_git(git_dir, "rev-parse", "--verify", "refs/heads/main").decode().strip()


# ---- checkouts


def fetch_commit(spec: RepositorySpec, cache: Path, source: str, own_config: bool) -> tuple[Path, str]:
    """Fetch a git repository from `source`, a URL or a folder. Returns its bare copy and the spec's commit.

    Fetches nothing for a full commit id that the cache has. If the fetch fails, a commit from the cache is
    good enough. own_config: as `run_git` has it. Raises RepositoryError.
    """
    git_dir = cache / "git" / f"{plain_name(PurePosixPath(source).name)}-{short_hash(source)}"
    pinned = bool(spec.rev and re.fullmatch(r"[0-9a-f]{40}", spec.rev))
    commit = _resolve(git_dir, spec.rev) if pinned else None
    failure: RepositoryError | None = None
    if commit is None:
        try:
            if (git_dir / "HEAD").is_file():
                _mirror(git_dir, source, own_config)
            else:
                # A killed git leaves lock files, which would stop every later fetch into this folder.
                with new_folder(git_dir) as folder:
                    init_bare(folder)
                    _mirror(folder, source, own_config)
        except RepositoryError as error:
            failure = error
        commit = _resolve(git_dir, spec.rev)
        if commit is None and pinned and failure is None:  # servers may have commits that no branch holds
            with contextlib.suppress(RepositoryError):
                run_git(git_dir, "fetch", *FETCH_OPTIONS, "--", source, str(spec.rev), own_config=own_config)
            commit = _resolve(git_dir, spec.rev)
    if commit is None:
        if failure is not None:
            raise RepositoryError(
                f"{spec.text}: cannot be fetched and is not in the cache. {failure}"
            ) from failure
        wanted = f"has no branch, tag or commit {spec.rev!r}" if spec.rev else "has no commit yet"
        raise RepositoryError(f"{spec.text}: {source} {wanted}")
    return git_dir, commit


def checkout_of(spec: RepositorySpec, git_dir: Path, commit: str, contents: Contents) -> Checkout:
    """The checkout of a commit whose files were read."""
    count = int(run_git(git_dir, "rev-list", "--count", commit))
    version = version_of_description(_describe(git_dir, commit)) or archived_version(contents.tree)
    licence = licence_of(contents.tree)
    return Checkout(spec, spec.name, commit, contents.tree, git_dir, count, licence, version, contents.notes)


def _describe(git_dir: Path, commit: str) -> str:
    """The nearest tag with a digit, the distance to it, and the commit. "" if there is no such tag."""
    with contextlib.suppress(RepositoryError):
        return run_git(git_dir, "describe", "--tags", "--long", "--match=*[0-9]*", commit).decode().strip()
    return ""


def _mirror(git_dir: Path, source: str, own_config: bool) -> None:
    """Fetch all branches, tags and the HEAD of `source`. Raises RepositoryError."""
    run_git(git_dir, "fetch", *FETCH_OPTIONS, *MIRROR_OPTIONS, "--", source, *REFS, own_config=own_config)


def _resolve(git_dir: Path, rev: str | None) -> str | None:
    """The commit of a branch, tag or commit id, or of the remote's HEAD. None if there is none."""
    options = ("--verify", "--quiet", "--end-of-options")
    for candidate in [f"refs/heads/{rev}", f"refs/tags/{rev}", rev] if rev else ["refs/selfplay/HEAD"]:
        with contextlib.suppress(RepositoryError):
            return run_git(git_dir, "rev-parse", *options, f"{candidate}^{{commit}}").decode().strip()
    return None


def made_commit(spec: RepositorySpec, cache: Path, contents: Contents, message: str) -> Checkout:
    """A checkout of a tree that has no history: it becomes one commit in a repository of the cache."""
    git_dir = cache / "made" / f"{spec.name}-{contents.tree.digest[:16]}"
    if not (git_dir / "HEAD").is_file():
        with new_folder(git_dir) as folder:
            init_bare(folder)
            commit_trees(folder, [(message or f"{spec.name} as it was found", contents.tree)])
    commit = run_git(git_dir, "rev-parse", "--verify", "refs/heads/main").decode().strip()
    return checkout_of(spec, git_dir, commit, contents)


def short_hash(text: str) -> str:
    """12 hexadecimal digits that name a folder of the cache."""
    return hashlib.sha256(text.encode("utf-8", errors="surrogateescape")).hexdigest()[:12]
