from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

from fake_openai import FakeServer, Reply, Request

FOUND = Reply(reasoning="40 and 2", content="The answer is \\boxed{42}.")


def test_an_interrupt_leaves_a_whole_journal_that_resume_goes_on_from(tmp_path: Path) -> None:
    journal = tmp_path / "run.jsonl"
    stuck = Reply(reasoning="thinking " * 30, stall_after=5)

    def script(request: Request) -> Reply:
        return stuck if request.index in (2, 3) else FOUND

    with FakeServer(script) as server:
        command = [
            sys.executable, "-m", "openzaya", "solve", "Compute 40 + 2.", "--backend", server.url, "-N", "4", "-C", "2",
            "-T", "1", "--beta", "60", "--tau", "10", "--final-tokens", "60",
        ]  # fmt: skip
        run = subprocess.Popen(
            [*command, "--journal", str(journal)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            server.wait_until(lambda seen: sum(request.answered for request in seen.requests) == 2, seconds=120)
            server.wait_until(lambda _seen: len(_records(journal)) == 3, seconds=30)
            run.send_signal(signal.SIGINT)
            out, error = run.communicate(timeout=60)
        finally:
            run.kill()
        server.wait_until(lambda seen: len(seen.aborts) == 2, seconds=30)

        assert run.returncode == 130
        assert out == ""
        assert "openzaya: interrupted\n" in error
        assert f"openzaya solve --resume {journal} " in error
        assert "Traceback" not in error
        assert [record["kind"] for record in _records(journal)] == ["header", "rollout", "rollout"]

        server.script = FOUND
        resumed = subprocess.run(
            [*command, "--resume", str(journal), "--quiet"], capture_output=True, text=True, timeout=120, check=False
        )
        assert (resumed.returncode, resumed.stdout) == (0, "The answer is \\boxed{42}.\n"), resumed.stderr
        assert len(server.requests) == 4 + 2 + 4, "only the two interrupted rollouts of round 0 are run again"


def _records(journal: Path) -> list[dict[str, object]]:
    if not journal.exists():
        return []
    lines = journal.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]
