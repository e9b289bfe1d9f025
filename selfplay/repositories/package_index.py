"""Source distributions of a package index: which releases there are, and their downloads."""

from __future__ import annotations

import configparser
import contextlib
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.version import InvalidVersion, Version

from selfplay.errors import (
    RepositoryError,
)
from selfplay.source.trees import Tree

if TYPE_CHECKING:
    import pypi_simple
from selfplay.repositories.archives import MAX_ARCHIVE_BYTES, read_archive, read_bounded
from selfplay.repositories.checkouts import Checkout, new_folder
from selfplay.repositories.git import commit_trees, init_bare, read_commit, run_git, short_hash
from selfplay.repositories.licences import licence_of
from selfplay.repositories.specs import RepositorySpec

DOWNLOAD_TIMEOUT_S = 60.0


# ---- releases from a package index


def fetch_releases(spec: RepositorySpec, cache: Path) -> Checkout:
    git_dir = cache / "releases" / f"{spec.name}-{short_hash(f'{spec.location}=={spec.rev}')}"
    if not (git_dir / "HEAD").is_file():
        with new_folder(git_dir) as folder:
            releases = _download_releases(spec)
            init_bare(folder)
            commit_trees(folder, [(f"{spec.location} {version}", tree) for version, tree in releases])
    commit = run_git(git_dir, "rev-parse", "--verify", "refs/heads/main").decode().strip()
    tree = read_commit(git_dir, commit)
    count = int(run_git(git_dir, "rev-list", "--count", commit))
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
        data = read_bounded(response.iter_content(1 << 16), MAX_ARCHIVE_BYTES, package.filename)
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
