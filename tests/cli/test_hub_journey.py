"""`--model ORG/NAME`: from a hub on loopback to an answer, killed on the way, asked about, and refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import typer
from typer.testing import Result

from hub_models import write_checkpoint
from hub_server import HubServer, Repository, use_hub
from openzaya.cli import journey as journey_module
from openzaya.cli.exits import Code
from openzaya.cli.journey import CommandJourney, Lines, seconds_left
from openzaya.model.hub.journey import Progress
from openzaya.model.hub.places import kept_folder
from openzaya.model.hub.plan import MemoryNeed, Plan

Program = Callable[..., Result]
NAME = "org/model"
SHORT = ("--preset", "single", "--final-tokens", "8")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("hub") / "legacy", "legacy")


@pytest.fixture(scope="module")
def core() -> str | None:
    """The compiled core, built before its cache is another folder; None where there is none."""
    from openzaya.engine.core.library import CoreUnavailable, load

    try:
        return load()._name
    except CoreUnavailable:
        return None


@pytest.fixture
def hub(checkpoint: Path, core: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    if core is not None:
        monkeypatch.setenv("OPENZAYA_CORE", core)
    with HubServer({NAME: Repository.of(checkpoint)}) as server:
        use_hub(server.url, tmp_path, monkeypatch)
        yield server


def test_a_killed_run_goes_on_from_where_it_was_and_the_next_one_needs_no_network(
    hub: HubServer, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "openzaya", "solve", "Compute 6 + 7.", "--model", NAME, *SHORT, "--json"]
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}
    hub.stall_after = 300_000
    run = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        hub.wait_until(lambda: any(path.stat().st_size > 200_000 for path in _parts()), seconds=240)
    finally:
        run.kill()
        run.communicate()
    hub.stall_after = None
    came = max(path.stat().st_size for path in _parts())
    hub.asked.clear()

    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode in (Code.ANSWERED, Code.ENDED_EARLY), again.stderr
    assert json.loads(again.stdout)["usage"]["completion_tokens"] > 0
    assert f"bytes={came}-" in {(asked.range or "").partition("-")[0] + "-" for asked in hub.asked}
    assert "are here already" in again.stderr

    hub.asked.clear()
    offline = subprocess.run([*command, "--offline"], env=environment, capture_output=True, text=True, check=False)
    assert json.loads(offline.stdout)["usage"]["completion_tokens"] > 0
    assert not hub.asked
    assert "download" not in offline.stderr


def _parts() -> list[Path]:
    return list(kept_folder(NAME).parent.rglob("*.safetensors.part"))


def test_the_plan_comes_first_and_standard_output_is_the_result(openzaya_program: Program, hub: HubServer) -> None:
    result = openzaya_program("solve", "Compute 6 + 7.", "--model", NAME, *SHORT, "--json")
    assert result.exit_code in (Code.ANSWERED, Code.ENDED_EARLY), result.stderr
    assert json.loads(result.stdout)["usage"]["completion_tokens"] > 0
    lines = result.stderr.splitlines()
    assert lines[0] == f"{NAME} (revision {hub.repositories[NAME].commit[:7]}) is made ready for this machine, once:"
    assert [line.split()[0] for line in lines[1:6]] == ["download", "disk", "memory", "time", "kept"]


def test_quiet_shows_nothing_of_it(openzaya_program: Program, hub: HubServer) -> None:
    result = openzaya_program("solve", "Compute 6 + 7.", "--model", NAME, *SHORT, "--quiet")
    assert "download" not in result.stderr


def test_every_verb_takes_the_same_route(openzaya_program: Program, hub: HubServer, tmp_path: Path) -> None:
    journal = tmp_path / "run.jsonl"
    said = openzaya_program("chat", "--model", NAME, "--max-tokens", 4, stdin="Compute 6 + 7.\n")
    assert said.exit_code == 0, said.stderr
    sent = hub.sent()
    scored = openzaya_program("eval", "arithmetic_chain", "--model", NAME, "--limit", 1, "--json")
    assert scored.exit_code == 0, scored.stderr
    specification = tmp_path / "spec.toml"
    specification.write_text(
        f'problems = [{{ family = "arithmetic_chain", count = 1 }}]\n'
        f'[models.it]\nsource = "{NAME}"\n[[arms]]\nmode = "single"\nmax_tokens = 4\n',
        encoding="utf-8",
    )
    scored = openzaya_program("eval", specification, "--json")
    assert scored.exit_code == 0, scored.stderr
    solved = openzaya_program("solve", "Compute 6 + 7.", "--model", NAME, *SHORT, "--journal", journal)
    assert solved.exit_code in (Code.ANSWERED, Code.ENDED_EARLY), solved.stderr
    header = json.loads(journal.read_text(encoding="utf-8").splitlines()[0])
    assert header["model"] == f"{NAME}@{hub.repositories[NAME].commit[:12]}"
    from openzaya import Engine

    with Engine(NAME, memory="64MiB") as engine:
        assert engine.generate(["Compute"], max_tokens=2)[0][0].token_ids
    assert hub.sent() == sent, "it was downloaded once"


def test_quantize_takes_a_model_of_the_hub_as_it_comes(
    openzaya_program: Program, hub: HubServer, checkpoint: Path, tmp_path: Path
) -> None:
    result = openzaya_program("quantize", NAME, tmp_path / "w8", "--scheme", "w8", "--json")
    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts["source_bytes"] == sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    local = openzaya_program("quantize", checkpoint, tmp_path / "local", "--scheme", "w8")
    assert local.exit_code == 0
    assert (tmp_path / "w8" / "model.safetensors").read_bytes() == (
        tmp_path / "local" / "model.safetensors"
    ).read_bytes()


def test_what_prevents_it_is_one_sentence_and_exit_code_2(
    openzaya_program: Program, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal(*options: str, model: str = NAME) -> str:
        result = openzaya_program("solve", "Compute 6 + 7.", "--model", model, *options)
        assert (result.exit_code, result.stdout) == (Code.BAD_INPUT, "")
        assert result.stderr.startswith("openzaya: ")
        assert result.stderr.count("\n") == 1
        return result.stderr

    assert "forbids to download it" in refusal("--offline")
    assert "nor a model on 127.0.0.1" in refusal(model="org/other")
    hub.repositories[NAME].gated = True
    assert "is gated; accept its terms" in refusal()
    use_hub("http://127.0.0.1:9", tmp_path, monkeypatch)
    assert "cannot be reached" in refusal()


# ---- the question ----


def _plan(**changes: object) -> Plan:
    values = {
        "name": NAME, "commit": "0123456789ab", "hub": "huggingface.co", "folder": Path("/kept"), "scheme": "w4",
        "download_bytes": 17_700_000_000, "here_bytes": 0, "shards": 4, "disk_bytes": 15_000_000_000,
        "kept_bytes": 5_000_000_000, "disk_free": 50_000_000_000, "memory": MemoryNeed(5_000_000_000, 4_300_000_000),
        "memory_available": 9_000_000_000, "bytes_per_second": 11.2e6, "seconds": 1620.0,
    }  # fmt: skip
    return Plan(**(values | changes))  # type: ignore[arg-type]


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool | None], list[bool]]:
    """Makes standard input and error a terminal at which a person answers so; returns the defaults offered."""

    def at_a_terminal(agreed: bool | None) -> list[bool]:
        offered: list[bool] = []

        def confirm(_question: str, *, default: bool, err: bool) -> bool:
            assert err
            offered.append(default)
            if agreed is None:
                raise typer.Abort
            return agreed

        for stream in (sys.stdin, sys.stderr):
            monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
        monkeypatch.setattr(journey_module.typer, "confirm", confirm)
        return offered

    return at_a_terminal


def begin(plan: Plan, *, yes: bool = False, quiet: bool = True) -> None:
    with ExitStack() as stack:
        CommandJourney(stack, yes=yes, quiet=quiet).begin(plan)


def test_a_person_is_asked_once_before_a_large_download(
    answer: Callable[[bool | None], list[bool]], capsys: pytest.CaptureFixture[str]
) -> None:
    offered = answer(True)
    begin(_plan())
    assert offered == [True]
    told = capsys.readouterr().err
    assert "download  17.7 GB from huggingface.co in 4 files" in told
    assert "disk      15.0 GB at most, 5.0 GB in the end in w4; 50.0 GB are free" in told
    assert "memory    5.0 GB of weights and up to 4.3 GB of state; 9.0 GB are available" in told
    assert "time      about 27 min at the 11.2 MB/s of just now (an estimate)" in told
    begin(_plan(), yes=True)
    begin(_plan(download_bytes=900_000_000))
    assert offered == [True]


@pytest.mark.parametrize("declined", [False, None])
def test_who_declines_has_downloaded_nothing(
    answer: Callable[[bool | None], list[bool]], capsys: pytest.CaptureFixture[str], declined: bool | None
) -> None:
    answer(declined)
    with pytest.raises(typer.Exit) as caught:
        begin(_plan())
    assert caught.value.exit_code == Code.INTERRUPTED
    assert capsys.readouterr().err.endswith(f"openzaya: nothing was downloaded of {NAME}\n")


def test_where_nobody_can_be_asked_a_download_goes_on_but_not_into_too_little_memory(
    answer: Callable[[bool | None], list[bool]],
) -> None:
    short = _plan(memory_available=2_000_000_000)
    begin(_plan())
    with pytest.raises(ValueError, match=r"needs 5\.0 GB of weights .* 2\.0 GB are available; close other programs"):
        begin(short)
    begin(short, yes=True)
    offered = answer(True)
    begin(short)
    assert offered == [False], "at a terminal a person decides, and no is proposed"


def test_time_left_is_that_of_the_slower_of_the_two() -> None:
    first = Progress(100, 1100, 0, 400)
    assert seconds_left(first, Progress(600, 1100, 100, 400), 10.0) == pytest.approx(30.0)
    assert seconds_left(first, Progress(200, 1100, 0, 400), 10.0) == pytest.approx(90.0)
    assert seconds_left(first, first, 10.0) is None


def test_in_a_pipe_a_line_comes_every_ten_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([0.0, 5.0, 12.0, 15.0])
    monkeypatch.setattr(journey_module.time, "monotonic", lambda: next(times))
    show = Lines()
    for done in (1, 2, 3):
        show(Progress(done * 10**9, 4 * 10**9, done * 10**8, 10**9))
    assert capsys.readouterr().err == (
        "2.0 GB of 4.0 GB downloaded, 200 MB of 1.0 GB quantised, about 1 min 36 s left\n"
    )
