"""Downloads files from a package index. Source distributions become commits, one after the other.

Invariant: a file counts only with the sha256 that the index promises. Archives are read in memory and
never built, so nothing of a release runs.
"""

from __future__ import annotations

import configparser
import contextlib
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.version import InvalidVersion, Version

from selfplay.errors import RepositoryError
from selfplay.repositories.archives import MAX_ARCHIVE_BYTES, read_archive, read_bounded
from selfplay.repositories.checkouts import Checkout, new_folder
from selfplay.repositories.contents import Contents
from selfplay.repositories.git import commit_trees, init_bare, read_commit, run_git, short_hash
from selfplay.repositories.licences import licence_of
from selfplay.repositories.specs import RepositorySpec

if TYPE_CHECKING:
    import pypi_simple
    import requests

DOWNLOAD_TIMEOUT_S = 60.0
NOTES = "selfplay-notes.json"  # in the repository of a release
# Kinds of source distributions; the last is preferred.
SDIST_SUFFIXES = (".zip", ".tar.bz2", ".tar.xz", ".tgz", ".tar.gz")


# ---- releases


def fetch_releases(spec: RepositorySpec, cache: Path) -> Checkout:
    """Fetch a release, or a range of releases with a commit for each. Needs no network if the cache has them.

    Raises RepositoryError.
    """
    git_dir = cache / "releases" / f"{spec.name}-{short_hash(f'{spec.location}=={spec.rev}')}"
    if not (git_dir / "HEAD").is_file():
        with new_folder(git_dir) as folder:
            releases = _download_releases(spec)
            init_bare(folder)
            commit_trees(folder, [(f"{spec.location} {version}", read.tree) for version, read in releases])
            (folder / NOTES).write_text(json.dumps(releases[-1][1].notes), encoding="utf-8")
    commit = run_git(git_dir, "rev-parse", "--verify", "refs/heads/main").decode().strip()
    tree = read_commit(git_dir, commit)
    count = int(run_git(git_dir, "rev-list", "--count", commit))
    return Checkout(spec, spec.name, commit, tree, git_dir, count, licence_of(tree), notes=_notes(git_dir))


def _notes(git_dir: Path) -> tuple[str, ...]:
    """What was noted when the last release was read. Earlier versions of selfplay noted nothing."""
    try:
        return tuple(map(str, json.loads((git_dir / NOTES).read_text(encoding="utf-8"))))
    except (OSError, ValueError, TypeError):
        return ()


def _download_releases(spec: RepositorySpec) -> list[tuple[str, Contents]]:
    with _project_files(spec.location, spec.text) as (session, packages):
        return [
            (version, read_archive(package.filename, _download(session, package, MAX_ARCHIVE_BYTES)))
            for version, package in choose_releases(spec, packages)
        ]


def download_file(project: str, filename: str, sha256: str, most_bytes: int) -> bytes:
    """One file of a project on the index, with the sha256 that we know. Raises RepositoryError."""
    with _project_files(project, filename) as (session, packages):
        found = next((package for package in packages if package.filename == filename), None)
        if found is None:
            raise RepositoryError(f"the package index has {project!r} without the file {filename}")
        data = _download(session, found, most_bytes)
    actual = hashlib.sha256(data).hexdigest()
    if actual != sha256:
        raise RepositoryError(
            f"{filename}: the index has another file under this name (sha256 {actual}, {sha256} was "
            "expected); nothing of it was used"
        )
    return data


@contextlib.contextmanager
def _project_files(
    project: str, wanted: str
) -> Iterator[tuple[requests.Session, Sequence[pypi_simple.DistributionPackage]]]:
    """A session with the index, and the files of a project on it.

    wanted: what is looked for, for messages. Raises RepositoryError, also for errors of the with block.
    """
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
            yield session, client.get_project_page(project, timeout=DOWNLOAD_TIMEOUT_S).packages
        except pypi_simple.NoSuchProjectError as error:
            raise RepositoryError(
                f"{wanted}: the package index has no project {project!r}; check the name"
            ) from error
        except (
            requests.RequestException,
            pypi_simple.UnsupportedContentTypeError,
            pypi_simple.UnsupportedRepoVersionError,
        ) as error:
            raise RepositoryError(
                f"{wanted}: the package index cannot be read and this file is not in the cache "
                f"({type(error).__name__}: {_without_credentials(str(error))}). "
                "pip's own settings (PIP_INDEX_URL, PIP_CERT, pip.conf) are honoured here."
            ) from error


def choose_releases(
    spec: RepositorySpec, packages: Sequence[pypi_simple.DistributionPackage]
) -> list[tuple[str, pypi_simple.DistributionPackage]]:
    """The source distributions that a spec asks for, in version order.

    Both ends of a range must exist. Between them, pre-releases and yanked releases are left out. Raises
    RepositoryError, which lists the newest releases.
    """
    found: dict[Version, pypi_simple.DistributionPackage] = {}
    for package in sorted(packages, key=_preference):
        if package.package_type == "sdist" and package.version and package.filename.endswith(SDIST_SUFFIXES):
            with contextlib.suppress(InvalidVersion):
                found[Version(package.version)] = package
    ends = [Version(end) for end in str(spec.rev).split("..")]
    for end in ends:
        if end not in found:
            known = ", ".join(str(version) for version in sorted(found)[-12:]) or "none at all"
            raise RepositoryError(
                f"{spec.text}: there is no source distribution of {spec.location} {end}; "
                f"the newest are: {known}"
            )
    low, high = ends[0], ends[-1]
    return [
        (str(version), found[version])
        for version in sorted(found)
        if low <= version <= high
        and (version in ends or not (version.is_prerelease or found[version].is_yanked))
    ]


def _preference(package: pypi_simple.DistributionPackage) -> int:
    suffixes = (i for i, suffix in enumerate(SDIST_SUFFIXES) if package.filename.endswith(suffix))
    return max(suffixes, default=-1)


def _download(session: Any, package: pypi_simple.DistributionPackage, most_bytes: int) -> bytes:
    expected = package.digests.get("sha256")
    if not expected:
        raise RepositoryError(
            f"{package.filename}: the index gives no sha256 for it, so it cannot be verified"
        )
    with session.get(package.url, stream=True, timeout=DOWNLOAD_TIMEOUT_S) as response:
        response.raise_for_status()
        data = read_bounded(response.iter_content(1 << 16), most_bytes, package.filename)
    actual = hashlib.sha256(data).hexdigest()
    if actual != expected:
        raise RepositoryError(
            f"{package.filename}: sha256 is {actual}, and the index promises {expected}; "
            "nothing of it was used"
        )
    return data


def _without_credentials(text: str) -> str:
    return re.sub(r"//[^/@\s]+@", "//***@", text)


# ---- pip's settings


def pip_settings(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """`index-url`, `cert` and `proxy` as pip reads them; those without a value are left out.

    pip reads its configuration files first (global, user, site, PIP_CONFIG_FILE), then PIP_* variables.
    environment: the variables, by default those of this process.
    """
    variables = os.environ if environment is None else environment
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
