"""One line of a repository list -> its checkout, by kind. The only place that knows every kind."""

from __future__ import annotations

import contextlib
from pathlib import Path

from selfplay.errors import (
    PrerequisiteError,
    RepositoryError,
    full_disk_told,
)
from selfplay.repositories.archives import MAX_TREE_BYTES, read_bounded, strip_top, tree_of_folder
from selfplay.repositories.checkouts import Checkout
from selfplay.repositories.git import fetch_git, made_commit
from selfplay.repositories.package_index import fetch_releases
from selfplay.repositories.specs import RepositorySpec
from selfplay.source.trees import Tree

# ---- fetching


def fetch(spec: RepositorySpec, cache: Path) -> Checkout:
    """Bring a repository into `cache` and read its pinned tree. What is pinned and cached needs no network.

    Raises RepositoryError naming the repository, PrerequisiteError when git or an engine is missing, DiskFullError.
    """
    try:
        with full_disk_told(cache):
            return fetch_anew(spec, cache)
    except OSError as error:
        raise RepositoryError(f"{spec.text}: {error}") from error


def fetch_anew(spec: RepositorySpec, cache: Path) -> Checkout:
    if spec.kind == "git":
        return fetch_git(spec, cache, spec.location)
    if spec.kind == "pypi":
        return fetch_releases(spec, cache)
    if spec.kind == "docker":
        return made_commit(spec, cache, _tree_of_image(spec), "")
    folder = Path(spec.location)
    if not folder.is_dir():
        raise RepositoryError(f"{spec.text}: there is no folder {folder}")
    if (folder / ".git").exists() or ((folder / "HEAD").is_file() and (folder / "objects").is_dir()):
        return fetch_git(spec, cache, spec.location)
    if spec.rev:
        raise RepositoryError(
            f"{spec.text}: {folder} is a plain folder, which has no revision {spec.rev!r}; leave out @{spec.rev}"
        )
    return made_commit(spec, cache, tree_of_folder(folder), "")


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
            data = read_bounded(chunks, MAX_TREE_BYTES * 2, f"{image}#{folder}")
        except docker.errors.NotFound as error:
            raise RepositoryError(f"{spec.text}: the image has no folder {folder}") from error
        finally:
            with contextlib.suppress(
                docker.errors.APIError, OSError
            ):  # an engine that is gone removes nothing
                container.remove(force=True, v=True)
    return strip_top(Tree.from_tar(data))
