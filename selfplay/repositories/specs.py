"""Reads repository lists: one line -> one `RepositorySpec`. Fetches nothing; `fetching` does.

Invariant: what a spec holds can be passed to git, pip or Docker as one argument. No location begins with `-`,
and no transport can run a program.
"""

from __future__ import annotations

import os
import re
import shlex
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from packaging.utils import canonicalize_name
from packaging.version import Version

from selfplay.errors import RepositoryListError, UsageError
from selfplay.runtime.recipes import find_recipe, read_text

HINTS = ("python", "install", "test", "parser")
EXAMPLES = (
    "for instance https://host/owner/name@rev, ./folder, pypi:toolz==1.0.0, pypi:toolz==0.9.0..1.0.0 "
    "or docker:image:tag#/testbed"
)
GIT_SCHEMES = ("https", "ssh", "file")
SCP_LIKE = re.compile(r"^[A-Za-z0-9_][\w.-]*@[A-Za-z0-9][\w.-]*:(?!//)")
PYPI = re.compile(r"^(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)==(?P<rev>[^=\s]+)$")

Kind = Literal["git", "path", "pypi", "docker"]


@dataclass(frozen=True)
class RepositorySpec:
    """One line of a repository list.

    text      the line
    name      of the repository's folders in the cache, and in tables
    location  URL, absolute path, project name, or `image:tag#/folder`
    rev       branch, tag, commit, version, or range of versions
    python    hint: the version that the tests need
    install   hint: the command that installs the dependencies
    test      hint: the command that runs the tests
    parser    hint: what reads the output of `test` if it is not pytest's
    """

    text: str
    kind: Kind
    name: str
    location: str
    rev: str | None = None
    python: str | None = None
    install: str | None = None
    test: str | None = None
    parser: str | None = None


# ---- lists


def read_repository_list(path: Path) -> list[RepositorySpec]:
    """Read a list with one repository a line. Paths in it are relative to its folder.

    path: a file, or the name of a list that ships.
    Raises RepositoryListError with every bad line, duplicates included, and UsageError if the file cannot be
    read.
    """
    path = find_recipe(path, "the repository list", ".txt")
    text = read_text(path, "the repository list")
    specs: list[RepositorySpec] = []
    problems: list[tuple[int, str]] = []
    seen: dict[tuple[str, str, str | None], int] = {}
    for number, raw in enumerate(text.split("\n"), start=1):
        line = _without_comment(raw).strip()
        if not line:
            continue
        try:
            spec = parse_existing(line, path.absolute().parent)
        except UsageError as error:
            problems.append((number, str(error)))
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


def _without_comment(line: str) -> str:
    """The line up to a `#` that begins a word outside quotes."""
    quote = ""
    for index, character in enumerate(line):
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character == "#" and (index == 0 or line[index - 1].isspace()):
            return line[:index]
    return line


# ---- lines


def parse_spec(text: str, base: Path | None = None) -> RepositorySpec:
    """Read one line. A local path is relative to `base`, by default the current folder. Raises UsageError.

    `parse_spec(spec.text, base) == spec`, because runs and tasks store lines and read them again.
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
            f"parser={hints['parser']} reads what a test command prints; "
            'name the command too, as in test="make check"'
        )
    spec = _parse_location(what, (base or Path.cwd()).absolute())
    install, test, parser = (hints.get(key) for key in ("install", "test", "parser"))
    return replace(spec, text=text, python=hints.get("python"), install=install, test=test, parser=parser)


def parse_existing(text: str, base: Path | None = None) -> RepositorySpec:
    """As `parse_spec`. Raises UsageError for a local folder that is not there, too."""
    spec = parse_spec(text, base)
    if spec.kind == "path" and not Path(spec.location).is_dir():
        raise UsageError(f"{spec.text!r}: there is no folder {spec.location}")
    return spec


def absolute_line(spec: RepositorySpec) -> str:
    """The line that names the same repository from any folder: a local path becomes absolute."""
    if spec.kind != "path":
        return spec.text
    location = f"{spec.location}@{spec.rev}" if spec.rev else spec.location
    hints = {key: getattr(spec, key) for key in HINTS}
    return " ".join(
        [shlex.quote(location), *(shlex.quote(f"{key}={value}") for key, value in hints.items() if value)]
    )


# ---- locations


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
            f"{what!r}: only {', '.join(GIT_SCHEMES)} are fetched, "
            "since other transports can run programs or be forged"
        )
    if not separator:
        raise UsageError(f"{what!r} is not a repository; write {EXAMPLES}")
    authority, _, path = rest.partition("/")
    if authority.startswith("-") or "@-" in authority or (scheme != "file" and not authority):
        raise UsageError(f"{what!r}: {authority!r} is not a host name")
    path, at, rev = path.partition("@")
    return _git_spec(what, f"{scheme}://{authority}/{path}", path, rev if at else None)


def _git_spec(what: str, location: str, path: str, rev: str | None) -> RepositorySpec:
    name = plain_name(path.rstrip("/").rsplit("/", 1)[-1].removesuffix(".git"))
    if not name.strip("."):
        raise UsageError(f"{what!r} names no repository; write https://host/owner/name[@rev]")
    if rev is not None and (not rev or rev.startswith("-") or re.search(r"[\s~^:?*\[\\]|\.\.", rev)):
        raise UsageError(f"{what!r}: {rev!r} is not a branch, tag or commit")
    return RepositorySpec(what, "git", f"{name}-{plain_name(rev[:20])}" if rev else name, location, rev)


def _parse_path(what: str, base: Path) -> RepositorySpec:
    whole = _local_folder(what, base)
    head, at, rev = what.rpartition("@")
    # A folder may have an @ in its name. Path.exists raises an error on long names.
    if not at or os.path.exists(whole):  # noqa: PTH110
        return RepositorySpec(what, "path", _named(plain_name(whole.name)), str(whole))
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
    """`name`, or "root" if no folder of the cache can have this name."""
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
        what, "pypi", plain_name(f"{canonicalize_name(name)}-{rev}"), canonicalize_name(name), rev
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
        what, "docker", _named(plain_name(image.rstrip("/").rsplit("/", 1)[-1])), f"{image}#{folder}"
    )


def plain_name(name: str) -> str:
    """`name` with each run of unusual characters replaced by a dash."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-")
