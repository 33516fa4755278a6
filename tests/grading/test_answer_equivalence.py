from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openzaya.grading import equivalent, group_votes, normalise
from openzaya.grading.normalisation import read

SAME = [
    # numbers and their spellings
    ("5", "5.0"),
    ("5", "5."),
    ("5", "+5"),
    ("5", "05"),
    ("0.50", "0.5"),
    (".5", "0.5"),
    ("1/2", "\\frac{1}{2}"),
    ("0.5", "\\frac{1}{2}"),
    ("2/4", "1/2"),
    ("0/5", "0"),
    ("-0", "0"),
    ("\\dfrac{3}{4}", "\\frac{3}{4}"),
    ("\\tfrac34", "3/4"),
    ("\\cfrac{3}{4}", "0.75"),
    ("\\frac12", "1/2"),
    ("\\frac1{2}", "1/2"),
    ("-\\frac{1}{2}", "\\frac{-1}{2}"),
    ("\\frac{1}{-2}", "-1/2"),
    ("-(1/2)", "-0.5"),
    ("−7", "-7"),
    ("1 1/2", "3/2"),
    ("1\\frac{1}{2}", "1.5"),
    ("-2\\frac{3}{4}", "-11/4"),
    ("2½", "5/2"),
    ("1,234", "1234"),
    ("1,234,567.50", "1234567.5"),
    ("12{,}345", "12345"),
    ("10\\,000", "10000"),
    ("12 345 678", "12345678"),
    ("1.5e3", "1500"),
    ("1.5E-3", "0.0015"),
    ("1.5 \\times 10^{3}", "1500"),
    ("3\\cdot10^4", "30000"),
    ("10^{-3}", "0.001"),
    ("2^{10}", "1024"),
    ("2**10", "1024"),
    ("(-2)^3", "-8"),
    ("0.\\overline{3}", "1/3"),
    ("1.2\\overline{45}", "137/110"),
    ("\\frac{\\frac{1}{2}}{3}", "1/6"),
    # wrapping
    ("$5$", "5"),
    ("$$5$$", "5"),
    ("\\(5\\)", "5"),
    ("\\[ 5 \\]", "5"),
    ("**5**", "5"),
    ("`5`", "5"),
    ("5.", "5"),
    ("\\boxed{5}", "5"),
    ("\\boxed{\\boxed{5}}", "5"),
    ("\\text{5}", "5"),
    ("\\left(\\frac{1}{2}\\right)", "1/2"),
    ("{5}", "5"),
    ("(5)", "5"),
    ("\\displaystyle\\frac{1}{3}", "1/3"),
    ("\\$1,250", "1250"),
    ("x = 5", "5"),
    ("x=\\frac{1}{2}", "0.5"),
    ("x_1 = 5", "5"),
    ("f(x) = 7", "7"),
    ("\\theta = 30°", "30"),
    ("17 + 25 - 9 = 33", "33"),
    # percent and units
    ("50%", "50\\%"),
    ("50%", "50 percent"),
    ("50%", "50"),
    ("50%", "0.5"),
    ("50\\%", "1/2"),
    ("12.5\\%", "12.5"),
    ("90°", "90^\\circ"),
    ("90^{\\circ}", "90 degrees"),
    ("90°", "90"),
    ("5 cm", "5"),
    ("5\\text{ cm}", "5 cm"),
    ("5cm", "5 cm"),
    ("5\\,\\text{cm}^2", "5"),
    ("42 apples", "42"),
    ("3.50 dollars", "3.5"),
    ("12 m/s", "12"),
    ("2 million", "2000000"),
    ("1.5 million dollars", "1500000"),
    ("3 dozen", "36"),
    # structures
    ("(1, 2)", "(1,2)"),
    ("(1/2, 0.25)", "(0.5, \\frac14)"),
    ("\\left(1, 2\\right)", "(1,2)"),
    ("(1,234)", "(1, 234)"),
    ("(x, y) = (1, 2)", "(1, 2)"),
    ("1, 2", "(1, 2)"),
    ("1,2,3", "[1, 2, 3]"),
    ("1, 2", "\\{2, 1\\}"),
    ("\\{1,2\\}", "\\{2,1\\}"),
    ("{1, 2}", "\\{2, 1\\}"),
    ("\\left\\{ 3, 1, 2 \\right\\}", "{1,2,3}"),
    ("x = 1 or x = 2", "\\{1, 2\\}"),
    ("x=1, x=2", "x=2, x=1"),
    ("2 and 1", "1 and 2"),
    ("1, 2, and 3", "\\{1, 2, 3\\}"),
    ("[0, 1)", "[0,1.0)"),
    ("x \\in [0, 1)", "[0, 1)"),
    ("(-\\infty, 0] \\cup [1, 2)", "[1,2) ∪ (-∞, 0]"),
    ("\\emptyset", "∅"),
    ("\\{\\}", "\\varnothing"),
    ("((1,2),(3,4))", "((1, 2), (3, 4))"),
    ("1,234 and 5,678", "\\{5678, 1234\\}"),
    # letters, words and formulas
    ("b", "B"),
    ("(B)", "B"),
    ("\\text{B}", "b"),
    ("\\textbf{(C)}", "C"),
    ("Yes", "yes"),
    ("  No   Solution ", "no solution"),
    ("Monday.", "monday"),
    ("March 5, 2024", "march 5, 2024"),
    ("2\\pi", "2pi"),
    ("2 \\cdot \\pi", "2π"),
    ("\\sqrt2", "\\sqrt{2}"),
    ("sqrt(2)", "√2"),
    ("x^{2} + 1", "x^2+1"),
    ("\\frac{\\sqrt{3}}2", "\\dfrac{\\sqrt{3}}{2}"),
    ("y = 2x + 1", "2x+1"),
    ("x \\le 5", "x ≤ 5"),
    ("12:30 PM", "12:30 pm"),
]

DIFFERENT = [
    ("5", "6"),
    ("1/2", "2"),
    ("1/3", "0.333"),
    ("0.1", "0.10000001"),
    ("-5", "5"),
    ("(1,234)", "1234"),
    ("1,23", "123"),
    ("1,2345", "12345"),
    ("0,123", "123"),
    ("12,34", "1234"),
    ("1, 234", "1234"),
    ("0.5", "50"),
    ("5%", "50%"),
    ("5 cm", "5 m"),
    ("5 cm", "6"),
    ("5 million", "5"),
    ("2 pi", "2"),
    ("3 squared", "3"),
    ("5 mod 7", "5"),
    ("(1, 2)", "(2, 1)"),
    ("(1, 2)", "[1, 2]"),
    ("(0, 1]", "[0, 1]"),
    ("\\{1, 2\\}", "\\{1, 3\\}"),
    ("1, 2", "2, 1"),
    ("B", "D"),
    ("A", "apple"),
    ("x", "y"),
    ("x^2", "x^3"),
    ("y = 2x + 1", "y = 2x - 1"),
    ("x < 5", "x > 5"),
    ("2^10", "2^{11}"),
    ("10^10^10", "9**9**9"),
    ("\\sqrt{2}", "2"),
    ("1/0", "0"),
    ("17 + 25 - 9", "33"),
    ("2\\frac{5}{3}", "11/3"),
    ("yes", "no"),
    ("", "0"),
    ("12:30", "12.3"),
    ("3 or 4", "3"),
]


def test_the_module_compares_at_least_eighty_pairs() -> None:
    assert len(SAME) + len(DIFFERENT) >= 80


@pytest.mark.parametrize(("a", "b"), SAME)
def test_spellings_of_one_answer_are_equivalent(a: str, b: str) -> None:
    assert equivalent(a, b), (read(a), read(b))
    assert equivalent(b, a)


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_different_answers_are_not_equivalent(a: str, b: str) -> None:
    assert not equivalent(a, b), (read(a), read(b))
    assert not equivalent(b, a)


@pytest.mark.parametrize("answer", sorted({answer for pair in SAME + DIFFERENT for answer in pair}))
def test_a_key_is_its_own_key(answer: str) -> None:
    assert normalise(normalise(answer)) == normalise(answer)


@pytest.mark.parametrize(
    ("answer", "key"),
    [("0.5", "1/2"), ("x = 5", "5"), ("1,234", "1234"), ("(1,234)", "(1, 234)"), ("\\{2,1\\}", "\\{1, 2\\}"),
     ("50 percent", "50%"), ("5\\text{ cm}", "5 cm"), ("(b)", "B"), ("No Solution", "no solution")],
)  # fmt: skip
def test_keys_read_well(answer: str, key: str) -> None:
    assert normalise(answer) == key


@pytest.mark.parametrize(
    "answer",
    ["9**9**9", "9^{9^9}", "10^10^10", "10^{10^{10}}", "1e999999999", "1e-999999999", "2^99999", "(1/3)^99999",
     "9" * 900 + "^999", "1.5*10^{99999}", "\\frac{1}{10^{99999}}", "0^0", "0^{-1}", "1/0", "\\frac{1}{0}"],
)  # fmt: skip
def test_huge_or_impossible_values_are_never_computed(answer: str) -> None:
    started = time.process_time()
    assert equivalent(answer, answer)
    assert not equivalent(answer, "1")
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize(
    "piece",
    ["9", "(", "{", "\\frac{", "\\frac", "1,", "1,234", "(1,", "x = ", " ", "\\{", "^", "$", "\\text{", "and ", "1 m "],
)
@pytest.mark.parametrize("length", [3_900, 1_000_000])
def test_very_long_answers_are_compared_in_linear_time(piece: str, length: int) -> None:
    answer = piece * (length // len(piece))
    started = time.process_time()
    equivalent(answer, answer + "1")
    assert time.process_time() - started < 2


ALPHABET = st.sampled_from(
    [
        *"0123456789.,/-+=%°$^_*()[]{} \\xXyaBpi<>⦃⦄\n",
        *("\\frac", "\\boxed{", "\\text{", "\\{", "\\}", "\\left", "\\right", "\\cup", "\\sqrt", "\\pi", "\\infty"),
        *("\\%", "\\,", "\\in", "\\(", "\\)", " or ", " and ", "x=", " cm", " million", "10^", "1,234", "**", "½", "∅"),
        *("percent", "degrees"),
    ]
)
ANSWERS = st.lists(ALPHABET, max_size=14).map("".join)


@settings(max_examples=400, deadline=None)
@given(ANSWERS)
def test_normalising_twice_is_normalising_once(answer: str) -> None:
    assert normalise(normalise(answer)) == normalise(answer)


@settings(max_examples=200, deadline=None)
@given(ANSWERS, ANSWERS)
def test_equivalence_is_reflexive_and_symmetric(a: str, b: str) -> None:
    assert equivalent(a, a)
    assert equivalent(a, b) == equivalent(b, a)


@settings(max_examples=100, deadline=None)
@given(st.fractions(), st.integers(1, 50))
def test_every_spelling_of_a_fraction_has_one_key(value, factor: int) -> None:  # type: ignore[no-untyped-def]
    above, below = value.numerator * factor, value.denominator * factor
    assert normalise(f"{above}/{below}") == normalise(f"\\frac{{{above}}}{{{below}}}") == str(value)


POOL = st.sampled_from(
    ["5", "5.0", "5 cm", "5 m", "50%", "50", "0.5", "1, 2", "(1,2)", "{2,1}", "B", "(b)", None, " ", "x=5"]
)


@given(st.lists(st.one_of(POOL, ANSWERS), max_size=12))
def test_votes_partition_the_answers_that_there_are(answers: list[str | None]) -> None:
    groups = group_votes(answers)
    members = [index for group in groups for index in group.members]
    assert sorted(members) == [index for index, answer in enumerate(answers) if answer is not None and answer.strip()]
    assert [group.votes for group in groups] == sorted((group.votes for group in groups), reverse=True)
    for group in groups:
        assert list(group.members) == sorted(group.members)
        assert all(equivalent(group.answer, answers[index] or "") for index in group.members)
        assert group.answer in answers


def test_the_largest_group_comes_first_and_ties_go_to_the_earliest() -> None:
    groups = group_votes(["3", "1/2", None, "0.5", "7", "7.0", ""])
    assert [group.members for group in groups] == [(1, 3), (4, 5), (0,)]
    assert groups[0].answer == "1/2"


def test_an_answer_that_leaves_something_unsaid_joins_the_one_that_says_it() -> None:
    assert [group.members for group in group_votes(["50%", "50", "50", "0.5"])] == [(0, 1, 2), (3,)]
    assert [group.members for group in group_votes(["5 cm", "5", "5 cm"])] == [(0, 1, 2)]


def test_nothing_but_missing_answers_gives_no_group() -> None:
    assert group_votes([None, None]) == []
    assert group_votes([]) == []
