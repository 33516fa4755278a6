"""Rollouts of the current model as raw material for aggregation examples.

A pool entry is a problem with the tails of several candidates: of round 0, or of round 1, whose candidates were
themselves aggregations. Examples are drawn from a pool as a pure function of (seed, index).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal, Protocol

from openzaya.chat import ChatTemplate, ReasoningSplitter, Tokenizer, encode_chat
from openzaya.data.examples import Example, aggregation_example, aggregation_of, agreed, answers_of
from openzaya.data.mixture import Mixture, draw_problem
from openzaya.grading import extract_answer
from openzaya.mrsa.prompts import Prompts
from openzaya.problems import Problem, verify, work

_DRAWS = 64
"""Most draws of tails for one example."""

Undecided = Literal["solved", "chosen"]
"""What becomes of tails that do not agree: the problem is solved anew, or the right one of their answers is chosen."""


class Sampler(Protocol):
    """What is needed of an engine: for each prompt, the token ids of `rollouts` replies."""

    def __call__(
        self, prompts: Sequence[Sequence[int]], *, rollouts: int, max_tokens: int, seed: int
    ) -> Sequence[Sequence[Sequence[int]]]: ...


@dataclass(frozen=True, slots=True)
class PoolEntry:
    """Tails of one problem's candidates; `index` is the problem's place in the mixture."""

    index: int
    round: int
    tails: tuple[str, ...]
    correct: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Speaker:
    """How conversations become tokens: tokenizer, template and the wordings of aggregation."""

    tokenizer: Tokenizer
    template: ChatTemplate
    prompts: Prompts

    def question(self, problem: Problem) -> list[int]:
        return encode_chat(self.tokenizer, self.template, [{"role": "user", "content": problem.question}])

    def aggregation(self, problem: Problem, tails: Sequence[str]) -> list[int]:
        return encode_chat(self.tokenizer, self.template, aggregation_of(problem, tails, self.prompts))

    def tail(self, reply_ids: Sequence[int], tau: int) -> tuple[str, str]:
        """The last `tau` tokens of a reply's reasoning as text, and the content after it."""
        splitter = ReasoningSplitter()
        pieces = []
        for token in reply_ids:
            pieces += splitter.feed(self.tokenizer.decode([token]), token)
        pieces += splitter.finish()
        reasoning_ids = [token for piece in pieces if piece.kind == "reasoning" for token in piece.ids]
        content = "".join(piece.text for piece in pieces if piece.kind == "content")
        return self.tokenizer.decode(reasoning_ids[-tau:]), content

    def last(self, text: str, tau: int) -> str:
        """The last `tau` tokens of a text."""
        return self.tokenizer.decode(self.tokenizer.encode(text)[-tau:])


def roll_out(
    sample: Sampler,
    mixture: Mixture,
    speaker: Speaker,
    indices: Sequence[int],
    *,
    rollouts: int,
    tails: int,
    tau: int,
    beta: int,
    second_round: int,
    seed: int,
    report: Callable[[str], None] = lambda line: None,
) -> list[PoolEntry]:
    """Sample candidates of the mixture's problems `indices`, then round-1 candidates of the first `second_round`."""
    problems = [draw_problem(mixture, seed, index) for index in indices]
    prompts = [speaker.question(problem) for problem in problems]
    replies = sample(prompts, rollouts=rollouts, max_tokens=beta, seed=seed)
    entries = [
        _entry(problem, index, 0, found, tau, speaker) for problem, index, found in zip(problems, indices, replies)
    ]
    report(f"round 0: {_share_correct(entries):.1%} of {len(entries) * rollouts} rollouts right")
    again = [place for place in range(min(second_round, len(entries))) if len(entries[place].tails) >= tails]
    if not again:
        return entries
    # Each round-1 candidate reads its own draw of tails, as in Markovian RSA.
    random = Random(f"second round/{seed}/{indices[0]}")
    prompts = [
        speaker.aggregation(problems[place], random.sample(entries[place].tails, tails))
        for place in again
        for _candidate in range(rollouts)
    ]
    flat = sample(prompts, rollouts=1, max_tokens=beta, seed=seed + 1)
    second = []
    for position, place in enumerate(again):
        found = [reply for replies in flat[position * rollouts : (position + 1) * rollouts] for reply in replies]
        second.append(_entry(problems[place], indices[place], 1, found, tau, speaker))
    report(
        f"round 1: {_share_correct(second):.1%} right, from {_share_correct([entries[place] for place in again]):.1%} "
        "in round 0 of the same problems"
    )
    return entries + second


def thinned(entries: Sequence[PoolEntry], *, solved: float, unsolved: float, seed: int) -> list[PoolEntry]:
    """The entries less most of those whose candidates were all right, and of those whose candidates were all wrong.

    Shares `solved` and `unsolved` of them stay. A model that solves a problem alone learns from it that tails need no
    reading, and one whose tails are all wrong that they cannot be trusted.
    """
    random = Random(f"solved/{seed}")
    shares = [solved if all(entry.correct) else 1.0 if any(entry.correct) else unsolved for entry in entries]
    kept = [entry for entry, share in zip(entries, shares) if share == 1 or random.random() < share]
    return kept or list(entries)


def draw_aggregation(
    pool: Sequence[PoolEntry],
    mixture: Mixture,
    speaker: Speaker,
    tails: range,
    seed: int,
    index: int,
    *,
    undecided: Undecided = "chosen",
) -> Example:
    """Aggregation example number `index` of a pool of this mixture and seed: a problem and a draw of its tails."""
    random = Random(f"aggregation/{seed}/{index}")

    def draw() -> tuple[Problem, list[str]]:
        entry = pool[random.randrange(len(pool))]
        count = min(random.choice(tails), len(entry.tails))
        return draw_problem(mixture, seed, entry.index), random.sample(entry.tails, count)

    return _first_fair(draw, speaker, undecided)


def draw_slipped(
    mixture: Mixture,
    speaker: Speaker,
    tails: range,
    tau: int,
    slip_rate: float,
    seed: int,
    index: int,
    *,
    undecided: Undecided = "chosen",
) -> Example:
    """Aggregation example number `index`: tails are worked solutions, of which a share drawn at random slips.

    In half of the examples, as in a later round of Markovian RSA, some tails are no more than an answer.
    """
    random = Random(f"slipped/{seed}/{index}")
    problem = draw_problem(mixture, seed, index)
    slipping, short = random.random(), max(0.0, random.uniform(-1.0, 1.0))

    def tail() -> str:
        rate = slip_rate if random.random() < slipping else 0.0
        text = speaker.last(work(problem, slip_rate=rate, seed=random.getrandbits(32)).reasoning, tau)
        return text.rpartition("\n")[2] if random.random() < short else text

    return _first_fair(lambda: (problem, [tail() for _tail in range(random.choice(tails))]), speaker, undecided)


def _first_fair(draw: Callable[[], tuple[Problem, list[str]]], speaker: Speaker, undecided: Undecided) -> Example:
    """The example of the first draw whose tails lead to its target, or of the last draw.

    Tails that agree on a wrong answer never do: nothing in them says that it is wrong, so a right target would teach
    distrust and no more.
    """
    for _draw in range(_DRAWS):
        problem, tails = draw()
        answer = agreed(tails)
        solved = answer is None and undecided == "solved"
        found = [answer] if answer is not None else answers_of(tails)
        if solved or any(verify(problem, one) for one in found):
            break
    return aggregation_example(problem, tails, speaker.prompts, speaker.tokenizer, speaker.template, solved=solved)


def _entry(
    problem: Problem, index: int, round: int, replies: Sequence[Sequence[int]], tau: int, speaker: Speaker
) -> PoolEntry:
    cut = [speaker.tail(reply, tau) for reply in replies]
    usable = [(tail, content) for tail, content in cut if tail.strip()]
    answers = [extract_answer(content, "math") for _tail, content in usable]
    correct = tuple(answer is not None and verify(problem, answer) for answer in answers)
    return PoolEntry(index, round, tuple(tail for tail, _content in usable), correct)


def _share_correct(entries: Sequence[PoolEntry]) -> float:
    verdicts = [verdict for entry in entries for verdict in entry.correct]
    return sum(verdicts) / max(1, len(verdicts))


def write_pool(path: Path, entries: Sequence[PoolEntry]) -> None:
    """Write a pool as JSON lines, whole or not at all."""
    lines = [json.dumps([entry.index, entry.round, entry.tails, entry.correct]) for entry in entries]
    partial = path.with_suffix(".partial")
    partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    partial.replace(path)


def read_pool(path: Path) -> list[PoolEntry]:
    """Read what `write_pool` wrote."""
    rows: list[list[Any]] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [PoolEntry(index, round, tuple(tails), tuple(correct)) for index, round, tails, correct in rows]
