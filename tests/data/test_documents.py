from __future__ import annotations

import json
from typing import Any

import pytest

from openzaya.chat import control, encode_chat
from openzaya.data.corpora import CorpusRecipe
from openzaya.data.documents import Document, DocumentReader
from openzaya.data.examples import plain_example
from openzaya.data.mixture import FamilyShare, draw_problem
from openzaya.data.rollouts import Speaker
from openzaya.data.trimming import example_of
from openzaya.mrsa.prompts import aggregation_messages

ASKED = {"role": "user", "content": "What is 2 + 3?"}
REPLY = {"role": "assistant", "content": "5", "reasoning_content": "2 + 3 = 5"}


def reader(speaker: Speaker, **fields: Any) -> DocumentReader:
    recipe = CorpusRecipe(**{"format": "jsonl", "paths": ["a.jsonl"], **fields})
    return DocumentReader(recipe, speaker.tokenizer, speaker.template, speaker.prompts)


def ids(found: Document | str) -> list[int]:
    assert isinstance(found, Document)
    return example_of(found.turns).ids.tolist()


def test_a_plain_text_stands_between_its_beginning_and_its_end_and_its_control_tokens_are_text(
    speaker: Speaker,
) -> None:
    found = reader(speaker).read({"text": "one <|im_end|> two"})
    tokenizer = speaker.tokenizer
    assert isinstance(found, Document)
    assert found.text
    first, *inner, last = ids(found)
    assert (first, last) == (tokenizer.id_of(control.BOS), tokenizer.id_of(control.DOCUMENT_END))
    assert tokenizer.decode(inner) == "one <|im_end|> two"
    assert tokenizer.control_ids.isdisjoint(inner)
    assert example_of(found.turns).learned.all()


def test_every_form_of_a_conversation_is_the_same_document(speaker: Speaker) -> None:
    messages = reader(speaker, messages="m").read({"m": [ASKED, {**REPLY, "tool_calls": None}]})
    expected = encode_chat(speaker.tokenizer, speaker.template, [ASKED, REPLY], add_generation_prompt=False)
    assert ids(messages) == expected
    fields = reader(speaker, question="q", answer="a", reasoning="r")
    assert fields.read({"q": ASKED["content"], "a": "5", "r": "2 + 3 = 5"}) == messages
    sharegpt = [
        {"from": "human", "value": ASKED["content"]},
        {"from": "gpt", "value": "<think>\n2 + 3 = 5\n</think>\n\n5"},
    ]
    assert ids(reader(speaker, messages="c").read({"c": json.dumps(sharegpt)})) == expected


def test_a_problem_is_its_plain_example(speaker: Speaker) -> None:
    problem = draw_problem({"sums_list": FamilyShare(difficulty=(1, 4))}, 0, 3)
    reply = {"role": "assistant", "content": problem.reply(), "reasoning_content": problem.worked.reasoning}
    row = {"messages": [{"role": "user", "content": problem.question}, reply]}
    families = {"sums_list": {"difficulty": [1, 4]}}
    found = reader(speaker, format="problems", paths=(), documents=9, families=families).read(row)
    plain = plain_example(problem, speaker.tokenizer, speaker.template)
    assert isinstance(found, Document)
    assert example_of(found.turns).ids.tolist() == plain.ids.tolist()
    assert example_of(found.turns).learned.tolist() == plain.learned.tolist()


def test_tails_are_put_as_markovian_rsa_puts_them_and_never_learned(speaker: Speaker) -> None:
    row = {"m": [ASKED, REPLY], "tails": ["it is 5", "it is 6"], "task": "math"}
    found = reader(speaker, messages="m", tails="tails", task="field").read(row)
    asked = aggregation_messages([ASKED], row["tails"], "math", speaker.prompts)
    prompt = encode_chat(speaker.tokenizer, speaker.template, asked)
    assert isinstance(found, Document)
    example = example_of(found.turns)
    assert example.ids[: len(prompt)].tolist() == prompt
    assert example.learned.tolist() == [False] * len(prompt) + [True] * (len(example) - len(prompt))
    assert ids(reader(speaker, messages="m").read(row)) == encode_chat(
        speaker.tokenizer, speaker.template, [ASKED, REPLY], add_generation_prompt=False
    )


def test_what_begins_alike_is_held_out_together_in_every_corpus(speaker: Speaker) -> None:
    plain = reader(speaker, messages="m", held_out=0.5)
    wrapped = reader(speaker, messages="m", tails="t", held_out=0.5)
    sides = set()
    for number in range(40):
        asked = {"role": "user", "content": f"What is {number}?"}
        found = [
            plain.read({"m": [asked, REPLY]}),
            plain.read({"m": [asked, {"role": "assistant", "content": "no"}]}),
            wrapped.read({"m": [asked, REPLY], "t": ["it is 4", f"it is {number}"]}),
        ]
        held_out = {document.held_out for document in found if isinstance(document, Document)}
        assert len(held_out) == 1
        sides |= held_out
    assert sides == {True, False}


def test_the_held_out_share_is_about_what_was_asked_for_and_grows_by_adding(speaker: Speaker) -> None:
    def side(share: float) -> set[int]:
        read = [reader(speaker, held_out=share).read({"text": f"text {number}"}) for number in range(400)]
        return {number for number, found in enumerate(read) if isinstance(found, Document) and found.held_out}

    none, few, many = side(0.0), side(0.1), side(0.4)
    assert not none
    assert 15 <= len(few) <= 70
    assert 120 <= len(many) <= 200
    assert few <= many


def test_rows_that_say_nothing_are_left_out_and_say_why(speaker: Speaker) -> None:
    assert reader(speaker).read({"text": " \n"}) == "empty"
    assert reader(speaker).read({"text": None}) == "empty"
    assert reader(speaker).read({}) == "empty"
    assert reader(speaker, messages="m").read({"m": [ASKED]}) == "without a reply"
    unanswered = [ASKED, REPLY, ASKED]
    assert isinstance(reader(speaker, messages="m").read({"m": unanswered}), Document | str)


@pytest.mark.parametrize(
    ("fields", "row", "sentence"),
    [
        ({}, {"body": "x"}, "no field 'text'; the fields are body"),
        ({"messages": "m"}, {"m": 5}, "'m' is a int"),
        ({"messages": "m"}, {"m": "{"}, "text that is no JSON"),
        ({"messages": "m"}, {"m": ["hello"]}, "must hold messages"),
        ({"messages": "m"}, {"m": [{"speaker": "a"}]}, "it needs role and content"),
        (
            {"messages": "m", "tails": "t", "task": "field"},
            {"m": [ASKED, REPLY], "t": ["a"], "task": "sums"},
            "the task is 'sums'",
        ),
    ],
)
def test_a_row_that_lacks_what_the_recipe_names_is_refused(
    speaker: Speaker, fields: dict[str, Any], row: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        reader(speaker, **fields).read(row)


def test_broken_surrogates_of_web_data_are_replaced(speaker: Speaker) -> None:
    found = reader(speaker).read({"text": "a\ud800b"})
    assert speaker.tokenizer.decode(ids(found)[1:-1]) == "a?b"
