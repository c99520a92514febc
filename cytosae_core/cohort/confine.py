"""What the decoder's process takes from itself before it sees a file: memory, time, files, processes, the network.

Linux only, and best effort: what a kernel or container does not grant is reported, not hidden. Each protection is
told as in force only if the call for it succeeded; `files`, `processes` and `sockets` were also tried.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct
import sys

from ..limits import CPU_SECONDS, CPU_SECONDS_IN_ALL, MEMORY_BYTES

# In the order of the bits that the process reports.
PROTECTIONS = (
    "memory", "cpu", "no_files", "no_writes", "no_core", "no_processes", "no_new_privileges", "no_network", "filter",
)  # fmt: skip
NEW_USER, NEW_NETWORK = 0x10000000, 0x40000000
SET_NO_NEW_PRIVS, SET_DUMPABLE, SET_SECCOMP, FILTER_MODE = 38, 4, 22, 2
ALLOW, DENY, KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000
# Calls that a decoder has no use for, per machine: the architecture's audit number, then system call numbers of
# open, openat, openat2, creat, name_to_handle_at, open_by_handle_at, memfd_create; socket, socketpair, connect,
# bind, sendto, sendmsg; fork, vfork, clone, clone3, execve, execveat; ptrace, process_vm_readv, process_vm_writev;
# kill, tkill, tgkill, rt_sigqueueinfo, rt_tgsigqueueinfo, pidfd_open, pidfd_send_signal; unlink, unlinkat, rename,
# renameat, renameat2, link, linkat, symlink, symlinkat, mkdir, mkdirat, truncate, chmod, fchmodat, chown, fchownat,
# mount; bpf, setns, unshare, io_uring_setup, perf_event_open, userfaultfd, keyctl. arm64 has no old forms.
FORBIDDEN = {
    "x86_64": (
        0xC000003E,
        (
            *(
                2,
                257,
                437,
                85,
                303,
                304,
                319,
                41,
                53,
                42,
                49,
                44,
                46,
                57,
                58,
                56,
                435,
                59,
                322,
                101,
                310,
                311,
                62,
            ),
            *(
                200,
                234,
                129,
                297,
                434,
                424,
                87,
                263,
                82,
                264,
                316,
                86,
                265,
                88,
                266,
                83,
                258,
                76,
                90,
                268,
                92,
                260,
            ),
            *(165, 321, 308, 272, 425, 298, 323, 250),
        ),
    ),
    "aarch64": (
        0xC00000B7,
        (
            *(
                56,
                437,
                264,
                265,
                279,
                198,
                199,
                203,
                200,
                206,
                211,
                220,
                435,
                221,
                281,
                117,
                270,
                271,
                129,
                130,
                131,
            ),
            *(138, 240, 434, 424, 35, 38, 276, 37, 36, 34, 45, 53, 54, 40, 280, 268, 97, 425, 241, 282, 219),
        ),
    ),
}


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def confine() -> int:
    """Take everything away; a bit per entry of `PROTECTIONS` says what is in force."""
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
    done = dict.fromkeys(PROTECTIONS, False)
    if libc is not None:
        done["no_new_privileges"] = libc.prctl(SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
        libc.prctl(SET_DUMPABLE, 0, 0, 0, 0)
        own = libc.unshare(NEW_USER | NEW_NETWORK) == 0 or libc.unshare(NEW_NETWORK) == 0
        done["no_network"] = own
    done["memory"] = _limit(resource.RLIMIT_AS, MEMORY_BYTES)
    done["cpu"] = _limit(resource.RLIMIT_CPU, CPU_SECONDS_IN_ALL)
    done["no_writes"] = _limit(resource.RLIMIT_FSIZE, 0)
    done["no_core"] = _limit(resource.RLIMIT_CORE, 0)
    if hasattr(resource, "RLIMIT_NPROC"):
        _limit(resource.RLIMIT_NPROC, 0)  # does not bind root
    _limit(resource.RLIMIT_NOFILE, 0)
    done["filter"] = libc is not None and _filter(libc)
    done["no_files"] = not _can_open()
    done["no_processes"] = not _can_fork()
    return sum(1 << bit for bit, name in enumerate(PROTECTIONS) if done[name])


def allow_seconds() -> None:
    """CPU time for one more image: past it, the kernel ends this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    until = int(used.ru_utime + used.ru_stime) + CPU_SECONDS + 1
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (until if most < 0 else min(until, most), most))


def cpu_seconds() -> float:
    """CPU time of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _limit(kind: int, value: int) -> bool:
    _, most = resource.getrlimit(kind)
    value = value if most < 0 else min(value, most)
    try:
        resource.setrlimit(kind, (value, value))
    except (ValueError, OSError):
        return False
    return resource.getrlimit(kind) == (value, value)


def _filter(libc: ctypes.CDLL) -> bool:
    """Refuse the forbidden system calls: a classic BPF program over (call number, architecture)."""
    machine, numbers = FORBIDDEN.get(platform.machine(), (0, ()))
    if not numbers or struct.calcsize("P") != 8:
        return False
    jump = (0x15, 0x35)  # equal; greater or equal
    lines = [
        (0x20, 0, 0, 4), (jump[0], 1, 0, machine), (0x06, 0, 0, KILL),
        (0x20, 0, 0, 0), (jump[1], 0, 1, 0x40000000), (0x06, 0, 0, KILL),  # the x32 numbers of x86_64
    ]  # fmt: skip
    for left, number in zip(range(len(numbers), 0, -1), numbers, strict=True):
        lines.append((jump[0], left, 0, number))
    lines += [(0x06, 0, 0, ALLOW), (0x06, 0, 0, DENY)]
    packed = b"".join(struct.pack("<HBBI", *line) for line in lines)
    program = _Program(len(lines), packed)
    return bool(libc.prctl(SET_SECCOMP, FILTER_MODE, ctypes.byref(program), 0, 0) == 0)


def _can_open() -> bool:
    try:
        os.close(os.open("/", os.O_RDONLY))
    except OSError:
        return False
    return True


def _can_fork() -> bool:
    try:
        child = os.fork()
    except OSError:
        return False
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return True
