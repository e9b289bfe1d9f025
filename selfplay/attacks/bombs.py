"""Attacks on limits and on the sandbox's own life: row 11, bombs, and row 17, sandboxes that commands end.

Invariant: each bomb bounds itself, so that the machine survives a limit that does not hold.
"""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from selfplay.attacks.base import Attack, Broken, Held, Outcome
from selfplay.attacks.ground import CODE, TESTS, WRONG, Ground
from selfplay.attacks.probes import python
from selfplay.errors import SandboxError, SandboxLost, SandboxUnavailable
from selfplay.sandbox.base import Sandbox
from selfplay.sandbox.conformance import SMALL

BOMB = 512 << 20  # bytes: more than any limit used here, less than a machine has
# Where no control group can be made, a watchdog ends the sandbox instead.
ENDED = "the sandbox was ended, and the command is at fault"
PASS_ALL = (
    "import pytest\n\n\n@pytest.mark.parametrize(('value', 'expected'), [(5, 5), (-1, 0), (11, 10)])\n"
    "def test_clamp(value, expected):\n    pass\n\n\n"
    "def test_middle():\n    pass\n\n\ndef test_spread():\n    pass\n"
)

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
            fill = f"for i in $(seq 12); do head -c 4m /dev/zero > {folder}/fill$i || break; done 2>/dev/null"
            box.run(fill, timeout_s=60)
            used = int(box.run(f"cat {folder}/fill* 2>/dev/null | wc -c").text.split()[-1])
            box.run(f"rm -f {folder}/fill*")
            over += [f"{used} bytes in {folder}"] if used > most else []
    return Broken("; ".join(over)) if over else Held("full at their limits")


def one_huge_file(ground: Ground) -> Outcome:
    with ground.box() as box:
        write = f"head -c {SMALL.file_bytes + (4 << 20)} /dev/zero > big 2>/dev/null"
        size = int(box.run(f"{write}; stat -c %s big; rm -f big").text.split()[-1])
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


BEAT = (
    "(setsid bash -c 'while :; do echo x >> /testbed/beat; sleep 0.02; done' &) ; "
    "(trap '' TERM HUP INT; sleep 300) & sleep 300"
)


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
    """A process that the solver left behind overwrites the tests while its attempt is graded."""
    with ground.solver() as box:
        box.run(f"printf %s {shlex.quote(PASS_ALL)} > /tmp/easy.py")
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
    """True if a change without meaning passes while `box` is still open."""
    return ground.grade({CODE: (WRONG, WRONG + "        # nothing\n")}, ground.fresh_runner()).passed


# ---- the attacker's own sandbox (row 17)

# Memory that no process owns. Killing a process frees none of it, so that the kernel goes on to process 1.
HOARD = f"""
import ctypes
libc = ctypes.CDLL(None)
libc.shmat.restype = ctypes.c_void_p
for _ in range(16):
    place = libc.shmat(libc.shmget(0, {BOMB >> 4}, 0o1600), None, 0)
    ctypes.memset(place, 1, {BOMB >> 4})
"""


def end_the_sandbox(ground: Ground) -> Outcome:
    """End the sandbox. The loss must count as the policy's fault, since a fresh sandbox works.

    On bubblewrap the harness recognises a kill from outside. There a command tries everything that it can do
    itself. In a container, process 1 is killed from outside.
    """
    with ground.box() as box:
        box.run("true")
        inside = "server_pid" in getattr(box, "details", {})
        if inside:
            with suppress(SandboxError):
                box.run(f"kill -9 1; {python(HOARD)}", timeout_s=60)
                # Process 1 needs memory for this input, and no other process is left to be killed for it.
                box.run("true", stdin=bytes(SMALL.file_bytes))
        elif not kill_server(box):
            return Held("not tried: this user cannot kill a container's process past the engine")
        try:
            box.run("true")
        except SandboxLost:
            return Held("booked as the policy's")
        except SandboxUnavailable as error:
            with ground.box() as fresh:
                fresh.run("true")  # raises if the machine is at fault
            return Broken(f"booked as the machine's: {error}")
    return Held("it lives") if inside else Broken("a dead sandbox answered")


def kill_server(box: Sandbox) -> bool:
    """Kill process 1 of the sandbox without asking the engine, which would record who asked.

    Returns False if this user may not kill it.
    """
    details: dict[str, object] = getattr(box, "details", {})
    server = details.get("server_pid")
    if not isinstance(server, int):
        from selfplay.sandbox.docker_engine import new_client

        container = new_client(120).containers.get(str(details["container"]))
        server = int(container.attrs["State"]["Pid"])
        cgroup = Path(f"/proc/{server}/cgroup")
        if not cgroup.is_file() or str(container.id) not in cgroup.read_text():
            return False  # the engine runs elsewhere: this number means another process here
    try:
        os.kill(server, signal.SIGKILL)
    except PermissionError:
        return False
    return True


def kill_all_in_a_repair(ground: Ground) -> Outcome:
    """Whatever a repair does to its sandbox, it gets a score."""
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
