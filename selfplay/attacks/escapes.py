"""Attacks on the walls of a sandbox: row 12.

They aim at files of our own folder, and at sockets and processes of ours.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time

from selfplay.attacks.base import Attack, Broken, Held, Outcome
from selfplay.attacks.ground import Ground
from selfplay.attacks.probes import METADATA_SERVICE, listening, own_addresses, python

CALL = """
import json, socket, sys
for host, port in json.loads(sys.argv[1]):
    try:
        socket.create_connection((host, port), 2).close()
        print("reached", host, port)
    except OSError:
        pass
"""


def call_the_network(ground: Ground) -> Outcome:
    with listening(socket.AF_INET, ("0.0.0.0", 0)) as (listener, callers), ground.box() as box:
        port = listener.getsockname()[1]
        said = box.run(
            python(CALL, json.dumps([*((host, port) for host in own_addresses()), METADATA_SERVICE])),
            timeout_s=30,
        ).text
    return Broken(f"{said.strip()} {callers}") if callers or "reached" in said else Held("no address answers")


def call_an_abstract_socket(ground: Ground) -> Outcome:
    """Call a socket that has no file. Only a network namespace keeps it out of reach."""
    name = f"selfplay-attack-{secrets.token_hex(8)}"
    code = "import socket, sys; socket.socket(socket.AF_UNIX).connect(chr(0) + sys.argv[1]); print('reached')"
    with listening(socket.AF_UNIX, f"\0{name}") as (_, callers), ground.box() as box:
        said = box.run(python(code, name)).text
    return Broken("a socket of this machine answered") if callers or "reached" in said else Held()


def find_an_engine(ground: Ground) -> Outcome:
    places = [
        "/var/run/docker.sock",
        "/run/docker.sock",
        "/run/containerd/containerd.sock",
        "/run/podman/podman.sock",
        "/run/user",
    ]
    with ground.box() as box:
        found = box.run(
            "ls -d " + " ".join(places) + " 2>/dev/null; find / -xdev -type s 2>/dev/null"
        ).text.split()
    return Broken(f"sockets: {found}") if found else Held("no socket")


def read_a_file_of_the_host(ground: Ground) -> Outcome:
    secret = f"host-secret-{secrets.token_hex(8)}"
    canary = ground.canary("secret.txt")
    canary.write_text(secret)
    canary.chmod(0o644)
    roots = [
        "",
        "/proc/1/root",
        "/proc/self/root",
        "/proc/1/cwd",
        "/..",
        "/mnt",
        "/host",
        "/proc/self/cwd/..",
    ]
    with ground.box() as box:
        said = box.run(
            "; ".join(f"cat {root}{canary} 2>/dev/null" for root in roots)
            + "; cat /proc/[0-9]*/environ; true"
        ).text
        said += box.run(f"grep -rl --include='secret.txt' {secret} / 2>/dev/null; true", timeout_s=60).text
    return Broken(f"{canary} was read") if secret in said or "secret.txt" in said else Held()


def see_a_process_of_the_host(ground: Ground) -> Outcome:
    mark = f"selfplay_attack_{secrets.token_hex(8)}"
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", mark])
    try:
        with ground.box() as box:
            seen = box.run(
                "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' "
                f"| grep -c '[s]elfplay_attack_{mark[16:]}'"
            ).text.strip()
            box.run(f"kill -9 {victim.pid}; kill -9 -{victim.pid}; true")
        time.sleep(0.05)
        if victim.poll() is not None:
            return Broken("a process of this machine was killed")
        return (
            Broken("a process of this machine is visible")
            if seen != "0"
            else Held("neither visible nor killed")
        )
    finally:
        victim.kill()
        victim.wait()


def read_the_harness_variables(ground: Ground) -> Outcome:
    secret = f"token-{secrets.token_hex(8)}"
    os.environ["SELFPLAY_ATTACK_TOKEN"] = secret
    try:
        with ground.box() as box:
            said = box.run("env; cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n'; true").text
    finally:
        del os.environ["SELFPLAY_ATTACK_TOKEN"]
    return Broken("a variable of the harness is visible inside") if secret in said else Held()


def reach_another_sandbox(ground: Ground) -> Outcome:
    secret = f"neighbour-{secrets.token_hex(8)}"
    keep = f"for f in /testbed /tmp /submit /dev/shm; do echo {secret} > $f/{secret}; done; sleep 600 & true"
    with ground.box() as victim, ground.box() as box:
        victim.run(keep)
        said = box.run(
            "cat /testbed/* /tmp/* /submit/* /dev/shm/* 2>/dev/null; "
            "cat /proc/[0-9]*/cmdline | tr '\\0' ' '; kill -9 -1"
        ).text
        alive = victim.run(
            "jobs=0; for p in /proc/[0-9]*/comm; do "
            'read -r c <$p; [ "$c" = sleep ] && jobs=1; done 2>/dev/null; echo $jobs'
        ).text.strip()
    if secret in said:
        return Broken("files of another sandbox were read")
    return Broken("a process of another sandbox was killed") if alive != "1" else Held()


def write_outside(ground: Ground) -> Outcome:
    find = (
        "find / -xdev \\( -path /proc -o -path /dev \\) -prune -o ! -type l -writable -print 2>/dev/null "
        "| head -20; true"
    )
    tries = " ".join(
        f"{folder}/x"
        for folder in ("", "/usr", "/etc", "/opt", "/opt/env", "/var", "/dev", "/usr/local/bin", "/left-open")
    )
    with ground.box() as box:
        found = [
            path
            for path in box.run(find, timeout_s=60).text.split()
            if not path.startswith(("/testbed", "/submit", "/tmp"))
        ]
        made = box.run(f"for f in {tries}; do (echo x > $f) 2>/dev/null && echo $f; done; true").text.split()
    return Broken(f"writable: {(found + made)[:5]}") if found or made else Held()


PRIVILEGES = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
for name in ("CapEff", "CapPrm", "CapInh", "CapAmb", "CapBnd"):
    if int(status[name], 16):
        print("capabilities", name, status[name].strip())
if status["NoNewPrivs"].strip() != "1":
    print("new privileges can be had")
if "0" in (status["Uid"] + status["Gid"] + status["Groups"]).split():
    print("root", status["Uid"].strip(), status["Gid"].strip())
if libc.mount(b"none", b"/tmp", b"tmpfs", 0, None) == 0:
    print("mounted")
"""
KERNEL = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
key = {"x86_64": 248, "aarch64": 217}.get(os.uname().machine, 0)
if key and libc.syscall(key, b"user", b"selfplay", b"x", 1, -4) > 0:
    print("kernel keys")
if os.fork() == 0:
    if libc.unshare(0x10000000) == 0:
        print("a user namespace", flush=True)
    os._exit(0)
os.wait()
"""


def gain_privileges(ground: Ground) -> Outcome:
    with ground.box() as box:
        said = box.run(python(PRIVILEGES)).text.strip()
    return Broken(said) if said else Held("no capability, not root")


def use_the_kernels_side_doors(ground: Ground) -> Outcome:
    with ground.box() as box:
        said = box.run(python(KERNEL)).text.strip()
    return Broken(f"could make {said}") if said else Held("refused")


def touch_the_server(ground: Ground) -> Outcome:
    """Attack process 1, which reports results. A process that can write to its pipes can write results."""
    with ground.box() as box:
        said = box.run(
            "for s in HUP INT QUIT KILL TERM STOP SEGV; do kill -$s 1 2>/dev/null; done; "
            "for f in /proc/1/fd/200 /proc/1/fd/201 /proc/1/mem /proc/1/environ; do "
            "(: < $f) 2>/dev/null && echo opened $f; done; "
            "ls -l /proc/self/fd | grep -c 'fd/20[0-3]'"
        ).text
        alive = box.run("echo alive").text
    if "opened" in said:
        return Broken(f"process 1 can be {said.splitlines()[0]}")
    return Held() if alive == "alive\n" else Broken("process 1 does not answer any more")


ATTACKS = (
    Attack("network", 12, "call this machine, its network and the metadata service", call_the_network),
    Attack("abstract-socket", 12, "call a socket of this machine that has no file", call_an_abstract_socket),
    Attack("engine-socket", 12, "find the socket of a container engine", find_an_engine),
    Attack("host-files", 12, "read a file of this machine", read_a_file_of_the_host),
    Attack("host-processes", 12, "see or kill a process of this machine", see_a_process_of_the_host),
    Attack("host-variables", 12, "read the harness's environment variables", read_the_harness_variables),
    Attack("other-sandbox", 12, "read or kill another sandbox", reach_another_sandbox),
    Attack("write-outside", 12, "write outside the three folders", write_outside),
    Attack("privileges", 12, "become root, gain a capability, mount", gain_privileges),
    Attack("kernel-doors", 12, "make a user namespace or a kernel key", use_the_kernels_side_doors),
    Attack("server", 12, "signal, trace or write to the sandbox's own process 1", touch_the_server),
)
