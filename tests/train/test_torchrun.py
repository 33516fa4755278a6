"""`openzaya train` as torchrun starts it: what is said, by whom, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_recovery import RECIPE

from openzaya.model.checkpoint import load_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SOURCE = Path(__file__).parents[2] / "src"
QUICK = RECIPE.replace("tokens = 6000", "tokens = 2000")


def torchrun(folder: Path, text: str, out: str = "run") -> subprocess.Popen[str]:
    (folder / "given.toml").write_text(text, encoding="utf-8")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "openzaya", "train", str(folder / "given.toml"), "--out", str(folder / out),
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SOURCE)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_ranks_train_from_the_command_line_and_one_of_them_speaks(tmp_path: Path) -> None:
    process = torchrun(tmp_path, QUICK + "[phases.sharding]\nexpert = 2\n")
    said, told = process.communicate()
    assert process.returncode == 0, told
    assert said.split() == [str(tmp_path / "run")]
    for words in ("stop it at any time", "plain: step 4 of 4", "plain: held-out loss", "plain: finished after"):
        assert told.count(words) == 1, told
    assert "Warning" not in told
    assert load_model(tmp_path / "run" / "plain").config.num_experts == 2


def test_an_interrupted_run_ends_soon_with_a_sentence_and_the_same_command_goes_on(tmp_path: Path) -> None:
    text = RECIPE.replace("tokens = 6000", "tokens = 60_000").replace("seed = 3", "seed = 3\nkeep_every = 4")
    process = torchrun(tmp_path, text)
    while not (tmp_path / "run" / "plain.states" / "step-000000004").is_dir():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _said, told = process.communicate(timeout=60)
    assert process.returncode != 0
    assert told.count("openzaya: interrupted") == 1, told
    assert "the same command goes on" in told
    assert "unforeseen" not in told
    again = torchrun(tmp_path, text)
    _said, told = again.communicate()
    assert again.returncode == 0, told
    assert told.count("plain: goes on at step") == 1
    notes = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert any(note.get("note", "").startswith("goes on at step") for note in notes)


def test_what_is_refused_is_said_once_and_before_anything_is_trained(tmp_path: Path) -> None:
    further = '[[phases]]\nname = "further"\nstart = "plain"\ntokens = 500\nrow = 120\nsharding = { context = 3 }\n'
    process = torchrun(tmp_path, QUICK + further)
    _said, told = process.communicate(timeout=120)
    assert process.returncode == 1
    assert told.count("2 ranks cannot be divided by experts 1 x context 3") == 1, told
    assert not (tmp_path / "run").exists()
