"""A filter of system calls for bubblewrap sandboxes.

It refuses new namespaces, mounts, kernel keys, limits on other processes, and system calls that programs
rarely need but exploits do. Namespaces and limits do the rest.

Invariant: a processor that this module does not know gets no filter, never a wrong one.
"""

from __future__ import annotations

import errno
import os
import struct

NAMESPACE_FLAGS = 0x7E020000 | 0x80  # CLONE_NEW*: cgroup, uts, ipc, user, pid, net, mount, time
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
X32_BIT = 0x40000000
LOAD, JUMP_EQUAL, JUMP_ANY_BIT, JUMP_GREATER_EQUAL, RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
ALLOW, REFUSE = 0x7FFF0000, 0x00050000
NUMBER_AT, ARCHITECTURE_AT, FIRST_ARGUMENT_AT = 0, 4, 16

# name: (x86_64, aarch64); answered with EPERM
REFUSED = {
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "setns": (308, 268),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "kexec_load": (246, 104),
    "open_by_handle_at": (304, 265),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
}
CLONE, UNSHARE, CLONE3 = (56, 220), (272, 97), (435, 435)
PRLIMIT = (302, 261)


def seccomp_filter(machine: str | None = None) -> bytes:
    """The filter as an array of struct sock_filter; b"" for an unknown processor.

    machine: the processor as `uname -m` names it; None for this machine's.
    """
    machine = machine or os.uname().machine
    if machine not in ARCHITECTURES:
        return b""
    column = list(ARCHITECTURES).index(machine)
    refuse = [_step(RETURN, REFUSE | errno.EPERM)]
    program = [
        _step(LOAD, ARCHITECTURE_AT),
        _step(JUMP_EQUAL, ARCHITECTURES[machine], 1, 0),
        *refuse,  # 32-bit calls have other numbers
        _step(LOAD, NUMBER_AT),
    ]
    if machine == "x86_64":
        program += [_step(JUMP_GREATER_EQUAL, X32_BIT, 0, 1), *refuse]
    for numbers in REFUSED.values():
        program += [_step(JUMP_EQUAL, numbers[column], 0, 1), *refuse]
    # A filter cannot read the flags of clone3, which lie in memory. After ENOSYS the C library calls clone.
    program += [_step(JUMP_EQUAL, CLONE3[column], 0, 1), _step(RETURN, REFUSE | errno.ENOSYS)]
    for numbers in (CLONE, UNSHARE):
        # In clone the low byte of the flags is a signal.
        flags = NAMESPACE_FLAGS & ~0x80 if numbers is CLONE else NAMESPACE_FLAGS
        program += [
            _step(JUMP_EQUAL, numbers[column], 0, 4),
            _step(LOAD, FIRST_ARGUMENT_AT),
            _step(JUMP_ANY_BIT, flags, 0, 1),
            *refuse,
            _step(LOAD, NUMBER_AT),
        ]
    # A process may limit itself. The kernel kills process 1 at a limit on its processor time, which looks as
    # if somebody outside had done it.
    program += [
        _step(JUMP_EQUAL, PRLIMIT[column], 0, 4),
        _step(LOAD, FIRST_ARGUMENT_AT),
        _step(JUMP_EQUAL, 0, 1, 0),
        *refuse,
        _step(LOAD, NUMBER_AT),
    ]
    return b"".join([*program, _step(RETURN, ALLOW)])


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One instruction. if_true, if_false: how many instructions a jump skips."""
    return struct.pack("=HBBI", code, if_true, if_false, value)
