"""One training example: token ids and which of them are learned.

Only the model's own words carry loss: the prompt (the question, and in aggregation the tails) is read, never imitated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from openzaya.chat import ChatTemplate, Tokenizer, encode_chat, encode_reply
from openzaya.mrsa.prompts import Prompts, Task, aggregation_messages
from openzaya.problems import Problem

_ANSWER = "answer: "
"""How the last line of a worked solution begins."""


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation of one turn; `learned` marks the tokens whose prediction is trained."""

    ids: NDArray[np.int32]
    learned: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.ids)


def plain_example(problem: Problem, tokenizer: Tokenizer, template: ChatTemplate) -> Example:
    """The question and its worked solution."""
    question = [{"role": "user", "content": problem.question}]
    return _example(question, problem.worked.reasoning, problem, tokenizer, template)


def aggregation_example(
    problem: Problem,
    tails: Sequence[str],
    prompts: Prompts,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    *,
    solved: bool = False,
) -> Example:
    """The question with the tails of earlier candidates, put exactly as Markovian RSA puts them, and a better solution.

    The better solution gives the right answer at once, so that there is no other way to it than through the tails; with
    `solved` it is the whole worked solution. The report's recipe has a teacher write it (section VI-B); here the
    problem's own worked solution is the teacher.
    """
    reasoning = problem.worked.reasoning
    if not solved:
        reasoning = reasoning.rpartition("\n")[2]
    return _example(aggregation_of(problem, tails, prompts), reasoning, problem, tokenizer, template)


def answers_of(tails: Sequence[str]) -> list[str]:
    """The answers that tails end with, of those that do."""
    ends = [tail.rstrip().rpartition("\n")[2] for tail in tails]
    return [end.removeprefix(_ANSWER).strip() for end in ends if end.startswith(_ANSWER)]


def agreed(tails: Sequence[str]) -> str | None:
    """The answer that at least two tails, and more than for any other, end with; None where there is none."""
    counts = Counter(answers_of(tails)).most_common(2)
    if not counts or counts[0][1] < 2 or (len(counts) == 2 and counts[0][1] == counts[1][1]):
        return None
    return counts[0][0]


def aggregation_of(problem: Problem, tails: Sequence[str], prompts: Prompts) -> list[Mapping[str, Any]]:
    """The conversation in which Markovian RSA asks for an aggregation of `tails`."""
    question = [{"role": "user", "content": problem.question}]
    return list(aggregation_messages(question, tails, cast(Task, problem.task), prompts))


def _example(
    messages: Sequence[Mapping[str, Any]],
    reasoning: str,
    problem: Problem,
    tokenizer: Tokenizer,
    template: ChatTemplate,
) -> Example:
    prompt = encode_chat(tokenizer, template, messages)
    reply = encode_reply(tokenizer, reasoning, problem.reply())
    ids = np.asarray(prompt + reply, dtype=np.int32)
    learned = np.zeros(len(ids), dtype=np.bool_)
    learned[len(prompt) :] = True
    return Example(ids, learned)
