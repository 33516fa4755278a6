"""Replies that are held to a grammar: their tokens, alone and among others, and what ends them."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from engine_models import SAMPLING, SMALL, small_model, small_tokenizer
from openzaya.chat.tokenizer import Tokenizer
from openzaya.engine.constraint import Constraint, Grammars
from openzaya.engine.engine import Engine
from openzaya.engine.params import SamplingParams

pytest.importorskip("llguidance")

LIST = Constraint('start: "[" /[0-9]{1,3}/ (", " /[0-9]{1,3}/){2,9} "]"')
LISTS = re.compile(r"\[\d{1,3}(, \d{1,3}){2,9}\]")
PROMPTS = [list(range(20 + length, 20 + 2 * length)) for length in (3, 40, 70, 33)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    small_tokenizer(folder)
    return Tokenizer.from_folder(folder)


@pytest.fixture(scope="module")
def engine(tokenizer):
    with Engine(small_model(), tokenizer=tokenizer, memory="64MiB", max_batch=64) as engine:
        yield engine


@pytest.mark.parametrize("params", SAMPLING, ids=str)
def test_every_way_to_draw_keeps_to_the_grammar(engine, params):
    request = engine.submit(PROMPTS[0], replace(params, max_tokens=120, seed=1), n=6, matcher=engine.matcher(LIST))
    outputs = request.result(60)
    assert all(output.finish_reason == "stop" for output in outputs)
    assert all(LISTS.fullmatch(output.text) for output in outputs)


def test_replies_are_the_same_alone_and_among_others_and_change_nothing_for_those(engine, tokenizer):
    params = [SamplingParams(max_tokens=90, seed=seed, ignore_eos=False) for seed in range(len(PROMPTS))]

    def spoken(on, prompt, one, held):
        return on.submit(prompt, one, matcher=on.matcher(LIST) if held else None)

    alone = {
        held: [spoken(engine, prompt, one, held).result(60)[0].token_ids for prompt, one in zip(PROMPTS, params)]
        for held in (True, False)
    }
    small = Engine(small_model(), tokenizer=tokenizer, memory=265_536, max_batch=8)  # 12 pages of 32 tokens
    for crowded in (engine, small):
        requests = [
            (held, place, spoken(crowded, prompt, one, held))
            for place, (prompt, one) in enumerate(zip(PROMPTS, params))
            for held in (True, False)
        ]
        for held, place, request in requests:
            assert request.result(60)[0].token_ids == alone[held][place]
    assert small._worker.scheduler.preemptions > 0
    small.close()


def test_log_probabilities_are_those_of_the_model_without_the_grammar(engine):
    params = SamplingParams(max_tokens=1, temperature=0, logprobs=20)
    (free,), (held,) = (
        engine.submit(PROMPTS[1], params, matcher=matcher).result(60) for matcher in (None, engine.matcher(LIST))
    )
    assert held.text == "["
    assert held.logprobs[0].top == free.logprobs[0].top


def test_a_grammar_begins_to_count_where_a_reasoning_ends(tokenizer):
    grammars = Grammars(tokenizer, SMALL.vocab_size)
    scores = torch.zeros(SMALL.vocab_size)
    opens, closes = tokenizer.think_open_id, tokenizer.think_close_id
    first, other = tokenizer.encode("[")[0], tokenizer.encode("x")[0]
    may = grammars.matcher(replace(LIST, opens=opens, closes=closes))
    assert {first, opens} <= set(torch.nonzero(may.narrowed(scores) == 0).flatten().tolist())
    thinking = may.copy()
    thinking.accept(opens)
    assert not thinking.holds
    thinking.accept(other)
    thinking.accept(closes)
    assert thinking.holds
    assert thinking.narrowed(scores)[opens] < -1e20
    may.accept(first)
    assert may.holds
    assert may.narrowed(scores)[opens] < -1e20
    inside = grammars.matcher(replace(LIST, opens=opens, closes=closes, in_reasoning=True))
    assert not inside.holds
    begun = grammars.matcher(replace(LIST, begun=tuple(tokenizer.encode("[1, 2, 3]"))))
    allowed = torch.nonzero(begun.narrowed(scores) == 0).flatten().tolist()
    assert set(tokenizer.eos_ids) <= set(allowed)


def test_scores_beyond_the_vocabulary_have_no_chance(tokenizer):
    assert tokenizer.vocab_size < SMALL.vocab_size
    matcher = Grammars(tokenizer, SMALL.vocab_size).matcher(Constraint("start: /(?s:.*)/"))
    assert (matcher.narrowed(torch.zeros(SMALL.vocab_size))[tokenizer.vocab_size :] < -1e20).all()


class Failing:
    """A parser that gives up after three tokens."""

    def __init__(self, state):
        self._state, self._left = state, 3

    def __getattr__(self, name):
        return getattr(self._state, name)

    def deep_copy(self):
        return Failing(self._state.deep_copy())

    def consume_token(self, token):
        self._left -= 1
        return self._left > 0 and self._state.consume_token(token)


def test_a_reply_whose_parser_gives_up_ends_there_and_says_so(engine, caplog):
    matcher = engine.matcher(LIST)
    matcher._state = Failing(matcher._state)
    (output,) = engine.submit(PROMPTS[0], SamplingParams(max_tokens=50, seed=1), matcher=matcher).result(60)
    assert (output.finish_reason, len(output.token_ids)) == ("length", 3)
    assert "too complex" in caplog.text
    (after,) = engine.submit(PROMPTS[0], SamplingParams(max_tokens=5, seed=1)).result(60)
    assert len(after.token_ids) == 5 or after.finish_reason == "stop"


def test_what_cannot_be_held_to_is_refused_when_it_is_asked_for(engine):
    with pytest.raises(ValueError, match="cannot be held to this form"):
        engine.matcher(Constraint("start: nothing_here"))
    with (
        Engine(small_model(), memory="64MiB") as without_tokenizer,
        pytest.raises(ValueError, match="grammars need a tokenizer"),
    ):
        without_tokenizer.matcher(LIST)
