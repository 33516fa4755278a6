from __future__ import annotations

import json
import math
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from openzaya.model.checkpoint import load_model
from openzaya.train.config import read_train_config
from openzaya.train.learner import Learner, StepFigures
from openzaya.train.loop import Run, StepReport
from openzaya.train.state import Progress, States, read_state, write_state

RECIPE = """
seed = 3
threads = 1
dtype = "float32"
save_seconds = 1000
save_steps = 2
keep_last = 3
bad_steps = 2
[held_out]
tokens = 300
[tokenizer]
vocab_size = 300
documents = 30
[model.changes]
num_hidden_layers = 1
hidden_size = 16
num_attention_heads = 2
num_key_value_heads = 1
head_dim = 8
num_experts = 2
moe_intermediate_size = 8
router_hidden_size = 4
[mixture]
arithmetic_chain = { difficulty = [1, 1] }
[[phases]]
name = "plain"
tokens = 6000
batch_tokens = 500
row = 120
"""

Told = list[StepReport | str]


def start(folder: Path, text: str = RECIPE) -> tuple[Run, Told]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "given.toml").write_text(text, encoding="utf-8")
    told: Told = []
    return Run(read_train_config(folder / "given.toml"), text, folder / "run", told.append), told


def weights(run: Run) -> dict[str, torch.Tensor]:
    return dict(load_model(run.folder / "plain", dtype="float32").state_dict())


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def sentences(told: Told) -> list[str]:
    return [report for report in told if isinstance(report, str)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run, _told = start(tmp_path_factory.mktemp("whole"))
    run.run()
    return run


class Breaking:
    """Steps of a learner whose loss is no number where `when` says so, of the steps that were asked for before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, when: Callable[[int], bool]) -> None:
        self.asked = 0
        real = Learner.step

        def step(learner: Learner, batches, scale) -> StepFigures:  # type: ignore[no-untyped-def]
            self.asked += 1
            if not when(self.asked - 1):
                return real(learner, batches, scale)
            weight = learner.model.model.norm.weight
            hook = weight.register_hook(lambda gradient: gradient * math.inf)
            try:
                return real(learner, batches, scale)
            finally:
                hook.remove()

        monkeypatch.setattr(Learner, "step", step)


# ---- steps without a finite loss ----


def test_a_step_without_a_finite_gradient_is_passed_over_with_a_line(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Breaking(monkeypatch, lambda step: step == 4)
    run, told = start(tmp_path)
    run.run()
    assert [line for line in sentences(told) if "passed over" in line] == [
        line for line in sentences(told) if line.startswith("plain: step 5 is passed over: its loss is")
    ]
    assert not any("back to" in line for line in sentences(told))
    assert all(tensor.isfinite().all() for tensor in weights(run).values())
    assert not equal(weights(run), weights(whole))


def test_several_in_a_row_take_the_run_back_to_its_newest_state_and_on_behind_them(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Breaking(monkeypatch, lambda step: step in (5, 6))
    run, told = start(tmp_path)
    read: list[int] = []
    problems = "openzaya.train.batches.ProblemSource.batches"
    real = __import__("openzaya.train.batches", fromlist=["ProblemSource"]).ProblemSource.batches
    monkeypatch.setattr(problems, lambda self, step: (read.append(step), real(self, step))[1])
    run.run()
    assert "plain: back to the weights of step 4, going on behind step 7" in sentences(told)
    assert read == list(range(12))
    assert all(tensor.isfinite().all() for tensor in weights(run).values())
    notes = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert any("back to the weights" in note.get("note", "") for note in notes)


def test_a_state_that_leads_nowhere_makes_way_for_the_one_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Breaking(monkeypatch, lambda step: 5 <= step <= 8)
    run, told = start(tmp_path)
    run.run()
    back = [line for line in sentences(told) if "back to" in line]
    assert back == [
        "plain: back to the weights of step 4, going on behind step 7",
        "plain: back to the weights of step 2, going on behind step 9",
    ]
    assert (run.folder / "plain").is_dir()


def test_a_run_that_can_go_back_no_further_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Breaking(monkeypatch, lambda step: step >= 1)
    run, _told = start(tmp_path)
    with pytest.raises(ValueError, match="there is no earlier state to go back to; lower the rates"):
        run.run()


def test_a_return_survives_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(kill_at: int | None, folder: Path) -> Run:
        with monkeypatch.context() as patched:
            asked: list[int] = []
            Breaking(patched, lambda _step: asked[-1] in (5, 6, 7, 8))
            from openzaya.train.batches import ProblemSource

            real = ProblemSource.batches
            patched.setattr(ProblemSource, "batches", lambda self, step: (asked.append(step), real(self, step))[1])
            run, _told = start(folder)
            killed = kill_at is None
            while True:
                try:
                    if not killed:
                        patched.setattr("openzaya.train.loop.rate_scale", _Killer(kill_at))
                        killed = True
                    run.run()
                    return run
                except Killed:
                    patched.undo()
                    return broken(None, folder)

    assert equal(weights(broken(None, tmp_path / "whole")), weights(broken(8, tmp_path / "killed")))


class Killed(Exception):
    pass


class _Killer:
    """Stands in for `rate_scale`, until a step."""

    def __init__(self, step: int | None) -> None:
        self.step = step

    def __call__(self, phase, step: int) -> float:  # type: ignore[no-untyped-def]
        from openzaya.train.schedule import rate_scale

        if step == self.step:
            raise Killed
        return rate_scale(phase, step)


# ---- states that are damaged, and disks that are full ----


def test_a_damaged_state_is_set_aside_and_the_one_before_it_gives_the_same_weights(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for damage in (lambda content: content[:-40], lambda content: content[:-9] + b"\x7f" + content[-8:]):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        run, told = start(folder)
        with monkeypatch.context() as patched:
            patched.setattr("openzaya.train.loop.rate_scale", _Killer(7))
            with pytest.raises(Killed):
                run.run()
        newest = run.folder / "plain.states" / "000000006.safetensors"
        newest.write_bytes(damage(newest.read_bytes()))
        told.clear()
        run.run()
        assert "000000006.safetensors is not a training state" in sentences(told)[0]
        assert "going back to the state before it" in sentences(told)[0]
        assert sentences(told)[1] == "plain: goes on at step 4"
        assert equal(weights(run), weights(whole))
        assert not (run.folder / "plain.states").exists()


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """The system refuses to write beyond `size`, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def progress(step: int) -> Progress:
    return Progress("hash", "plain", step, step, step, 0, 1.0)


def test_a_full_disk_is_refused_in_one_sentence_and_the_state_of_before_is_whole(tmp_path: Path) -> None:
    states, tensors = States(tmp_path / "states", keep_last=1), {"weight": torch.arange(50_000.0)}
    states.write(tensors, progress(3))
    with (
        no_file_larger_than(100_000),
        pytest.raises(ValueError, match=r"cannot be written .* 0\.2 MB .* MB are free") as e,
    ):
        states.write({"weight": torch.zeros(50_000)}, progress(4))
    assert "make room, and the same command goes on" in str(e.value)
    assert "\n" not in str(e.value)
    assert [path.name for path in (tmp_path / "states").iterdir()] == ["000000003.safetensors"]
    ((found, where),) = states.read(pytest.fail)
    assert torch.equal(found["weight"], tensors["weight"])
    assert where.step == 3


def test_a_run_stopped_by_a_full_disk_goes_on_to_the_same_weights(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _told = start(tmp_path)
    write = States.write

    def full(self: States, tensors, progress: Progress) -> None:  # type: ignore[no-untyped-def]
        with no_file_larger_than(10_000 if progress.step == 6 else 1 << 40):
            write(self, tensors, progress)

    monkeypatch.setattr(States, "write", full)
    with pytest.raises(ValueError, match="cannot be written"):
        run.run()
    monkeypatch.undo()
    run.run()
    assert equal(weights(run), weights(whole))


def test_an_export_that_the_disk_does_not_take_leaves_no_half_folder(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _told = start(tmp_path)
    from openzaya.train import loop

    save = loop.save_model

    def full(*given: object, **named: object) -> None:
        with no_file_larger_than(5_000):
            save(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "save_model", full)
    with pytest.raises(ValueError, match="plain cannot be written"):
        run.run()
    assert not (run.folder / "plain").exists()
    assert not list(run.folder.glob("plain*partial"))
    monkeypatch.undo()
    run.run()
    assert equal(weights(run), weights(whole))


# ---- which states are kept ----


def test_the_newest_states_stay_and_multiples_stay_for_good(tmp_path: Path) -> None:
    states = States(tmp_path, keep_last=2, keep_every=4)
    for step in range(11):
        states.write({"weight": torch.tensor([float(step)])}, progress(step))
    assert [int(path.stem) for path in sorted(tmp_path.iterdir())] == [4, 8, 9, 10]
    assert [where.step for _tensors, where in states.read(pytest.fail)] == [10, 9, 8, 4]
    states.close()
    assert [int(path.stem) for path in sorted(tmp_path.iterdir())] == [4, 8]


def test_a_state_holds_tensors_of_any_type_and_shape(tmp_path: Path) -> None:
    tensors = {
        "scalar": torch.tensor(2.0),
        "brain": torch.randn(3, 5).bfloat16(),
        "turned": torch.randn(4, 6).T,
        "empty": torch.zeros(0, 3),
        "counts": torch.arange(5),
    }
    write_state(tmp_path / "a.state", tensors, progress(1))
    found, _where = read_state(tmp_path / "a.state")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
