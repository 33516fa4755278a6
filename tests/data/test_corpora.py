from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from openzaya.data.corpora import CorpusRecipe, check_weights

FILE = {"format": "jsonl", "paths": ["a.jsonl"]}


def test_a_corpus_of_files_is_plain_text_unless_it_says_otherwise() -> None:
    assert CorpusRecipe(**FILE).text_field == "text"
    assert CorpusRecipe(**FILE, text="body").text_field == "body"
    assert CorpusRecipe(**FILE, messages="messages").text_field is None
    assert CorpusRecipe(format="problems", documents=5, families={"sums_list": {}}).conversations


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"format": "jsonl"}, "jsonl has no files; give paths"),
        ({"format": "problems", "documents": 3, "families": {"sums_list": {}}, "paths": ["a"]}, "remove paths"),
        ({"format": "problems", "families": {"sums_list": {}}}, "problems never end"),
        ({"format": "problems", "documents": 3, "families": {"sums": {}}}, "'sums' does not exist"),
        ({"format": "problems", "documents": 3}, "the mixture is empty"),
        ({"format": "datasets"}, "needs the name of a dataset"),
        ({**FILE, "dataset": "web"}, "belong to the format datasets"),
        ({**FILE, "families": {"sums_list": {}}}, "families belong to the format problems"),
        ({**FILE, "text": "a", "messages": "b"}, "text and messages are given"),
        ({**FILE, "question": "q"}, "question and answer go together"),
        ({**FILE, "reasoning": "r"}, "reasoning is a field beside question"),
        ({**FILE, "tails": "tails"}, "belong to conversations"),
        ({**FILE, "separator": "\n"}, "belongs to the format text"),
        ({**FILE, "format": "text", "text": "body"}, "text has no fields; remove text"),
        ({**FILE, "held_out": 1.0}, "held_out"),
        ({**FILE, "shuffle": True}, "shuffle"),
    ],
)
def test_what_does_not_fit_together_is_refused(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        CorpusRecipe(**fields)


def test_a_phase_mixes_known_corpora_with_weights_above_zero() -> None:
    corpora = {"web": CorpusRecipe(**FILE)}
    check_weights({"web": 3}, corpora)
    for weights, sentence in [({}, "no corpora"), ({"wbe": 1}, "'wbe' does not exist"), ({"web": 0}, "weight 0 of")]:
        with pytest.raises(ValueError, match=sentence):
            check_weights(weights, corpora)


def test_the_digest_tells_recipes_apart() -> None:
    recipe = CorpusRecipe(**FILE)
    assert recipe.digest == CorpusRecipe(**FILE).digest != CorpusRecipe(**FILE, held_out=0.5).digest
