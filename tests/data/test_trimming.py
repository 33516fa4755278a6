from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openzaya.data.trimming import Trimmed, Turn, example_of, fit_examples, trim

BREAK = (7,)
ORDER = ["dropped", "earlier removed", "cut", "kept"]

ids = st.lists(st.integers(100, 199), max_size=12).map(tuple)
some = st.lists(st.integers(100, 199), min_size=1, max_size=12).map(tuple)
plain = st.builds(lambda prompt, answer: Turn(prompt, (), (), (), answer), some, some)
thinking = st.builds(lambda prompt, body, answer: Turn(prompt, (1,), body, (2,), answer), some, ids, some)
conversations = st.lists(st.one_of(plain, thinking), min_size=1, max_size=4)
budgets = st.integers(1, 120)
breaks = st.sampled_from([(), BREAK])


def size(trimmed: Trimmed) -> int:
    return sum(map(len, trimmed.turns or ()))


@given(conversations, budgets, breaks)
def test_trimming_never_cuts_a_prompt_or_an_answer_and_always_fits(
    turns: list[Turn], budget: int, line_break: tuple[int, ...]
) -> None:
    trimmed = trim(turns, budget, line_break=line_break)
    bare = sum(len(turn.prompt) + len(turn.answer) for turn in turns) + len(turns[-1].opening + turns[-1].closing)
    assert (trimmed.turns is None) == (trimmed.outcome == "dropped") == (bare > budget)
    if trimmed.turns is not None:
        assert size(trimmed) <= budget
        assert [(turn.prompt, turn.answer) for turn in trimmed.turns] == [(turn.prompt, turn.answer) for turn in turns]


@given(conversations, budgets, breaks)
def test_trimming_twice_is_trimming_once(turns: list[Turn], budget: int, line_break: tuple[int, ...]) -> None:
    once = trim(turns, budget, line_break=line_break)
    if once.turns is not None:
        assert trim(once.turns, budget, line_break=line_break) == Trimmed(once.turns, "kept")


@given(conversations, budgets, breaks)
def test_a_larger_budget_never_leaves_less(turns: list[Turn], budget: int, line_break: tuple[int, ...]) -> None:
    small, large = (trim(turns, limit, line_break=line_break) for limit in (budget, budget + 1))
    assert size(small) <= size(large)
    assert ORDER.index(small.outcome) <= ORDER.index(large.outcome)
    if small.outcome == large.outcome and small.turns and large.turns:
        assert len(small.turns[-1].reasoning) <= len(large.turns[-1].reasoning)


@given(conversations, budgets)
def test_what_is_left_of_the_last_reasoning_is_its_beginning_and_fills_the_budget(
    turns: list[Turn], budget: int
) -> None:
    trimmed = trim(turns, budget)
    if trimmed.turns is None:
        return
    left, given_ = trimmed.turns[-1].reasoning, turns[-1].reasoning
    assert left == given_[: len(left)]
    assert len(left) == len(given_) or size(trimmed) == budget
    earlier = trimmed.turns[:-1]
    if trimmed.outcome == "earlier removed":
        assert all(not turn.opening + turn.reasoning + turn.closing for turn in earlier)
    else:
        assert list(earlier) == turns[:-1]


TWO_TURNS = [Turn((10, 11), (1,), (20, 21, 22), (2,), (30,)), Turn((12,), (1,), (23, 24, 25, 26), (2,), (31, 32))]


@pytest.mark.parametrize(
    ("budget", "outcome", "expected"),
    [
        (17, "kept", [10, 11, 1, 20, 21, 22, 2, 30, 12, 1, 23, 24, 25, 26, 2, 31, 32]),
        (16, "cut", [10, 11, 1, 20, 21, 22, 2, 30, 12, 1, 23, 24, 7, 2, 31, 32]),
        (13, "cut", [10, 11, 1, 20, 21, 22, 2, 30, 12, 1, 2, 31, 32]),
        (12, "earlier removed", [10, 11, 30, 12, 1, 23, 24, 25, 26, 2, 31, 32]),
        (11, "earlier removed", [10, 11, 30, 12, 1, 23, 24, 7, 2, 31, 32]),
        (8, "earlier removed", [10, 11, 30, 12, 1, 2, 31, 32]),
        (7, "dropped", None),
    ],
)
def test_the_last_reasoning_goes_first_then_the_earlier_then_the_example(
    budget: int, outcome: str, expected: list[int] | None
) -> None:
    trimmed = trim(TWO_TURNS, budget, line_break=BREAK)
    assert trimmed.outcome == outcome
    assert (example_of(trimmed.turns).ids.tolist() if trimmed.turns else None) == expected


def test_prompts_are_never_learned_nor_are_turns_that_say_so() -> None:
    first, last = TWO_TURNS
    unlearned = Turn(first.prompt, first.opening, first.reasoning, first.closing, first.answer, learned=False)
    assert example_of([unlearned, last]).learned.tolist() == [False] * 9 + [True] * 8


def test_the_report_counts_what_each_method_did() -> None:
    short = [Turn((10,), (), (), (), (30,))]
    given_ = [short, TWO_TURNS, TWO_TURNS]
    kept, report = fit_examples(given_, 8)
    assert [len(example) for example in kept] == [2, 8, 8]
    assert dict(report.outcomes) == {"kept": 1, "earlier removed": 2}
    assert (report.emptied, report.tokens_given, report.tokens_left) == (2, 36, 18)
    assert str(report) == (
        "trim to 8 tokens: 3 examples, 1 kept, 2 earlier removed; 50.0% of 36 tokens left; 2 without any reasoning left"
    )
    truncated, report = fit_examples(given_, 8, "truncate")
    assert [example.ids.tolist() for example in truncated[1:]] == [[10, 11, 1, 20, 21, 22, 2, 30]] * 2
    assert report.outcomes["truncated"] == 2
    dropped, report = fit_examples(given_, 8, "drop")
    assert (len(dropped), report.outcomes["dropped"]) == (1, 2)


def test_a_conversation_without_a_reply_and_an_unknown_method_are_refused() -> None:
    with pytest.raises(ValueError, match="no reply to learn"):
        trim([], 8)
    with pytest.raises(ValueError, match="a budget of 0 tokens"):
        trim(TWO_TURNS, 0)
    with pytest.raises(ValueError, match="'middle' does not exist; there are trim"):
        fit_examples([TWO_TURNS], 8, "middle")  # type: ignore[arg-type]
