"""Attacks on the sandbox itself: rows 11, 12 and 17. What they reach for lies in our own folder, or is a socket or a process of ours.

Invariant: each bomb is bounded by itself, so that the machine survives a limit that does not hold.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from selfplay.attacks.base import Attack, Broken, Held, Outcome
from selfplay.attacks.ground import CODE, TESTS, WRONG, Ground
from selfplay.errors import SandboxError, SandboxLost, SandboxUnavailable
from selfplay.sandbox.base import Sandbox
from selfplay.sandbox.conformance import SMALL

METADATA_SERVICE = ("169.254.169.254", 80)
BOMB = 512 << 20  # bytes: more than any limit used here, less than a machine has
ENDED = "the sandbox was ended, and the command is at fault"  # by the watchdog, where no control group can be made
PASS_ALL = "import pytest\n\n\n@pytest.mark.parametrize(('value', 'expected'), [(5, 5), (-1, 0), (11, 10)])\n"


def python(code: str, *arguments: str) -> str:
    return f"python3 -c {shlex.quote(code)} {shlex.join(arguments)}"


# ---- walls (row 12)


@contextmanager
def listening(
    family: socket.AddressFamily, address: str | tuple[str, int]
) -> Iterator[tuple[socket.socket, list[str]]]:
    """A socket of ours that notes whoever connects."""
    callers: list[str] = []
    with socket.socket(family) as listener:
        listener.bind(address)
        listener.listen()

        def answer() -> None:
            with suppress(OSError):
                while True:
                    caller, where = listener.accept()
                    callers.append(str(where))
                    caller.close()

        threading.Thread(target=answer, daemon=True).start()
        yield listener, callers
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)


def own_addresses() -> list[str]:
    """Where this machine could be called from inside: loopback, its own address, the usual bridge of an engine."""
    found = ["127.0.0.1", "172.17.0.1"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as chooser, suppress(OSError):
        chooser.connect(("192.0.2.1", 9))  # sends nothing
        found.append(chooser.getsockname()[0])
    return found


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
    """Such a socket has no file: only a network namespace keeps it out of reach."""
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
                f"cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c '[s]elfplay_attack_{mark[16:]}'"
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
            "cat /testbed/* /tmp/* /submit/* /dev/shm/* 2>/dev/null; cat /proc/[0-9]*/cmdline | tr '\\0' ' '; kill -9 -1"
        ).text
        alive = victim.run(
            "jobs=0; for p in /proc/[0-9]*/comm; do read -r c <$p; [ $c = sleep ] && jobs=1; done; echo $jobs"
        ).text.strip()
    if secret in said:
        return Broken("files of another sandbox were read")
    return Broken("a process of another sandbox was killed") if alive != "1" else Held()


def write_outside(ground: Ground) -> Outcome:
    find = "find / -xdev \\( -path /proc -o -path /dev \\) -prune -o ! -type l -writable -print 2>/dev/null | head -20; true"
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
    """Process 1 speaks for the sandbox: who writes to its pipes writes results."""
    with ground.box() as box:
        said = box.run(
            "for s in HUP INT QUIT KILL TERM STOP SEGV; do kill -$s 1 2>/dev/null; done; "
            "for f in /proc/1/fd/200 /proc/1/fd/201 /proc/1/mem /proc/1/environ; do (: < $f) 2>/dev/null && echo opened $f; done; "
            "ls -l /proc/self/fd | grep -c 'fd/20[0-3]'"
        ).text
        alive = box.run("echo alive").text
    if "opened" in said:
        return Broken(f"process 1 can be {said.splitlines()[0]}")
    return Held() if alive == "alive\n" else Broken("process 1 does not answer any more")


# ---- bombs (row 11)

FORK = """
import os, sys, time
made = 0
for _ in range(int(sys.argv[1])):
    try:
        if os.fork() == 0:
            time.sleep(30)
            os._exit(0)
        made += 1
    except OSError:
        break
print(made, flush=True)
"""


def fork_bomb(ground: Ground) -> Outcome:
    with ground.box() as box:
        try:
            said = box.run(python(FORK, str(3 * SMALL.processes)), timeout_s=30).text.split()
            made = int(said[-1]) if said and said[-1].isdigit() else 0
            box.run("sleep 30", timeout_s=0.2)  # its timeout ends all of them
            alive = box.run("echo alive").text
        except SandboxLost:
            return Held(ENDED)
    if made >= SMALL.processes:
        return Broken(f"{made} processes at once, and {SMALL.processes} are allowed")
    return Held(f"{made} processes") if alive == "alive\n" else Broken("the sandbox does not answer any more")


def memory_bomb(ground: Ground) -> Outcome:
    code = f"b = [b'x' * (1 << 20) for _ in range({BOMB >> 20})]"
    with ground.box() as box:
        try:
            result = box.run(python(code), timeout_s=60)
        except SandboxLost:
            return Held(ENDED)
    return (
        Broken(f"{BOMB >> 20} MiB with a limit of {SMALL.memory_bytes >> 20}")
        if result.exit_code == 0
        else Held("ended")
    )


def disk_bomb(ground: Ground) -> Outcome:
    over = []
    with ground.box() as box:
        for folder, most in (
            ("/testbed", SMALL.workspace_bytes),
            ("/submit", SMALL.submit_bytes),
            ("/tmp", SMALL.tmp_bytes),
        ):
            box.run(
                f"for i in $(seq 12); do head -c 4m /dev/zero > {folder}/fill$i || break; done 2>/dev/null",
                timeout_s=60,
            )
            used = int(box.run(f"cat {folder}/fill* 2>/dev/null | wc -c").text.split()[-1])
            box.run(f"rm -f {folder}/fill*")
            over += [f"{used} bytes in {folder}"] if used > most else []
    return Broken("; ".join(over)) if over else Held("full at their limits")


def one_huge_file(ground: Ground) -> Outcome:
    with ground.box() as box:
        size = int(
            box.run(
                f"head -c {SMALL.file_bytes + (4 << 20)} /dev/zero > big 2>/dev/null; stat -c %s big; rm -f big"
            ).text.split()[-1]
        )
    return Broken(f"a file of {size} bytes") if size > SMALL.file_bytes else Held()


def endless_output(ground: Ground) -> Outcome:
    with ground.box() as box:
        result = box.run(f"head -c {64 * SMALL.output_bytes} /dev/zero", timeout_s=30)
    most = SMALL.output_bytes
    return (
        Broken(f"{len(result.output)} bytes came for a cap of {most}")
        if len(result.output) > most
        else Held("cut")
    )


BEAT = "(setsid bash -c 'while :; do echo x >> /testbed/beat; sleep 0.02; done' &) ; (trap '' TERM HUP INT; sleep 300) & sleep 300"


def outlive_a_timeout(ground: Ground) -> Outcome:
    with ground.box() as box:
        box.run(BEAT, timeout_s=1)
        before, _, after = box.run("wc -l < beat; sleep 0.3; wc -l < beat").text.partition("\n")
    return (
        Broken("a process went on after its timeout")
        if before.strip() != after.strip()
        else Held("all were ended")
    )


def write_while_graded(ground: Ground) -> Outcome:
    """A process that the solver leaves behind overwrites the tests while its attempt is graded."""
    easy = f"{PASS_ALL}def test_clamp(value, expected):\n    pass\n\n\ndef test_middle():\n    pass\n\n\ndef test_spread():\n    pass\n"
    with ground.solver() as box:
        box.run(f"printf %s {shlex.quote(easy)} > /tmp/easy.py")
        box.run(
            f"(while :; do cp /tmp/easy.py /testbed/{TESTS} 2>/dev/null; sleep 0.005; done) >/dev/null 2>&1 &"
        )
        found = grade_beside(ground, box)
    return (
        Broken("tests that a left process rewrote were graded")
        if found
        else Held("grading has its own sandbox")
    )


def grade_beside(ground: Ground, box: Sandbox) -> bool:
    """Whether a change without meaning passes while `box` is still open."""
    return ground.grade({CODE: (WRONG, WRONG + "        # nothing\n")}, ground.fresh_runner()).passed


# ---- one's own sandbox (row 17)


# Memory that no process holds: what is killed for it frees none, until process 1 is killed too.
HOARD = f"""
import ctypes
libc = ctypes.CDLL(None)
libc.shmat.restype = ctypes.c_void_p
for _ in range(16):
    place = libc.shmat(libc.shmget(0, {BOMB >> 4}, 0o1600), None, 0)
    ctypes.memset(place, 1, {BOMB >> 4})
"""


def end_the_sandbox(ground: Ground) -> Outcome:
    """By what a command can do, and in a container from outside, as an engine's patience would: it must be told whose fault it was."""
    with ground.box() as box:
        box.run("true")
        # No command can do what a kill from outside does to bubblewrap, which tells it apart: here a command tries all it can itself.
        inside = "server_pid" in getattr(box, "details", {})
        if inside:
            with suppress(SandboxError):
                box.run(f"kill -9 1; {python(HOARD)}", timeout_s=60)
                box.run(
                    "true", stdin=bytes(SMALL.file_bytes)
                )  # process 1 wants memory, and nobody else is left to be killed for it
        elif not kill_server(box):
            return Held("not tried: this user cannot kill a container's process past the engine")
        try:
            box.run("true")
        except SandboxLost:
            return Held("booked as the policy's")
        except SandboxUnavailable as error:
            with ground.box() as fresh:
                fresh.run("true")  # raises where the machine is at fault after all
            return Broken(f"booked as the machine's: {error}")
    return Held("it lives") if inside else Broken("a dead sandbox answered")


def kill_server(box: Sandbox) -> bool:
    """Kill process 1 of the sandbox past the engine, which would tell who asked for it. False where that is not this user's to do."""
    details: dict[str, object] = getattr(box, "details", {})
    server = details.get("server_pid")
    if not isinstance(server, int):
        import docker

        container = docker.from_env().containers.get(str(details["container"]))
        server = int(container.attrs["State"]["Pid"])
        cgroup = Path(f"/proc/{server}/cgroup")
        if not cgroup.is_file() or str(container.id) not in cgroup.read_text():
            return False  # an engine elsewhere: the number means another process here
    try:
        os.kill(server, signal.SIGKILL)
    except PermissionError:
        return False
    return True


def kill_all_in_a_repair(ground: Ground) -> Outcome:
    """Nothing that a repair does to its sandbox may mask it."""
    deadly: Sequence[str] = (
        "__import__('os').kill(-1, 9)",
        f"[b'x' * (1 << 20) for _ in range({4 * BOMB >> 20})]",
    )
    for code in deadly:
        try:
            found = ground.grade({CODE: (WRONG, f"        {code}\n")}, ground.fresh_runner())
        except SandboxUnavailable as error:
            with ground.box() as fresh:
                fresh.run("true")
            return Broken(f"masked as the machine's failure: {error}")
        if found.passed:
            return Broken(f"{code} passed")
    return Held("scored as a failure")


ATTACKS = (
    Attack("fork-bomb", 11, "start processes without end", fork_bomb),
    Attack("memory-bomb", 11, "take memory without end", memory_bomb),
    Attack("disk-bomb", 11, "fill the disk", disk_bomb),
    Attack("huge-file", 11, "write one enormous file", one_huge_file),
    Attack("endless-output", 11, "print without end", endless_output),
    Attack(
        "outlive-timeout",
        11,
        "leave a process that survives its timeout (setsid, double fork)",
        outlive_a_timeout,
    ),
    Attack(
        "write-while-graded",
        11,
        "leave a process that rewrites the tests while the repair is graded",
        write_while_graded,
    ),
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
    Attack(
        "lost-sandbox", 17, "end the sandbox so that the failure is booked as the machine's", end_the_sandbox
    ),
    Attack(
        "deadly-repair",
        17,
        "kill everything from the code under test, or take all memory",
        kill_all_in_a_repair,
    ),
)
