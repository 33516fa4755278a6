from __future__ import annotations

import json
import math
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from openzaya.locks import alone
from openzaya.model.checkpoint import load_model
from openzaya.train.config import TrainConfig, read_train_config
from openzaya.train.learner import Learner
from openzaya.train.loop import PhaseRun, Run, StepReport

RECIPE = """
seed = 3
threads = 1
dtype = "float32"
save_seconds = 0.001
[held_out]
tokens = 500
[tokenizer]
vocab_size = 330
documents = 60
[model.changes]
num_hidden_layers = 2
hidden_size = 32
num_attention_heads = 2
num_key_value_heads = 1
head_dim = 16
num_experts = 3
moe_intermediate_size = 16
router_hidden_size = 8
[mixture]
arithmetic_chain = { difficulty = [1, 2] }
sums_list = { weight = 0.5, difficulty = [1, 2] }
[[phases]]
name = "plain"
tokens = 6000
batch_tokens = 1000
row = 250
warmup = 0.5
[[phases]]
name = "aggregation"
start = "plain"
tokens = 6000
batch_tokens = 1500
row = 250
decay = 1.0
[phases.aggregation]
share = 0.6
tails = 2
tau = 12
beta = 24
refreshes = 2
problems = 3
rollouts = 3
second_round = 0.7
"""


def config_of(text: str, folder: Path) -> TrainConfig:
    path = folder / "recipe-given.toml"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return read_train_config(path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[StepReport | str]]:
    folder = tmp_path_factory.mktemp("run")
    reports: list[StepReport | str] = []
    Run(config_of(RECIPE, folder), RECIPE, folder / "run", reports.append).run()
    return folder / "run", reports


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_model(folder, dtype="float32").state_dict())


def test_a_run_lowers_the_loss_and_leaves_a_model_with_its_tokenizer_for_each_phase(
    finished: tuple[Path, list[StepReport | str]],
) -> None:
    folder, _reports = finished
    for phase in ("plain", "aggregation"):
        files = {path.name for path in (folder / phase).iterdir()}
        assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= files
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    losses = {line["phase"]: line["loss"] for line in lines if "loss" in line}
    assert losses["aggregation"] < losses["plain"] < 0.9 * math.log(330)


def test_a_run_gives_torch_its_threads_back(finished: tuple[Path, list[StepReport | str]], tmp_path: Path) -> None:
    before = torch.get_num_threads()
    seen: set[int] = set()
    recipe = RECIPE.replace("threads = 1", f"threads = {before + 1}").replace("tokens = 6000", "tokens = 1000")
    run = Run(config_of(recipe, tmp_path), recipe, tmp_path / "run", lambda _: seen.add(torch.get_num_threads()))
    run.run("plain")
    assert (seen, torch.get_num_threads()) == ({before + 1}, before)


def test_a_finished_run_is_not_done_again(finished: tuple[Path, list[StepReport | str]], tmp_path: Path) -> None:
    folder, _reports = finished
    before = (folder / "aggregation" / "model.safetensors").stat().st_mtime_ns
    again: list[StepReport | str] = []
    Run(config_of(RECIPE, tmp_path), RECIPE, folder, again.append).run()
    assert again == ["plain: finished before", "aggregation: finished before"]
    assert (folder / "aggregation" / "model.safetensors").stat().st_mtime_ns == before


class Interrupted(Exception):
    pass


def test_a_run_stopped_after_any_step_ends_with_the_weights_of_an_uninterrupted_one(
    finished: tuple[Path, list[StepReport | str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _reports = finished
    config = config_of(RECIPE, tmp_path)
    steps = 0
    real = Learner.step

    def failing(self: Learner, batches, scale):  # type: ignore[no-untyped-def]
        nonlocal steps
        steps += 1
        if steps % 3 == 0:
            raise Interrupted
        return real(self, batches, scale)

    monkeypatch.setattr(Learner, "step", failing)
    stops = 0
    while not (tmp_path / "run" / "aggregation").is_dir():
        try:
            Run(config, RECIPE, tmp_path / "run").run()
        except Interrupted:
            stops += 1
        assert stops < 20
    assert stops >= 4
    for phase in ("plain", "aggregation"):
        expected, found = weights(folder / phase), weights(tmp_path / "run" / phase)
        assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_with_the_weights_of_an_uninterrupted_one(
    finished: tuple[Path, list[StepReport | str]], tmp_path: Path
) -> None:
    folder, _reports = finished
    config_of(RECIPE, tmp_path)
    program = (
        "import sys; from pathlib import Path; from openzaya.train.config import read_train_config\n"
        "from openzaya.train.loop import Run; path = Path(sys.argv[1])\n"
        "Run(read_train_config(path), path.read_text(), Path(sys.argv[2])).run()"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "recipe-given.toml"), str(tmp_path / "run")]
    began = time.monotonic()
    subprocess.run(
        [sys.executable, "-c", program.rpartition("Run(")[0], str(tmp_path / "recipe-given.toml")], check=True
    )
    start = time.monotonic() - began
    moments = random.Random(0)
    for _launch in range(40):
        process = subprocess.Popen(command)
        try:
            process.wait(timeout=start + moments.uniform(0.0, 1.5) * start)
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            time.sleep(0.05)
    assert process.returncode == 0
    expected, found = weights(folder / "aggregation"), weights(tmp_path / "run" / "aggregation")
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_folder_of_another_recipe_is_not_continued(
    finished: tuple[Path, list[StepReport | str]], tmp_path: Path
) -> None:
    folder, _reports = finished
    with pytest.raises(ValueError, match="holds a run of another recipe"):
        Run(config_of(RECIPE, tmp_path), RECIPE + "\n# changed", folder).run()


def test_a_phase_that_another_process_trains_is_refused_until_that_one_ends(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "plain.lock").touch()
    run = Run(config_of(RECIPE, tmp_path), RECIPE, folder)
    with alone(folder / "plain.lock"), pytest.raises(ValueError, match="another process trains the phase plain"):
        run.run(only="plain")
    assert not (folder / "log.jsonl").exists()
    run.run(only="plain")
    assert run.is_finished(run.config.phases[0])
    assert not (folder / "plain.lock").exists()


def test_plain_problems_keep_half_of_the_learned_tokens_of_an_aggregation_step(
    finished: tuple[Path, list[StepReport | str]], tmp_path: Path
) -> None:
    folder, _reports = finished
    config = config_of(RECIPE, tmp_path)
    phase = PhaseRun(Run(config, RECIPE, folder), config.phases[1])
    phase.refreshes = 1
    plain_only = sum(batch.tokens for batch in phase.problems.batches(0))
    phase.learner.load(*_end_of(folder))
    phase._refresh()
    batches = phase.problems.batches(0)
    packed = [batch for batch in batches if batch.document_ids is not None]
    aggregations = [batch for batch in batches if batch.document_ids is None]
    assert aggregations
    assert plain_only > sum(batch.tokens for batch in packed)
    assert sum(batch.learned_tokens for batch in packed) >= sum(batch.learned_tokens for batch in aggregations)


def _end_of(folder: Path):  # type: ignore[no-untyped-def]
    from openzaya.train.state import read_state

    return read_state(folder / "plain.end")


def test_phases_run_alone_give_the_weights_of_a_whole_run(
    finished: tuple[Path, list[StepReport | str]], tmp_path: Path
) -> None:
    folder, _reports = finished
    config = config_of(RECIPE, tmp_path)
    with pytest.raises(ValueError, match="'aggregation' starts from 'plain': run that one first"):
        Run(config, RECIPE, tmp_path / "run").run("aggregation")
    for phase in ("plain", "aggregation"):
        Run(config, RECIPE, tmp_path / "run").run(phase)
    expected, found = weights(folder / "aggregation"), weights(tmp_path / "run" / "aggregation")
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    with pytest.raises(ValueError, match="'control' is not in the recipe; it has plain, aggregation"):
        Run(config, RECIPE, tmp_path / "run").run("control")


def test_phases_may_begin_a_new_folder_at_the_same_moment(tmp_path: Path) -> None:
    text = RECIPE[: RECIPE.index('[[phases]]\nname = "aggregation"')]
    text += text[text.index("[[phases]]") :].replace("plain", "control")
    config = config_of(text, tmp_path)
    together = threading.Barrier(2)
    reports: list[StepReport | str] = []

    def work(phase: str) -> None:
        # A lock of a folder holds between descriptors, of one process as of several.
        together.wait()
        Run(config, text, tmp_path / "run", reports.append).run(phase)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, ("plain", "control")))
    assert (tmp_path / "run" / "recipe.toml").read_text() == text
    assert reports.count("tokenizer: training on 60 problems") == 1
    assert weights(tmp_path / "run" / "plain").keys() == weights(tmp_path / "run" / "control").keys()


def test_aggregation_of_slips_needs_no_rollouts(finished: tuple[Path, list[StepReport | str]], tmp_path: Path) -> None:
    folder, _reports = finished
    text = RECIPE.replace("refreshes = 2", "refreshes = 0\nslipped = 1.0\nfewest_tails = 1")
    config = config_of(text, tmp_path)
    source = PhaseRun(Run(config, RECIPE, folder), config.phases[1]).problems
    aggregations = [batch for batch in source.batches(0) if batch.document_ids is None]
    assert sum(batch.tokens for batch in aggregations) > 400
    others = [batch for batch in source.batches(1) if batch.document_ids is None]
    assert aggregations[0].input_ids.tolist() != others[0].input_ids.tolist()


def test_a_phase_with_a_mixture_of_its_own_draws_from_that(
    finished: tuple[Path, list[StepReport | str]], tmp_path: Path
) -> None:
    folder, _reports = finished
    text = RECIPE.replace('name = "plain"', 'name = "plain"\nmixture = { sorting = { difficulty = [1, 1] } }', 1)
    config = config_of(text, tmp_path)
    phase = PhaseRun(Run(config, RECIPE, folder), config.phases[0])
    read = phase.run_.speaker.tokenizer.decode(phase.source.batches(0)[0].input_ids.flatten().tolist())
    assert read.count("min(") > 5
    assert "Compute" not in read


def test_problems_that_plain_rows_would_leave_out_are_refused(
    finished: tuple[Path, list[StepReport | str]], tmp_path: Path
) -> None:
    folder, _reports = finished
    config = config_of(RECIPE.replace("row = 250", "row = 40"), tmp_path)
    with pytest.raises(
        ValueError, match=r"arithmetic_chain at difficulty 2 has examples of \d+ tokens, which a row of 40"
    ):
        PhaseRun(Run(config, RECIPE, folder), config.phases[0])


def test_a_torn_state_is_refused_with_the_remedy(finished: tuple[Path, list[StepReport | str]], tmp_path: Path) -> None:
    folder, _reports = finished
    torn = tmp_path / "torn.end"
    torn.write_bytes((folder / "plain.end").read_bytes()[:-100])
    from openzaya.train.state import read_state

    with pytest.raises(ValueError, match="remove it to start the phase anew"):
        read_state(torn)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("seed = 3", "sede = 3"), "sede"),
        (('start = "plain"', 'start = "prain"'), "'prain'"),
        (("sums_list", "sum_list"), "'sum_list' does not exist"),
        (("tokens = 6000", "tokens = 0"), "phases.0.tokens"),
        (("[mixture]", "[mixture"), "not valid TOML"),
        (('start = "plain"', 'start = "plain"\nmixture = {}'), "phases.1: the mixture is empty"),
        (('name = "aggregation"', 'name = "plain"'), "name 'plain' is taken"),
        (("refreshes = 2", "refreshes = 0"), "wants rollouts and refreshes is 0"),
        (("refreshes = 2", "slipped = 1.0"), "uses no rollouts and refreshes is 4"),
        (("tails = 2", "tails = 2\nfewest_tails = 3"), "fewest_tails 3 is more than tails 2"),
    ],
)
def test_a_recipe_with_a_mistake_is_refused_naming_it(change: tuple[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        config_of(RECIPE.replace(*change), tmp_path)
