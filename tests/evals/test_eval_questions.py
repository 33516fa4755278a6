from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from openzaya.evals.questions import Question, cycles, file_questions, held_out_questions, questions_digest
from openzaya.evals.spec import EvalError, FamilySpec, FileSpec
from openzaya.problems import families, split_of


@pytest.mark.parametrize("family", list(families()))
def test_every_question_of_a_family_is_held_out_and_distinct(family: str) -> None:
    questions = held_out_questions(FamilySpec(family=family, count=25, difficulty=(4, 8)), seed=3)
    assert len({question.id for question in questions}) == 25
    for question in questions:
        assert question.problem is not None
        assert split_of(question.problem) == "held_out"
        assert question.accepts(question.problem.answer)
        assert not question.accepts(None)
        assert question.task in ("math", "choice")


def test_the_seed_decides_the_questions_and_the_levels_take_turns() -> None:
    spec = FamilySpec(family="modular_chain", count=12, difficulty=(5, 7))
    first, again, other = (held_out_questions(spec, seed) for seed in (1, 1, 2))
    assert first == again
    assert not {question.id for question in first} & {question.id for question in other}
    assert Counter(question.difficulty for question in first) == {5: 4, 6: 4, 7: 4}
    assert questions_digest(first) != questions_digest(other)


def test_a_level_that_is_used_up_leaves_its_share_to_the_others() -> None:
    questions = held_out_questions(FamilySpec(family="arithmetic_chain", count=40, difficulty=(1, 2)), seed=0)
    counts = Counter(question.difficulty for question in questions)
    assert counts[1] < 20 < counts[2]


def test_a_family_with_too_few_problems_gives_what_it_has_where_that_is_allowed() -> None:
    few = held_out_questions(FamilySpec(family="factorisation", count=60, difficulty=1, fewer=True), seed=0)
    assert 0 < len(few) < 60


def test_too_many_problems_or_a_wrong_family_or_difficulty_are_refused() -> None:
    with pytest.raises(EvalError, match=r"has only \d+ held-out problems and 500"):
        held_out_questions(FamilySpec(family="arithmetic_chain", count=500, difficulty=1), seed=0)
    with pytest.raises(EvalError, match="no problem family 'chess'; choose from arithmetic_chain"):
        held_out_questions(FamilySpec(family="chess"), seed=0)
    with pytest.raises(EvalError, match="0 to 3; it must lie within 1 to 10"):
        held_out_questions(FamilySpec(family="sorting", difficulty=(0, 3)), seed=0)


def write(path: Path, *rows: object) -> FileSpec:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return FileSpec(path=path)


def test_a_file_gives_its_questions_with_their_tasks_and_accepted_answers(tmp_path: Path) -> None:
    spec = write(
        tmp_path / "small.jsonl",
        {"id": "a", "question": "What is 1/2 + 1/4?", "answer": ["3/4", 0.75], "source": "mine"},
        "",
        {"question": "Write a program? No: name a colour.", "answer": "red", "task": "general"},
        {"question": "Which? (A) one (B) two", "answer": "B"},
    )
    first, second, third = file_questions(spec)
    assert (first.id, second.id, third.id) == ("small/a", "small/3", "small/4")
    assert (first.task, second.task, third.task) == ("math", "general", "choice")
    assert first.accepts("\\frac{3}{4}")
    assert first.accepts("0.75")
    assert not first.accepts("0.7")
    assert second.accepts("red")


def test_a_question_that_looks_like_a_request_for_code_is_read_as_text(tmp_path: Path) -> None:
    (question,) = file_questions(write(tmp_path / "b.jsonl", {"question": "Write a function. Name?", "answer": "f"}))
    assert question.task == "general"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "line 1 of .* is no JSON"),
        ("[]", "line 1 of .* has no question"),
        ({"answer": "1"}, "has no question"),
        ({"question": "x"}, "has the answer None"),
        ({"question": "x", "answer": []}, "has the answer"),
        ({"question": "x", "answer": True}, "has the answer True"),
        ({"question": "x", "answer": "1", "task": "code"}, "has the task 'code'"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, row: object, message: str) -> None:
    with pytest.raises(EvalError, match=message):
        file_questions(write(tmp_path / "bad.jsonl", row))


def test_an_empty_or_missing_file_and_doubled_ids_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match="cannot read the benchmark"):
        file_questions(FileSpec(path=tmp_path / "missing.jsonl"))
    with pytest.raises(EvalError, match="holds no question"):
        file_questions(write(tmp_path / "empty.jsonl", ""))
    row = {"id": 1, "question": "x", "answer": "1"}
    with pytest.raises(EvalError, match=r"line 2 of .* make ids distinct"):
        file_questions(write(tmp_path / "twice.jsonl", row, row))


def plain(id: str, benchmark: str, difficulty: int | None = None) -> Question:
    return Question(id, benchmark, id, "math", difficulty, accepted=("1",))


def test_tails_come_from_the_next_problem_as_hard_and_a_lone_problem_borrows_elsewhere() -> None:
    questions = [plain("a", "x", 1), plain("b", "x", 2), plain("c", "x", 1), plain("d", "y"), plain("e", "x", 2)]
    found = {id: [other.id for other in others] for id, others in cycles(questions).items()}
    assert found["a"] == ["c", "b", "e"]
    assert found["c"][0] == "b"
    assert found["e"][0] == "a"
    assert sorted(found["d"]) == ["a", "b", "c", "e"]
