"""An image for each Python other than the base image's: the base image with an interpreter of this machine.

The files travel to the engine in the context of a build, so that an engine elsewhere can have them too. Only
the interpreter and its standard library are copied, no installed packages.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import docker
from docker.errors import BuildError, ImageNotFound

from selfplay.errors import MissingPythonError
from selfplay.sandbox.docker_engine import ENGINE_ERRORS, engine_fault
from selfplay.sandbox.interpreters import Interpreter

REPOSITORY = "selfplay/python"
LEFT_OUT = frozenset({"site-packages", "dist-packages", "__pycache__"})
# Modules that tests and pip cannot do without; each needs libraries that the base image may lack.
CHECK = "import bz2, ctypes, ensurepip, hashlib, lzma, sqlite3, ssl, venv, zlib"
RECIPE = """FROM {base}
USER root
COPY python {place}
RUN echo {place}/lib > /etc/ld.so.conf.d/selfplay-python.conf \\
    && PATH=$PATH:/usr/sbin:/sbin ldconfig && {program} -I -c '{check}'
"""


def python_image(client: docker.DockerClient, base: str, interpreter: Interpreter) -> str:
    """The image with this interpreter, made unless the engine has it.

    Raises MissingPythonError if the interpreter does not run in it; SandboxUnavailable if the engine fails.
    """
    try:
        identity = json.dumps([client.images.get(base).id, interpreter.to_text(), RECIPE, CHECK])
        key = hashlib.sha256(identity.encode()).hexdigest()[:16]
        image = f"{REPOSITORY}:{interpreter.version}-{key}"
        try:
            client.images.get(image)
        except ImageNotFound:
            _make(client, image, base, interpreter)
    except BuildError as error:
        said = "".join(str(line.get("stream", "")) for line in error.build_log).strip()[-300:]
        raise MissingPythonError(
            f"the Python {interpreter.version} at {interpreter.prefix} does not run in the image {base}: "
            f"{said or error}. One that uv manages brings its libraries along: "
            f"pip install uv && uv python install {interpreter.version}"
        ) from error
    except ENGINE_ERRORS as error:
        raise engine_fault(f"cannot make an image with Python {interpreter.version}", error) from error
    return image


def _make(client: docker.DockerClient, image: str, base: str, interpreter: Interpreter) -> None:
    recipe = RECIPE.format(base=base, place=interpreter.place, program=interpreter.program, check=CHECK)
    with tempfile.TemporaryFile() as context:
        _write_context(context, recipe.encode(), interpreter)
        context.seek(0)
        client.images.build(
            fileobj=context, custom_context=True, tag=image, rm=True, forcerm=True, network_mode="none"
        )


def _write_context(out: IO[bytes], recipe: bytes, interpreter: Interpreter) -> None:
    """A tar of the recipe and of the interpreter's files, which belong to root."""
    with tarfile.open(fileobj=out, mode="w") as tar:
        entry = tarfile.TarInfo("Dockerfile")
        entry.size = len(recipe)
        tar.addfile(entry, io.BytesIO(recipe))
        for path, name in _files(Path(interpreter.prefix), interpreter.version):
            tar.add(path, f"python/{name}", recursive=False, filter=_of_root)


def _files(prefix: Path, version: str) -> Iterator[tuple[Path, str]]:
    """The interpreter's own files, as (path, path below the prefix): a prefix such as /usr holds others."""
    program = prefix / "bin" / f"python{version}"
    yield program.resolve(), f"bin/python{version}"
    for pattern in ("lib/libpython3*.so*", f"lib/*/libpython{version}*.so*"):
        for path in sorted(prefix.glob(pattern)):
            yield path, f"lib/{path.name}"
    for library in ("lib", "lib64"):
        folder = prefix / library / f"python{version}"
        if not folder.is_dir() or (prefix / library).is_symlink():
            continue
        for path in sorted(folder.rglob("*")):
            inner = path.relative_to(folder)
            if LEFT_OUT.isdisjoint(inner.parts) and path.suffix not in (".a", ".pyc") and not path.is_dir():
                yield path, f"{library}/python{version}/{inner}"


def _of_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mode |= 0o444 | (0o111 if entry.mode & 0o100 else 0)
    return entry
