from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openzaya.data.trimming import Overlong, Trimmed, Turn, TurnLengths, example_of, fit, trim
from openzaya.data.trimming_report import TrimmingReport, trimming_table

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
        (14, "cut", [10, 11, 1, 20, 21, 22, 2, 30, 12, 1, 2, 31, 32]),
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
    decided = fit([turn.lengths for turn in TWO_TURNS], budget, line_break=len(BREAK))
    assert decided.tokens == len(expected or ())


def test_prompts_are_never_learned_nor_are_turns_that_say_so() -> None:
    first, last = TWO_TURNS
    unlearned = Turn(first.prompt, first.opening, first.reasoning, first.closing, first.answer, learned=False)
    assert example_of([unlearned, last]).learned.tolist() == [False] * 9 + [True] * 8


lengths = st.tuples(*[st.integers(0, 30)] * 5).map(lambda parts: TurnLengths(*parts))


@given(st.lists(lengths, min_size=1, max_size=4), budgets, st.sampled_from(["trim", "truncate", "drop"]))
def test_what_a_fit_says_is_left_is_at_most_the_budget_and_all_where_it_fits(
    turns: list[TurnLengths], budget: int, overlong: Overlong
) -> None:
    decided, total = fit(turns, budget, overlong), sum(map(sum, turns))
    assert decided.tokens <= budget
    assert (decided.outcome == "kept") == (total <= budget) == (decided.tokens == total)
    assert decided.reasoning <= turns[-1].reasoning


@given(conversations, budgets, breaks)
def test_the_decision_from_lengths_is_what_trimming_does_to_tokens(
    turns: list[Turn], budget: int, line_break: tuple[int, ...]
) -> None:
    decided = fit([turn.lengths for turn in turns], budget, line_break=len(line_break))
    trimmed = trim(turns, budget, line_break=line_break)
    assert (decided.outcome, decided.tokens) == (trimmed.outcome, size(trimmed))
    assert decided.reasoning == (len(trimmed.turns[-1].reasoning) if trimmed.turns else 0)


def report_of(conversations: list[list[Turn]], budget: int, overlong: Overlong) -> TrimmingReport:
    report = TrimmingReport(budget=budget, overlong=overlong)
    for turns in conversations:
        of_parts = [turn.lengths for turn in turns]
        report.count(of_parts, fit(of_parts, budget, overlong))
    return report


def test_the_report_counts_what_each_way_did() -> None:
    given_ = [[Turn((10,), (), (), (), (30,))], TWO_TURNS, TWO_TURNS]
    trimmed = report_of(given_, 8, "trim")
    assert trimmed.outcomes == {"kept": 1, "earlier removed": 2}
    assert (trimmed.emptied, trimmed.tokens_given, trimmed.tokens_left) == (2, 36, 18)
    assert str(trimmed) == (
        "trim to 8 tokens: 3 conversations, 1 kept, 2 earlier removed; 50.0% of 36 tokens left; "
        "2 without any reasoning left"
    )
    truncated = report_of(given_, 8, "truncate")
    assert (truncated.outcomes["truncated"], truncated.answers_cut, truncated.reasoning_left) == (2, 2, 0)
    dropped = report_of(given_, 8, "drop")
    assert (dropped.outcomes["dropped"], dropped.tokens_left) == (2, 2)
    assert (trimmed + trimmed).outcomes == {"kept": 2, "earlier removed": 4}
    assert (trimmed + trimmed).budget == 8
    head, *lines = trimming_table([trimmed, truncated, dropped]).splitlines()
    assert head.split()[:3] == ["context", "overlong", "kept"]
    assert [line.split()[1] for line in lines] == ["trim", "truncate", "drop"]


def test_a_conversation_without_a_reply_and_an_unknown_way_are_refused() -> None:
    with pytest.raises(ValueError, match="no reply to learn"):
        trim([], 8)
    with pytest.raises(ValueError, match="a budget of 0 tokens"):
        trim(TWO_TURNS, 0)
    with pytest.raises(ValueError, match="'middle'; it must be one of trim"):
        fit([TurnLengths(1, 0, 0, 0, 1)], 8, "middle")  # type: ignore[arg-type]
