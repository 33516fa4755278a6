from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openzaya.grading import extract_answer

MATH = [
    (r"So we get \boxed{42}.", "42"),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    (r"\boxed{\frac{a_{1}}{\sqrt{b^{2}}}}", r"\frac{a_{1}}{\sqrt{b^{2}}}"),
    (r"\boxed{1}, no wait, I must revise: \boxed{2}", "2"),
    (r"<think>maybe \boxed{7}</think> The answer is \boxed{9}.", "9"),
    (r"\boxed{\boxed{5}}", r"\boxed{5}"),
    (r"\boxed{a} and \boxed{\text{b \boxed{c} d}}", r"\text{b \boxed{c} d}"),
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    (r"\boxed{\left\{ x : x > 0 \right\}}", r"\left\{ x : x > 0 \right\}"),
    (r"\boxed{1 \\{} 2}", r"1 \\{} 2"),
    (r"\boxed {3}", "3"),
    (r"\fbox{4}", "4"),
    (r"\boxed 5", "5"),
    (r"thus \boxed{3}, and then \boxed{\frac{1}{", "3"),
    (r"first \boxed{8} and later \boxed{}", "8"),
    (r"a { stray brace \boxed{6}", "6"),
    (r"} closing first \boxed{6}", "6"),
    ("<answer>12</answer>", "12"),
    ("<answer>1</answer> hmm <answer> 2 </answer>", "2"),
    ("<ANSWER>x + 1</ANSWER>", "x + 1"),
    ("<answer>3</answer> and an open one <answer>4", "3"),
    (r"<answer>\boxed{4}</answer>", "4"),
    ("The answer is 42.", "42"),
    ("the answer is: **42**.", "42"),
    ("**Answer:** 3.14", "3.14"),
    ("**Final answer**: -7", "-7"),
    ("Final answer: $\\frac{3}{4}$.", "\\frac{3}{4}"),
    ("The answer is \\(x^2 + 1\\), as shown.", "x^2 + 1"),
    ("Answer:\n\n42", "42"),
    ("The answer is 5 because 2 + 3 = 5.", "5"),
    ("The answer is x = 5", "x = 5"),
    ("The final answer is 1,234.50 dollars.", "1,234.50 dollars"),
    ("The answer is $5$ cm.", "5 cm"),
    ("The answer is (1, 2).", "(1, 2)"),
    ("The answer is 3. Wait, the answer is 4.", "4"),
    ("The answer is 3. That the answer is not obvious is clear.", "3"),
    ("17 + 25 = 42\n42 - 9 = 33", "33"),
    ("We add them up.\n33", "33"),
    ("We add them up.\n**33**", "33"),
    ("We add them up.\n$1,250.75$", "1,250.75"),
    ("So the total is 33.", "33"),
    ("There are five. Therefore we get 12.", "12"),
    ("= 7", "7"),
    ("-3/4", "-3/4"),
]

NO_ANSWER = [
    "",
    " \n ",
    "I do not know.",
    "The answer is not clear.",
    "The answer is unknown",
    "In 2019 there were 3 of them.",
    "Step 1. We start",
    "There are 12 apples and 4 pears here",
    r"\boxed{",
    r"\boxed{}",
    r"\boxed{\frac{1}{2}",
    "<answer></answer>",
    "<answer>5",
    "We try 5, then 6, and after that",
    "The answer",
]

CHOICE = [
    (r"\boxed{B}", "B"),
    (r"\boxed{\text{C}}", "C"),
    (r"\boxed{\textbf{(D)}}", "D"),
    (r"\boxed{(b)}", "B"),
    (r"\boxed{B) 42}", "B"),
    ("<answer>E</answer>", "E"),
    ("<answer>(f) 3 cm</answer>", "F"),
    ("The answer is (B).", "B"),
    ("The answer is B because A is wrong.", "B"),
    ("Answer: D", "D"),
    ("Answer: **J**", "J"),
    ("**Answer: C) Paris**", "C"),
    ("The correct answer is option G.", "G"),
    ("The correct option is (c).", "C"),
    ("A looks right at first.\nB", "B"),
    ("So I choose option H", "H"),
    ("(A)", "A"),
    (r"The answer is \textbf{(A)}", "A"),
    ("The answer is A. On reflection the answer is C.", "C"),
]

NO_CHOICE = [
    "The answer is a prime number",
    "I think so",
    "A cat",
    "The answer is 42",
    "Answer: Kelvin",
    r"\boxed{K}",
    "Either option A or option B",
]


@pytest.mark.parametrize(("text", "answer"), MATH)
def test_an_answer_is_found_as_it_was_written(text: str, answer: str) -> None:
    assert extract_answer(text, "math") == answer
    assert extract_answer(text) == answer


@pytest.mark.parametrize("text", NO_ANSWER)
@pytest.mark.parametrize("task", ["auto", "math", "choice", "code", "general"])
def test_no_answer_is_ever_invented(text: str, task: str) -> None:
    assert extract_answer(text, task) is None


@pytest.mark.parametrize(("text", "letter"), CHOICE)
def test_an_option_is_found_as_its_letter(text: str, letter: str) -> None:
    assert extract_answer(text, "choice") == letter


@pytest.mark.parametrize("text", NO_CHOICE)
def test_a_word_is_not_an_option(text: str) -> None:
    assert extract_answer(text, "choice") is None


def test_the_last_whole_program_is_the_code() -> None:
    first, second = "print(1)\n", "def f():\n    return 2\n"
    text = f"Try\n```python\n{first}```\nbetter:\n```python\n{second}```\nIt prints\n```text\n2\n```\n"
    assert extract_answer(text, "code") == second
    assert extract_answer(text) == second


def test_a_block_that_was_cut_is_not_code() -> None:
    assert extract_answer("```python\nprint(1)\n```\nnow\n```python\nprint(", "code") == "print(1)\n"
    assert extract_answer("```python\nprint(", "code") is None


def test_a_longer_fence_may_hold_a_shorter_one() -> None:
    body = 's = """\n```\ninner\n```\n"""\n'
    assert extract_answer(f"````python\n{body}````", "code") == body


def test_tildes_and_unnamed_fences_are_code_too() -> None:
    assert extract_answer("~~~\nx = 1\n~~~", "code") == "x = 1\n"
    assert extract_answer("```text\nonly this\n```", "code") == "only this\n"


def test_a_general_answer_is_never_a_mere_number_at_the_end() -> None:
    assert extract_answer("We counted.\n33", "general") is None
    assert extract_answer("The answer is the blue car.", "general") == "the blue car"


def test_an_unknown_task_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'poetry'"):
        extract_answer("x", "poetry")


@pytest.mark.parametrize(
    "piece",
    ["\\boxed{", "{", "}", "\\boxed", "<answer>", "</answer>", "answer is ", "answer (", "answer: $", "the answer is\n",
     "9", "9,", "9 ", " ", "\n", "= 1", "**", "`", "```\n", "~~~", "A) ", "option A ", "\\", "\\text{", "is ", "."],
)  # fmt: skip
@pytest.mark.parametrize("task", ["auto", "choice"])
def test_a_million_characters_take_linear_time(piece: str, task: str) -> None:
    text = piece * (1_000_000 // len(piece))
    started = time.process_time()
    extract_answer(text, task)
    assert time.process_time() - started < 4


@given(
    st.text(st.sampled_from("\\{}boxed<>answr/:is 0123456789$`*.\n="), max_size=60), st.sampled_from(["auto", "math"])
)
def test_an_answer_is_always_a_piece_of_the_text(text: str, task: str) -> None:
    answer = extract_answer(text, task)
    if answer is not None:
        assert answer.strip()
        assert "".join(answer.split()) in "".join(text.replace("$", "").split()) or answer in text


@given(st.text(st.characters(exclude_characters="\\{}"), min_size=1, max_size=30).filter(lambda text: text.strip()))
def test_whatever_is_boxed_last_is_the_answer(content: str) -> None:
    assert extract_answer(f"I guess \\boxed{{1}}. No: \\boxed{{{content}}}", "math") == content.strip()
