"""A filter of system calls for sandboxes.

It refuses new namespaces, mounts, kernel keys, limits on other processes, kinds of sockets and system calls
that programs rarely need but exploits do. It also takes the effect from calls that would tell what happens in
other sandboxes. Namespaces, layers and limits do the rest. Invariant: a processor that this module does not
know gets no filter, never a wrong one.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Sequence

NAMESPACE_FLAGS = 0x7E020000 | 0x80  # CLONE_NEW*: cgroup, uts, ipc, user, pid, net, mount, time
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
X32_BIT = 0x40000000
LOAD, JUMP_EQUAL, JUMP_ANY_BIT, JUMP_GREATER_EQUAL, RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
ALLOW, REFUSE = 0x7FFF0000, 0x00050000
NUMBER_AT, ARCHITECTURE_AT, ARGUMENTS_AT = 0, 4, 16

Numbers = tuple[int, int]  # of a system call: on x86_64, on aarch64

# name: numbers; answered with EPERM
REFUSED: dict[str, Numbers] = {
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
    "fanotify_init": (300, 262),
}
# Answered with ENOSYS, as by a kernel without them. A filter cannot read the flags of clone3, which lie in
# memory: after ENOSYS the C library calls clone. cachestat tells which parts of a shared file others have
# read. statmount and listmount use ids that count up over all sandboxes.
UNKNOWN: dict[str, Numbers] = {
    "clone3": (435, 435),
    "cachestat": (451, 451),
    "statmount": (457, 457),
    "listmount": (458, 458),
}
# Locks do nothing and succeed. All processes of a machine share the inodes of event queues and of some
# namespaces, whatever sandbox they are in, so a lock of one is noticed by another. A lock that fails instead
# would break SQLite.
FLOCK = (73, 32)
SET_LOCK, ASK_FOR_LOCK = (6, 7, 37, 38), (5, 36)  # commands of fcntl, for record locks and OFD locks
SET_LEASE, NOTIFY = 1024, 1026
INOTIFY_ADD_WATCH = (254, 27)
CLONE, UNSHARE, FCNTL = (56, 220), (272, 97), (72, 25)
PRLIMIT = (302, 261)
SOCKETS = ((41, 198), (53, 199))  # socket, socketpair
FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)  # and netlink, for questions about routes alone
NETLINK, NETLINK_ROUTE = 16, 0
PREADV2, FADVISE, STATX = (327, 286), (221, 223), (332, 291)
RWF_NOWAIT, FADV_DONTNEED, STATX_MNT_ID_UNIQUE = 8, 4, 0x4000


def seccomp_filter(machine: str | None = None, shares_files: bool = False) -> bytes:
    """The filter as an array of struct sock_filter; b"" for an unknown processor.

    machine: the processor as `uname -m` names it; None for this machine's.
    shares_files: sandboxes share the inodes of read-only folders, so no file can be watched.
    """
    machine = machine or os.uname().machine
    if machine not in ARCHITECTURES:
        return b""
    column = list(ARCHITECTURES).index(machine)
    program = [
        _load(ARCHITECTURE_AT),
        _step(JUMP_EQUAL, ARCHITECTURES[machine], 1, 0),
        _answer(errno.EPERM),  # 32-bit calls have other numbers
        _load(NUMBER_AT),
    ]
    if machine == "x86_64":
        program += [_step(JUMP_GREATER_EQUAL, X32_BIT, 0, 1), _answer(errno.EPERM)]
    for code, calls in ((errno.EPERM, REFUSED), (errno.ENOSYS, UNKNOWN)):
        for numbers in calls.values():
            program += [_step(JUMP_EQUAL, numbers[column], 0, 1), _answer(code)]
    rules = [*_rules(), *(_rules_of_shared_files() if shares_files else ())]
    for numbers, steps in rules:
        program += [_step(JUMP_EQUAL, numbers[column], 0, len(steps) + 1), *steps, _load(NUMBER_AT)]
    return b"".join([*program, _step(RETURN, ALLOW)])


def _rules() -> list[tuple[Numbers, Sequence[bytes]]]:
    """Calls that are refused for some arguments: (numbers, the steps that refuse)."""
    return [
        # In clone the low byte of the flags is a signal.
        (CLONE, _refuse_bits(0, NAMESPACE_FLAGS & ~0x80, errno.EPERM)),
        (UNSHARE, _refuse_bits(0, NAMESPACE_FLAGS, errno.EPERM)),
        *((numbers, _refuse_other_sockets()) for numbers in SOCKETS),
        (FLOCK, [_answer(0)]),
        (
            FCNTL,
            [
                *_refuse_values(1, SET_LOCK, 0),
                *_refuse_values(1, ASK_FOR_LOCK, errno.ENOLCK),
                *_refuse_values(1, (SET_LEASE,), errno.EINVAL),
            ],
        ),
        # What tells, or lets others see, which parts of a shared file are in memory.
        (PREADV2, _refuse_bits(5, RWF_NOWAIT, errno.EOPNOTSUPP)),
        (FADVISE, _refuse_values(3, (FADV_DONTNEED,), 0)),  # it is only a hint, so it may do nothing
        # A process may limit itself. The kernel kills process 1 at a limit on its processor time, which looks
        # as if somebody outside had done it.
        (PRLIMIT, [_load_argument(0), _step(JUMP_EQUAL, 0, 1, 0), _answer(errno.EPERM)]),
        # The id counts all mounts of the machine.
        (STATX, _refuse_bits(3, STATX_MNT_ID_UNIQUE, errno.EINVAL)),
    ]


def _rules_of_shared_files() -> list[tuple[Numbers, Sequence[bytes]]]:
    # ENOSPC: the answer where a user has too many watches.
    return [
        (INOTIFY_ADD_WATCH, [_answer(errno.ENOSPC)]),
        (FCNTL, _refuse_values(1, (NOTIFY,), errno.EINVAL)),
    ]


# ---- steps


def _refuse_bits(argument: int, bits: int, code: int) -> list[bytes]:
    """Refuse a call whose argument has any of these bits."""
    return [_load_argument(argument), _step(JUMP_ANY_BIT, bits, 0, 1), _answer(code)]


def _refuse_values(argument: int, values: Sequence[int], code: int) -> list[bytes]:
    steps = [_load_argument(argument)]
    for value in values:
        steps += [_step(JUMP_EQUAL, value, 0, 1), _answer(code)]
    return steps


def _refuse_other_sockets() -> list[bytes]:
    """Refuse a socket unless its family is in FAMILIES, or it is netlink's for routes."""
    steps = [_load_argument(0)]
    # Each test jumps over the rest when it finds an allowed family: over the later tests and four steps.
    for left, family in zip(range(len(FAMILIES) - 1, -1, -1), FAMILIES, strict=True):
        steps.append(_step(JUMP_EQUAL, int(family), left + 4, 0))
    return [
        *steps,
        _step(JUMP_EQUAL, NETLINK, 0, 2),
        _load_argument(2),
        _step(JUMP_EQUAL, NETLINK_ROUTE, 1, 0),
        _answer(errno.EAFNOSUPPORT),
    ]


def _load(offset: int) -> bytes:
    return _step(LOAD, offset)


def _load_argument(number: int) -> bytes:
    """The low 32 bits: the kernel reads no more of these arguments, and both processors are little-endian."""
    return _load(ARGUMENTS_AT + 8 * number)


def _answer(code: int) -> bytes:
    """End the call with this error; 0: with success, without doing anything."""
    return _step(RETURN, REFUSE | code)


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One instruction. if_true, if_false: how many instructions a jump skips."""
    return struct.pack("=HBBI", code, if_true, if_false, value)
