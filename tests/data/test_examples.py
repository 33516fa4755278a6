from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from openzaya.chat import ChatTemplate, Tokenizer, train_tokenizer
from openzaya.data.examples import aggregation_example, agreed, answers_of, plain_example
from openzaya.data.mixture import FamilyShare, check_mixture, draw_problem
from openzaya.data.rollouts import (
    PoolEntry,
    Speaker,
    Undecided,
    draw_aggregation,
    draw_slipped,
    read_pool,
    roll_out,
    thinned,
    write_pool,
)
from openzaya.mrsa.prompts import bundled_prompts
from openzaya.problems import split_of

MIXTURE = {"sums_list": FamilyShare(difficulty=(2, 4)), "arithmetic_chain": FamilyShare(weight=2, difficulty=(1, 3))}


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Speaker:
    problems = [draw_problem(MIXTURE, 9, index) for index in range(200)]
    texts = [f"{problem.question}\n{problem.worked.reasoning}\n{problem.reply()}" for problem in problems]
    folder = tmp_path_factory.mktemp("tokenizer")
    return Speaker(train_tokenizer(texts, 400, folder), ChatTemplate.from_folder(folder), bundled_prompts())


def learned_text(tokenizer: Tokenizer, example: object) -> str:
    return tokenizer.decode(example.ids[example.learned].tolist())  # type: ignore[attr-defined]


def test_only_the_models_own_words_are_learned(speaker: Speaker) -> None:
    problem = draw_problem(MIXTURE, 0, 1)
    example = plain_example(problem, speaker.tokenizer, speaker.template)
    text = learned_text(speaker.tokenizer, example)
    assert text.startswith("<think>\n1: ")
    assert text.endswith(f"{problem.reply()}<|im_end|>\n")
    assert problem.question not in text
    assert speaker.tokenizer.decode(example.ids.tolist()).count(problem.question) == 1


def test_an_aggregation_example_shows_its_tails_to_the_byte_and_learns_none_of_them(speaker: Speaker) -> None:
    problem = draw_problem(MIXTURE, 0, 2)
    tails = ["  2:  9 + 9 = 18\n\n3: x", "answer: {7}"]
    example = aggregation_example(problem, tails, speaker.prompts, speaker.tokenizer, speaker.template)
    whole = speaker.tokenizer.decode(example.ids.tolist())
    assert all(tail in whole for tail in tails)
    short = f"<think>\nanswer: {problem.answer}\n</think>\n\n{problem.reply()}<|im_end|>\n"
    assert learned_text(speaker.tokenizer, example) == short
    solved = aggregation_example(problem, tails, speaker.prompts, speaker.tokenizer, speaker.template, solved=True)
    assert learned_text(speaker.tokenizer, solved) == learned_text(
        speaker.tokenizer, plain_example(problem, speaker.tokenizer, speaker.template)
    )


def test_training_problems_are_drawn_by_number_and_never_held_out() -> None:
    drawn = [draw_problem(MIXTURE, 3, index) for index in range(300)]
    assert drawn == [draw_problem(MIXTURE, 3, index) for index in range(300)]
    assert all(split_of(problem) == "train" for problem in drawn)
    share = np.mean([problem.family == "arithmetic_chain" for problem in drawn])
    assert 0.57 < share < 0.76  # two thirds, within 3.5 standard deviations of 300 draws


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ({}, "empty"),
        ({"riddles": FamilyShare()}, "'riddles' does not exist"),
        ({"sorting": FamilyShare(difficulty=(1, 99))}, "1 to 99 of sorting is out of range"),
    ],
)
def test_a_mixture_that_cannot_be_drawn_is_refused(mixture: dict[str, FamilyShare], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_mixture(mixture)


def scripted_sampler(speaker: Speaker, replies: list[str], seen: list[list[int]]):  # type: ignore[no-untyped-def]
    def sample(prompts, *, rollouts, max_tokens, seed):  # type: ignore[no-untyped-def]
        seen.extend(prompts)
        return [[speaker.tokenizer.encode(replies[turn % len(replies)]) for turn in range(rollouts)] for _ in prompts]

    return sample


def test_rollouts_become_tails_of_exactly_tau_tokens_and_a_second_round_reads_them(speaker: Speaker) -> None:
    replies = ["<think>\n1: 2 + 2 = 4\nanswer: 4\n</think>\n\nThe answer is \\boxed{4}.", "<think>\n1: 2 + 2 = 5"]
    seen: list[list[int]] = []
    entries = roll_out(
        scripted_sampler(speaker, replies, seen),
        MIXTURE,
        speaker,
        range(50, 53),
        rollouts=4,
        tails=3,
        tau=6,
        beta=64,
        second_round=1,
        seed=5,
    )
    assert [(entry.index, entry.round) for entry in entries] == [(50, 0), (51, 0), (52, 0), (50, 1)]
    finished, cut = (speaker.tokenizer.encode(text) for text in ("1: 2 + 2 = 4\nanswer: 4", "1: 2 + 2 = 5"))
    assert entries[0].tails[0] == speaker.tokenizer.decode(finished[-6:])
    assert entries[0].tails[1] == speaker.tokenizer.decode(cut[-6:])
    assert not any(entries[0].correct)
    assert len(seen) == 3 + 4
    assert all(speaker.tokenizer.decode(prompt).count(entries[0].tails[0]) >= 1 for prompt in seen[3:])


def test_replies_of_the_second_round_belong_to_the_problem_whose_tails_they_read(speaker: Speaker) -> None:
    def sample(prompts, *, rollouts, max_tokens, seed):  # type: ignore[no-untyped-def]
        texts = [[f"<think>\n{place}.{turn}.{seed}" for turn in range(rollouts)] for place in range(len(prompts))]
        return [[speaker.tokenizer.encode(text) for text in group] for group in texts]

    settings = {"tails": 2, "tau": 40, "beta": 64, "second_round": 2, "seed": 5}
    entries = roll_out(sample, MIXTURE, speaker, range(50, 53), rollouts=2, **settings)
    assert [(entry.index, entry.round) for entry in entries] == [(50, 0), (51, 0), (52, 0), (50, 1), (51, 1)]
    assert [entry.tails for entry in entries[3:]] == [("0.0.6", "1.0.6"), ("2.0.6", "3.0.6")]


def test_a_pool_survives_the_disk_and_draws_by_number(speaker: Speaker, tmp_path: Path) -> None:
    answer = f"answer: {draw_problem(MIXTURE, 1, 7).answer}"
    tails = tuple(f"{text}\n{answer}" for text in ("a {b}", "c\n d", "é", "4", "5"))
    pool = [PoolEntry(7, 0, tails, (True, False, False, True, True))]
    write_pool(tmp_path / "pool.jsonl", pool)
    assert read_pool(tmp_path / "pool.jsonl") == pool
    draws = [draw_aggregation(pool, MIXTURE, speaker, range(4, 5), 1, index).ids.tolist() for index in range(6)]
    again = draw_aggregation(pool, MIXTURE, speaker, range(4, 5), 1, 3).ids.tolist()
    assert again == draws[3]
    assert len({tuple(draw) for draw in draws}) > 1


def test_of_solved_and_of_hopeless_problems_only_the_shares_asked_for_stay() -> None:
    solved = [PoolEntry(index, 0, ("a", "b"), (True, True)) for index in range(400)]
    unsolved = [PoolEntry(index, 1, ("a", "b"), (False, False)) for index in range(400)]
    others = [PoolEntry(1000, 0, ("a", "b"), (True, False)), PoolEntry(1001, 1, ("a", "b"), (False, True))]
    everything = solved + others + unsolved
    assert thinned(everything, solved=0.0, unsolved=0.0, seed=1) == others
    assert thinned(everything, solved=1.0, unsolved=1.0, seed=1) == everything
    assert thinned(everything, solved=1.0, unsolved=0.0, seed=1) == solved + others
    kept = thinned(everything, solved=0.0, unsolved=0.25, seed=1)
    assert kept[:2] == others
    assert 70 < len(kept) - 2 < 130
    assert kept == thinned(everything, solved=0.0, unsolved=0.25, seed=1)
    assert thinned(solved, solved=0.0, unsolved=0.0, seed=1) == solved  # rather than an empty pool


@pytest.mark.parametrize(
    ("tails", "answer"),
    [
        (["1: x\nanswer: 4", "answer: 5", "2: y\nanswer: 4", "answer: 6"], "4"),
        (["answer: 1, 2", "answer: 1, 2 \n", "answer: 2, 1"], "1, 2"),
        (["answer: 4", "answer: 4", "answer: 5", "answer: 5"], None),
        (["answer: 4", "answer: 5"], None),
        (["answer: 4", "4", "1: 2 + 2 = 4"], None),
        (["answer: 4\n1: 2 + 2 =", "answer: 4", "answer: 5"], None),
        (["answer: 4"], None),
        ([], None),
    ],
)
def test_tails_agree_on_the_answer_that_most_of_them_and_more_than_one_end_with(
    tails: list[str], answer: str | None
) -> None:
    assert agreed(tails) == answer


def test_the_answers_of_tails_are_those_that_they_end_with() -> None:
    assert answers_of(["1: x\nanswer: 4, 5 ", "2: 3 + 3 =", "answer: 6\n\n", ""]) == ["4, 5", "6"]


def drawn(speaker: Speaker, answers: list[str], undecided: Undecided, index: int) -> tuple[str, str]:
    """Prompt and target of an example of problem 7, whose candidates gave `answers`."""
    problem = draw_problem(MIXTURE, 1, 7)
    tails = tuple(f"answer: {answer.replace('right', problem.answer)}" for answer in answers)
    pool = [PoolEntry(7, 0, tails, tuple(answer == "right" for answer in answers))]
    example = draw_aggregation(pool, MIXTURE, speaker, range(3, 4), 1, index, undecided=undecided)
    prompt = speaker.tokenizer.decode(example.ids[~example.learned].tolist()).replace("<|im_end|>", "\n")
    return prompt.replace(f"answer: {problem.answer}\n", "answer: right\n"), learned_text(speaker.tokenizer, example)


@pytest.mark.parametrize("undecided", ["solved", "chosen"])
def test_tails_that_agree_on_a_wrong_answer_are_drawn_again(speaker: Speaker, undecided: Undecided) -> None:
    for index in range(40):
        prompt, target = drawn(speaker, ["1000001", "1000001", "right", "right"], undecided, index)
        assert prompt.count("answer: 1000001") == 1
        assert target.startswith("<think>\nanswer: ")
    assert drawn(speaker, ["1000001"] * 4, undecided, 0)[1].startswith("<think>\nanswer: ")  # rather than for ever


def test_of_tails_that_do_not_agree_a_right_one_is_chosen_or_the_problem_is_solved_anew(speaker: Speaker) -> None:
    candidates = ["1000001", "1000002", "1000003", "right"]
    prompts = [drawn(speaker, candidates, "chosen", index) for index in range(40)]
    assert all("answer: right" in prompt and target.startswith("<think>\nanswer: ") for prompt, target in prompts)
    prompts = [drawn(speaker, candidates, "solved", index) for index in range(40)]
    assert 0 < sum("answer: right" in prompt for prompt, _target in prompts) < 40
    assert all(target.startswith("<think>\n1: ") for _prompt, target in prompts)


def test_slipped_tails_are_ends_of_worked_solutions_with_slips_up_to_the_rate(speaker: Speaker) -> None:
    def prompt(tails: range, tau: int, rate: float, index: int) -> str:
        example = draw_slipped(MIXTURE, speaker, tails, tau, rate, 1, index, undecided="solved")
        return speaker.tokenizer.decode(example.ids[~example.learned].tolist())

    whole = 0
    for index in range(40):
        problem = draw_problem(MIXTURE, 1, index)
        right, answer = problem.worked.reasoning, f"answer: {problem.answer}"
        unslipped = prompt(range(3, 4), 500, 0.0, index)
        assert unslipped.count(answer) == 3
        whole += unslipped.count(right) == 3
        assert right not in prompt(range(2, 3), 8, 0.0, index)
        assert prompt(range(2, 3), 8, 0.0, index).count(speaker.last(right, 8).rpartition("\n")[2]) >= 2
    assert 12 < whole < 32  # the other half has tails that are an answer only
    counts = {prompt(range(1, 4), 500, 0.0, index).count("answer:") for index in range(40)}
    assert counts == {1, 2, 3}
    slipped = [f"answer: {draw_problem(MIXTURE, 1, index).answer}<|im_end|>" not in prompt(range(1, 2), 500, 1.0, index)
               for index in range(200)]  # fmt: skip
    assert 0.3 < sum(slipped) / len(slipped) < 0.8
