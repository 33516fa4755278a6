"""The system-call filter of the sandbox, as a classic BPF program for `seccomp` (Linux, x86-64 and AArch64).

Namespaces hide what the program could reach; the filter closes the doors that no namespace guards (virtual-machine
sockets, io_uring, kernel keys) and those through which memory escapes every account (anonymous memory files, System V
segments), and takes the ways to make namespaces of its own.
"""

from __future__ import annotations

import errno
import platform
import struct
import sys

_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_X32_BIT = 0x40000000
_ANY_NEW_NAMESPACE = 0x7E020000
_FAMILIES_IN_A_NETWORK_NAMESPACE = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6

_AUDIT_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_CLONE = {"x86_64": 56, "aarch64": 220}
_SOCKET = {"x86_64": 41, "aarch64": 198}
_CLONE3 = 435  # hides its flags behind a pointer; "not implemented" makes the C library fall back to clone

_REFUSED_EVERYWHERE = {
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "pidfd_getfd": 438,
    "mount_setattr": 442,
    "memfd_secret": 447,
}
_REFUSED = {  # name: (x86-64, AArch64)
    "acct": (163, 89),
    "add_key": (248, 217),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clock_settime": (227, 112),
    "delete_module": (176, 106),
    "finit_module": (313, 273),
    "init_module": (175, 105),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "memfd_create": (319, 279),
    "mount": (165, 40),
    "open_by_handle_at": (304, 265),
    "perf_event_open": (298, 241),
    "pivot_root": (155, 41),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "shmget": (29, 194),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
}


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _refuse(error: int) -> bytes:
    return _instruction(_RETURN, _ERRNO | error)


def filter_program(network_namespace: bool) -> bytes:
    """The filter for this machine, 8 bytes an instruction; empty where the architecture is not known.

    With a network namespace around it the program may make the sockets that the namespace holds; without one it may
    make none at all (a socket pair is not a socket to elsewhere and stays possible).
    """
    machine = platform.machine()
    if sys.platform != "linux" or machine not in _AUDIT_ARCHITECTURE:
        return b""
    column = 0 if machine == "x86_64" else 1
    program = [
        _instruction(_LOAD, _ARCHITECTURE),
        _instruction(_JUMP_EQUAL, _AUDIT_ARCHITECTURE[machine], 1, 0),
        _instruction(_RETURN, _KILL),
        _instruction(_LOAD, _NUMBER),
    ]
    if machine == "x86_64":
        program += [_instruction(_JUMP_AT_LEAST, _X32_BIT, 0, 1), _refuse(errno.ENOSYS)]
    refused = [*_REFUSED_EVERYWHERE.values(), *(numbers[column] for numbers in _REFUSED.values())]
    for number in sorted(refused):
        program += [_instruction(_JUMP_EQUAL, number, 0, 1), _refuse(errno.EPERM)]
    program += [_instruction(_JUMP_EQUAL, _CLONE3, 0, 1), _refuse(errno.ENOSYS)]
    program += [
        _instruction(_JUMP_EQUAL, _CLONE[machine], 0, 4),
        _instruction(_LOAD, _FIRST_ARGUMENT),
        _instruction(_JUMP_ANY_BIT, _ANY_NEW_NAMESPACE, 0, 1),
        _refuse(errno.EPERM),
        _instruction(_RETURN, _ALLOW),
    ]
    families = _FAMILIES_IN_A_NETWORK_NAMESPACE if network_namespace else ()
    program.append(_instruction(_JUMP_EQUAL, _SOCKET[machine], 0, 2 + 2 * len(families)))
    program.append(_instruction(_LOAD, _FIRST_ARGUMENT))
    for family in families:
        program += [_instruction(_JUMP_EQUAL, family, 0, 1), _instruction(_RETURN, _ALLOW)]
    program.append(_refuse(errno.EAFNOSUPPORT))
    program.append(_instruction(_RETURN, _ALLOW))
    return b"".join(program)
