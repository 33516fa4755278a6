"""A small tokenizer with the built-in template, which the tests of corpora speak with."""

from __future__ import annotations

import pytest

from openzaya.chat import ChatTemplate, train_tokenizer
from openzaya.data.mixture import FamilyShare, draw_problem
from openzaya.data.rollouts import Speaker
from openzaya.mrsa.prompts import bundled_prompts


@pytest.fixture(scope="session")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Speaker:
    mixture = {"sums_list": FamilyShare(difficulty=(1, 4)), "arithmetic_chain": FamilyShare(difficulty=(1, 3))}
    problems = [draw_problem(mixture, 1, index) for index in range(200)]
    texts = [f"{problem.question}\n{problem.worked.reasoning}\n{problem.reply()}" for problem in problems]
    tokenizer = train_tokenizer(texts, 400, tmp_path_factory.mktemp("tokenizer"))
    return Speaker(tokenizer, ChatTemplate.built_in(), bundled_prompts())
