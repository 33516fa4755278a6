"""Which sandbox this machine allows, found by running a probe in it rather than by asking for version numbers."""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from openzaya.grading.sandbox.execution import Level, Program, SandboxError, execute
from openzaya.grading.sandbox.seccomp import filter_program

LEVELS: tuple[Level, ...] = ("bubblewrap", "namespaces", "rlimits")
WEAK_VARIABLE = "OPENZAYA_WEAK_SANDBOX"


@dataclass(frozen=True, slots=True)
class Guard:
    """Whether one kind of isolation holds, as the probe saw it, and what holds it (or why it does not)."""

    holds: bool
    mechanism: str


@dataclass(frozen=True, slots=True)
class Isolation:
    """What a sandbox of this machine keeps apart from the host."""

    level: Level
    filesystem: Guard
    """Nothing of the host can be written, and nothing of its homes, /etc, /var or /tmp can be read."""
    network: Guard
    """No address can be reached, this machine's own included."""
    memory: Guard
    """All processes of a program together stay within the limit."""
    cpu: Guard
    """The program ends at its deadline whatever it does."""
    processes: Guard
    """Their number is bounded, none outlives the program, and none of the host's can be seen or signalled."""

    @property
    def guards(self) -> dict[str, Guard]:
        """The five guards by name."""
        return {name: getattr(self, name) for name in ("filesystem", "network", "memory", "cpu", "processes")}

    @property
    def strong(self) -> bool:
        """Whether all five hold."""
        return all(guard.holds for guard in self.guards.values())

    def __str__(self) -> str:
        lines = [
            f"  {name}: {'yes' if guard.holds else 'NO'} - {guard.mechanism}" for name, guard in self.guards.items()
        ]
        return "\n".join([f"sandbox: {self.level}", *lines])


_PROBE_PROCESSES = 8
_PROBE = """
import json, os, resource, socket, sys, time
facts = json.loads(sys.stdin.read())

def succeeds(action):
    try:
        action()
    except (OSError, MemoryError, OverflowError):
        return False
    return True

def connect():
    socket.create_connection(("127.0.0.1", facts["port"]), timeout=1).close()

def create(folder):
    path = os.path.join(folder, f"openzaya-probe-{os.getpid()}")
    open(path, "x").close()
    os.unlink(path)

def fork():
    if os.fork() == 0:
        time.sleep(30)

seen = {
    "reads_host_file": succeeds(lambda: open(facts["canary"]).close()),

    "writes": [folder for folder in facts["folders"] if succeeds(lambda: create(folder))],
    "writes_own_folder": succeeds(lambda: create(".")),
    "connects": succeeds(connect),
    "sees_host_process": succeeds(lambda: os.kill(facts["host_process"], 0)),
    "allocates_too_much": succeeds(lambda: bytearray(2 * facts["memory"])),
    "watches_memory": os.path.exists("/proc/self/statm"),
    "cpu_limited": resource.getrlimit(resource.RLIMIT_CPU)[1] != resource.RLIM_INFINITY,
    "forks_too_many": all([succeeds(fork) for _ in range(facts["processes"] + 1)]),
}
print(json.dumps(seen))
"""


@lru_cache(maxsize=len(LEVELS))
def probe(level: Level) -> Isolation:
    """Run a program in this level that tries to break out, and report what it managed (about 0.2 s, once a process).

    Raises SandboxError where the level does not work here.
    """
    seen = _run_probe(level)
    if not seen["writes_own_folder"]:
        raise SandboxError("the program cannot write in its own folder")
    namespaced = level != "rlimits"
    breaches = list(seen["writes"])
    if seen["reads_host_file"]:
        breaches.append("reads of the host's files")
    return Isolation(
        level=level,
        filesystem=Guard(
            not breaches,
            "a root of its own: system and Python read-only, one writable folder of 64 MiB in memory"
            if not breaches
            else f"ordinary permissions only; possible: {', '.join(breaches)}",
        ),
        network=_network_guard(not seen["connects"], namespaced),
        memory=Guard(
            namespaced and seen["watches_memory"] and not seen["allocates_too_much"],
            _memory_mechanism(namespaced and seen["watches_memory"], not seen["allocates_too_much"]),
        ),
        cpu=Guard(seen["cpu_limited"], "a wall-clock deadline ending in SIGKILL, and RLIMIT_CPU for each process"),
        processes=_process_guard(seen, namespaced),
    )


def _run_probe(level: Level) -> dict[str, Any]:
    memory_mb = 128
    with (
        tempfile.TemporaryDirectory(prefix="openzaya-probe-") as folder,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        canary = os.path.join(folder, "canary")
        with open(canary, "w") as file:
            file.write("canary")
        os.chmod(folder, 0o777)
        home = os.path.expanduser("~")
        facts = {
            "canary": canary,
            "home": home,
            "folders": sorted({"/", "/usr", "/usr/local", home, folder, os.path.dirname(os.path.abspath(__file__))}),
            "port": listener.getsockname()[1],
            "host_process": os.getpid(),
            "memory": memory_mb << 20,
            "processes": _PROBE_PROCESSES,
        }
        program = Program(_PROBE, stdin=json.dumps(facts), seconds=20, memory_mb=memory_mb, processes=_PROBE_PROCESSES)
        execution = execute(program, level)
    try:
        return dict(json.loads(execution.stdout))
    except ValueError:
        raise SandboxError(f"a probe of level {level} failed: {execution.stderr.strip()[-300:]}") from None


def _network_guard(holds: bool, namespaced: bool) -> Guard:
    if not holds:
        return Guard(False, "the host's network is reachable")
    if not namespaced:
        return Guard(True, "a system-call filter that refuses every socket")
    filtered = bool(filter_program(network_namespace=True))
    return Guard(True, "a network namespace without interfaces" + (" and a system-call filter" if filtered else ""))


def _memory_mechanism(watched: bool, limited: bool) -> str:
    if not limited:
        return "this system does not enforce RLIMIT_AS"
    if watched:
        return "RLIMIT_AS for each process, and a supervisor that ends the program when all together pass the limit"
    return "RLIMIT_AS for each process only, not for all together"


def _process_guard(seen: dict[str, Any], namespaced: bool) -> Guard:
    problems = []
    if seen["forks_too_many"]:
        problems.append("their number is not limited")
    if seen["sees_host_process"]:
        problems.append("this user's other processes can be signalled")
    if problems:
        return Guard(False, "; ".join(problems))
    apart = "a process namespace" if namespaced else "a user of its own"
    return Guard(True, f"{apart}, RLIMIT_NPROC, and SIGKILL to all that is left")


_detecting = threading.Lock()


def describe_isolation() -> Isolation:
    """The sandbox that `run_code` uses on this machine: the first level that holds everywhere, else the best one.

    Raises SandboxError on systems without even resource limits.
    """
    with _detecting:
        return _detect()


@lru_cache(maxsize=1)
def _detect() -> Isolation:
    if sys.platform == "win32":
        raise SandboxError("generated code cannot be confined on Windows; run it under WSL 2 or in a Linux container")
    working: list[Isolation] = []
    refusals = []
    for level in LEVELS:
        try:
            isolation = probe(level)
        except SandboxError as error:
            refusals.append(f"{level}: {error}")
            continue
        if isolation.strong:
            return isolation
        working.append(isolation)
    if not working:
        raise SandboxError("no sandbox works on this machine: " + "; ".join(refusals))
    return max(working, key=lambda isolation: sum(guard.holds for guard in isolation.guards.values()))
