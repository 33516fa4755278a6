from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from openzaya.chat import Tokenizer
from openzaya.model.checkpoint import load_model
from openzaya.train.config import TrainConfig, read_train_config
from openzaya.train.learner import Learner
from openzaya.train.loop import PhaseRun, Run, StepReport
from openzaya.train.reading import rows_read_before

WORDS = "the a small grey dog cat ran sat over under hill river and then saw two birds in cold rain".split()  # noqa: SIM905

RECIPE = """
seed = 1
threads = 1
dtype = "float32"
save_steps = 3
[tokenizer]
vocab_size = 330
documents = 20
corpora = {{ prose = 40 }}
[model.changes]
num_hidden_layers = 2
hidden_size = 32
num_attention_heads = 2
num_key_value_heads = 1
head_dim = 16
num_experts = 3
moe_intermediate_size = 16
router_hidden_size = 8
[held_out]
every_steps = 4
tokens = 300
[mixture]
arithmetic_chain = {{ difficulty = [1, 1] }}
[corpora.prose]
format = "jsonl"
paths = ["{folder}/prose.jsonl"]
held_out = 0.2
[corpora.chat]
format = "jsonl"
paths = ["{folder}/chat.jsonl"]
question = "question"
answer = "answer"
reasoning = "reasoning"
held_out = 0.2
[[phases]]
name = "short"
tokens = 7200
batch_tokens = 720
row = 120
corpora = {{ prose = 3.0, chat = 1.0 }}
problems = 0.25
[[phases]]
name = "long"
start = "short"
tokens = 4320
batch_tokens = 720
row = 240
rope_base = 40000.0
corpora = {{ chat = 1.0, prose = 1.0 }}
"""


def sentence(draw: random.Random) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(5, 30))) + "."


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder, draw = tmp_path_factory.mktemp("data"), random.Random(0)
    prose = [{"text": sentence(draw)} for _document in range(120)]
    chat = [
        {"question": sentence(draw), "reasoning": sentence(draw) * draw.choice([1, 9]), "answer": draw.choice(WORDS)}
        for _document in range(120)
    ]
    for name, rows in (("prose", prose), ("chat", chat)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RECIPE.format(folder=folder)


def start(folder: Path, text: str) -> tuple[Run, list[StepReport | str]]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "given.toml").write_text(text)
    told: list[StepReport | str] = []
    return Run(read_train_config(folder / "given.toml"), text, folder / "run", told.append), told


@pytest.fixture(scope="module")
def finished(recipe: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, list[StepReport | str]]:
    run, told = start(tmp_path_factory.mktemp("whole"), recipe)
    run.run()
    return run, told


def weights(run: Run) -> dict[str, torch.Tensor]:
    return dict(load_model(run.folder / "long", dtype="float32").state_dict())


def test_a_run_over_corpora_and_problems_learns_all_and_tells_the_held_out_loss_of_each(
    finished: tuple[Run, list[StepReport | str]],
) -> None:
    run, told = finished
    lines = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    held_out = [(line["phase"], line["step"], line["held_out"]) for line in lines if "held_out" in line]
    assert [where[:2] for where in held_out] == [("short", 4), ("short", 8), ("short", 10), ("long", 4), ("long", 6)]
    assert held_out[0][2].keys() == {"problems", "prose", "chat"}
    assert held_out[-1][2].keys() == {"prose", "chat"}
    assert all(held_out[2][2][name] < held_out[0][2][name] for name in held_out[0][2])
    assert any(isinstance(line, str) and line.startswith("short: held-out loss at step 4: ") for line in told)
    page = (run.folder / "report.html").read_text()
    assert all(f"Held-out loss of {name} (nats)" in page for name in held_out[0][2])


def test_phases_have_their_own_context_and_rope_base(finished: tuple[Run, list[StepReport | str]]) -> None:
    run, _told = finished
    bases = [load_model(run.folder / name).config.rope_parameters["hybrid"].rope_theta for name in ("short", "long")]
    assert bases == [10_000.0, 40_000.0]
    for phase, row in zip(run.config.phases, (120, 240), strict=True):
        for step in range(3):
            batches = PhaseRun(run, phase).source.batches(step)
            assert {batch.input_ids.shape[1] for batch in batches if batch.document_ids is not None} <= {row}


def test_a_quarter_of_the_tokens_are_problems_and_the_tokenizer_knows_the_texts(
    finished: tuple[Run, list[StepReport | str]],
) -> None:
    run, _told = finished
    reading = PhaseRun(run, run.config.phases[0])
    assert reading.problems is not None
    tokens = sum(batch.tokens for batch in reading.problems.batches(0))
    assert tokens <= 0.25 * 720 <= sum(batch.tokens for batch in reading.source.batches(0)) - tokens
    tokenizer = Tokenizer.from_folder(run.folder / "tokenizer")
    assert len(tokenizer.encode(" river and then")) < 10


class Interrupted(Exception):
    pass


def test_a_run_over_corpora_stopped_anywhere_ends_with_the_same_weights(
    finished: tuple[Run, list[StepReport | str]], recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, steps = Learner.step, 0

    def failing(self: Learner, batches, scale):  # type: ignore[no-untyped-def]
        nonlocal steps
        steps += 1
        if steps % 5 == 0:
            raise Interrupted
        return real(self, batches, scale)

    monkeypatch.setattr(Learner, "step", failing)
    stops = 0
    while not (tmp_path / "run" / "long").is_dir():
        try:
            start(tmp_path, recipe)[0].run()
        except Interrupted:
            stops += 1
        assert stops < 20
    assert stops >= 3
    expected, found = weights(finished[0]), weights(start(tmp_path, recipe)[0])
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_ranks_share_out_the_learned_tokens_of_a_step(finished: tuple[Run, list[StepReport | str]]) -> None:
    from openzaya.train.reading import open_reading

    run, _told = finished

    def learned(rank: int, ranks: int) -> int:
        phase = run.config.phases[0]
        reading = open_reading(run.config, phase, run.speaker, run.folder, lambda _line: None, rank, ranks)
        return sum(batch.learned_tokens for step in range(3) for batch in reading.source.batches(step))

    assert sum(learned(rank, 3) for rank in range(3)) == learned(0, 1)


def test_a_phase_goes_on_where_the_phases_before_it_stopped_reading_rows_like_its_own() -> None:
    books = {"format": "text", "paths": ["x"]}
    phases = [
        {"name": "a", "tokens": 1000, "batch_tokens": 100, "row": 10, "corpora": {"b": 1, "c": 1}},
        {"name": "b", "start": "a", "tokens": 1000, "batch_tokens": 100, "row": 20, "corpora": {"b": 1}},
        {"name": "c", "start": "b", "tokens": 500, "batch_tokens": 100, "row": 10, "corpora": {"b": 1}},
        {"name": "d", "start": "c", "tokens": 500, "row": 10, "corpora": {"c": 1}},
        {"name": "e", "tokens": 500, "row": 10, "corpora": {"c": 1}},
    ]
    config = TrainConfig(
        tokenizer={"folder": "t"}, corpora={"b": books, "c": books}, phases=phases  # type: ignore[arg-type]
    )  # fmt: skip
    read = [rows_read_before(config, phase) for phase in config.phases]
    assert read == [{}, {}, {"b": 50, "c": 50}, {"b": 100, "c": 50}, {}]
