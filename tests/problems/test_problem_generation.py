"""Generation by seed: determinism, splits, refusals."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openzaya.problems import Problem, families, generate, split_of, work
from openzaya.problems.stepper import Stepper

FAMILIES = tuple(families())
ANY_FAMILY = st.sampled_from(FAMILIES)
SEEDS = st.integers(min_value=0, max_value=2**63)


@given(family=ANY_FAMILY, seed=SEEDS, difficulty=st.none() | st.integers(1, 10))
@settings(max_examples=60, deadline=None)
def test_the_same_arguments_give_the_same_problem_and_work(family: str, seed: int, difficulty: int | None) -> None:
    first, second = generate(family, seed, difficulty), generate(family, seed, difficulty)
    assert first == second
    assert work(first, slip_rate=0.4, seed=seed) == work(second, slip_rate=0.4, seed=seed)


def test_another_process_with_another_hash_seed_gives_the_same_problems() -> None:
    program = (
        "from openzaya.problems import *\n"
        "for f in families():\n"
        "    p = generate(f, 12)\n"
        "    print(repr((p, p.instance_hash, work(p, slip_rate=0.5, seed=3))))"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    here = [generate(family, 12) for family in FAMILIES]
    expected = "".join(repr((p, p.instance_hash, work(p, slip_rate=0.5, seed=3))) + "\n" for p in here)
    assert printed == {expected}


@given(family=ANY_FAMILY, seed=SEEDS)
@settings(max_examples=60, deadline=None)
def test_a_problem_survives_json_and_pickle(family: str, seed: int) -> None:
    problem = generate(family, seed)
    assert json.loads(json.dumps(problem.parameters)) == problem.parameters
    assert pickle.loads(pickle.dumps(problem)) == problem
    assert hash(problem) == hash(generate(family, seed))


@pytest.mark.parametrize("family", FAMILIES)
def test_held_out_and_train_are_disjoint_by_instance(family: str) -> None:
    for difficulty in range(1, 11):
        hashes: dict[str, set[str]] = {"train": set(), "held_out": set()}
        questions: dict[str, set[str]] = {"train": set(), "held_out": set()}
        for seed in range(12):
            for split in ("train", "held_out"):
                problem = generate(family, seed, difficulty, split=split)
                assert split_of(problem) == split
                hashes[split].add(problem.instance_hash)
                questions[split].add(problem.question)
        assert not hashes["train"] & hashes["held_out"]
        assert not questions["train"] & questions["held_out"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_question_has_one_hash_at_every_difficulty(family: str) -> None:
    seen: dict[str, str] = {}
    for difficulty in range(1, 11):
        for seed in range(100):
            problem = generate(family, seed, difficulty, phrasing=0)
            assert seen.setdefault(problem.question, problem.instance_hash) == problem.instance_hash


def test_one_instance_in_eight_is_held_out() -> None:
    splits = [split_of(generate("arithmetic_chain", seed, 6)) for seed in range(2000)]
    assert 0.1 < splits.count("held_out") / len(splits) < 0.15


@pytest.mark.parametrize("family", FAMILIES)
def test_the_split_and_the_instance_do_not_depend_on_the_phrasing(family: str) -> None:
    problems = [generate(family, 4, 6, phrasing=index, split="held_out") for index in range(5)]
    assert len({problem.instance_hash for problem in problems}) == 1
    assert {split_of(problem) for problem in problems} == {"held_out"}


def test_hard_instances_hardly_repeat() -> None:
    for family in FAMILIES:
        hashes = {generate(family, seed, 10).instance_hash for seed in range(100)}
        assert len(hashes) > 70, family


def test_a_split_of_a_family_with_one_instance_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openzaya.problems.problem.split_of", lambda problem: "train")
    with pytest.raises(ValueError, match="too few instances for 'held_out'"):
        generate("sorting", 0, 1, split="held_out")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"family": "poetry", "seed": 0}, "family 'poetry' is unknown: choose from arithmetic_chain"),
        ({"family": "sorting", "seed": 0, "difficulty": 11}, "difficulty 11 is out of range for sorting: give 1 to 10"),
        ({"family": "sorting", "seed": 0, "phrasing": 9}, "phrasing 9 is out of range for sorting: give 0 to 4"),
        ({"family": "sorting", "seed": 0, "split": "test"}, "split 'test' is unknown"),
    ],
)
def test_bad_arguments_are_refused_with_the_value_and_the_remedy(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(**arguments)


def test_a_slip_rate_that_is_no_probability_is_refused() -> None:
    with pytest.raises(ValueError, match=r"slip rate 1\.5"):
        work(generate("sorting", 0), slip_rate=1.5)
    with pytest.raises(ValueError, match="needs a random generator"):
        Stepper(0.5)


def test_a_reply_boxes_the_right_answer_or_the_one_given() -> None:
    problem: Problem = generate("sorting", 0, 3)
    assert problem.reply() == f"The answer is \\boxed{{{problem.answer}}}."
    assert problem.reply("7") == "The answer is \\boxed{7}."
    slipped = next(w for w in (work(problem, slip_rate=0.9, seed=s) for s in range(20)) if w.answer != problem.answer)
    assert problem.reply(slipped) == f"The answer is \\boxed{{{slipped.answer}}}."
