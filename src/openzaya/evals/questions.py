"""The questions of a benchmark, held-out problems of a family or lines of a file, and when an answer is right."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, get_args

from openzaya.evals.spec import AnswerTask, EvalError, EvalSpec, FamilySpec, FileSpec
from openzaya.grading import Verifier, equivalent
from openzaya.mrsa.prompts import Task, detect_task
from openzaya.problems import Problem, families, generate, verify

_DRAWS = 64
"""Draws in a row that bring nothing new before a level of difficulty counts as used up."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question as it is asked, and its right answers: a problem with its verifier, or the accepted texts."""

    id: str
    benchmark: str
    text: str
    task: Task
    difficulty: int | None = None
    problem: Problem | None = None
    accepted: tuple[str, ...] = ()

    def accepts(self, answer: str | None, verifier: Verifier | None = None) -> bool:
        """Whether an answer is right; no answer is wrong. `verifier` decides where a text is not literally accepted."""
        if answer is None:
            return False
        if self.problem is not None:
            return verify(self.problem, answer)
        if any(equivalent(answer, wanted) for wanted in self.accepted):
            return True
        return verifier is not None and any(verifier.equivalent(answer, wanted) for wanted in self.accepted)


def questions_of(spec: EvalSpec) -> list[Question]:
    """All questions of an evaluation, benchmark by benchmark. Raises EvalError for what is missing or too few."""
    found: list[Question] = []
    for family in spec.problems:
        found += held_out_questions(family, spec.seed)
    for file in spec.files:
        found += file_questions(file)
    names = [family.family for family in spec.problems] + [file.path.stem for file in spec.files]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise EvalError(f"the benchmark {twice[0]} occurs twice; name it once (a file goes by its name without .jsonl)")
    return found


def held_out_questions(spec: FamilySpec, seed: int) -> list[Question]:
    """Distinct held-out problems of a family, drawn from the seed, the levels of difficulty in turn.

    A level whose held-out instances are used up leaves its share to the others. Raises EvalError where all are,
    unless `spec.fewer` allows it.
    """
    known = families()
    if spec.family not in known:
        raise EvalError(f"there is no problem family {spec.family!r}; choose from {', '.join(known)}")
    family = known[spec.family]
    low, high = spec.difficulty or (family.min_difficulty, family.max_difficulty)
    if not family.min_difficulty <= low <= high <= family.max_difficulty:
        raise EvalError(
            f"difficulty of {spec.family} is {low} to {high}; it must lie within {family.min_difficulty} to "
            f"{family.max_difficulty}, the lower first"
        )
    found: dict[str, Problem] = {}
    levels = deque((level, 0) for level in range(low, high + 1))
    while len(found) < spec.count:
        if not levels and spec.fewer and found:
            break
        if not levels:
            raise EvalError(
                f"{spec.family} at difficulty {low} to {high} has only {len(found)} held-out problems and {spec.count} "
                "are asked for; lower count, widen the difficulty or set fewer = true"
            )
        level, drawn = levels.popleft()
        for draw in range(drawn, drawn + _DRAWS):
            problem = _draw(spec.family, level, seed, draw)
            if problem is not None and problem.instance_hash not in found:
                found[problem.instance_hash] = problem
                levels.append((level, draw + 1))
                break
    return [_question(problem, spec.task) for problem in found.values()]


def _draw(family: str, level: int, seed: int, draw: int) -> Problem | None:
    digest = hashlib.sha256(f"evaluation/{seed}/{family}/{level}/{draw}".encode()).digest()
    try:
        return generate(family, int.from_bytes(digest[:6], "big"), level, split="held_out")
    except ValueError:  # no instance of this level is held out
        return None


def _question(problem: Problem, task: AnswerTask) -> Question:
    return Question(
        id=f"{problem.family}/{problem.instance_hash[:16]}",
        benchmark=problem.family,
        text=problem.question,
        task=_task(problem.question, task),
        difficulty=problem.difficulty,
        problem=problem,
    )


def _task(question: str, task: AnswerTask) -> Task:
    if task != "auto":
        return task
    # An answer that is compared as text is never a program, whatever the question looks like.
    detected = detect_task(question)
    return "general" if detected == "code" else detected


def file_questions(spec: FileSpec) -> list[Question]:
    """The questions of a JSON-lines file. Raises EvalError that names the line for anything amiss."""
    try:
        lines = spec.path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise EvalError(f"cannot read the benchmark {spec.path}: {error}") from error
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()][: spec.limit]
    if not numbered:
        raise EvalError(f"the benchmark {spec.path} holds no question; give one JSON object a line")
    found = [_read(line, f"line {number} of {spec.path}", number, spec) for number, line in numbered]
    seen: set[str] = set()
    for question, (number, _line) in zip(found, numbered):
        if question.id in seen:
            raise EvalError(f"line {number} of {spec.path} has an id that an earlier line has; make ids distinct")
        seen.add(question.id)
    return found


def _read(line: str, where: str, number: int, spec: FileSpec) -> Question:
    try:
        values: Any = json.loads(line)
    except ValueError as error:
        raise EvalError(f"{where} is no JSON: {error}") from None
    if not isinstance(values, dict) or not isinstance(values.get("question"), str) or not values["question"].strip():
        raise EvalError(f'{where} has no question; write {{"question": "...", "answer": "..."}}')
    answers = values.get("answer")
    accepted = tuple(_as_text(answer) for answer in (answers if isinstance(answers, list) else [answers]))
    if not accepted or not all(accepted):
        raise EvalError(f"{where} has the answer {answers!r}; it must be a text, a number or a list of such")
    task = values.get("task", spec.task)
    if task not in get_args(AnswerTask):
        raise EvalError(f"{where} has the task {task!r}; it must be one of {', '.join(get_args(AnswerTask))}")
    name = spec.path.stem
    return Question(
        id=f"{name}/{values.get('id', number)}",
        benchmark=name,
        text=values["question"],
        task=_task(values["question"], task),
        accepted=accepted,
    )


def _as_text(answer: object) -> str:
    if isinstance(answer, str):
        return answer.strip()
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        return str(answer)
    return ""


def questions_digest(questions: Iterable[Question]) -> str:
    """SHA-256 over what is asked and how it is read."""
    rows = [(question.id, question.text, question.task, question.accepted) for question in questions]
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()


def cycles(questions: Iterable[Question]) -> dict[str, tuple[Question, ...]]:
    """For each question id the other questions of its benchmark, the one whose tails stand in for its own first.

    Each benchmark is one cycle in order of difficulty, so that shuffled tails come from problems as hard, and each
    question lends its tails once. A benchmark of a single question joins all the others in one cycle.
    """
    by_benchmark: dict[str, list[Question]] = {}
    for question in questions:
        by_benchmark.setdefault(question.benchmark, []).append(question)
    everything = [question for group in by_benchmark.values() for question in group]
    found: dict[str, tuple[Question, ...]] = {}
    for group in by_benchmark.values():
        cycle = sorted(group if len(group) > 1 else everything, key=lambda question: question.difficulty or 0)
        for place, question in enumerate(cycle):
            if question.benchmark == group[0].benchmark:
                found[question.id] = tuple(cycle[place + 1 :] + cycle[:place])
    return found
