"""Fetches the submodules of a repository into its tree, at the commits that it pins.

Invariants: a repository alone does not decide where its submodules come from. One from a server gets none
from a folder of this machine, and the user's credentials are used for its own host only. What cannot be
fetched is named.
"""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from selfplay.errors import RepositoryError
from selfplay.repositories.contents import SUBMODULE, Gathering
from selfplay.repositories.git import fetch_commit, gather_commit, run_git
from selfplay.repositories.large_files import add_large_files
from selfplay.repositories.specs import RepositorySpec

MAX_DEPTH = 3
MAX_SUBMODULES = 30
SHOWN = 160  # characters of git's message


@dataclass(frozen=True)
class _Repository:
    """A repository with submodules. place: in the tree; source, url: as `submodule_sources` has them."""

    gathering: Gathering
    place: str
    source: str
    url: str


@dataclass
class _Fetching:
    """What stays the same for all submodules. left: how many more may be fetched."""

    spec: RepositorySpec
    cache: Path
    left: int = MAX_SUBMODULES


def add_submodules(gathering: Gathering, spec: RepositorySpec, cache: Path) -> None:
    """Add the files of all submodules. Those that cannot be fetched are left out, with the reason.

    Raises RepositoryError if the tree gets too large.
    """
    top = _Repository(gathering, "", spec.location, spec.location)
    _add(gathering, top, _Fetching(spec, cache), 0)


def _add(into: Gathering, parent: _Repository, fetching: _Fetching, depth: int) -> None:
    urls = submodule_urls(parent.gathering)
    for path, commit in sorted(parent.gathering.submodules.items()):
        place = posixpath.join(parent.place, path)
        fetching.left -= 1
        sources = list(submodule_sources(parent.source, parent.url, path, urls.get(path, "")))
        if fetching.left < 0 or depth >= MAX_DEPTH or not sources:
            into.leave_out(place, f"{SUBMODULE} that have no usable URL, or are too many")
            continue
        try:
            found, used = _fetch(fetching, sources, commit)
        except RepositoryError as error:
            into.leave_out(place, f"{SUBMODULE} that cannot be fetched ({_short(error)})")
            continue
        for name, entry in found.files.items():
            into.add_file(f"{place}/{name}", entry)
        for name, target in found.links.items():
            into.add_link(f"{place}/{name}", target)
        for reason, names in found.left_out.items():
            for name in names:
                into.leave_out(f"{place}/{name}", reason)
        _add(into, _Repository(found, place, used, sources[-1]), fetching, depth + 1)


def _fetch(fetching: _Fetching, sources: list[str], commit: str) -> tuple[Gathering, str]:
    """The files of the commit, and the first source that has it. Raises RepositoryError."""
    failure: RepositoryError | None = None
    for source in sources:
        spec = replace(fetching.spec, location=source, rev=commit)
        is_same_host = urlsplit(source).hostname == urlsplit(fetching.spec.location).hostname
        own_config = fetching.spec.kind == "git" and source.startswith("https:") and is_same_host
        try:
            git_dir, found = fetch_commit(spec, fetching.cache, source, own_config)
            gathering = gather_commit(git_dir, found)
            add_large_files(gathering, sources, fetching.cache)
            return gathering, source
        except RepositoryError as error:
            failure = failure or error
    raise failure or RepositoryError("no source")


def _short(error: Exception) -> str:
    """git's own words in an error, one line."""
    said = str(error).rpartition("fatal: ")[2]
    return " ".join(said.split())[:SHOWN]


def submodule_urls(gathering: Gathering) -> dict[str, str]:
    """The URL of each submodule by its path, as .gitmodules gives them."""
    entry = gathering.files.get(".gitmodules")
    listed = b""
    if entry is not None:
        with contextlib.suppress(RepositoryError):
            listed = run_git(
                None, "config", "--file", "-", "--no-includes", "--null", "--list", stdin=entry.content
            )
    values = dict(item.partition("\n")[::2] for item in listed.decode("utf-8", "replace").split("\0") if item)
    return {
        path: values.get(f"{key.removesuffix('.path')}.url", "")
        for key, path in values.items()
        if key.startswith("submodule.") and key.endswith(".path")
    }


def submodule_sources(source: str, base: str, path: str, url: str) -> Iterator[str]:
    """Yield where a submodule may be fetched from: its folder beside a local repository, then its URL.

    source: where the repository is fetched from. base: its URL, which a relative URL refers to.
    """
    is_local = "://" not in source and ":" not in source.partition("/")[0]
    if is_local and (Path(source) / path / ".git").exists():
        yield str(Path(source) / path)
    if url.startswith(("./", "../")):
        url = _joined(base, url)
    has_same_scheme = source.startswith(("file:", "ssh:")) and url.startswith(source.partition("//")[0])
    is_folder = is_local and url.startswith("/") and Path(url).is_dir()
    if url.startswith("https://") or has_same_scheme or is_folder:
        yield url


def _joined(source: str, relative: str) -> str:
    """A relative URL as git reads it: below the URL of the repository that names it."""
    scheme, mark, rest = source.rpartition("://")
    joined = posixpath.normpath(posixpath.join(rest.rstrip("/"), relative))
    return "" if joined.startswith("..") else f"{scheme}{mark}{joined}"
