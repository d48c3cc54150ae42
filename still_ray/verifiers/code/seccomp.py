"""The system calls that a sandboxed program may make, as a filter that bubblewrap loads: one process, no way out.

A list of what is allowed, so that a call that nobody thought of, or that a newer kernel brings, is refused. What is
refused does not exist for the program (ENOSYS), which C libraries take for an older kernel.

- No second process: `clone` makes threads only. One process has one address-space limit, so its memory is bounded as a
  whole, and it leaves no daemon.
- No `socket`, `ptrace`, `mount`, `unshare`, `memfd_create`, `shmget`, `setxattr`, keyrings, BPF or io_uring: no
  network, no new namespaces, and no memory that the address-space limit does not see.
- No way to send a signal, and no exit status that looks like one: death by SIGKILL means that something outside did it.
"""

import errno
import platform
import struct
from dataclasses import dataclass
from typing import Final

_LOAD_WORD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_IF_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_IF_AT_LEAST: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K

_KILL: Final = 0x80000000
_ALLOW: Final = 0x7FFF0000
_REFUSE: Final = 0x00050000 | errno.ENOSYS

_NUMBER_OFFSET: Final = 0
_ARCHITECTURE_OFFSET: Final = 4
_FIRST_ARGUMENT_OFFSET: Final = 16  # its low word: both architectures are little-endian
_SECOND_ARGUMENT_OFFSET: Final = 24

_X32_BIT: Final = 0x40000000
_CLONE_THREAD: Final = 0x00010000
_CLONE_NEW: Final = 0x7E020080  # NEWTIME, NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_F_SETSIG: Final = 10
_FIRST_SIGNAL_STATUS: Final = 128

# Linux's numbers: the first table from arch/x86/entry/syscalls/syscall_64.tbl, the second from asm-generic/unistd.h.
_X86_64: Final = {
    "files": (0, 1, 19, 20, 17, 18, 295, 296, 3, 436, 2, 257, 4, 5, 6, 262, 332, 21, 269, 439, 8, 16, 32, 33, 292, 73),
    "more files": (
        74,
        75,
        76,
        77,
        78,
        217,
        79,
        80,
        81,
        82,
        264,
        316,
        83,
        258,
        84,
        85,
        86,
        265,
        87,
        263,
        88,
        266,
        89,
        267,
    ),
    "attributes": (90, 91, 268, 95, 132, 235, 280, 261, 137, 138),
    "memory": (9, 11, 10, 25, 28, 12, 26),
    "signals received": (13, 14, 15, 127, 128, 130, 131, 34, 36, 37, 38),
    "pipes and polling": (22, 293, 23, 270, 7, 271, 213, 291, 233, 232, 281, 290, 53, 44, 45, 48, 55, 54, 51, 52),
    "time and scheduling": (24, 204, 143, 145, 146, 147, 35, 230, 228, 229, 96, 201, 100, 309, 219),
    "identity": (
        102,
        107,
        104,
        108,
        118,
        120,
        115,
        116,
        117,
        119,
        39,
        110,
        186,
        111,
        121,
        124,
        63,
        99,
        98,
        97,
        160,
        302,
    ),
    "threads and the process itself": (318, 202, 273, 274, 334, 218, 158, 59, 61, 247, 324),
}
_AARCH64: Final = {
    "files": (63, 64, 65, 66, 67, 68, 69, 70, 57, 436, 56, 80, 79, 291, 48, 439, 62, 29, 23, 24, 32),
    "more files": (82, 83, 45, 46, 61, 17, 49, 50, 38, 276, 34, 37, 35, 36, 78),
    "attributes": (52, 53, 166, 88, 43, 44),
    "memory": (222, 215, 226, 216, 233, 214, 227),
    "signals received": (134, 135, 139, 136, 137, 133, 132, 102, 103),
    "pipes and polling": (59, 72, 73, 20, 21, 22, 19, 199, 206, 207, 210, 209, 208, 204, 205),
    "time and scheduling": (124, 123, 121, 120, 125, 126, 101, 115, 113, 114, 169, 153, 168, 128),
    "identity": (
        174,
        175,
        176,
        177,
        148,
        150,
        158,
        159,
        147,
        149,
        172,
        173,
        178,
        155,
        156,
        160,
        179,
        165,
        163,
        164,
        261,
    ),
    "threads and the process itself": (278, 98, 99, 100, 293, 96, 221, 260, 95, 283),
}


@dataclass(frozen=True, kw_only=True)
class _Architecture:
    """What differs between processors: the audit number, and the numbers of the calls."""

    audit: int
    clone: int
    exit: int
    exit_group: int
    fcntl: int
    allowed: dict[str, tuple[int, ...]]


_ARCHITECTURES: Final = {
    "x86_64": _Architecture(audit=0xC000003E, clone=56, exit=60, exit_group=231, fcntl=72, allowed=_X86_64),
    "aarch64": _Architecture(audit=0xC00000B7, clone=220, exit=93, exit_group=94, fcntl=25, allowed=_AARCH64),
}


def system_call_filter(machine: str | None = None) -> bytes | None:
    """The compiled filter (classic BPF) for this machine; None where the system call numbers are not known."""
    architecture = _ARCHITECTURES.get(machine or platform.machine())
    if architecture is None:
        return None
    program = [
        *_checked_architecture(architecture),
        *_if_number(architecture.clone, _first_argument_is(_CLONE_THREAD, mask=_CLONE_THREAD | _CLONE_NEW)),
        *_if_number(architecture.exit, _first_argument_is(0)),
        *_if_number(architecture.exit_group, _first_argument_below(_FIRST_SIGNAL_STATUS)),
        *_if_number(architecture.fcntl, _second_argument_is_not(_F_SETSIG)),
    ]
    for number in sorted(number for numbers in architecture.allowed.values() for number in numbers):
        program += [_step(_IF_EQUAL, number, 0, 1), _step(_RETURN, _ALLOW)]
    return b"".join([*program, _step(_RETURN, _REFUSE)])


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _checked_architecture(architecture: _Architecture) -> list[bytes]:
    """Leaves the number of the call in the accumulator; another ABI has other numbers, so it is none of ours."""
    return [
        _step(_LOAD_WORD, _ARCHITECTURE_OFFSET),
        _step(_IF_EQUAL, architecture.audit, 1, 0),
        _step(_RETURN, _KILL),
        _step(_LOAD_WORD, _NUMBER_OFFSET),
        _step(_IF_AT_LEAST, _X32_BIT, 0, 1),
        _step(_RETURN, _REFUSE),
    ]


def _if_number(number: int, steps: list[bytes]) -> list[bytes]:
    """Steps for one call; they return in every case, so the accumulator need not be restored."""
    return [_step(_IF_EQUAL, number, 0, len(steps)), *steps]


def _first_argument_is(value: int, mask: int = 0xFFFFFFFF) -> list[bytes]:
    return [
        _step(_LOAD_WORD, _FIRST_ARGUMENT_OFFSET),
        _step(_AND, mask),
        _step(_IF_EQUAL, value, 0, 1),
        _step(_RETURN, _ALLOW),
        _step(_RETURN, _REFUSE),
    ]


def _first_argument_below(value: int) -> list[bytes]:
    return [
        _step(_LOAD_WORD, _FIRST_ARGUMENT_OFFSET),
        _step(_IF_AT_LEAST, value, 1, 0),
        _step(_RETURN, _ALLOW),
        _step(_RETURN, _REFUSE),
    ]


def _second_argument_is_not(value: int) -> list[bytes]:
    return [
        _step(_LOAD_WORD, _SECOND_ARGUMENT_OFFSET),
        _step(_IF_EQUAL, value, 1, 0),
        _step(_RETURN, _ALLOW),
        _step(_RETURN, _REFUSE),
    ]
