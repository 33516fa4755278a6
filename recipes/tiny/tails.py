"""Does a checkpoint read its tails? Its accuracy by how many of four tails are right, the others having slips.

    python recipes/tiny/tails.py runs/zaya1-tiny/aggregation sums_list:7 arithmetic_chain:6 --problems 40

Prints one JSON line for each family and difficulty: percent right at temperature 1 (`single`, and `right_4` to
`right_0`), on problems of the training split, so that looking costs nothing held out. A model that ignores its tails
has the same figure in every column; one that copies without judging loses with `right_0` all that it wins with
`right_4`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from openzaya.chat import ChatTemplate, Tokenizer
from openzaya.data.rollouts import Speaker
from openzaya.engine.engine import Engine
from openzaya.grading import extract_answer
from openzaya.mrsa.prompts import bundled_prompts
from openzaya.problems import Problem, generate, verify, work

TAILS = 4
FIRST_SEED = 5_000_000
SLIP_RATE = 0.1


def slipped(problem: Problem, number: int) -> str:
    """A worked solution with at least one slip."""
    for attempt in range(100):
        worked = work(problem, slip_rate=SLIP_RATE, seed=1000 * number + attempt)
        if worked.slips:
            return worked.reasoning
    raise ValueError(f"no worked solution of {problem.question!r} slipped in 100 attempts; take harder problems")


def prompts_of(speaker: Speaker, problem: Problem, right: int, tau: int) -> list[int]:
    """An aggregation prompt with `right` right tails in front of wrong ones."""
    texts = [problem.worked.reasoning] * right + [slipped(problem, number) for number in range(TAILS - right)]
    return speaker.aggregation(problem, [speaker.last(text, tau) for text in texts])


def measure(engine: Engine, speaker: Speaker, problems: Sequence[Problem], tau: int, samples: int) -> dict[str, float]:
    def percent(prompts: Sequence[Sequence[int]]) -> float:
        replies = engine.generate(prompts, n=samples, max_tokens=2 * tau, seed=0)
        verdicts = []
        for problem, group in zip(problems, replies):
            for reply in group:
                _tail, content = speaker.tail(reply.token_ids, tau)
                answer = extract_answer(content, "math")
                verdicts.append(answer is not None and verify(problem, answer))
        return round(100 * sum(verdicts) / len(verdicts), 1)

    figures = {"single": percent([speaker.question(problem) for problem in problems])}
    for right in range(TAILS, -1, -1):
        figures[f"right_{right}"] = percent([prompts_of(speaker, problem, right, tau) for problem in problems])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("families", nargs="+", metavar="FAMILY:DIFFICULTY")
    parser.add_argument("--problems", type=int, default=40)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--tau", type=int, default=144)
    given = parser.parse_args()
    tokenizer = Tokenizer.from_folder(given.checkpoint)
    speaker = Speaker(tokenizer, ChatTemplate.from_folder(given.checkpoint), bundled_prompts())
    with Engine(given.checkpoint, prefill_chunk=4096) as engine:
        for family, difficulty in (name.split(":") for name in given.families):
            problems = [
                generate(family, FIRST_SEED + number, int(difficulty), split="train")
                for number in range(given.problems)
            ]
            figures = measure(engine, speaker, problems, given.tau, given.samples)
            print(json.dumps({"family": family, "difficulty": int(difficulty), **figures}), flush=True)


if __name__ == "__main__":
    main()
