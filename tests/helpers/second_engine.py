"""A second Docker engine that listens on 127.0.0.1 with TLS and sees no temporary files of this machine."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from machine import eventually

PROGRAMS = (
    "bash sh dash env python3 python3.11 cat ls id touch mkdir rm sleep "
    "tail cut stat head wc ln chmod find sort tr readlink mkfifo dd true"
)
# What the command server and a few commands need of the base image: the whole would take a minute to copy.
SLIM = f"""cd / && {{
for p in {PROGRAMS}; do echo usr/bin/$p; done
needed=$(ldd $(printf '/usr/bin/%s ' {PROGRAMS}) usr/lib/python3.11/lib-dynload/_ctypes.*.so)
for l in $(echo "$needed" | grep -o '/lib[^ ]*' | sort -u); do
    echo usr$l; realpath $l | cut -c2-
done
printf '%s\\n' bin lib lib64 sbin etc/passwd etc/group
ls -d usr/lib/python3.11/{{*.py,encodings,collections,importlib,ctypes,json,re,lib-dynload}}
}} | sort -u | tar -c --exclude=__pycache__ -T -"""


@dataclass(frozen=True)
class SecondEngine:
    """address: its DOCKER_HOST. certificates: the folder of the client's. local: its local socket."""

    address: str
    certificates: Path
    local: str
    process: subprocess.Popen[bytes]

    def variables(self) -> dict[str, str]:
        return {
            "DOCKER_HOST": self.address,
            "DOCKER_TLS_VERIFY": "1",
            "DOCKER_CERT_PATH": str(self.certificates),
        }


@contextmanager
def second_engine(image: str) -> Iterator[SecondEngine]:
    """Start one with a part of `image` from the first engine. Skips the test where that cannot be done."""
    for program in ("dockerd", "openssl", "unshare", "ip"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not on PATH")
    if os.geteuid() != 0:
        pytest.skip("a second dockerd needs root")
    # Beside /tmp, which the second engine does not see: it has an empty one.
    with (
        own_bridge() as bridge,
        tempfile.TemporaryDirectory(prefix="selfplay-engine-", dir="/var/tmp") as name,
    ):
        folder = Path(name)
        make_certificates(folder)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        address, local = f"tcp://127.0.0.1:{port}", f"unix://{folder}/engine.sock"
        command = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none /tmp && exec "$@"', "sh", "dockerd"]
        command += [f"--data-root={folder}/data", f"--exec-root={folder}/exec", f"--pidfile={folder}/pid"]
        command += [
            f"--bridge={bridge}",
            "--iptables=false",
            "--ip6tables=false",
            "-H",
            address,
            "-H",
            local,
            "--tlsverify",
        ]
        command += [f"--tlscacert={folder}/ca.pem", f"--tlscert={folder}/server.pem"]
        command += [f"--tlskey={folder}/server.key"]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            if not eventually(lambda: process.poll() is not None or answers(local), 60):
                pytest.skip("a second dockerd does not answer within 60 s")
            if process.poll() is not None:
                pytest.skip(f"a second dockerd cannot run here: {(folder / 'log').read_text()[-500:]}")
            copy_image(image, local)
            yield SecondEngine(address, folder / "client", local, process)
        finally:
            process.terminate()
            process.wait()
            for mount in reversed(Path("/proc/mounts").read_text().splitlines()):
                if f" {folder}/" in mount:
                    subprocess.run(["umount", "-l", mount.split()[1]], check=False)


@contextmanager
def own_bridge() -> Iterator[str]:
    """A network bridge for the second engine. Without one it would remove docker0, the first engine's."""
    bridge = f"sp{os.getpid() % 10**8}"
    made = subprocess.run(["ip", "link", "add", bridge, "type", "bridge"], capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"no network bridge can be made here: {made.stderr.decode()}")
    try:
        subprocess.run(["ip", "addr", "add", "192.168.213.1/28", "dev", bridge], check=True)
        yield bridge
    finally:
        subprocess.run(["ip", "link", "del", bridge], check=False)


def answers(local: str) -> bool:
    return (
        subprocess.run(["docker", "-H", local, "version"], capture_output=True, check=False).returncode == 0
    )


def copy_image(image: str, local: str) -> None:
    ask = ["docker", "run", "--rm", "--network=none", "--entrypoint=/bin/bash", image, "-c", SLIM]
    with subprocess.Popen(ask, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as tar:
        subprocess.run(
            ["docker", "-H", local, "import", "-", image], stdin=tar.stdout, capture_output=True, check=True
        )


def make_certificates(folder: Path) -> None:
    """An authority, a server's certificate for 127.0.0.1, and a client's in `client`."""
    (folder / "client").mkdir()

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new_key = ("-newkey", "rsa:2048", "-nodes", "-days", "2")
    openssl("req", "-x509", *new_key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=tests")
    for name, out, use in (
        ("server", "server.pem", "subjectAltName=IP:127.0.0.1"),
        ("client", "client/cert.pem", "extendedKeyUsage=clientAuth"),
    ):
        key = "server.key" if name == "server" else "client/key.pem"
        openssl("req", *new_key[:3], "-keyout", key, "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (folder / f"{name}.ext").write_text(f"{use}\n")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2")
        openssl("x509", "-req", "-in", f"{name}.csr", *signed, "-extfile", f"{name}.ext", "-out", out)
    shutil.copy(folder / "ca.pem", folder / "client" / "ca.pem")
