"""The live view in a real terminal, and the script that draws it for the README."""

from __future__ import annotations

import importlib.util
import os
import pty
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fake_openai import FakeServer, Reply
from openzaya.mrsa import events, make_config

SCRIPT = Path(__file__).parents[2] / "docs" / "images" / "make_live_view.py"


@pytest.mark.slow
def test_on_a_terminal_the_run_is_drawn_and_the_answer_stays_alone() -> None:
    ours, theirs = pty.openpty()
    drawn: list[bytes] = []

    def read() -> None:
        while True:
            try:
                drawn.append(os.read(ours, 65536))
            except OSError:  # the other end is closed
                return

    reader = threading.Thread(target=read)
    reader.start()
    with FakeServer(Reply(reasoning="adding up", content="It is \\boxed{42}.", delay=0.02)) as server:
        done = subprocess.run(
            [sys.executable, "-m", "openzaya", "solve", "Compute 40 + 2.", "--backend", server.url, "-N", "4", "-C",
             "2", "-T", "1", "--beta", "60", "--tau", "10", "--final-tokens", "60"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=theirs, text=True, timeout=200, check=False,
            env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "90"},
        )  # fmt: skip
    os.close(theirs)
    reader.join(10)
    os.close(ours)
    picture = b"".join(drawn).decode()
    assert (done.returncode, done.stdout) == (0, "It is \\boxed{42}.\n")
    assert "\x1b[?25l" in picture, "the cursor is hidden while it draws"
    assert picture.rindex("\x1b[?25h") > picture.rindex("╰"), "and comes back after the last frame"
    assert "✓ answered 42" in picture


def test_the_script_draws_the_middle_of_the_last_round() -> None:
    module_spec = importlib.util.spec_from_file_location("make_live_view", SCRIPT)
    assert module_spec is not None
    assert module_spec.loader is not None
    script = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(script)
    config = make_config({"candidates": 4, "tails": 1, "rounds": 1, "beta": 50, "tau": 5, "final_tokens": 50})
    stream: list[tuple[float, events.Event]] = [
        (0.0, events.RunStarted(config=config, task="math", model="tiny", restored=0))
    ]
    for round in (0, 1):
        stream.append((10.0 * round, events.RoundStarted(round=round, width=4, limit=50)))
        for index in range(4):
            ended = events.CandidateFinished(
                round=round, index=index, answer="42", tokens=30, seconds=1.0, finish_reason="stop"
            )
            stream.append((10.0 * round + 2 * index + 1, ended))
        over = events.RoundFinished(round=round, votes={"42": 4}, failed=0, cut=0, completion_tokens=120, seconds=8.0)
        stream.append((10.0 * round + 8, over))
    svg = script.picture(stream, "Compute 40 + 2.", "tiny")
    assert script.middle_of_last_round(stream) == 14.0
    assert svg.startswith("<svg")
    assert "·&#160;tiny" in svg
    assert "×2" in svg, "two of four have answered"
