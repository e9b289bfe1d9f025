"""Fetches one line of a repository list into the cache and returns its checkout. The only module that knows
every kind.

Invariant: nothing of a repository runs here. A container of an image is created and read, but never started.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

from selfplay.errors import PrerequisiteError, RepositoryError, full_disk_reported
from selfplay.repositories.archives import read_bounded, read_folder, tar_members, without_top
from selfplay.repositories.checkouts import Checkout
from selfplay.repositories.contents import MAX_TREE_BYTES, Contents
from selfplay.repositories.git import checkout_of, fetch_commit, gather_commit, made_commit
from selfplay.repositories.large_files import add_large_files
from selfplay.repositories.package_index import fetch_releases
from selfplay.repositories.specs import RepositorySpec
from selfplay.repositories.submodules import add_submodules
from selfplay.repositories.versions import UNKNOWN_VERSION, missing_version_files
from selfplay.source.import_roots import Project, project_folders
from selfplay.source.trees import FileEntry


def fetch(spec: RepositorySpec, cache: Path) -> Checkout:
    """Fetch a repository into `cache` and read its pinned tree. Needs no network for a pinned one in the
    cache.

    Raises RepositoryError, which names the repository, PrerequisiteError without git or a Docker engine, and
    DiskFullError.
    """
    try:
        with full_disk_reported(cache):
            return _with_version_files(_fetch_by_kind(spec, cache))
    except OSError as error:
        raise RepositoryError(f"{spec.text}: {error}") from error


def _fetch_by_kind(spec: RepositorySpec, cache: Path) -> Checkout:
    if spec.kind == "git":
        return _fetch_repository(spec, cache)
    if spec.kind == "pypi":
        return fetch_releases(spec, cache)
    if spec.kind == "docker":
        return made_commit(spec, cache, _contents_of_image(spec), "")
    folder = Path(spec.location)
    if not folder.is_dir():
        raise RepositoryError(f"{spec.text}: there is no folder {folder}")
    if (folder / ".git").exists() or ((folder / "HEAD").is_file() and (folder / "objects").is_dir()):
        return _fetch_repository(spec, cache)
    if spec.rev:
        raise RepositoryError(
            f"{spec.text}: {folder} is a plain folder, which has no revision {spec.rev!r}; "
            f"leave out @{spec.rev}"
        )
    return made_commit(spec, cache, read_folder(folder), "")


def _fetch_repository(spec: RepositorySpec, cache: Path) -> Checkout:
    """A git repository with its submodules, and its files in Git LFS, as far as they can be fetched."""
    own_config = spec.kind == "git" and not spec.location.startswith("file:")
    git_dir, commit = fetch_commit(spec, cache, spec.location, own_config)
    gathering = gather_commit(git_dir, commit)
    add_large_files(gathering, [spec.location], cache)
    add_submodules(gathering, spec, cache)
    return checkout_of(spec, git_dir, commit, gathering.contents())


def _with_version_files(checkout: Checkout) -> Checkout:
    """The checkout with the version files that a build of its projects would write into the package."""
    tree, made = checkout.tree, dict[str, FileEntry]()
    for folder in project_folders(tree):
        made |= missing_version_files(tree, Project(tree, folder), checkout.tag_version)
    if not made:
        return checkout
    version = checkout.tag_version or f"{UNKNOWN_VERSION}, since no tag names one"
    notes = [f"made {path}, which a build of the package writes (version {version})" for path in made]
    return replace(checkout, tree=tree.replace(made), notes=(*checkout.notes, *notes))


def _contents_of_image(spec: RepositorySpec) -> Contents:
    """Read a folder of a local Docker image, from a container that is created and never started."""
    import docker

    from selfplay.sandbox.docker_engine import new_client

    image, _, folder = spec.location.partition("#")
    try:
        client = new_client(120)
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
            data = read_bounded(chunks, MAX_TREE_BYTES * 2, f"{image}#{folder}")
        except docker.errors.NotFound as error:
            raise RepositoryError(f"{spec.text}: the image has no folder {folder}") from error
        finally:
            # An engine that is gone cannot remove it.
            with contextlib.suppress(docker.errors.APIError, OSError):
                container.remove(force=True, v=True)
    return without_top(tar_members(data), f"{image}#{folder}")
