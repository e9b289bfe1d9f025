"""Fetches the files of a repository that are in Git LFS: from a local repository, or from an https server.

Invariants: a file counts only with the size and the SHA-256 of its pointer. No program of Git LFS runs, and
no credentials are sent. A pointer whose file cannot be fetched stays a pointer, and is named.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfplay.errors import RepositoryError
from selfplay.repositories.archives import read_bounded
from selfplay.repositories.contents import Gathering, check_size, lfs_pointer
from selfplay.repositories.git import run_git
from selfplay.source.trees import FileEntry

if TYPE_CHECKING:
    import requests

TIMEOUT_S = 60.0
BATCH = 100
MAX_ANSWER_BYTES = 1 << 20  # about one batch
MEDIA_TYPE = "application/vnd.git-lfs+json"

Wanted = Mapping[str, int]  # SHA-256 -> size in bytes


def add_large_files(gathering: Gathering, sources: Sequence[str], cache: Path) -> None:
    """Put the files in place of their pointers. sources: URLs and folders of the repository.

    Raises RepositoryError if the files are larger than a workspace may hold.
    """
    pointers = {
        path: pointer for path, entry in gathering.files.items() if (pointer := lfs_pointer(entry.content))
    }
    wanted = dict(pointers.values())
    check_size(len(gathering.files), sum(size for _, size in pointers.values()), gathering.what)
    folder = cache / "lfs"
    found = {
        sha256: data for sha256, size in wanted.items() if (data := _stored(folder / sha256, sha256, size))
    }
    for source in sources:
        missing = {sha256: size for sha256, size in wanted.items() if sha256 not in found}
        for sha256, data in _fetched(missing, source, gathering).items() if missing else ():
            _store(folder, sha256, data)
            found[sha256] = data
    for path, (sha256, _) in pointers.items():
        if sha256 in found:
            gathering.add_file(path, FileEntry(found[sha256], gathering.files[path].executable))


def _fetched(wanted: Wanted, source: str, gathering: Gathering) -> dict[str, bytes]:
    """What the repository's own store has of the wanted files."""
    if source.startswith("https://"):
        return _download(wanted, _endpoint(source, gathering))
    local = Path(source.removeprefix("file://"))
    found: dict[str, bytes] = {}
    for sha256, size in wanted.items() if local.is_dir() else ():
        for store in (local / ".git/lfs/objects", local / "lfs/objects", _git_folder(local) / "lfs/objects"):
            data = _stored(store / sha256[:2] / sha256[2:4] / sha256, sha256, size)
            found |= {sha256: data} if data else {}
    return found


def _git_folder(folder: Path) -> Path:
    """Where the repository of a work tree is, if a file `.git` says so."""
    with contextlib.suppress(OSError, ValueError):
        return folder / (folder / ".git").read_text(encoding="utf-8").removeprefix("gitdir:").strip()
    return folder / ".git"


def _stored(file: Path, sha256: str, size: int) -> bytes | None:
    """The content of a file if it is the wanted one."""
    with contextlib.suppress(OSError):
        if not file.is_symlink() and file.stat().st_size == size:
            data = file.read_bytes()
            return data if hashlib.sha256(data).hexdigest() == sha256 else None
    return None


def _store(folder: Path, sha256: str, data: bytes) -> None:
    """Keep a file in the cache. It appears complete, or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".new-{sha256}-{os.getpid()}"
    temporary.write_bytes(data)
    temporary.replace(folder / sha256)


# ---- servers


def _endpoint(source: str, gathering: Gathering) -> str:
    """The URL of the LFS server: the one that .lfsconfig names if it is https, else beside the repository."""
    entry = gathering.files.get(".lfsconfig")
    if entry is not None:
        with contextlib.suppress(RepositoryError):
            arguments = ("config", "--file", "-", "--no-includes", "--get", "lfs.url")
            named = run_git(None, *arguments, stdin=entry.content).decode("utf-8", "replace").strip()
            if named.startswith("https://"):
                return named.rstrip("/")
    plain = source.rstrip("/")
    return f"{plain if plain.endswith('.git') else f'{plain}.git'}/info/lfs"


def _download(wanted: Wanted, endpoint: str) -> dict[str, bytes]:
    import requests

    found: dict[str, bytes] = {}
    with requests.Session() as session:
        session.auth = _without_credentials
        for start in range(0, len(wanted), BATCH):
            part = dict(list(wanted.items())[start : start + BATCH])
            for answer in _ask(session, endpoint, part):
                sha256, size = str(answer.get("oid")), part.get(str(answer.get("oid")), -1)
                data = _one(session, answer, size)
                if data is not None and len(data) == size and hashlib.sha256(data).hexdigest() == sha256:
                    found[sha256] = data
    return found


def _ask(session: requests.Session, endpoint: str, wanted: Wanted) -> Sequence[Mapping[str, Any]]:
    """The server's answer about each file; nothing if it does not answer."""
    objects = [{"oid": sha256, "size": size} for sha256, size in wanted.items()]
    body = {"operation": "download", "transfers": ["basic"], "objects": objects}
    headers = {"Accept": MEDIA_TYPE, "Content-Type": MEDIA_TYPE}
    try:
        with session.post(
            f"{endpoint}/objects/batch", json=body, headers=headers, stream=True, **_options()
        ) as answer:
            answer.raise_for_status()
            found = json.loads(read_bounded(answer.iter_content(1 << 16), MAX_ANSWER_BYTES, endpoint))[
                "objects"
            ]
    # requests' own errors are OSErrors
    except (OSError, ValueError, LookupError, TypeError, RecursionError, RepositoryError):
        return []
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def _without_credentials(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """As `auth` of a session. Without one, requests takes a password for the host from ~/.netrc."""
    return request


def _options() -> dict[str, Any]:
    """Of each request. A variable of requests would replace an authority of the session."""
    authority = os.environ.get("GIT_SSL_CAINFO")
    return {"timeout": TIMEOUT_S, "allow_redirects": False, **({"verify": authority} if authority else {})}


def _one(session: requests.Session, answer: Mapping[str, Any], size: int) -> bytes | None:
    """Download one file from where the server says."""
    try:
        action = answer["actions"]["download"]
        href, headers = str(action["href"]), dict(action.get("header") or {})
        if not href.startswith("https://") or size < 0:
            return None
        with session.get(href, headers=headers, stream=True, **_options()) as response:
            response.raise_for_status()
            return read_bounded(response.iter_content(1 << 16), size, href)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RepositoryError):
        return None
