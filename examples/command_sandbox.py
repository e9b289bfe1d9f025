"""Sandboxes that a command starts, here `docker run -i`; that of a cluster or cloud can take its place."""
# selfplay doctor --sandbox examples.command_sandbox:CommandBackend

import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

from selfplay.sandbox.base import Sandbox, SandboxSpec
from selfplay.sandbox.client import HELLO_S, ConnectedSandbox, Connection, PipeChannel
from selfplay.sandbox.docker_container import LOADER, server_source
from selfplay.sandbox.docker_sandbox import BASE_IMAGE, DockerBackend
from selfplay.sandbox.variables import command_variables

RUN = """docker run -i --rm --user=64400:64400 --network=none --read-only --cap-drop=ALL --hostname=sandbox
    --security-opt=no-new-privileges --shm-size=16m --entrypoint=/usr/bin/python3"""


class CommandBackend(DockerBackend):  # environments stay Docker's images
    @contextmanager
    def open(self, spec: SandboxSpec) -> Iterator[Sandbox]:
        most, memory = spec.limits, spec.limits.memory_bytes
        line = [*RUN.split(), f"--pids-limit={most.processes}", f"--ulimit=fsize={most.file_bytes}"]
        sizes = {"/testbed": most.workspace_bytes, "/submit": most.submit_bytes, "/tmp": most.tmp_bytes}
        line += [f"--memory={memory}", f"--memory-swap={memory}"]
        line += [f"--tmpfs={path}:exec,mode=1777,size={size}" for path, size in sizes.items()]
        line += [f"--tmpfs={path}:ro,size=4096" for path in spec.hidden if path.endswith("/")]
        line += [f"--volume=/dev/null:{path}:ro" for path in spec.hidden if not path.endswith("/")]
        line += [f"--env={name}={value}" for name, value in command_variables(spec).items()]
        line += [spec.environment or BASE_IMAGE, "-I", "-S", "-c", LOADER, str(len(server_source()))]
        line += [str(most.file_bytes), "0", "0", "/testbed"]
        with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin and process.stdout
            channel = PipeChannel(process.stdout.fileno(), process.stdin.fileno())
            channel.send(server_source(), time.monotonic() + HELLO_S)
            (connection := Connection(channel)).hello(time.monotonic() + HELLO_S)
            box = ConnectedSandbox(spec, connection, process.stdin.close, self.check, int)
            with closing(box):
                yield box
