"""Start one program in the jail of a given level, feed it, bound what it prints, and collect the report."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import IO, Literal

from openzaya.grading.sandbox.seccomp import filter_program

Level = Literal["bubblewrap", "namespaces", "rlimits"]

OUTPUT_BYTES = 1 << 20
DISK_BYTES = 64 << 20
OPEN_FILES = 256
FIRST_SANDBOX_UID = 0x60000000
SETUP_SECONDS = 30.0
TRUNCATED = "\n[output truncated after {limit} bytes]\n"

DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")

# `python -S` leaves out exit and quit, which short programs use without importing them.
_START = (
    "import builtins, _sitebuiltins as s\n"
    "builtins.exit, builtins.quit = s.Quitter('exit', 'end'), s.Quitter('quit', 'end')\n"
    "__file__ = 'main.py'\n"
    "del builtins, s\n"
    "exec(compile(open('main.py', 'rb').read(), 'main.py', 'exec'))"
)


class SandboxError(RuntimeError):
    """The sandbox itself could not be set up; it says nothing about the program."""


@dataclass(frozen=True, slots=True)
class Program:
    """A Python program, the files beside it, and what it may use."""

    source: str
    stdin: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 5.0
    memory_mb: int = 512
    processes: int = 32

    def __post_init__(self) -> None:
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise ValueError(f"seconds must be a positive number, not {self.seconds!r}")
        if self.memory_mb < 32:
            raise ValueError(f"memory_mb must be at least 32, which an idle interpreter needs, not {self.memory_mb!r}")


@dataclass(frozen=True, slots=True)
class Execution:
    """What one program did; `exit_code` is negative for the signal that ended it."""

    stdout: str
    stderr: str
    exit_code: int
    timed_out: bool
    memory_exceeded: bool
    truncated: bool
    seconds: float


def execute(program: Program, level: Level) -> Execution:
    """Run the program at this level of isolation; it and all it started are gone when this returns.

    Raises SandboxError where the machine refuses the level.
    """
    directory = tempfile.mkdtemp(prefix="openzaya-sandbox-")
    try:
        with tempfile.TemporaryFile("w+") as specification:
            json.dump(_specification(program, level, directory), specification)
            specification.flush()
            specification.seek(0)
            return _run(program, level, specification)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


# --- what the jail is told ------------------------------------------------------------------------------------------


def _specification(program: Program, level: Level, directory: str) -> dict[str, object]:
    work = directory if level == "rlimits" else "/sandbox"
    python = interpreter()
    return {
        "level": level,
        "parent": os.getpid(),
        "uid": FIRST_SANDBOX_UID + secrets.randbelow(1 << 24),
        "drop_user": os.name == "posix" and os.geteuid() == 0 and (level != "rlimits" or _reachable_by_anyone(python)),
        "mount_point": directory,
        "directory": work,
        "read_only": read_only_paths(),
        "devices": DEVICES,
        "symbolic_links": _symbolic_links(work),
        "files": {**program.files, "main.py": program.source},
        "arguments": [python, "-I", "-S", "-B", "-X", "utf8", "-c", _START],
        "environment": {"HOME": work, "TMPDIR": f"{work}/tmp", "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
        "seconds": program.seconds,
        "cpu_seconds": math.ceil(program.seconds) + 1,
        "memory_bytes": program.memory_mb << 20,
        "disk_bytes": DISK_BYTES,
        "open_files": OPEN_FILES,
        "processes": program.processes,
        "filter": filter_program(network_namespace=level != "rlimits").hex(),
    }


def interpreter() -> str:
    """The real Python behind a virtual environment."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def read_only_paths() -> list[str]:
    """Everything of the host that the sandbox shows: system programs and libraries, and this Python's own tree."""
    system = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/nix/store"]
    paths = [path for path in system if os.path.lexists(path)]
    for tree in (os.path.realpath(sys.base_prefix), os.path.dirname(os.path.dirname(interpreter()))):
        if not any(tree == path or tree.startswith(path + "/") for path in paths):
            paths.append(tree)
    return paths


def _symbolic_links(work: str) -> list[tuple[str, str]]:
    return [
        ("/tmp", f"{work}/tmp"),
        ("/dev/shm", f"{work}/tmp"),
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ]


def _reachable_by_anyone(path: str) -> bool:
    """Whether a user without rights may start this file, which one in root's own home is not."""
    return all(os.stat(parent).st_mode & 0o001 for parent in [path, *map(str, Path(path).parents)])


@lru_cache(maxsize=1)
def _jail_source() -> str:
    return Path(__file__).with_name("jail.py").read_text(encoding="utf-8")


def _command(level: Level, specification: int, status: int) -> list[str]:
    jail = [interpreter(), "-I", "-S", "-B", "-X", "utf8", "-c", _jail_source(), str(specification), str(status)]
    return [*_bubblewrap(), *jail] if level == "bubblewrap" else jail


def _bubblewrap() -> list[str]:
    program = shutil.which("bwrap")
    if program is None:
        raise SandboxError("bubblewrap is not installed; install the package `bubblewrap` for the program bwrap")
    command = [program, "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--as-pid-1"]
    command += ["--die-with-parent", "--hostname", "sandbox", "--clearenv", "--proc", "/proc"]
    if os.geteuid() == 0:
        kept = ("CAP_SETUID", "CAP_SETGID", "CAP_SYS_PTRACE", "CAP_KILL")
        command += ["--cap-drop", "ALL", *(word for name in kept for word in ("--cap-add", name))]
    else:
        command += ["--unshare-user"]
    shown = read_only_paths()
    folders = {str(folder) for path in (*shown, *DEVICES) for folder in Path(path).parents}
    for folder in sorted(folders - {"/"}):
        command += ["--perms", "0755", "--dir", folder]  # left to itself bwrap makes them for its own user only
    for path in shown:
        command += ["--symlink", os.readlink(path), path] if os.path.islink(path) else ["--ro-bind", path, path]
    for path in DEVICES:
        command += ["--dev-bind", path, path]
    for name, target in _symbolic_links("/sandbox"):
        command += ["--symlink", target, name]
    command += ["--perms", "1777", "--size", str(DISK_BYTES), "--tmpfs", "/sandbox", "--remount-ro", "/"]
    return [*command, "--"]


# --- the conversation with the jail ---------------------------------------------------------------------------------


class _Collected:
    """A pipe's bytes up to a limit; what comes after is read and dropped, so the writer never blocks."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.kept = bytearray()
        self.truncated = False

    def add(self, data: bytes) -> None:
        room = self.limit - len(self.kept)
        self.truncated |= len(data) > room
        self.kept += data[:room]

    def text(self) -> str:
        decoded = bytes(self.kept).decode("utf-8", "replace")
        return decoded + TRUNCATED.format(limit=self.limit) if self.truncated else decoded


def _run(program: Program, level: Level, specification: IO[str]) -> Execution:
    status_read, status_write = os.pipe()
    try:
        process = subprocess.Popen(
            _command(level, specification.fileno(), status_write),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(specification.fileno(), status_write),
            env={},
            cwd="/",
            start_new_session=True,
            bufsize=0,
        )
    except OSError as error:
        os.close(status_read)
        raise SandboxError(f"the sandbox could not start: {error}") from error
    finally:
        os.close(status_write)
    try:
        with os.fdopen(status_read, "rb", buffering=0) as status:
            collected = _converse(process, status, program)
    finally:
        _end(process)
    return _execution(*collected)


def _converse(
    process: subprocess.Popen[bytes], status: IO[bytes], program: Program
) -> tuple[_Collected, _Collected, _Collected]:
    """Write the input and read the three pipes until all have ended, or the jail missed its own deadline."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    stdout, stderr, report = _Collected(OUTPUT_BYTES), _Collected(OUTPUT_BYTES), _Collected(1 << 16)
    pending = memoryview(program.stdin.encode("utf-8", "surrogatepass"))
    deadline = time.monotonic() + program.seconds + SETUP_SECONDS
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, stdout)
        selector.register(process.stderr, selectors.EVENT_READ, stderr)
        selector.register(status, selectors.EVENT_READ, report)
        os.set_blocking(process.stdin.fileno(), False)
        selector.register(process.stdin, selectors.EVENT_WRITE)
        readers = 3
        while readers and time.monotonic() < deadline:
            for key, _ in selector.select(timeout=0.5):
                if key.data is None:
                    pending = _feed(process.stdin, pending)
                    if not pending:
                        selector.unregister(process.stdin)
                        process.stdin.close()
                    continue
                data = os.read(key.fd, 1 << 16)
                key.data.add(data)
                if data:
                    continue
                selector.unregister(key.fileobj)
                readers -= 1
                if key.data is report:
                    # The jail is gone; only a process that escaped a weak one could still hold the other pipes.
                    deadline = min(deadline, time.monotonic() + 1)
    return stdout, stderr, report


def _feed(pipe: IO[bytes], pending: memoryview) -> memoryview:
    """What is left to write; nothing once the program stopped reading."""
    try:
        return pending[os.write(pipe.fileno(), pending[: 1 << 16]) :] if pending else pending
    except BlockingIOError:
        return pending
    except BrokenPipeError:
        return pending[:0]


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        try:
            process.wait(0.5)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe:
            pipe.close()


def _execution(stdout: _Collected, stderr: _Collected, report: _Collected) -> Execution:
    try:
        outcome = json.loads(bytes(report.kept))
    except ValueError:
        raise SandboxError(f"the sandbox died during its set-up: {stderr.text().strip()[-500:]}") from None
    if "error" in outcome:
        raise SandboxError(f"the machine refuses this sandbox: {outcome['error']}")
    return Execution(
        stdout=stdout.text(),
        stderr=stderr.text(),
        exit_code=outcome["exit_code"],
        timed_out=outcome["timed_out"],
        memory_exceeded=outcome["memory_exceeded"],
        truncated=stdout.truncated or stderr.truncated,
        seconds=outcome["seconds"],
    )
