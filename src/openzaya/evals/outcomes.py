"""From raw results to figures: what each arm scored and cost on each problem."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from openzaya.backends.protocol import Usage
from openzaya.evals.arms import Arm, RsaArm
from openzaya.evals.questions import Question
from openzaya.evals.records import Results
from openzaya.evals.rollouts import question_seed
from openzaya.evals.runner import samples_for
from openzaya.grading import Verifier
from openzaya.mrsa.candidate import Candidate, total_usage
from openzaya.mrsa.selection import choose, count_votes


@dataclass(frozen=True, slots=True)
class Outcome:
    """One arm on one problem."""

    mean: float
    """Share of candidates that are right: of all rollouts, or of the last round; without an answer is wrong."""
    selected: bool | None
    """Whether the returned answer is right; None for single rollouts, where nothing is selected."""
    candidates: int
    """How many the mean is over."""
    usage: Usage
    """Of everything generated: every round, a final call, failed and cut rollouts."""
    finish_reasons: Mapping[str, int]
    unanswered: int
    """Of the candidates of the mean."""
    votes: Mapping[str, int]
    rounds: tuple[float, ...] = ()
    """Share that is right in each round, for Markovian RSA."""


class Grader:
    """Grades answers, each one once however many candidates gave it."""

    def __init__(self, verifier: Verifier | None) -> None:
        self._verifier = verifier
        self._verdicts: dict[tuple[str, str], bool] = {}

    def right(self, question: Question, answer: str | None) -> bool:
        if answer is None:
            return False
        key = (question.id, answer)
        if key not in self._verdicts:
            self._verdicts[key] = question.accepts(answer, self._verifier)
        return self._verdicts[key]

    def mean(self, question: Question, candidates: Sequence[Candidate]) -> float:
        return sum(self.right(question, candidate.answer) for candidate in candidates) / len(candidates)


def outcomes_of(
    arm: Arm, arms: Sequence[Arm], questions: Sequence[Question], results: Results, *, seed: int, grader: Grader
) -> list[Outcome]:
    """What an arm scored on every question, in their order; the results must be complete."""
    if isinstance(arm, RsaArm):
        return [_rsa_outcome(arm, question, results, grader) for question in questions]
    sizes = {
        name: samples_for(arm, name, arms, questions, results)
        for name in dict.fromkeys(question.benchmark for question in questions)
    }
    found = []
    for question in questions:
        result = results.get(arm.pool.name, question.id)
        assert result is not None
        candidates = result.candidates[: sizes[question.benchmark]]
        selected = None
        if arm.mode == "majority":
            chosen = choose(candidates, "majority", question_seed(seed, question))
            selected = chosen is not None and grader.right(question, chosen.answer)
        found.append(_outcome(question, candidates, candidates, selected, grader))
    return found


def _rsa_outcome(arm: RsaArm, question: Question, results: Results, grader: Grader) -> Outcome:
    result = results.get(arm.name, question.id)
    assert result is not None
    rounds = [
        [candidate for candidate in result.candidates if candidate.round == round]
        for round in range(arm.config.rounds + 1)
    ]
    rounds = [candidates for candidates in rounds if candidates]
    means = tuple(grader.mean(question, candidates) for candidates in rounds)
    selected = grader.right(question, result.answer)
    return _outcome(question, rounds[-1], result.candidates, selected, grader, means)


def _outcome(
    question: Question,
    deciding: Sequence[Candidate],
    everything: Sequence[Candidate],
    selected: bool | None,
    grader: Grader,
    rounds: tuple[float, ...] = (),
) -> Outcome:
    return Outcome(
        mean=grader.mean(question, deciding),
        selected=selected,
        candidates=len(deciding),
        usage=total_usage(everything),
        finish_reasons=Counter(candidate.finish_reason for candidate in everything),
        unanswered=sum(candidate.answer is None for candidate in deciding),
        votes=count_votes(deciding),
        rounds=rounds,
    )
