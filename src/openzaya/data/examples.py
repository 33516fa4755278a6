"""One training example: token ids and which of them are learned.

Only the model's own words carry loss: the prompt (the question, and in aggregation the tails) is read, never imitated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from openzaya.chat import ChatTemplate, Tokenizer, encode_chat, encode_reply
from openzaya.mrsa.prompts import Prompts, Task, aggregation_messages
from openzaya.problems import Problem


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation of one turn; `learned` marks the tokens whose prediction is trained."""

    ids: NDArray[np.int32]
    learned: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.ids)


def plain_example(problem: Problem, tokenizer: Tokenizer, template: ChatTemplate) -> Example:
    """The question and its worked solution."""
    return _example([{"role": "user", "content": problem.question}], problem, tokenizer, template)


def aggregation_example(
    problem: Problem, tails: Sequence[str], prompts: Prompts, tokenizer: Tokenizer, template: ChatTemplate
) -> Example:
    """The question with the tails of earlier candidates, put exactly as Markovian RSA puts them, and a worked solution.

    The report's recipe has a teacher write the better solution (section VI-B); here the problem's own worked solution
    is the teacher.
    """
    return _example(aggregation_of(problem, tails, prompts), problem, tokenizer, template)


def aggregation_of(problem: Problem, tails: Sequence[str], prompts: Prompts) -> list[Mapping[str, Any]]:
    """The conversation in which Markovian RSA asks for an aggregation of `tails`."""
    question = [{"role": "user", "content": problem.question}]
    return list(aggregation_messages(question, tails, cast(Task, problem.task), prompts))


def _example(
    messages: Sequence[Mapping[str, Any]], problem: Problem, tokenizer: Tokenizer, template: ChatTemplate
) -> Example:
    prompt = encode_chat(tokenizer, template, messages)
    reply = encode_reply(tokenizer, problem.worked.reasoning, problem.reply())
    ids = np.asarray(prompt + reply, dtype=np.int32)
    learned = np.zeros(len(ids), dtype=np.bool_)
    learned[len(prompt) :] = True
    return Example(ids, learned)
