"""Docker images of records: the repository is taken out of the image, and what its tests need stays in it.

Projects of the field keep the repository at different places, and some keep Python inside of it. A workspace
covers one folder and hides what the image has there. So a second image is made, once: `lay_out.py` moves the
repository's files out, keeps what lies beside them below BESIDE, and leaves no history. Invariant: what a
solver finds is the record's commit, not what the image holds; an image of another commit is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shlex
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from selfplay.errors import PrerequisiteError, RepositoryError
from selfplay.repositories.archives import read_bounded
from selfplay.runtime.resources import resource
from selfplay.sandbox.base import WORKSPACE
from selfplay.sandbox.variables import COMMAND_PATH
from selfplay.sandbox.workspace import BESIDE
from selfplay.source.trees import is_safe_path

if TYPE_CHECKING:
    import docker

HOME = "/opt/selfplay"  # what `lay_out.py` makes
REPOSITORY = "selfplay/record"  # of the images that are made here
MAX_REPORT_BYTES = 16 << 20
SHOWN = 3
# Where images keep the Python of a project's tests: SWE-bench's conda environment is called testbed.
CONDA = ("/opt/miniconda3/envs/testbed", "/opt/conda/envs/testbed")
VENVS = (f"{BESIDE}/.venv", f"{BESIDE}/venv", "/root/.venv", "/opt/venv", "/opt/.venv")
# The image's own python3 runs the script, else that of its environment. The command server of a sandbox needs
# one in a usual place.
LAY_OUT = """\
set -e
for python in python3 {environments} ''; do
    [ -n "$python" ] || {{ echo 'it needs bash and python3 in the image'; exit 1; }}
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 6))' 2>/dev/null && break
done
real=$("$python" -c 'import os, sys; print(os.path.realpath(sys.executable))')
PATH=/usr/local/bin:/usr/bin:/bin command -v python3 > /dev/null || ln -s "$real" /usr/local/bin/python3
"$real" -I {script} {commits} {folders}
"""


@dataclass(frozen=True)
class LaidOut:
    """An image without its repository.

    image    its tag
    source   the line of a repository list that names the files which were taken out
    beside   paths below BESIDE that belong into a workspace
    path     the image's own PATH
    notes    for people: how the image's files differ from the commit's
    """

    image: str
    source: str
    beside: tuple[str, ...] = ()
    path: str = ""
    notes: tuple[str, ...] = ()


def lay_out(image: str, commits: Sequence[str], folder: str) -> LaidOut:
    """The image without its repository; made once.

    commits: the record's, then others whose files are the same. folder: where the record's project keeps the
    repository; the image's WORKDIR is the second choice.

    Raises RepositoryError, which names the image, if it has no repository or another commit, and
    PrerequisiteError without a Docker engine.
    """
    with _client() as client:
        found = client.images.get(image)
        config = found.attrs.get("Config") or {}
        workdir = str(config.get("WorkingDir") or "")
        folders = list(dict.fromkeys(path for path in (folder, workdir) if path.strip("/")))
        script = (resource("data/images") / "lay_out.py").read_text(encoding="utf-8")
        identity = json.dumps([found.id, folders, list(commits), script, LAY_OUT])
        key = hashlib.sha256(identity.encode()).hexdigest()[:32]
        whole, clean = f"{REPOSITORY}:{key}-files", f"{REPOSITORY}:{key}"
        if not _has(client, whole):
            _build(client, whole, _first_step(image, folders, commits), {"lay_out.py": script})
        report = _report(client, whole)
        if problem := report.get("problem"):
            raise RepositoryError(f"the image {image} has {problem}")
        if not _has(client, clean):
            gone = " ".join(f"{HOME}/{name}" for name in ("tree", "report.json", "lay_out.py"))
            _build(client, clean, f"FROM {whole}\nUSER root\nRUN rm -rf {gone}\n", {})
    notes = _notes(image, report, commits)
    variables = dict(text.partition("=")[::2] for text in config.get("Env") or [])
    path = _moved_path(variables.get("PATH", ""), str(report["folder"]))
    return LaidOut(clean, f"docker:{whole}#{HOME}/tree", tuple(report["beside"]), path, notes)


def _notes(image: str, report: Mapping[str, Any], commits: Sequence[str]) -> tuple[str, ...]:
    """How the files differ from the record's commit. Raises RepositoryError if they are of another one."""
    if not report.get("commit"):
        if not report.get("has_git"):
            return (f"the image {image} has no git repository, so its files are compared with no commit",)
        raise RepositoryError(f"the repository in the image {image} has no commit {commits[0]}")
    changed = list(map(str, report["changed"]))
    if not changed:
        return ()
    more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
    names = ", ".join(changed[:SHOWN])
    return (f"{names}{more} differ in the image {image}: the files of the commit are used",)


def _moved_path(path: str, folder: str) -> str:
    """The image's PATH: what lay in the repository's folder lies beside it now."""
    parts = []
    for part in path.split(":"):
        inside = part == folder or part.startswith(f"{folder}/")
        parts.append(f"{BESIDE}{part.removeprefix(folder)}" if inside else part)
    return ":".join(part for part in parts if part.startswith("/"))


def activation(found: Sequence[str], path: str) -> dict[str, str]:
    """Variables that activate the first of the environments `found`, before the image's own `path`."""
    rest = ":".join(dict.fromkeys([*filter(None, path.split(":")), *COMMAND_PATH.split(":")]))
    if not found:
        return {"PATH": rest}
    first = found[0]
    if first in CONDA:
        return {"CONDA_PREFIX": first, "CONDA_DEFAULT_ENV": "testbed", "PATH": f"{first}/bin:{rest}"}
    shown = first.replace(BESIDE, WORKSPACE, 1)
    return {"VIRTUAL_ENV": shown, "PATH": f"{first}/bin:{rest}"}


# ---- the engine


@contextmanager
def _client() -> Iterator[docker.DockerClient]:
    """Raises PrerequisiteError without an engine, and RepositoryError with what the engine says."""
    import docker

    from selfplay.sandbox.docker_engine import new_client

    try:
        with contextlib.closing(new_client(600)) as client:
            yield client
    except docker.errors.BuildError as error:
        said = "".join(str(line.get("stream", "")) for line in error.build_log).strip()[-300:]
        raise RepositoryError(f"the repository cannot be taken out of its image: {error}: {said}") from error
    except docker.errors.APIError as error:
        raise RepositoryError(f"the Docker engine says: {error.explanation or error}") from error
    except docker.errors.DockerException as error:
        raise PrerequisiteError(f"no Docker engine answers ({error})") from error


def pull_image(image: str, say: Any) -> None:
    """Pull an image that the engine does not have. Raises RepositoryError and PrerequisiteError."""
    with _client() as client:
        if not _has(client, image):
            say(f"pulling {image}")
            client.images.pull(image)


def _has(client: docker.DockerClient, image: str) -> bool:
    import docker

    try:
        client.images.get(image)
    except docker.errors.ImageNotFound:
        return False
    return True


def _first_step(image: str, folders: Sequence[str], commits: Sequence[str]) -> str:
    environments = [f"{folder}/{name}/bin/python" for folder in folders for name in (".venv", "venv")]
    command = LAY_OUT.format(
        environments=shlex.join([*(f"{folder}/bin/python" for folder in CONDA), *environments]),
        script=f"{HOME}/lay_out.py",
        commits=shlex.quote(",".join(commits)),
        folders=shlex.join(folders),
    )
    run = json.dumps(["/bin/sh", "-c", command])
    return f"FROM {image}\nUSER root\nWORKDIR /\nCOPY lay_out.py {HOME}/lay_out.py\nRUN {run}\n"


def _build(client: docker.DockerClient, tag: str, dockerfile: str, files: Mapping[str, str]) -> None:
    """Build an image without network."""
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as tar:
        for name, text in {"Dockerfile": dockerfile, **files}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            tar.addfile(entry, io.BytesIO(text.encode()))
    context.seek(0)
    client.images.build(
        fileobj=context, custom_context=True, tag=tag, rm=True, forcerm=True, network_mode="none"
    )


def _report(client: docker.DockerClient, tag: str) -> Mapping[str, Any]:
    """What `lay_out.py` found. An image may write anything, so it is read strictly."""
    container = client.containers.create(tag, command=["true"], network_disabled=True)
    try:
        chunks, _ = container.get_archive(f"{HOME}/report.json")
        data = read_bounded(chunks, MAX_REPORT_BYTES, f"{tag}#{HOME}/report.json")
    finally:
        container.remove(force=True, v=True)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        file = tar.extractfile("report.json")
        found = json.loads(file.read()) if file else {}
    if not isinstance(found, dict) or (not found.get("problem") and not _is_whole(found)):
        raise RepositoryError(f"{tag}: its report cannot be read")
    return found


def _is_whole(report: Mapping[str, Any]) -> bool:
    lists = [report.get(name) for name in ("beside", "changed")]
    return isinstance(report.get("folder"), str) and all(
        isinstance(paths, list) and all(isinstance(path, str) and is_safe_path(path) for path in paths)
        for paths in lists
    )
