from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
from contextlib import aclosing

import pytest
import torch

from engine_models import SMALL, generation, prompt, small_model, small_tokenizer, spoken_alone
from openzaya.engine.engine import Engine, EngineError, parse_bytes
from openzaya.engine.params import SamplingParams
from openzaya.engine.sampling import derived_seed


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def engine(model, tokenizer):
    with Engine(model, tokenizer=tokenizer, memory="32MiB", max_batch=16) as engine:
        yield engine


def pages_in_use(engine):
    """Pages held by replies, once kept prompts are forgotten; waits for what was asked of the engine before."""
    engine.forget_prompts()
    return engine._worker.between_steps(lambda scheduler: scheduler.pool.pages - scheduler.pool.free_pages)


def test_sample_j_of_prompt_i_depends_on_seed_i_and_j_alone(engine, model):
    prompts = [prompt(10), prompt(50), prompt(10)]
    outputs = engine.generate(prompts, n=3, seed=11, max_tokens=12, ignore_eos=True)
    for place, (ids, group) in enumerate(zip(prompts, outputs)):
        for sample, output in enumerate(group):
            seed = derived_seed(11, place)
            alone = generation(ids, derived_seed(seed, sample) if sample else seed, 12)
            assert list(output.token_ids) == spoken_alone(model, alone)
    assert len({output.token_ids for group in outputs for output in group}) == 9


def test_text_prompts_are_encoded_and_replies_decoded(engine, tokenizer):
    ((output,),) = engine.generate(["the sum of 12"], seed=1, max_tokens=30)
    assert output.prompt_tokens == len(tokenizer.encode("the sum of 12"))
    shown = [index for index in output.token_ids if index not in tokenizer.special_ids]
    assert output.text == tokenizer.decode(shown)


def test_an_end_token_ends_the_reply_unless_it_is_ignored(model, tokenizer):
    free = spoken_alone(model, generation(prompt(20), derived_seed(2, 0), 40))
    tokenizer_end = free[15]
    tokenizer = _Ending(tokenizer, tokenizer_end)
    with Engine(model, tokenizer=tokenizer, memory="32MiB") as engine:
        ((ended,),) = engine.generate([prompt(20)], seed=2, max_tokens=40)
        ((ignored,),) = engine.generate([prompt(20)], seed=2, max_tokens=40, ignore_eos=True)
    assert list(ended.token_ids) == free[: free.index(tokenizer_end) + 1]
    assert (ended.finish_reason, ended.stop_reason) == ("stop", tokenizer_end)
    assert (list(ignored.token_ids), ignored.finish_reason) == (free, "length")


class _Ending:
    """A tokenizer with another end token."""

    def __init__(self, tokenizer, end):
        self._tokenizer, self.eos_ids = tokenizer, frozenset([end])

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)


def test_pieces_join_to_the_whole_reply(engine):
    pieces = []
    params = SamplingParams(seed=3, max_tokens=60, ignore_eos=True, logprobs=0)
    (output,) = engine.submit(prompt(10), params, on_piece=pieces.append).result(30)
    assert tuple(token for piece in pieces for token in piece.token_ids) == output.token_ids
    assert "".join(piece.text for piece in pieces) == output.text
    assert sum((piece.logprobs for piece in pieces), ()) == output.logprobs
    assert [piece.output for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].output == output
    assert all("\ufffd" not in piece.text for piece in pieces[:-1]) or "\ufffd" in output.text


def test_a_stop_string_ends_the_reply_before_it_and_nothing_after_is_shown(engine):
    ((free,),) = engine.generate([prompt(10)], seed=3, max_tokens=60, ignore_eos=True)
    middle = len(free.text) // 2
    stop = free.text[middle : middle + 3]
    pieces = []
    params = SamplingParams(seed=derived_seed(3, 0), max_tokens=60, ignore_eos=True, stop=(stop,))
    (output,) = engine.submit(prompt(10), params, on_piece=pieces.append).result(30)
    assert (output.finish_reason, output.stop_reason) == ("stop", stop)
    assert output.text == "".join(piece.text for piece in pieces) == free.text[: free.text.index(stop)]
    assert output.token_ids == free.token_ids[: len(output.token_ids)]
    assert len(output.token_ids) < len(free.token_ids)
    assert pages_in_use(engine) == 0


def test_requests_from_many_threads_are_answered_as_if_alone(engine, model):
    results = {}

    def ask(number):
        params = SamplingParams(seed=number, max_tokens=8, ignore_eos=True)
        results[number] = engine.submit(prompt(5 + number), params).result(60)[0]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, output in results.items():
        assert list(output.token_ids) == spoken_alone(model, generation(prompt(5 + number), number, 8))


def test_a_cancelled_request_gives_what_there_is_and_frees_its_pages(engine):
    began = threading.Event()
    request = engine.submit(prompt(10), SamplingParams(ignore_eos=True), n=3, on_piece=lambda piece: began.set())
    assert began.wait(30)
    request.cancel()
    outputs = request.result(30)
    assert {output.finish_reason for output in outputs} == {"cancelled"}
    assert all(len(output.token_ids) < 500 for output in outputs)
    assert pages_in_use(engine) == 0


def test_an_async_reader_gets_every_token_and_closing_it_cancels(engine, model):
    params = SamplingParams(seed=5, max_tokens=30, ignore_eos=True)

    async def read():
        pieces = [piece async for piece in engine.stream(prompt(12), params)]
        endless = SamplingParams(ignore_eos=True)
        async with aclosing(engine.stream(prompt(13), endless)) as unfinished:
            async for _ in unfinished:
                break
        return pieces

    pieces = asyncio.run(read())
    ids = [token for piece in pieces for token in piece.token_ids]
    assert ids == spoken_alone(model, generation(prompt(12), 5, 30)) == list(pieces[-1].output.token_ids)
    assert pages_in_use(engine) == 0


def test_equal_prompts_of_many_readers_are_computed_once(engine):
    engine.forget_prompts()
    params = SamplingParams(max_tokens=4, ignore_eos=True)

    async def read():
        async def one():
            return [piece async for piece in engine.stream(prompt(70, 3), params)][-1].output

        return await asyncio.gather(*(one() for _ in range(64)))

    cached = [output.cached_tokens for output in asyncio.run(read())]
    assert sorted(cached) == [0] + [70] * 63


def test_swapped_weights_speak_like_a_fresh_engine_with_them(model, tokenizer):
    other = small_model(seed=1)
    with Engine(small_model(), tokenizer=tokenizer, memory="32MiB") as engine:
        before = engine.generate([prompt(40)], seed=1, max_tokens=20, ignore_eos=True)[0][0]
        engine.swap_weights(other)
        after = engine.generate([prompt(40)], seed=1, max_tokens=20, ignore_eos=True)[0][0]
        with pytest.raises(ValueError, match="another shape"):
            engine.swap_weights(small_model(SMALL.with_(num_experts=5)))
    assert list(before.token_ids) == spoken_alone(model, generation(prompt(40), derived_seed(1, 0), 20))
    assert list(after.token_ids) == spoken_alone(other, generation(prompt(40), derived_seed(1, 0), 20))
    assert after.cached_tokens == 0


def test_weights_that_a_trainer_changed_in_place_are_noticed():
    learner = small_model()
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.5)
    with Engine(learner, memory="32MiB") as engine:
        engine.generate([prompt(40)], seed=1, max_tokens=20)
        learner(torch.tensor([prompt(9)])).pow(2).mean().backward()
        optimizer.step()
        (output,) = engine.generate([prompt(40)], seed=1, max_tokens=20)[0]
    assert output.cached_tokens == 0
    assert list(output.token_ids) == spoken_alone(learner, generation(prompt(40), derived_seed(1, 0), 20))


def test_a_failing_step_reaches_every_request_and_the_engine_goes_on(model):
    with Engine(model, memory="32MiB") as engine:
        executor = engine._worker.scheduler.executor
        executor.step = lambda batch: 1 / 0
        # The worker waits until all are there: what comes after a failed step belongs to a new, sound scheduler.
        all_there = threading.Event()
        engine._worker._command(lambda: all_there.wait(30))
        requests = [engine.submit(prompt(9, seed)) for seed in range(3)]
        all_there.set()
        for request in requests:
            with pytest.raises(EngineError, match="division by zero"):
                request.result(30)
        assert len(engine.generate([prompt(9)], max_tokens=3)[0][0].token_ids) == 3


@pytest.mark.parametrize("last", [False, True])
def test_a_failing_reader_fails_alone(engine, last):
    def broken(piece):
        if piece.output or not last:
            raise KeyError("reader")

    failing = engine.submit(prompt(9), SamplingParams(max_tokens=5), on_piece=broken)
    sound = engine.submit(prompt(9), SamplingParams(max_tokens=5, ignore_eos=True))
    with pytest.raises(KeyError):
        failing.result(30)
    assert len(sound.result(30)[0].token_ids) == 5
    assert pages_in_use(engine) == 0


def test_closing_fails_what_is_unfinished_and_ends_the_thread(model):
    engine = Engine(model, memory="32MiB")
    request = engine.submit(prompt(9))
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        request.result(30)
    with pytest.raises(EngineError, match="closed"):
        engine.submit(prompt(9))
    assert not engine._worker._thread.is_alive()


def test_a_forgotten_engine_ends_its_thread(model):
    engine = Engine(model, memory="32MiB")
    thread = engine._worker._thread
    del engine
    gc.collect()
    thread.join(20)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("ids", "params", "message"),
    [
        ([], SamplingParams(), "empty"),
        ([300], SamplingParams(), "token id 300"),
        ([1] * 512, SamplingParams(), "context is 512"),
        ([1] * 400, SamplingParams(max_tokens=100), "memory of 200,000 bytes holds"),
        ([1] * 400, SamplingParams(), "memory of 200,000 bytes holds"),
    ],
)
def test_what_can_never_work_is_refused_at_once_with_the_reason(ids, params, message):
    with (
        Engine(small_model(), memory=200_000, max_batch=4) as engine,
        pytest.raises(ValueError, match=message),
    ):
        engine.submit(ids, params)


def test_a_reply_without_a_limit_ends_where_context_or_memory_does(engine):
    ((output,),) = engine.generate([prompt(500)], ignore_eos=True)
    assert (len(output.token_ids), output.finish_reason) == (12, "length")


def test_stop_strings_and_text_prompts_need_a_tokenizer(model):
    with Engine(model, memory="32MiB") as engine:
        with pytest.raises(ValueError, match="tokenizer"):
            engine.generate(["text"])
        with pytest.raises(ValueError, match="tokenizer"):
            engine.generate([[1]], stop=("a",))


def test_the_seed_of_the_engine_repeats_requests_that_have_none(model):
    def speak(seed):
        with Engine(model, memory="32MiB", seed=seed) as engine:
            return [group[0].token_ids for group in engine.generate([prompt(9), prompt(9)], max_tokens=8)]

    first, second = speak(1)
    assert first != second
    assert speak(1) == [first, second]
    assert speak(2) != [first, second]


@pytest.mark.parametrize(
    ("text", "size"), [("4GiB", 4 << 30), ("500 MB", 500_000_000), ("1.5kib", 1536), ("7", 7), (12, 12)]
)
def test_memory_is_read_in_bytes_and_units(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "4 apples", "-1"])
def test_memory_that_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="memory is"):
        parse_bytes(text)


def test_the_parameters_of_sampling_do_not_import_torch():
    code = "import sys, openzaya.engine.params; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_engine_gives_torch_its_threads_back_closed_or_forgotten(model):
    before = torch.get_num_threads()
    with Engine(model, memory="1MiB", threads=before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    forgotten = Engine(model, memory="1MiB", threads=before + 1)
    del forgotten
    gc.collect()
    assert torch.get_num_threads() == before
    with pytest.raises(ValueError, match="memory"):
        Engine(model, memory="1KiB", threads=before + 1)
    gc.collect()
    assert torch.get_num_threads() == before
