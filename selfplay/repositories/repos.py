"""Repository list -> pinned checkouts: what to fetch, and its file tree, commit, history and licence. Running it is left to environments.

Invariant: nothing of a repository is ever executed here: archives are read in memory, git objects without a work tree, hooks or filters.
"""

from __future__ import annotations

import bz2
import configparser
import contextlib
import hashlib
import io
import lzma
import os
import re
import shlex
import shutil
import stat
import tarfile
import tempfile
import tomllib
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from email.parser import HeaderParser
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from selfplay.errors import (
    PrerequisiteError,
    RepositoryError,
    RepositoryListError,
    UsageError,
    full_disk_told,
)
from selfplay.source.trees import FileEntry, Tree, ignore_rules, is_safe_path

if TYPE_CHECKING:
    import pypi_simple

Kind = Literal["git", "path", "pypi", "docker"]

HINTS = ("python", "install", "test", "parser")
EXAMPLES = "for instance https://host/owner/name@rev, ./folder, pypi:toolz==1.0.0, pypi:toolz==0.9.0..1.0.0 or docker:image:tag#/testbed"
GIT_SCHEMES = ("https", "ssh", "file")
SCP_LIKE = re.compile(r"^[A-Za-z0-9_][\w.-]*@[A-Za-z0-9][\w.-]*:(?!//)")
PYPI = re.compile(r"^(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)==(?P<rev>[^=\s]+)$")

MAX_ARCHIVE_BYTES = 64 << 20
MAX_TREE_BYTES = 256 << 20
MAX_TREE_FILES = 50_000
MAX_BUNDLE_BYTES = 48 << 20
DOWNLOAD_TIMEOUT_S = 60.0
FIRST_COMMIT_TIME = 946_684_800  # 2000-01-01: commits made here depend on content alone
AUTHOR = "selfplay <selfplay@localhost>"

# What builds and tools leave behind. A copy of the source among them (`build/lib`) would give a repair away.
LEFTOVERS = re.compile(
    r"^(build/(lib|bdist|temp|scripts)[^/]*/|dist/[^/]+\.(whl|tar\.gz|zip|egg)$)"
    r"|(^|/)(\.eggs|\.tox|\.nox|\.venv|\.hg|\.svn|\.mypy_cache|\.ruff_cache|node_modules|__pycache__)/|\.(pyc|pyo|egg|orig|rej)$"
)


def cache_root() -> Path:
    """Where fetched repositories and prepared environments are kept: SELFPLAY_CACHE, else ~/.cache/selfplay."""
    return Path(os.environ.get("SELFPLAY_CACHE") or "~/.cache/selfplay").expanduser()


@dataclass(frozen=True)
class RepositorySpec:
    """One line of a repository list. `location`: URL, absolute path, project name, or `image:tag#/folder`."""

    text: str
    kind: Kind
    name: str
    location: str
    rev: str | None = None
    python: str | None = None
    install: str | None = None
    test: str | None = None
    parser: str | None = None  # of what `test` prints, where that is not pytest's


@dataclass(frozen=True)
class Checkout:
    """A pinned repository. `commit` may be one made here (releases, plain folders, images); `git_dir` is bare and holds it."""

    spec: RepositorySpec
    name: str
    commit: str
    tree: Tree
    git_dir: Path | None
    commits: int
    licence: str


# ---- reading lists


def parse_spec(text: str, base: Path | None = None) -> RepositorySpec:
    """Read one line. A local path is relative to `base`, by default the current folder. Raises UsageError.

    `parse_spec(spec.text, base) == spec`: lines are kept in runs and tasks, and read again.
    """
    text = text.strip()
    if any(
        unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") and character != "\t"
        for character in text
    ):
        raise UsageError(f"{text!a} holds control characters or more than one line")
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f'{text!r}: {error}; quote hints like install="…"') from error
    if not words:
        raise UsageError(f"an empty repository; write {EXAMPLES}")
    what, *rest = words
    hints: dict[str, str] = {}
    for word in rest:
        key, equals, value = word.partition("=")
        if not equals or key not in HINTS:
            raise UsageError(
                f'{word!r} is not a hint; known are python=3.11, install="…", test="…" and parser=tap'
            )
        if key in hints:
            raise UsageError(f"the hint {key}= is given twice")
        if not value:
            raise UsageError(f"the hint {key}= is empty")
        hints[key] = value
    if "python" in hints and not re.fullmatch(r"[0-9]{1,3}\.[0-9]{1,3}", hints["python"]):
        raise UsageError(f"python={hints['python']} is not a version like 3.11")
    if "parser" in hints and "test" not in hints:
        raise UsageError(
            f'parser={hints["parser"]} reads what a test command prints; name the command too, as in test="make check"'
        )
    spec = _parse_location(what, (base or Path.cwd()).absolute())
    install, test, parser = (hints.get(key) for key in ("install", "test", "parser"))
    return replace(spec, text=text, python=hints.get("python"), install=install, test=test, parser=parser)


def _parse_location(what: str, base: Path) -> RepositorySpec:
    if what.startswith("pypi:"):
        return _parse_pypi(what)
    if what.startswith("docker:"):
        return _parse_docker(what)
    if what.startswith((".", "/", "~")):
        return _parse_path(what, base)
    if SCP_LIKE.match(what):
        host, _, path = what.partition(":")
        path, _, rev = path.partition("@")
        return _git_spec(what, f"{host}:{path}", path, rev if "@" in what.partition(":")[2] else None)
    scheme, separator, rest = what.partition("://")
    if "::" in what.split("/", 1)[0] or (separator and scheme not in GIT_SCHEMES):
        raise UsageError(
            f"{what!r}: only {', '.join(GIT_SCHEMES)} are fetched, since other transports can run programs or be forged"
        )
    if not separator:
        raise UsageError(f"{what!r} is not a repository; write {EXAMPLES}")
    authority, _, path = rest.partition("/")
    if authority.startswith("-") or "@-" in authority or (scheme != "file" and not authority):
        raise UsageError(f"{what!r}: {authority!r} is not a host name")
    path, at, rev = path.partition("@")
    return _git_spec(what, f"{scheme}://{authority}/{path}", path, rev if at else None)


def _git_spec(what: str, location: str, path: str, rev: str | None) -> RepositorySpec:
    name = _plain(path.rstrip("/").rsplit("/", 1)[-1].removesuffix(".git"))
    if not name.strip("."):
        raise UsageError(f"{what!r} names no repository; write https://host/owner/name[@rev]")
    if rev is not None and (not rev or rev.startswith("-") or re.search(r"[\s~^:?*\[\\]|\.\.", rev)):
        raise UsageError(f"{what!r}: {rev!r} is not a branch, tag or commit")
    return RepositorySpec(what, "git", f"{name}-{_plain(rev[:20])}" if rev else name, location, rev)


def _parse_path(what: str, base: Path) -> RepositorySpec:
    whole = _local_folder(what, base)
    head, at, rev = what.rpartition("@")
    if not at or os.path.exists(whole):  # noqa: PTH110  a folder may have an @ in its name; Path.exists raises on long names
        return RepositorySpec(what, "path", _named(_plain(whole.name)), str(whole))
    folder = _local_folder(head, base)
    spec = _git_spec(what, str(folder), str(folder), rev)
    return replace(spec, kind="path")


def _local_folder(what: str, base: Path) -> Path:
    try:
        return Path(os.path.normpath(base / Path(what).expanduser()))
    except RuntimeError as error:
        raise UsageError(
            f"{what!r}: this machine has no such user's home folder; write the whole path"
        ) from error


def _named(name: str) -> str:
    """`name` where it can be that of a folder of the cache."""
    return name if name.strip(".") else "root"


def _parse_pypi(what: str) -> RepositorySpec:
    found = PYPI.match(what.removeprefix("pypi:"))
    if not found:
        raise UsageError(
            f"{what!r} is not pypi:NAME==VERSION or pypi:NAME==FROM..TO; releases are always pinned"
        )
    name, rev = found["name"], found["rev"]
    ends = rev.split("..")
    try:
        versions = [Version(end) for end in ends]
    except ValueError as error:  # InvalidVersion, or more digits than Python reads
        raise UsageError(
            f"{what!r}: {error}; write pypi:{name}==1.0.0 or pypi:{name}==0.9.0..1.0.0"
        ) from error
    if len(versions) > 2:
        raise UsageError(f"{what!r}: a range has two ends, as in pypi:{name}==0.9.0..1.0.0")
    if len(versions) == 2 and not versions[0] < versions[1]:
        raise UsageError(f"{what!r}: the range must run upwards, and {ends[0]} is not below {ends[1]}")
    return RepositorySpec(
        what, "pypi", _plain(f"{canonicalize_name(name)}-{rev}"), canonicalize_name(name), rev
    )


def _parse_docker(what: str) -> RepositorySpec:
    image, hash_sign, folder = what.removeprefix("docker:").partition("#")
    if (
        not re.fullmatch(r"[a-z0-9][\w.\-/:@]*", image)
        or not hash_sign
        or not folder.startswith("/")
        or ".." in folder.split("/")
    ):
        raise UsageError(
            f"{what!r} is not docker:IMAGE:TAG#/FOLDER, for instance docker:example/app:1.0#/testbed"
        )
    return RepositorySpec(
        what, "docker", _named(_plain(image.rstrip("/").rsplit("/", 1)[-1])), f"{image}#{folder}"
    )


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-")


def absolute_line(spec: RepositorySpec) -> str:
    """The line that names the same repository from any folder: as written, but for a local path, which becomes absolute."""
    if spec.kind != "path":
        return spec.text
    place = f"{spec.location}@{spec.rev}" if spec.rev else spec.location
    hints = {key: getattr(spec, key) for key in HINTS}
    return " ".join(
        [shlex.quote(place), *(shlex.quote(f"{key}={value}") for key, value in hints.items() if value)]
    )


def _without_comment(line: str) -> str:
    """The line up to a `#` that begins a word outside quotes."""
    quote = ""
    for at, character in enumerate(line):
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character == "#" and (at == 0 or line[at - 1].isspace()):
            return line[:at]
    return line


def read_repository_list(path: Path) -> list[RepositorySpec]:
    """Read a list, one repository a line; paths in it are relative to its folder.

    Raises RepositoryListError holding every bad line, duplicates included, and UsageError when the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the repository list {path}: {error}") from error
    specs: list[RepositorySpec] = []
    problems: list[tuple[int, str]] = []
    seen: dict[tuple[str, str, str | None], int] = {}
    for number, raw in enumerate(text.splitlines(), start=1):
        line = _without_comment(raw).strip()
        if not line:
            continue
        try:
            spec = parse_spec(line, path.absolute().parent)
        except UsageError as error:
            problems.append((number, str(error)))
            continue
        if spec.kind == "path" and not Path(spec.location).is_dir():
            problems.append((number, f"{spec.text!r}: there is no folder {spec.location}"))
            continue
        first = seen.setdefault((spec.kind, spec.location, spec.rev), number)
        if first != number:
            problems.append((number, f"{spec.text!r} is the repository of line {first} again"))
        else:
            specs.append(spec)
    if not specs and not problems:
        problems.append((1, f"no repository in the list; write {EXAMPLES}"))
    if problems:
        raise RepositoryListError(str(path), problems)
    return specs


# ---- fetching


def fetch(spec: RepositorySpec, cache: Path) -> Checkout:
    """Bring a repository into `cache` and read its pinned tree. What is pinned and cached needs no network.

    Raises RepositoryError naming the repository, PrerequisiteError when git or an engine is missing, DiskFullError.
    """
    try:
        with full_disk_told(cache):
            return _fetch(spec, cache)
    except OSError as error:
        raise RepositoryError(f"{spec.text}: {error}") from error


def _fetch(spec: RepositorySpec, cache: Path) -> Checkout:
    if spec.kind == "git":
        return _fetch_git(spec, cache, spec.location)
    if spec.kind == "pypi":
        return _fetch_releases(spec, cache)
    if spec.kind == "docker":
        return _made_commit(spec, cache, _tree_of_image(spec), "")
    folder = Path(spec.location)
    if not folder.is_dir():
        raise RepositoryError(f"{spec.text}: there is no folder {folder}")
    if (folder / ".git").exists() or ((folder / "HEAD").is_file() and (folder / "objects").is_dir()):
        return _fetch_git(spec, cache, spec.location)
    if spec.rev:
        raise RepositoryError(
            f"{spec.text}: {folder} is a plain folder, which has no revision {spec.rev!r}; leave out @{spec.rev}"
        )
    return _made_commit(spec, cache, _tree_of_folder(folder), "")


def history_bundle(checkout: Checkout) -> bytes | None:
    """A git bundle of the commit's ancestry, with HEAD and refs/heads/main at the commit. None without history, or beyond 48 MiB."""
    if checkout.git_dir is None:
        return None
    with tempfile.TemporaryDirectory(prefix="selfplay-bundle-") as temporary:
        git_dir = Path(temporary) / "history.git"
        _init_bare(git_dir)
        (git_dir / "objects/info").mkdir(parents=True, exist_ok=True)
        (git_dir / "objects/info/alternates").write_text(f"{checkout.git_dir.absolute() / 'objects'}\n")
        _git(git_dir, "update-ref", "refs/heads/main", checkout.commit)
        bundle = Path(temporary) / "history.bundle"
        _git(git_dir, "bundle", "create", "--quiet", str(bundle), "HEAD", "refs/heads/main")
        return bundle.read_bytes() if bundle.stat().st_size <= MAX_BUNDLE_BYTES else None


# ---- git


def _git(git_dir: Path | None, *arguments: str, stdin: bytes = b"", own_config: bool = False) -> bytes:
    """Run git on a bare repository, with nothing of the person's or the system's configuration unless `own_config`.

    Raises RepositoryError with git's own words.
    """
    try:
        import git
    except ImportError as error:
        raise PrerequisiteError(
            "git was not found on PATH. Install it, for instance with: apt-get install git"
        ) from error
    settings = {
        "core.hooksPath": "/dev/null",
        "core.fsmonitor": "false",
        "core.attributesFile": "/dev/null",
        "submodule.recurse": "false",
        "fetch.recurseSubmodules": "false",
        "gc.auto": "0",
        "maintenance.auto": "false",
    }
    command = ["git", *(part for key, value in settings.items() for part in ("-c", f"{key}={value}"))]
    if git_dir is not None:
        command.append(f"--git-dir={git_dir}")
    with tempfile.TemporaryDirectory(prefix="selfplay-git-") as temporary:
        # upload-pack of a local repository reads only a configuration file, so "this folder may belong to another user" stands in one.
        config = Path(temporary) / "config"
        config.write_text("[safe]\n\tdirectory = *\n")
        environment = {
            "GIT_ALLOW_PROTOCOL": ":".join(GIT_SCHEMES),
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_LFS_SKIP_SMUDGE": "1",
            "GIT_NO_REPLACE_OBJECTS": "1",
            "GIT_CONFIG_COUNT": "0",
            "GIT_CONFIG_PARAMETERS": "",
            "LC_ALL": "C",
        }
        if not own_config:
            environment |= {
                "GIT_CONFIG_NOSYSTEM": "1",
                "GIT_CONFIG_SYSTEM": "/dev/null",
                "GIT_CONFIG_GLOBAL": str(config),
            }
        if git_dir is not None:
            environment["GIT_OBJECT_DIRECTORY"] = str(git_dir / "objects")
        with tempfile.TemporaryFile() as feed:
            feed.write(stdin)
            feed.seek(0)
            status, output, errors = git.Git(temporary).execute(
                [*command, *arguments],
                istream=feed,
                env=environment,
                with_extended_output=True,
                with_exceptions=False,
                stdout_as_string=False,
                strip_newline_in_stdout=False,
            )
    if status != 0:
        said = errors.decode(errors="replace") if isinstance(errors, bytes) else str(errors)
        raise RepositoryError(f"git {arguments[0]}: {said.strip()[-2000:] or f'exit status {status}'}")
    return output if isinstance(output, bytes) else str(output).encode()


def _init_bare(git_dir: Path) -> None:
    _git(None, "init", "--quiet", "--bare", "--template=", "--initial-branch=main", str(git_dir))


def _fetch_git(spec: RepositorySpec, cache: Path, source: str) -> Checkout:
    git_dir = cache / "git" / f"{_plain(PurePosixPath(source).name)}-{_short_hash(source)}"
    if not (git_dir / "HEAD").is_file():
        with _new_folder(git_dir) as folder:
            _init_bare(folder)
    pinned = bool(spec.rev and re.fullmatch(r"[0-9a-f]{40}", spec.rev))
    commit = _resolve(git_dir, spec.rev) if pinned else None
    failure: RepositoryError | None = None
    if commit is None:
        refs = ["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*", "+HEAD:refs/selfplay/HEAD"]
        options = [
            "--quiet",
            "--no-recurse-submodules",
            "--no-auto-gc",
            "--update-shallow",
            "--prune",
            "--update-head-ok",
        ]
        try:
            _git(
                git_dir,
                "fetch",
                *options,
                "--",
                source,
                *refs,
                own_config=spec.kind == "git" and not source.startswith("file:"),
            )
        except RepositoryError as error:
            failure = error
        commit = _resolve(git_dir, spec.rev)
        if commit is None and pinned and failure is None:  # servers may hand out commits that no branch holds
            with contextlib.suppress(RepositoryError):
                _git(git_dir, "fetch", *options[:3], "--", source, str(spec.rev), own_config=True)
            commit = _resolve(git_dir, spec.rev)
    if commit is None:
        if failure is not None:
            raise RepositoryError(
                f"{spec.text}: cannot be fetched and is not in the cache. {failure}"
            ) from failure
        wanted = f"has no branch, tag or commit {spec.rev!r}" if spec.rev else "has no commit yet"
        raise RepositoryError(f"{spec.text}: {source} {wanted}")
    tree = _read_commit(git_dir, commit)
    count = int(_git(git_dir, "rev-list", "--count", commit))
    return Checkout(spec, spec.name, commit, tree, git_dir, count, licence_of(tree))


def _resolve(git_dir: Path, rev: str | None) -> str | None:
    for candidate in [f"refs/heads/{rev}", f"refs/tags/{rev}", rev] if rev else ["refs/selfplay/HEAD"]:
        with contextlib.suppress(RepositoryError):
            return (
                _git(
                    git_dir, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{candidate}^{{commit}}"
                )
                .decode()
                .strip()
            )
    return None


def _read_commit(git_dir: Path, commit: str) -> Tree:
    """A commit's plain files, from the object database: `git archive` would obey the repository's own export rules."""
    wanted: list[tuple[str, str, bool]] = []
    total = 0
    for record in _git(git_dir, "ls-tree", "-r", "-l", "-z", "--full-tree", commit).split(b"\0"):
        meta, _, name = record.partition(b"\t")
        path = name.decode("utf-8", errors="surrogateescape")
        if not meta or not _is_kept(path) or not _is_text(path):
            continue
        mode, kind, blob, size = meta.decode().split()
        if kind == "blob" and mode in ("100644", "100755", "100664"):  # no links, no submodules
            total += int(size)
            wanted.append((path, blob, mode == "100755"))
    _check_size(len(wanted), total, commit)
    data = _git(git_dir, "cat-file", "--batch", stdin="".join(f"{blob}\n" for _, blob, _ in wanted).encode())
    files: dict[str, FileEntry] = {}
    at = 0
    for path, blob, executable in wanted:
        end = data.index(b"\n", at)
        header = data[at:end].split()
        if len(header) != 3:
            raise RepositoryError(
                f"{git_dir}: object {blob} of {path} is missing; delete this folder to fetch it anew"
            )
        start, length = end + 1, int(header[2])
        files[path] = FileEntry(data[start : start + length], executable)
        at = start + length + 1
    return Tree(files)


def _commit_trees(git_dir: Path, trees: Sequence[tuple[str, Tree]]) -> str:
    """Commit (message, tree) pairs one upon the other on main; author and times are fixed, so that equal trees give equal commits."""
    stream = io.BytesIO()
    for index, (message, tree) in enumerate(trees):
        text = message.encode()
        stream.write(
            f"commit refs/heads/main\ncommitter {AUTHOR} {FIRST_COMMIT_TIME + index * 86_400} +0000\n".encode()
        )
        stream.write(b"data %d\n%s\ndeleteall\n" % (len(text), text))
        for path in sorted(tree):
            entry = tree[path]
            quoted = path.replace('"', '\\"').encode("utf-8", errors="surrogateescape")
            stream.write(b'M %s inline "%s"\n' % (b"100755" if entry.executable else b"100644", quoted))
            stream.write(b"data %d\n%s\n" % (len(entry.content), entry.content))
    stream.write(b"done\n")
    _git(git_dir, "fast-import", "--quiet", "--done", "--date-format=raw", stdin=stream.getvalue())
    return _git(git_dir, "rev-parse", "--verify", "refs/heads/main").decode().strip()


def _made_commit(spec: RepositorySpec, cache: Path, tree: Tree, message: str) -> Checkout:
    git_dir = cache / "made" / f"{spec.name}-{tree.digest[:16]}"
    if not (git_dir / "HEAD").is_file():
        with _new_folder(git_dir) as folder:
            _init_bare(folder)
            _commit_trees(folder, [(message or f"{spec.name} as it was found", tree)])
    commit = _git(git_dir, "rev-parse", "--verify", "refs/heads/main").decode().strip()
    return Checkout(spec, spec.name, commit, tree, git_dir, 1, licence_of(tree))


@contextlib.contextmanager
def _new_folder(place: Path) -> Iterator[Path]:
    """A folder that appears at `place` complete or not at all; where another process was first, its folder stays."""
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=place.parent))
    try:
        yield temporary
        try:
            temporary.rename(place)
        except OSError:
            if not place.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", errors="surrogateescape")).hexdigest()[:12]


# ---- folders, images and archives


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return path.isprintable()


def _is_kept(path: str) -> bool:
    return is_safe_path(path) and not LEFTOVERS.search(path)


def _check_size(files: int, total: int, what: str) -> None:
    if files > MAX_TREE_FILES or total > MAX_TREE_BYTES:
        raise RepositoryError(
            f"{what}: {files} files, {total >> 20} MiB, are more than a workspace may hold "
            f"({MAX_TREE_FILES} files, {MAX_TREE_BYTES >> 20} MiB)"
        )


def _cleaned(tree: Tree) -> Tree:
    files = {path: entry for path, entry in tree.items() if _is_kept(path) and _is_text(path)}
    _check_size(len(files), sum(len(entry.content) for entry in files.values()), "the tree")
    return Tree(files)


def _tree_of_folder(folder: Path) -> Tree:
    """A plain folder's files, without what its .gitignore names, what tools leave behind, and virtual environments."""
    files: dict[str, FileEntry] = {}
    total = 0
    for place, folders, names in os.walk(folder):
        here = Path(place)
        folders[:] = sorted(
            name
            for name in folders
            if name.lower() != ".git"
            and not (here / name / "pyvenv.cfg").exists()
            and not (here / name).is_symlink()
        )
        folders[:] = [
            name for name in folders if _is_kept(f"{(here / name).relative_to(folder).as_posix()}/x")
        ]
        for name in sorted(names):
            found = here / name
            path = found.relative_to(folder).as_posix()
            status = found.lstat()
            if stat.S_ISREG(status.st_mode) and _is_kept(path) and _is_text(path):
                total += status.st_size
                _check_size(len(files) + 1, total, str(folder))
                files[path] = FileEntry(found.read_bytes(), bool(status.st_mode & 0o100))
    ignored = ignore_rules(Tree(files))
    return Tree({path: entry for path, entry in files.items() if not ignored.match_file(path)})


def _tree_of_image(spec: RepositorySpec) -> Tree:
    """A folder of a local Docker image, read from a container that is created and never started."""
    import docker

    image, _, folder = spec.location.partition("#")
    try:
        client = docker.from_env()
    except docker.errors.DockerException as error:
        raise PrerequisiteError(
            f"{spec.text} needs a Docker engine, and none answers ({error}). Start one, or set DOCKER_HOST."
        ) from error
    with contextlib.closing(client):
        try:
            container = client.containers.create(
                image, command=["true"], network_disabled=True, labels={"selfplay": "fetch"}
            )
        except docker.errors.ImageNotFound as error:
            raise RepositoryError(
                f"{spec.text}: the engine has no image {image}; run: docker pull {image}"
            ) from error
        except docker.errors.APIError as error:
            raise RepositoryError(f"{spec.text}: {error}") from error
        try:
            chunks, _ = container.get_archive(folder)
            data = _bounded(chunks, MAX_TREE_BYTES * 2, f"{image}#{folder}")
        except docker.errors.NotFound as error:
            raise RepositoryError(f"{spec.text}: the image has no folder {folder}") from error
        finally:
            with contextlib.suppress(
                docker.errors.APIError, OSError
            ):  # an engine that is gone removes nothing
                container.remove(force=True, v=True)
    return _strip_top(Tree.from_tar(data))


def _bounded(chunks: Any, most: int, what: str) -> bytes:
    data = bytearray()
    for chunk in chunks:
        data += chunk
        if len(data) > most:
            raise RepositoryError(f"{what}: more than {most >> 20} MiB")
    return bytes(data)


def read_archive(name: str, data: bytes) -> Tree:
    """The files of a source distribution, read in memory: top folder stripped, links and devices left out, sizes bounded.

    Raises RepositoryError when it is not an archive or unpacks to more than a workspace may hold.
    """
    try:
        if name.endswith(".zip"):
            return _strip_top(_read_zip(name, data))
        return _strip_top(Tree.from_tar(_decompress(name, data)))
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        OSError,
        ValueError,
        NotImplementedError,
    ) as error:
        raise RepositoryError(f"{name} cannot be read as an archive: {error}") from error


def _decompress(name: str, data: bytes) -> bytes:
    most = MAX_TREE_BYTES + (MAX_TREE_FILES << 10)  # each member has a header, and is padded
    if name.endswith((".tar.gz", ".tgz")):
        worker = zlib.decompressobj(wbits=31)
        plain = worker.decompress(data, most + 1)
    elif name.endswith(".tar.bz2"):
        plain = bz2.BZ2Decompressor().decompress(data, most + 1)
    elif name.endswith(".tar.xz"):
        plain = lzma.LZMADecompressor().decompress(data, most + 1)
    elif name.endswith(".tar"):
        plain = data
    else:
        raise RepositoryError(
            f"{name} is no archive of a known kind (.tar.gz, .tgz, .tar.bz2, .tar.xz, .tar, .zip)"
        )
    if len(plain) > most:
        raise RepositoryError(f"{name} unpacks to more than {most >> 20} MiB")
    return plain


def _read_zip(name: str, data: bytes) -> Tree:
    files: dict[str, FileEntry] = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        _check_size(len(members), sum(member.file_size for member in members), name)
        for member in members:
            mode = member.external_attr >> 16
            if (
                not member.is_dir()
                and is_safe_path(member.filename)
                and (not mode or stat.S_ISREG(mode) or stat.S_IFMT(mode) == 0)
            ):
                with archive.open(member) as opened:
                    files[member.filename] = FileEntry(opened.read(member.file_size), bool(mode & 0o100))
    return Tree(files)


def _strip_top(tree: Tree) -> Tree:
    tops = {path.split("/", 1)[0] for path in tree}
    if len(tops) == 1 and all("/" in path for path in tree):
        tree = Tree(
            {
                path.split("/", 1)[1]: entry
                for path, entry in tree.items()
                if is_safe_path(path.split("/", 1)[1])
            }
        )
    return _cleaned(tree)


# ---- releases from a package index


def _fetch_releases(spec: RepositorySpec, cache: Path) -> Checkout:
    git_dir = cache / "releases" / f"{spec.name}-{_short_hash(f'{spec.location}=={spec.rev}')}"
    if not (git_dir / "HEAD").is_file():
        with _new_folder(git_dir) as folder:
            releases = _download_releases(spec)
            _init_bare(folder)
            _commit_trees(folder, [(f"{spec.location} {version}", tree) for version, tree in releases])
    commit = _git(git_dir, "rev-parse", "--verify", "refs/heads/main").decode().strip()
    tree = _read_commit(git_dir, commit)
    count = int(_git(git_dir, "rev-list", "--count", commit))
    return Checkout(spec, spec.name, commit, tree, git_dir, count, licence_of(tree))


def _download_releases(spec: RepositorySpec) -> list[tuple[str, Tree]]:
    import pypi_simple
    import requests

    index = pip_settings()
    endpoint = index.get("index-url", pypi_simple.PYPI_SIMPLE_ENDPOINT)
    with requests.Session() as session:
        if "cert" in index:
            session.verify = index["cert"]
        if "proxy" in index:
            session.proxies = {"http": index["proxy"], "https": index["proxy"]}
        client = pypi_simple.PyPISimple(endpoint, session=session)
        try:
            page = client.get_project_page(spec.location, timeout=DOWNLOAD_TIMEOUT_S)
            chosen = choose_releases(spec, page.packages)
            return [
                (version, read_archive(package.filename, _download(session, package)))
                for version, package in chosen
            ]
        except pypi_simple.NoSuchProjectError as error:
            raise RepositoryError(
                f"{spec.text}: the package index has no project {spec.location!r}; check the name"
            ) from error
        except (
            requests.RequestException,
            pypi_simple.UnsupportedContentTypeError,
            pypi_simple.UnsupportedRepoVersionError,
        ) as error:
            raise RepositoryError(
                f"{spec.text}: the package index cannot be read and this release is not in the cache ({type(error).__name__}: "
                f"{_without_credentials(str(error))}). pip's own settings (PIP_INDEX_URL, PIP_CERT, pip.conf) are honoured here."
            ) from error


def choose_releases(
    spec: RepositorySpec, packages: Sequence[pypi_simple.DistributionPackage]
) -> list[tuple[str, pypi_simple.DistributionPackage]]:
    """The source distributions that a spec asks for, in version order; of a range both ends must exist.

    Between the ends, pre-releases and yanked releases are passed over. Raises RepositoryError listing what there is.
    """
    found: dict[Version, pypi_simple.DistributionPackage] = {}
    preference = (".zip", ".tar.bz2", ".tar.xz", ".tgz", ".tar.gz")  # the last is taken first
    for package in sorted(
        packages,
        key=lambda p: max((i for i, end in enumerate(preference) if p.filename.endswith(end)), default=-1),
    ):
        if package.package_type == "sdist" and package.version and package.filename.endswith(preference):
            with contextlib.suppress(InvalidVersion):
                found[Version(package.version)] = package
    ends = [Version(end) for end in str(spec.rev).split("..")]
    for end in ends:
        if end not in found:
            known = ", ".join(str(version) for version in sorted(found)[-12:]) or "none at all"
            raise RepositoryError(
                f"{spec.text}: there is no source distribution of {spec.location} {end}; the newest are: {known}"
            )
    low, high = ends[0], ends[-1]
    return [
        (str(version), found[version])
        for version in sorted(found)
        if low <= version <= high
        and (version in ends or not (version.is_prerelease or found[version].is_yanked))
    ]


def _download(session: Any, package: pypi_simple.DistributionPackage) -> bytes:
    expected = package.digests.get("sha256")
    if not expected:
        raise RepositoryError(
            f"{package.filename}: the index gives no sha256 for it, so it cannot be verified"
        )
    with session.get(package.url, stream=True, timeout=DOWNLOAD_TIMEOUT_S) as response:
        response.raise_for_status()
        data = _bounded(response.iter_content(1 << 16), MAX_ARCHIVE_BYTES, package.filename)
    actual = hashlib.sha256(data).hexdigest()
    if actual != expected:
        raise RepositoryError(
            f"{package.filename}: sha256 is {actual}, and the index promises {expected}; nothing of it was used"
        )
    return data


def _without_credentials(text: str) -> str:
    return re.sub(r"//[^/@\s]+@", "//***@", text)


def pip_settings(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """pip's own `index-url`, `cert` and `proxy`: its configuration files (global, user, site, PIP_CONFIG_FILE), then PIP_* variables."""
    variables = os.environ if environment is None else environment
    import sys

    home = Path(variables.get("HOME", "~")).expanduser()
    files = [Path("/etc/xdg/pip/pip.conf"), Path("/etc/pip.conf"), home / ".pip/pip.conf"]
    files.append(Path(variables.get("XDG_CONFIG_HOME") or home / ".config") / "pip/pip.conf")
    files.append(Path(sys.prefix) / "pip.conf")
    named = variables.get("PIP_CONFIG_FILE")
    if named == os.devnull:
        files = []
    elif named:
        files.append(Path(named))
    settings: dict[str, str] = {}
    for file in files:
        parser = configparser.RawConfigParser()
        try:
            parser.read(file, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError):
            continue  # pip itself will complain about it
        for section in ("global", "download", "install"):
            for key in ("index-url", "cert", "proxy"):
                for spelling in (key, key.replace("-", "_")):
                    if parser.has_option(section, spelling):
                        settings[key] = parser.get(section, spelling).strip()
    for key in ("index-url", "cert", "proxy"):
        value = variables.get("PIP_" + key.upper().replace("-", "_"), "").strip()
        if value:
            settings[key] = value
    return {key: value for key, value in settings.items() if value}


# ---- licences

LICENCE_PHRASES = (
    ("Apache-2.0", r"apache license,?\s+version 2\.0|licensed under the apache license"),
    ("MPL-2.0", r"mozilla public license,?\s+(version|v\.?)\s*2\.0"),
    ("AGPL-3.0", r"gnu affero general public license"),
    ("LGPL-3.0", r"gnu lesser general public license\s+version 3"),
    ("LGPL-2.1", r"gnu lesser general public license\s+version 2\.1|gnu lesser general public"),
    ("GPL-3.0", r"gnu general public license\s+version 3"),
    ("GPL-2.0", r"gnu general public license\s+version 2"),
    ("BSD-3-Clause", r"redistribution and use in source and binary forms.*(neither the names?|names? of)"),
    ("BSD-2-Clause", r"redistribution and use in source and binary forms"),
    ("PSF-2.0", r"python software foundation license"),
    ("ISC", r"permission to use, copy, modify, and/or distribute"),
    ("MIT", r"permission is hereby granted, free of charge"),
    ("Unlicense", r"this is free and unencumbered software"),
    (
        "0BSD",
        r"permission to use, copy, modify, and/or distribute this software for any purpose with or without fee is hereby granted\.\s",
    ),
)


def licence_of(tree: Tree) -> str:
    """The licence as the repository states it: metadata first, else known phrases of its licence file, else "unknown"."""
    for path in ("PKG-INFO", *sorted(p for p in tree if p.endswith(".egg-info/PKG-INFO"))):
        if path in tree:
            headers = HeaderParser().parsestr(tree.text(path))
            stated = _licence_from(
                headers.get("License-Expression"), headers.get("License"), headers.get_all("Classifier") or []
            )
            if stated:
                return stated
    if "pyproject.toml" in tree:
        project: Any = {}
        with contextlib.suppress(tomllib.TOMLDecodeError):
            project = tomllib.loads(tree.text("pyproject.toml")).get("project", {})
        if isinstance(project, dict):
            licence = project.get("license")
            text = licence.get("text") if isinstance(licence, dict) else licence
            classifiers = project.get("classifiers")
            stated = _licence_from(None, text, classifiers if isinstance(classifiers, list) else [])
            if stated:
                return stated
    for path in sorted(tree):
        if re.fullmatch(r"(licen[cs]e|copying)([-.]\w+)?(\.(txt|md|rst))?", path.lower()):
            text = " ".join(tree.text(path)[:20_000].lower().split())
            for name, phrase in LICENCE_PHRASES:
                if re.search(phrase, text):
                    return name
    return "unknown"


def _licence_from(expression: Any, text: Any, classifiers: Sequence[Any]) -> str:
    for stated in (expression, text):
        line = stated.strip() if isinstance(stated, str) else ""
        if line and "\n" not in line and len(line) < 80 and line.upper() != "UNKNOWN":
            return line
    named = [
        str(line).rsplit("::", 1)[1].strip() for line in classifiers if str(line).startswith("License ::")
    ]
    return " AND ".join(name for name in named if name != "OSI Approved")
