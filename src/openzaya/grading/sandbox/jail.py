"""The program that closes the sandbox around generated code; it runs as a process of its own, never imported in use.

`execution` starts it as `python -I -S -c SOURCE SPECIFICATION_FD STATUS_FD`, so this file uses the standard library
only. It enters the namespaces (level `namespaces`), or finds itself in those that bubblewrap made (`bubblewrap`), or
has none (`rlimits`). Then it is the supervisor: it starts the program with its limits, watches time and memory, kills
everything that is left, and writes one JSON report to the status descriptor.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
import time
from typing import Any, NoReturn

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
MNT_DETACH = 2
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID = 1, 2
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
SYS_MOUNT_SETATTR = 442  # one number on every architecture, as all system calls since Linux 5.1
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 36, 38
SECCOMP_MODE_FILTER = 2

LINUX = sys.platform == "linux"
NOBODY = 65534
POLL_SECONDS = 0.02

Specification = dict[str, Any]


class JailError(Exception):
    """A step of the set-up that the kernel refused."""


# --- system calls ---------------------------------------------------------------------------------------------------


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        raise JailError(f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def _prctl(option: int, value: int) -> None:
    _checked(_libc().prctl(option, ctypes.c_ulong(value), 0, 0, 0), f"prctl({option})")


def _mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    encoded = kind.encode() if kind else None
    result = _libc().mount(source.encode(), target.encode(), encoded, ctypes.c_ulong(flags), data.encode())
    _checked(result, f"mount {source} on {target}")


def _restrict_mount(target: str, attributes: int, recursive: bool) -> None:
    """Add mount attributes; unlike a remount this touches submounts too and never clears a flag the kernel locked."""
    structure = (ctypes.c_uint64 * 4)(attributes, 0, 0, 0)
    flags = AT_RECURSIVE if recursive else 0
    result = _libc().syscall(
        ctypes.c_long(SYS_MOUNT_SETATTR),
        ctypes.c_int(AT_FDCWD),
        target.encode(),
        ctypes.c_uint(flags),
        ctypes.byref(structure),
        ctypes.c_size_t(ctypes.sizeof(structure)),
    )
    _checked(result, f"mount_setattr {target}")


def _install_filter(program: bytes) -> None:
    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]

    filter_program = Program(len(program) // 8, program)
    result = _libc().prctl(PR_SET_SECCOMP, ctypes.c_ulong(SECCOMP_MODE_FILTER), ctypes.byref(filter_program), 0, 0)
    _checked(result, "seccomp filter")


# --- namespaces -----------------------------------------------------------------------------------------------------


def enter_namespaces(specification: Specification, status: int) -> None:
    """Return only in process 1 of new mount, process, network, IPC and host-name namespaces, inside the new root."""
    user, group = os.geteuid(), os.getegid()
    flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
    privileged = user == 0 and _libc().unshare(flags) == 0
    if not privileged:
        _checked(_libc().unshare(flags | CLONE_NEWUSER), "unshare")
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"1000 {user} 1")
        _write("/proc/self/gid_map", f"1000 {group} 1")
    first_process = os.fork()
    if first_process:
        for descriptor in (0, 1, 2, status):
            os.close(descriptor)  # the reader must see the end of the pipes when the sandbox dies, however it dies
        os.waitpid(first_process, 0)
        os._exit(0)
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    specification["drop_user"] = privileged
    _libc().sethostname(b"sandbox", 7)
    _build_root(specification)


def _build_root(specification: Specification) -> None:
    root = specification["mount_point"]
    _mount("none", "/", None, MS_REC | MS_PRIVATE)
    _mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    for path in specification["read_only"]:
        _bind(path, root + path)
        if not os.path.islink(path):
            _restrict_mount(root + path, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID, recursive=True)
    for path in specification["devices"]:
        _bind(path, root + path)
    for name, target in specification["symbolic_links"]:
        os.makedirs(os.path.dirname(root + name), exist_ok=True)
        os.symlink(target, root + name)
    _mount_processes(root + "/proc")
    work = root + specification["directory"]
    os.makedirs(work)
    _mount("tmpfs", work, "tmpfs", MS_NOSUID | MS_NODEV, f"size={specification['disk_bytes']},nr_inodes=8192,mode=1777")
    _restrict_mount(root, MOUNT_ATTR_RDONLY, recursive=False)
    os.chdir(root)
    _checked(_libc().pivot_root(b".", b"."), "pivot_root")
    _checked(_libc().umount2(b".", MNT_DETACH), "umount")
    os.chdir("/")


def _bind(source: str, target: str) -> None:
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.islink(source):
        os.symlink(os.readlink(source), target)
        return
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        _write(target, "")
    _mount(source, target, None, MS_BIND | MS_REC)


def _mount_processes(target: str) -> None:
    os.makedirs(target)
    # Containers that mask parts of /proc forbid a fresh one; without it memory is limited per process only, which the
    # probe of `isolation` sees and reports.
    with contextlib.suppress(JailError):
        _mount("proc", target, "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


# --- the program ----------------------------------------------------------------------------------------------------


def run_program(specification: Specification) -> NoReturn:
    """Limit this process for good and become the program; called in the forked child."""
    try:
        os.setsid()
        if specification["drop_user"]:
            _drop_user(specification["uid"])
        _set_limits(specification)
        if LINUX:
            _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            _prctl(PR_SET_NO_NEW_PRIVS, 1)
            if specification["filter"]:
                _install_filter(bytes.fromhex(specification["filter"]))
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        arguments = specification["arguments"]
        os.execve(arguments[0], arguments, specification["environment"])
    except BaseException as error:
        os.write(2, f"sandbox: the program could not start: {error}\n".encode())
        os._exit(127)


def _drop_user(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def sandbox_uid(wanted: int) -> int:
    """A user for this sandbox alone, since the kernel counts processes by user; `nobody` where it is not mapped."""
    try:
        with open("/proc/self/uid_map") as file:
            ranges = [tuple(map(int, line.split())) for line in file]
    except OSError:
        return NOBODY
    return wanted if any(first <= wanted < first + count for first, _, count in ranges) else NOBODY


def _set_limits(specification: Specification) -> None:
    processes = specification["processes"]
    if specification["level"] == "rlimits" and not specification["drop_user"]:
        processes += _tasks_of_this_user()
    limits = {
        "RLIMIT_CPU": specification["cpu_seconds"],
        "RLIMIT_AS": specification["memory_bytes"],
        "RLIMIT_FSIZE": specification["disk_bytes"],
        "RLIMIT_NOFILE": specification["open_files"],
        "RLIMIT_NPROC": processes,
        "RLIMIT_CORE": 0,
    }
    for name, wanted in limits.items():
        limit = getattr(resource, name, None)
        if limit is None:
            continue
        _, hard = resource.getrlimit(limit)
        value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        try:
            resource.setrlimit(limit, (value, value))
        except (ValueError, OSError):
            if LINUX:
                raise


def _tasks_of_this_user() -> int:
    """Without a user or namespace of its own the limit counts everything this user already runs."""
    user, count = os.getuid(), 0
    for process in _processes():
        try:
            if os.stat(f"/proc/{process}").st_uid == user:
                count += len(os.listdir(f"/proc/{process}/task"))
        except OSError:
            continue
    return count


# --- the supervisor -------------------------------------------------------------------------------------------------


def supervise(specification: Specification) -> dict[str, Any]:
    """Run the program to its end, its deadline or its memory limit, kill all it left, and say how it went."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    if LINUX:
        _prctl(PR_SET_DUMPABLE, 0)  # keeps the program from tracing the supervisor or opening its descriptors
    started = time.monotonic()
    deadline = started + specification["seconds"]
    program = os.fork()
    if program == 0:
        run_program(specification)
    for descriptor in (0, 1, 2):
        os.close(descriptor)
    report: dict[str, Any] = {"exit_code": -signal.SIGKILL, "timed_out": False, "memory_exceeded": False}
    watches_total = specification["level"] != "rlimits"
    while True:
        status = _reap(program)
        if status is not None:
            report["exit_code"] = os.waitstatus_to_exitcode(status)
            break
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            report["timed_out"] = True
            break
        if watches_total and memory_in_use() > specification["memory_bytes"]:
            report["memory_exceeded"] = True
            break
        _wait_for_child(min(remaining, POLL_SECONDS))
    if report["exit_code"] == -signal.SIGXCPU:
        report["timed_out"] = True
    report["seconds"] = time.monotonic() - started
    kill_everything(specification, program)
    return report


def _wait_for_child(seconds: float) -> None:
    if hasattr(signal, "sigtimedwait"):
        signal.sigtimedwait({signal.SIGCHLD}, seconds)
    else:
        time.sleep(seconds)


def _reap(program: int) -> int | None:
    """Collect every child that ended; the status of the program itself once it has."""
    found = None
    while True:
        try:
            process, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if process == 0:
            return found
        if process == program:
            found = status


def memory_in_use() -> int:
    """Bytes of memory that all other processes of this namespace hold together; 0 where /proc is missing."""
    page, total, others = os.sysconf("SC_PAGE_SIZE"), 0, [process for process in _processes() if process != os.getpid()]
    for process in others:
        try:
            with open(f"/proc/{process}/statm") as file:
                total += int(file.read().split()[1]) * page
        except (OSError, IndexError):
            continue
    if total < (64 << 20):
        return total
    # Pages shared after a fork were counted once a process above; the proportional size is exact but slower to read.
    return sum(_proportional_memory(process) for process in others)


def _proportional_memory(process: int) -> int:
    try:
        with open(f"/proc/{process}/smaps_rollup") as file:
            return next((int(line.split()[1]) << 10 for line in file if line.startswith("Pss:")), 0)
    except OSError:
        return 0


def _processes() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []


def kill_everything(specification: Specification, program: int) -> None:
    """Leave no process of the program behind."""
    if os.getpid() == 1:
        _kill(-1)  # everything in this namespace but the caller; the kernel does it again when process 1 ends
        return
    _kill(program)
    _kill(-program)
    # As a subreaper this process inherits every orphan, so killing its children until none is left reaches them all.
    deadline = time.monotonic() + 2
    while LINUX and time.monotonic() < deadline:
        for child in _children():
            _kill(child)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.005)


def _kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(process, signal.SIGKILL)


def _children() -> list[int]:
    own, found = os.getpid(), []
    for process in _processes():
        try:
            with open(f"/proc/{process}/stat") as file:
                parent = int(file.read().rpartition(")")[2].split()[1])
        except (OSError, IndexError, ValueError):
            continue
        if parent == own:
            found.append(process)
    return found


# --- the entry ------------------------------------------------------------------------------------------------------


def _prepare(specification: Specification, status: int) -> None:
    if LINUX:
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    specification["uid"] = sandbox_uid(specification["uid"])
    level = specification["level"]
    if level == "namespaces":
        if os.getppid() != specification["parent"]:
            os._exit(1)  # the caller died before its death could be noticed
        enter_namespaces(specification, status)
    elif level == "rlimits" and LINUX:
        _prctl(PR_SET_CHILD_SUBREAPER, 1)
    directory = specification["directory"]
    os.chdir(directory)
    os.makedirs("tmp", exist_ok=True)
    os.chmod("tmp", 0o1777)
    for name, text in specification["files"].items():
        with open(name, "w", encoding="utf-8", errors="surrogatepass") as file:
            file.write(text)
        os.chmod(name, 0o644)
    if level == "rlimits" and specification["drop_user"]:
        os.chown(directory, specification["uid"], specification["uid"])


def main(specification_descriptor: int, status: int) -> None:
    """Read the specification, run the program, write the report."""
    os.set_inheritable(status, False)
    with os.fdopen(specification_descriptor) as file:
        specification = json.load(file)
    try:
        _prepare(specification, status)
        report = supervise(specification)
    except (JailError, OSError) as error:
        report = {"error": str(error)}
    os.write(status, json.dumps(report).encode())
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
