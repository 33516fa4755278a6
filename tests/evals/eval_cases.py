"""Evaluations that take a moment over the model in memory, and what they give."""

from __future__ import annotations

from typing import Any

from eval_backend import PretendModel

from openzaya.evals import EvalSpec, Report, evaluate, make_spec
from openzaya.evals.questions import Question, questions_of

RSA = {"candidates": 4, "tails": 2, "rounds": 2, "beta": 64, "tau": 24, "final_tokens": 64}
SHAPES = [
    {"mode": "single", "samples": 3},
    {"mode": "single", "temperature": 0.0},
    {"mode": "majority", "match": "mrsa"},
    {"mode": "mrsa", "preset": "tiny", "settings": RSA},
]


def specification(**values: Any) -> EvalSpec:
    base = {
        "problems": [
            {"family": "arithmetic_chain", "count": 6, "difficulty": (2, 4)},
            {"family": "logic_order", "count": 4},
        ],
        "models": {"main": {}},
        "arms": SHAPES,
        "resamples": 200,
    }
    return make_spec({**base, **values})


def model_for(spec: EvalSpec, **options: Any) -> PretendModel:
    return PretendModel({question.text: question.answers[0] for question in read(spec)}, **options)


class Read:
    """A question with its right answers, however it is verified."""

    def __init__(self, question: Question) -> None:
        self.text = question.text
        self.answers = (question.problem.answer,) if question.problem else question.accepted


def read(spec: EvalSpec) -> list[Read]:
    return [Read(question) for question in questions_of(spec)]


def run(spec: EvalSpec, **models: PretendModel) -> Report:
    return evaluate(spec, backends=models)


def without_date(report: Report) -> dict[str, Any]:
    return report.model_dump(exclude={"created"})
