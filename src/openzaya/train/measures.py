"""What is measured of a finished run of an ablation: held-out losses, balance of the experts, problems solved.

Held-out conversations are looked at whole, however short the rows of training were, and told apart by whether they fit
such a row: that is where trimming, truncation and dropping differ.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from openzaya.bench.record import commit
from openzaya.data.examples import Example, plain_example
from openzaya.data.mixture import Mixture
from openzaya.data.packing import Batch, make_batch
from openzaya.data.shards import Shards, whole
from openzaya.data.trimming import Turn, example_of
from openzaya.engine.engine import Engine
from openzaya.engine.torch_threads import torch_threads
from openzaya.grading import extract_answer
from openzaya.model.decoder import ZayaForCausalLM
from openzaya.problems import Problem, generate, verify
from openzaya.train.learner import Learner
from openzaya.train.loop import Run
from openzaya.train.reports import phase_logs, read_lines
from openzaya.train.state import read_state

_FILE = "measured.json"
BALANCED = 0.99
"""Load entropy that counts as balanced (report, figure 4)."""
_LAST = 50
"""Steps that the balance at the end is the mean of."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of a run: what a table says of it, and which way is better."""

    title: str
    unit: str
    lower: bool
    """Whether less is better."""
    digits: int = 3


FIGURES: dict[str, Figure] = {
    "code": Figure("held-out code", "nats a token", lower=True),
    "problems": Figure("held-out problems", "nats a token", lower=True),
    "reasoning_short": Figure("reasoning that fits a row", "nats a token", lower=True),
    "reasoning_long": Figure("reasoning longer than a row", "nats a token", lower=True),
    "answer_short": Figure("answer after reasoning that fits a row", "nats a token", lower=True),
    "answer_long": Figure("answer after reasoning longer than a row", "nats a token", lower=True),
    "solved": Figure("held-out problems solved", "share", lower=False),
    "solved_short": Figure("solved, of those that fit a row", "share", lower=False),
    "solved_long": Figure("solved, of those longer than a row", "share", lower=False),
    "ended_long": Figure("replies with an end, of those longer than a row", "share", lower=False),
    "entropy_lowest": Figure("lowest load entropy", "of ln E", lower=False),
    "entropy_mean": Figure("load entropy, mean of all steps", "of ln E", lower=False),
    "entropy_last": Figure(f"load entropy, last {_LAST} steps", "of ln E", lower=False),
    "steps_to_balance": Figure(f"step from which load entropy stays above {BALANCED}", "steps", lower=True, digits=0),
}
"""What a recipe with arms may tell; `code` and `problems` are the corpora of these names."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What is kept of a run."""

    seed: int
    parameters: int
    learned_parameters: int
    steps: int
    seconds: float
    """Of training, beside whatever else the machine did."""
    commit: str
    asked: int
    """Problems that it was asked."""
    figures: dict[str, float]
    load_entropy: list[tuple[int, float]]
    """Step and mean over layers, of every step that the log has."""
    held_out: dict[str, list[tuple[int, float]]]
    """Step and loss, by corpus."""


def read_measured(folder: Path) -> Measured | None:
    """What was measured of the run in `folder`, or None; raises ValueError where the file is no such thing."""
    path = folder / _FILE
    try:
        return Measured(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); remove it, and the run is measured again") from error


def measure(run: Run, problems: int) -> Measured:
    """Measure the finished last phase of `run` and keep what was found; equal for equal weights."""
    phase = run.config.phases[-1]
    with torch_threads(run.config.threads):
        learner = Learner.create(run.config, run.model_config, phase)
        tensors, progress = read_state(run.folder / f"{phase.name}.end")
        learner.load(tensors, progress)
        log = phase_logs(read_lines(run.folder / "log.jsonl"))[phase.name]
        entropies = [(int(step), value) for step, value in log.curve("load_entropy")]
        held_out = dict(sorted(log.held_out.items()))
        figures = dict(held_out[max(held_out)]) | entropy_figures(entropies)
        for name in phase.corpora:
            shards = Shards.open(Path(run.config.shards or run.folder / "corpora") / name)
            figures |= part_losses(learner, shards, phase.row, run.config.held_out.tokens)
        if run.config.mixture:
            asked = held_out_problems(run.config.mixture, problems)
            model = learner.master_model()
            assert model is not None, "a learner of its own has the whole model"
            figures |= solved_figures(model, asked, run, phase.row)
    measured = Measured(
        seed=run.config.seed,
        parameters=sum(parameter.numel() for parameter in learner.model.parameters()),
        learned_parameters=sum(slot.master.numel() for slot in learner.optimizer.slots.values()),
        steps=progress.step,
        seconds=round(progress.seconds, 1),
        commit=commit(),
        asked=problems,
        figures={name: float(value) for name, value in figures.items()},
        load_entropy=[(step, round(value, 5)) for step, value in entropies],
        held_out={
            name: [(step, losses[name]) for step, losses in held_out.items() if name in losses]
            for name in held_out[max(held_out)]
        },
    )
    with whole(run.folder / _FILE) as path:
        path.write_text(json.dumps(asdict(measured)), encoding="utf-8")
    return measured


def entropy_figures(entropies: Sequence[tuple[int, float]]) -> dict[str, float]:
    """Balance over the steps of a run; a run that never stays balanced has all its steps to go."""
    values = [value for _step, value in entropies]
    return {
        "entropy_lowest": min(values),
        "entropy_mean": float(np.mean(values)),
        "entropy_last": float(np.mean(values[-_LAST:])),
        "steps_to_balance": float(max((step for step, value in entropies if value < BALANCED), default=0)),
    }


# ---- whole conversations ----


def part_losses(learner: Learner, shards: Shards, row: int, tokens: int) -> dict[str, float]:
    """Loss of reasoning and of answers of held-out conversations at full length, by whether they fit `row`.

    About `tokens` of either kind are read, always the same ones. Of plain texts there is nothing to tell.
    """
    found: dict[str, list[Example]] = {}
    read = {"short": 0, "long": 0}
    for turns in _held_out_conversations(shards):
        length = sum(map(len, turns))
        kind = "short" if length <= row else "long"
        if read[kind] >= tokens:
            continue
        read[kind] += length
        for part in ("reasoning", "answer"):
            found.setdefault(f"{part}_{kind}", []).append(_learning_only(part, turns))
    return {name: learner.loss_of(list(_by_length(examples))) for name, examples in sorted(found.items())}


def _held_out_conversations(shards: Shards) -> Iterator[list[Turn]]:
    for shard in shards.split("held_out"):
        for document in np.flatnonzero(~shard.texts).tolist():
            turns = shard.read(document)
            if turns[-1].reasoning:
                yield turns


def _learning_only(part: str, turns: Sequence[Turn]) -> Example:
    """A conversation of which one part of the last reply is learned; closing the reasoning belongs to the answer."""
    last = turns[-1]
    behind = {"reasoning": len(last.closing) + len(last.answer), "answer": 0}[part]
    size = {"reasoning": len(last.reasoning), "answer": len(last.closing) + len(last.answer)}[part]
    example = example_of(turns)
    learned = np.zeros_like(example.learned)
    end = len(example) - behind
    learned[end - size : end] = True
    return Example(example.ids, learned)


def _by_length(examples: Sequence[Example], most: int = 8192) -> Iterator[Batch]:
    """Batches of about as long examples, one a row."""
    rows: list[list[Example]] = []
    for example in sorted(examples, key=len):
        if rows and (len(rows) + 1) * len(example) > most:
            yield make_batch(rows)
            rows = []
        rows.append([example])
    if rows:
        yield make_batch(rows)


# ---- problems ----


def held_out_problems(mixture: Mixture, count: int) -> list[Problem]:
    """Held-out problems of a mixture, the same for every run."""
    draw = Random("ablation problems")
    found: list[Problem] = []
    while len(found) < count:
        name = draw.choices(list(mixture), [share.weight for share in mixture.values()])[0]
        seed, difficulty = draw.getrandbits(48), draw.randint(*mixture[name].difficulty)
        try:
            found.append(generate(name, seed, difficulty, split="held_out"))
        except ValueError:
            continue  # a difficulty of few instances, none of them held out
    return found


def solved_figures(model: ZayaForCausalLM, problems: Sequence[Problem], run: Run, row: int) -> dict[str, float]:
    """Shares of the problems that greedy replies of at most two rows solve, and of replies that come to an end."""
    speaker = run.speaker
    with Engine(model, tokenizer=speaker.tokenizer, max_batch=256, prefill_chunk=4096) as engine:
        prompts = [speaker.question(problem) for problem in problems]
        replies = engine.generate(prompts, max_tokens=2 * row, temperature=0.0)
    rows: list[dict[str, Any]] = []
    for problem, (reply,) in zip(problems, replies):
        _tail, content = speaker.tail(reply.token_ids, 1)
        answer = extract_answer(content, "math")
        rows.append(
            {
                "long": len(plain_example(problem, speaker.tokenizer, speaker.template)) > row,
                "solved": answer is not None and verify(problem, answer),
                "ended": reply.finish_reason == "stop",
            }
        )
    shares = {"solved": float(np.mean([entry["solved"] for entry in rows]))}
    for kind in ("short", "long"):
        of_kind = [entry for entry in rows if entry["long"] == (kind == "long")]
        if of_kind:
            shares[f"solved_{kind}"] = float(np.mean([entry["solved"] for entry in of_kind]))
            shares[f"ended_{kind}"] = float(np.mean([entry["ended"] for entry in of_kind]))
    return shares
