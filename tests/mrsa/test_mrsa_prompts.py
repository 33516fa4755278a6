from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openzaya.mrsa.prompts import (
    TASKS,
    PromptError,
    aggregation_messages,
    bundled_prompts,
    detect_task,
    load_prompts,
    question_text,
)

TEXT = st.text(max_size=60) | st.sampled_from(["{{question}}", "{{tails}}", "{0} {x} %s", "\\frac{a}{b}", "\r\n\t  x "])
tasks = st.sampled_from(TASKS)


def only_turn(question: object, tails: list[str], task: str = "math") -> str:
    (message,) = aggregation_messages([{"role": "user", "content": question}], tails, task)  # type: ignore[arg-type]
    return message["content"]  # type: ignore[no-any-return]


@given(TEXT, st.lists(TEXT, min_size=1, max_size=6), tasks)
def test_a_prompt_is_as_long_as_the_question_and_the_tails_and_a_constant(question, tails, task) -> None:
    prompt = only_turn(question, tails, task)
    constant = bundled_prompts().fixed_text(task, len(tails))
    for length in (len, lambda text: len(text.encode())):
        assert length(prompt) <= length(question) + sum(map(length, tails)) + length(constant)
        assert length(constant) <= 320


@given(TEXT, st.lists(TEXT, min_size=1, max_size=6), tasks)
def test_question_and_tails_stand_in_a_prompt_to_the_byte_and_in_order(question, tails, task) -> None:
    prompt = only_turn(question, tails, task)
    wording = bundled_prompts().wording(task, len(tails))
    assert prompt.startswith(wording.before + question + wording.between)
    rest = prompt[len(wording.before + question + wording.between) :]
    if len(tails) == 1:
        assert rest == tails[0]
    else:
        assert rest == "\n\n".join(f"[{number}]\n{tail}" for number, tail in enumerate(tails, 1))


def test_placeholders_inside_a_question_or_a_tail_are_plain_text() -> None:
    prompt = only_turn("What does {{tails}} mean?", ["it is {{question}}", "{{number}}"])
    assert prompt.count("{{tails}}") == prompt.count("{{question}}") == prompt.count("{{number}}") == 1
    assert "What does {{tails}} mean?" in prompt


@pytest.mark.parametrize("task", TASKS)
def test_the_fixed_wordings_are_short(task) -> None:
    for tails in (1, 4):
        assert 25 <= len(bundled_prompts().fixed_text(task, tails).replace("[", " ").split()) <= 50


def test_a_single_tail_is_refined_and_several_are_aggregated() -> None:
    assert "an earlier attempt" in only_turn("q", ["a"])
    assert "several attempts" in only_turn("q", ["a", "b"])


def test_without_tails_the_conversation_stays_as_it_is() -> None:
    messages = [{"role": "user", "content": "q"}]
    assert aggregation_messages(messages, [], "math") == messages


def test_the_system_prompt_and_earlier_turns_are_kept_and_only_the_last_user_turn_is_wrapped() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "reply"},
        {"role": "user", "content": "second", "name": "ada"},
        {"role": "tool", "content": "result", "tool_call_id": "1"},
    ]
    wrapped = aggregation_messages(messages, ["a", "b"], "general")
    assert [wrapped[place] for place in (0, 1, 2, 4)] == [messages[place] for place in (0, 1, 2, 4)]
    assert wrapped[3]["content"].startswith("second\n")
    assert wrapped[3]["name"] == "ada"
    assert messages[3]["content"] == "second"


def test_a_turn_made_of_parts_keeps_them_where_the_question_stands() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:,"}}
    parts = [{"type": "text", "text": "What is this?"}, picture]
    (message,) = aggregation_messages([{"role": "user", "content": parts}], ["a", "b"], "general")
    assert message["content"][:2] == parts
    assert message["content"][-1]["text"].endswith("[1]\na\n\n[2]\nb")
    assert question_text([{"role": "user", "content": parts}]) == "What is this?"


def test_a_conversation_without_a_user_turn_is_refused() -> None:
    with pytest.raises(PromptError, match="no user turn"):
        aggregation_messages([{"role": "system", "content": "x"}], ["a"], "math")


def test_a_prompts_file_replaces_what_it_names_and_keeps_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('header = "<{{number}}>"\n[math]\naggregate = "Q {{question}} T {{tails}} {end}"\n')
    prompts = load_prompts(path)
    turn = [{"role": "user", "content": "q"}]
    assert aggregation_messages(turn, ["a", "b"], "math", prompts)[0]["content"] == "Q q T <1>\na\n\n<2>\nb {end}"
    assert prompts.refine == bundled_prompts().refine
    assert prompts.aggregate["code"] == bundled_prompts().aggregate["code"]
    assert prompts.digest != bundled_prompts().digest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[math]\naggregate = "{{tails}} {{question}}"', "needs {{question}} and then {{tails}}"),
        ('[math]\naggregate = "{{question}}"', "needs {{question}} and then {{tails}}"),
        ('[math]\naggregate = "{{question}} {{tails}} {{tails}}"', "once each"),
        ('[maths]\naggregate = "x"', "unknown key 'maths'"),
        ('[math]\ncombine = "{{question}} {{tails}}"', "named aggregate or refine"),
        ('header = "#"', "header in"),
        ("math = 3", "must be a table"),
        ("[math", "cannot read the prompts file"),
    ],
)
def test_a_bad_prompts_file_is_refused_in_one_sentence_that_names_it(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(PromptError, match=r"bad\.toml") as caught:
        load_prompts(path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("question", "task"),
    [
        ("Compute 17 + 25 - 9.", "math"),
        ("Prove that there are infinitely many primes.", "math"),
        ("Which gas?\n(A) helium\n(B) neon", "choice"),
        ("Pick one: A) red B) blue", "choice"),
        ("Write a Python function that reverses a list of 3 numbers.", "code"),
        ("def add(a, b):\n    ...", "code"),
        ("Read n from standard input and print its square.", "code"),
        ("What is the output of this program?\nx = 3\nprint(x)", "math"),
        ("Write down what this Python program prints: print(2)", "math"),
        ("Write a poem about the sea.", "general"),
    ],
)
def test_the_task_is_guessed_from_the_question(question: str, task: str) -> None:
    assert detect_task(question) == task
