"""A filter of system calls for sandboxed programs: one process, and no memory beside that which RLIMIT_AS counts.

Namespaces keep a program from everything outside; what they do not bound is how much it takes inside. Processes: new ones
are refused (threads are not: they share the address space, which is limited). Memory: calls that hold pages outside the
address space are refused. Calls that only widen what of the kernel can be attacked are refused too.
"""

from __future__ import annotations

import platform
import struct

# Numbers of the calls that are refused with EPERM, from the kernel's syscall tables, by `platform.machine()`.
REFUSED = {
    "x86_64": {
        **{"fork": 57, "vfork": 58},
        **{"memfd_create": 319, "memfd_secret": 447, "shmget": 29, "msgget": 68, "semget": 64},
        **{"io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "userfaultfd": 323},
        **{"ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "pidfd_getfd": 438},
        **{"unshare": 272, "setns": 308, "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161},
        **{"open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "mount_setattr": 442},
        **{"bpf": 321, "perf_event_open": 298, "add_key": 248, "request_key": 249, "keyctl": 250},
        **{"open_by_handle_at": 304, "init_module": 175, "finit_module": 313, "kexec_load": 246, "seccomp": 317},
    },
    "aarch64": {
        **{"memfd_create": 279, "memfd_secret": 447, "shmget": 194, "msgget": 186, "semget": 190},
        **{"io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "userfaultfd": 282},
        **{"ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "kcmp": 272, "pidfd_getfd": 438},
        **{"unshare": 97, "setns": 268, "mount": 40, "umount2": 39, "pivot_root": 41, "chroot": 51},
        **{"open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "mount_setattr": 442},
        **{"bpf": 280, "perf_event_open": 241, "add_key": 217, "request_key": 218, "keyctl": 219},
        **{"open_by_handle_at": 265, "init_module": 105, "finit_module": 273, "kexec_load": 104, "seccomp": 277},
    },
}
ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_*, which the kernel reports with each call
CLONE = {"x86_64": 56, "aarch64": 220}
CLONE3 = 435  # its flags lie behind a pointer, where a filter cannot look: ENOSYS makes libc use clone
X32 = 0x40000000  # calls of x86_64's other ABI have numbers from here on
CLONE_THREAD = 0x00010000
EPERM, ENOSYS = 1, 38
ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000  # SECCOMP_RET_*
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # BPF instructions on 32-bit words
NUMBER, ARCH, FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data; both processors are little-endian


def supported(machine: str | None = None) -> bool:
    """Do we know this processor's system calls?"""
    return (machine or platform.machine()) in REFUSED


def program(machine: str | None = None) -> bytes:
    """The filter as the kernel takes it: BPF instructions, 8 bytes each.

    Raises:
        KeyError: the processor is not in the table.
    """
    machine = machine or platform.machine()
    refused = sorted(REFUSED[machine].values())
    return b"".join(
        [
            *(_step(LOAD, ARCH), _step(EQUAL, ARCHITECTURE[machine], yes=1), _step(RETURN, KILL)),
            *(_step(LOAD, NUMBER), _step(AT_LEAST, X32, no=1), _step(RETURN, KILL)),
            *(_step(EQUAL, CLONE3, no=1), _step(RETURN, ERRNO | ENOSYS)),
            *(part for number in refused for part in (_step(EQUAL, number, no=1), _step(RETURN, ERRNO | EPERM))),
            *(_step(EQUAL, CLONE[machine], yes=1), _step(RETURN, ALLOW)),
            *(_step(LOAD, FIRST_ARGUMENT), _step(ANY_BIT, CLONE_THREAD, no=1), _step(RETURN, ALLOW)),
            _step(RETURN, ERRNO | EPERM),
        ]
    )


def _step(code: int, operand: int, *, yes: int = 0, no: int = 0) -> bytes:
    """One instruction; `yes` and `no` are how many of the next to leap over."""
    return struct.pack("<HBBI", code, yes, no, operand)
