"""What the sandbox withstands. Every attack runs at each level that this machine really has; a level that it
refuses is skipped once with the reason, and guards that a level does not claim are not tested there."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from openzaya.grading import SandboxError, WeakSandboxError, describe_isolation, run_code
from openzaya.grading.sandbox import code as sandbox_code
from openzaya.grading.sandbox.execution import OUTPUT_BYTES, Execution, Level, Program, execute
from openzaya.grading.sandbox.isolation import LEVELS, Guard, Isolation, probe

SLACK = 15  # seconds that a busy machine may add to any start or end
SECRET_VARIABLE = "OPENZAYA_TEST_SECRET"


def refusal(level: Level) -> str | None:
    try:
        probe(level)
    except SandboxError as error:
        return str(error)
    return None


WORKING = [level for level in LEVELS if refusal(level) is None]


@pytest.fixture(params=WORKING)
def level(request: pytest.FixtureRequest) -> Level:
    return request.param


@pytest.mark.parametrize("candidate", LEVELS)
def test_a_level_works_on_this_machine_or_says_why_not(candidate: Level) -> None:
    reason = refusal(candidate)
    if reason is not None:
        pytest.skip(f"every attack below ran without level {candidate}: {reason}")
    isolation = probe(candidate)
    assert isolation.level == candidate
    assert candidate == "rlimits" or isolation.strong, str(isolation)


def run(source: str, level: Level, **limits: object) -> Execution:
    return execute(Program(source, **limits), level)  # type: ignore[arg-type]


def needs(level: Level, guard: str) -> None:
    found = probe(level).guards[guard]
    if not found.holds:
        pytest.skip(f"level {level} does not claim to hold this: {found.mechanism}")


# --- ordinary programs ----------------------------------------------------------------------------------------------


def test_a_program_reads_its_input_and_prints(level: Level) -> None:
    result = run("print(sum(map(int, input().split())))", level, stdin="17 25\n")
    assert (result.stdout, result.stderr, result.exit_code) == ("42\n", "", 0)


def test_the_exit_code_and_the_traceback_come_back(level: Level) -> None:
    assert run("exit(3)", level).exit_code == 3
    result = run("def f():\n    return 1 / 0\nf()", level)
    assert result.exit_code == 1
    assert 'File "main.py", line 2' in result.stderr
    assert "ZeroDivisionError" in result.stderr


def test_the_standard_library_works_and_other_packages_are_not_there(level: Level) -> None:
    source = (
        "import collections, decimal, itertools, json, math, re, sqlite3, statistics, tempfile, threading\n"
        "t = threading.Thread(target=lambda: print('thread'))\nt.start(); t.join()\n"
        "with tempfile.TemporaryFile() as f: f.write(b'x')\n"
        "try:\n    import pytest\nexcept ImportError:\n    print('no pytest')\n"
    )
    assert run(source, level).stdout == "thread\nno pytest\n"


def test_a_program_may_start_a_few_processes_of_its_own(level: Level) -> None:
    source = "import multiprocessing as m\nwith m.Pool(2) as p: print(p.map(abs, [-1, -2]))"
    assert run(source, level).stdout == "[1, 2]\n"


def test_a_large_input_that_is_never_read_does_no_harm(level: Level) -> None:
    result = run("print('done')", level, stdin="x" * 3_000_000)
    assert (result.stdout, result.exit_code) == ("done\n", 0)


def test_a_large_input_arrives_whole(level: Level) -> None:
    assert run("import sys; print(len(sys.stdin.read()))", level, stdin="x" * 3_000_000).stdout == "3000000\n"


def test_each_program_starts_in_an_empty_folder_of_its_own(level: Level) -> None:
    source = "import os; print(sorted(os.listdir('.'))); open('mine', 'w').write('x')"
    assert [run(source, level).stdout for _ in range(2)] == ["['main.py', 'tmp']\n"] * 2


def test_several_programs_run_at_once(level: Level) -> None:
    results: list[str] = []
    threads = [threading.Thread(target=lambda n=n: results.append(run(f"print({n})", level).stdout)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["0\n", "1\n", "2\n", "3\n"]


# --- time, memory, processes, output --------------------------------------------------------------------------------


def test_an_endless_loop_that_ignores_signals_ends_at_the_deadline(level: Level) -> None:
    source = (
        "import signal\nfor s in range(1, 32):\n"
        "    try: signal.signal(s, signal.SIG_IGN)\n    except OSError: pass\n"
        "print('armed', flush=True)\nwhile True: pass"
    )
    started = time.monotonic()
    result = run(source, level, seconds=2)
    assert time.monotonic() - started < 2 + SLACK
    assert result.timed_out
    assert (result.stdout, result.exit_code) == ("armed\n", -9)
    assert 2 <= result.seconds < 2 + SLACK


def test_a_program_that_sleeps_ends_at_the_deadline(level: Level) -> None:
    assert run("import time; time.sleep(60)", level, seconds=0.3).timed_out


def test_one_process_that_wants_too_much_memory_gets_a_memory_error(level: Level) -> None:
    result = run("x = bytearray(10 ** 9)", level, memory_mb=128)
    assert "MemoryError" in result.stderr


def test_processes_that_share_out_too_much_memory_are_ended(level: Level) -> None:
    needs(level, "memory")
    source = (
        "import os, time\nfor _ in range(6): os.fork() if os.getpid() == 2 else None\nx = bytearray(80 << 20)\n"
        + ("x[::4096] = b'x' * len(x[::4096])\ntime.sleep(20)")
    )
    result = run(source, level, memory_mb=160, seconds=20)
    assert result.memory_exceeded
    assert not result.timed_out
    assert result.seconds < SLACK


def test_memory_cannot_hide_in_files_or_anonymous_segments(level: Level) -> None:
    needs(level, "memory")
    source = (
        "import os\nn = 0\ntry:\n    while True:\n        with open(f'f{n}', 'wb') as f: f.write(bytes(8 << 20))\n"
        "        n += 1\nexcept OSError: print(n < 16)\n"
        "try: os.memfd_create('x')\nexcept OSError as e: print(e.errno)\n"
    )
    assert run(source, level).stdout == "True\n1\n"


def test_a_fork_bomb_neither_spreads_nor_survives(level: Level) -> None:
    needs(level, "processes")
    before = process_count()
    result = run("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", level, seconds=1)
    assert result.timed_out
    assert process_count() < before + 5
    assert run("print('still works')", level).stdout == "still works\n"


def process_count() -> int:
    return sum(name.isdigit() for name in os.listdir("/proc"))


def test_a_background_process_does_not_outlive_the_program(level: Level) -> None:
    mark = f"openzaya-left-behind-{os.getpid()}-{level}"
    source = (
        "import os, subprocess, sys\n"
        f"subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)', {mark!r}], start_new_session=True,"
        " stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\nprint('left')"
    )
    started = time.monotonic()
    assert run(source, level).stdout == "left\n"
    assert time.monotonic() - started < SLACK
    assert not any(mark in command for command in command_lines())


def command_lines() -> list[str]:
    found = []
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            found.append(Path(f"/proc/{process}/cmdline").read_text(errors="replace"))
        except OSError:
            continue
    return found


def test_a_daemon_that_keeps_the_pipes_open_does_not_hold_the_caller(level: Level) -> None:
    source = (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n"
        "    if os.fork() == 0: time.sleep(60)\n    os._exit(0)\nprint('gone')"
    )
    started = time.monotonic()
    assert "gone" in run(source, level).stdout
    assert time.monotonic() - started < SLACK


def test_endless_output_is_cut_and_says_so(level: Level) -> None:
    result = run("import sys\nwhile True: sys.stdout.write('x' * 65536)", level, seconds=1.5)
    assert result.truncated
    assert result.timed_out
    assert result.stdout.endswith("[output truncated after 1048576 bytes]\n")
    assert len(result.stdout) < OUTPUT_BYTES + 100


def test_closed_output_and_bytes_that_are_no_text_do_no_harm(level: Level) -> None:
    assert run("import os; os.close(1); os.close(2)", level).exit_code == 0
    result = run("import sys; sys.stdout.buffer.write(b'a\\xff\\xfeb\\x00')", level)
    assert result.stdout == "a��b\x00"


# --- the host -------------------------------------------------------------------------------------------------------


def test_no_network_is_reached(level: Level) -> None:
    needs(level, "network")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        port = listener.getsockname()[1]
        source = (
            f"import socket\nfor address in [('127.0.0.1', {port}), ('1.1.1.1', 53)]:\n"
            "    try: socket.create_connection(address, timeout=1); print('connected')\n"
            "    except OSError: print('refused')\n"
        )
        assert run(source, level).stdout == "refused\nrefused\n"
        with pytest.raises(TimeoutError):
            listener.accept()


def test_no_socket_to_the_hypervisor_and_no_kernel_keys(level: Level) -> None:
    source = (
        "import socket, ctypes\nfor family in (40, 16, 17, 38):\n"
        "    try: socket.socket(family, socket.SOCK_STREAM if family == 40 else socket.SOCK_RAW); print('made')\n"
        "    except OSError: print('refused')\n"
        "libc = ctypes.CDLL(None, use_errno=True)\nprint(libc.unshare(0x10000000), libc.ptrace(0, 0, 0, 0))\n"
    )
    assert run(source, level).stdout == "refused\n" * 4 + "-1 -1\n"


def test_nothing_of_the_host_is_written(level: Level, tmp_path: Path) -> None:
    needs(level, "filesystem")
    tmp_path.chmod(0o777)
    places = [
        "/",
        "/usr",
        "/etc",
        "/proc/sys/kernel",
        "/dev",
        str(tmp_path),
        str(Path(__file__).parent),
        str(Path.home()),
    ]
    source = f"for place in {places!r}:\n    try: open(place + '/broken', 'w'); print(place)\n    except OSError: pass"
    assert run(source, level).stdout == ""
    assert not (tmp_path / "broken").exists()
    assert not Path(__file__).with_name("broken").exists()


def test_homes_and_secrets_of_the_host_are_not_read(level: Level, tmp_path: Path) -> None:
    needs(level, "filesystem")
    secret = tmp_path / "secret"
    secret.write_text("secret")
    paths = [
        str(secret),
        __file__,
        "/etc/passwd",
        "/etc/shadow",
        str(Path.home() / ".bashrc"),
        "/proc/1/environ",
        "/proc/1/fd",
    ]
    source = (
        f"import os\nfor path in {paths!r}:\n"
        "    try: print(path, os.listdir(path) if path.endswith('/fd') else open(path).read())\n"
        "    except OSError: pass"
    )
    assert run(source, level).stdout == ""


def test_the_environment_is_not_inherited(level: Level, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECRET_VARIABLE, "hush")
    result = run("import os; print(sorted(os.environ))", level)
    assert result.stdout == "['HOME', 'LANG', 'PATH', 'TMPDIR']\n"
    if probe(level).processes.holds:
        seen = run(f"print(open('/proc/{os.getpid()}/environ').read())", level)
        assert "hush" not in seen.stdout


def test_no_process_of_the_host_is_seen_or_killed(level: Level) -> None:
    needs(level, "processes")
    source = (
        f"import os, signal\nfor process in ({os.getpid()}, os.getppid(), 1, -1):\n"
        "    try: os.kill(process, signal.SIGKILL) if process != -1 else None; print('sent', process)\n"
        "    except OSError: pass\nprint('alive')"
    )
    # Process 1 of a sandbox is its supervisor: a signal from inside is accepted at most, and has no effect.
    assert run(source, level).stdout.endswith("alive\n")


def test_killing_everything_it_can_reach_ends_only_the_program(level: Level) -> None:
    needs(level, "processes")
    source = (
        "import os, signal, time\nif os.fork() == 0: time.sleep(60)\n"
        "os.kill(-1, signal.SIGKILL)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    result = run(source, level)
    assert result.exit_code == -9
    assert not result.timed_out


def test_the_report_cannot_be_forged_through_open_descriptors(level: Level) -> None:
    source = (
        "import os\nfor fd in range(3, 1024):\n"
        "    try: os.write(fd, b'{\"exit_code\": 0, \"timed_out\": false}'); print('wrote', fd)\n"
        "    except OSError: pass\nos._exit(7)"
    )
    result = run(source, level)
    assert (result.stdout, result.exit_code) == ("", 7)


def test_the_program_has_no_rights_left(level: Level) -> None:
    if level == "rlimits":
        pytest.skip("level rlimits keeps the caller's user where its Python is in a home of its own")
    source = (
        "wanted = ('CapEff', 'CapPrm', 'NoNewPrivs')\n"
        "print([line.split()[1] for line in open('/proc/self/status') if line.startswith(wanted)])"
    )
    assert run(source, level).stdout == "['0000000000000000', '0000000000000000', '1']\n"


def test_the_program_dies_with_a_caller_that_is_killed(level: Level, tmp_path: Path) -> None:
    mark = f"openzaya-orphan-{os.getpid()}-{level}"
    caller = (
        "from openzaya.grading.sandbox.execution import Program, execute\n"
        f"execute(Program('import time; time.sleep(50)  # {mark}', seconds=50), {level!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", caller], env={**os.environ, "TMPDIR": str(tmp_path)})
    deadline = time.monotonic() + 2 * SLACK
    while time.monotonic() < deadline and not supervised_by(process.pid):
        time.sleep(0.05)
    family = supervised_by(process.pid)
    process.kill()
    process.wait()
    assert family
    deadline = time.monotonic() + SLACK
    while time.monotonic() < deadline and any(os.path.exists(f"/proc/{member}") for member in family):
        time.sleep(0.05)
    assert not any(os.path.exists(f"/proc/{member}") for member in family)


def supervised_by(caller: int) -> set[int]:
    """All descendants of a process, once the innermost runs the program (three below the caller, or two unconfined)."""
    parents = {}
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            parents[int(process)] = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    family = {caller}
    while True:
        grown = family | {process for process, parent in parents.items() if parent in family}
        if grown == family:
            break
        family = grown
    running = {process for process in family if any("main.py" in word for word in command_of(process))}
    return family - {caller} if len(family) >= 3 and running else set()


def command_of(process: int) -> list[str]:
    try:
        return Path(f"/proc/{process}/cmdline").read_text().split("\0")
    except OSError:
        return []


# --- which sandbox --------------------------------------------------------------------------------------------------


def test_this_machine_says_what_holds() -> None:
    isolation = describe_isolation()
    text = str(isolation)
    for name in ("filesystem", "network", "memory", "cpu", "processes"):
        assert f"{name}: {'yes' if isolation.guards[name].holds else 'NO'}" in text
    assert isolation.strong == ("NO" not in text)


def test_the_result_names_the_level_that_ran_it() -> None:
    if not describe_isolation().strong:
        pytest.skip(f"no strong sandbox here:\n{describe_isolation()}")
    result = run_code("print('hello')")
    assert (result.stdout, result.isolation) == ("hello\n", describe_isolation().level)


@pytest.fixture
def weak_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Guard(True, "held")
    weak = Isolation("rlimits", Guard(False, "ordinary permissions only"), held, held, held, held)
    monkeypatch.setattr(sandbox_code, "describe_isolation", lambda: weak)
    monkeypatch.delenv("OPENZAYA_WEAK_SANDBOX", raising=False)


@pytest.mark.usefixtures("weak_machine")
def test_a_machine_without_namespaces_refuses_and_says_what_does_not_hold() -> None:
    with pytest.raises(WeakSandboxError, match=r"filesystem: ordinary permissions only.*allow_weak=True"):
        run_code("print(1)")


@pytest.mark.usefixtures("weak_machine")
def test_weakness_is_accepted_by_argument_or_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_code("print(1)", allow_weak=True).isolation == "rlimits"
    monkeypatch.setenv("OPENZAYA_WEAK_SANDBOX", "1")
    assert run_code("print(1)").stdout == "1\n"


def test_bad_limits_and_languages_are_refused_by_value() -> None:
    with pytest.raises(ValueError, match="'rust'"):
        run_code("fn main() {}", language="rust")
    for seconds in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="seconds"):
            run_code("print(1)", seconds=seconds)
    with pytest.raises(ValueError, match="memory_mb"):
        run_code("print(1)", memory_mb=1)


def test_a_level_that_cannot_be_set_up_is_an_error_of_the_sandbox_and_not_of_the_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SandboxError, match="bubblewrap"):
        execute(Program("print(1)"), "bubblewrap")
