"""Engines over folders: plain ones in torch, quantised ones in the compiled core."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

import pytest
import torch

from engine_models import SMALL, prompt, small_model, small_tokenizer
from openzaya.engine.core.executor import CompiledExecutor
from openzaya.engine.core.products import CoreUnavailable
from openzaya.engine.engine import Engine
from openzaya.engine.executor import TorchExecutor
from openzaya.engine.params import SamplingParams
from openzaya.engine.served import ServedModel
from openzaya.model.checkpoint import load_model, save_model
from openzaya.model.quantised.quantise import quantise_checkpoint
from openzaya.model.quantised.scheme import scheme_of

SHAPE = SMALL.with_(hidden_size=64, head_dim=16, moe_intermediate_size=64, tie_word_embeddings=True)
ASKED = {"seed": 3, "max_tokens": 24, "ignore_eos": True}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two plain folders and the same in 8 and in 4 bits."""
    root = tmp_path_factory.mktemp("served")
    for seed in (0, 1):
        save_model(small_model(SHAPE, seed=seed), root / f"plain{seed}")
        small_tokenizer(root / f"plain{seed}")
        quantise_checkpoint(root / f"plain{seed}", root / f"w8{seed}", scheme_of("w8", None))
    quantise_checkpoint(root / "plain0", root / "w40", scheme_of("w4", 32))
    return root


def executor_of(engine):
    return engine._worker.between_steps(lambda scheduler: scheduler.executor)


def spoken(engine, length=40):
    return engine.generate([prompt(length)], **ASKED)[0][0].token_ids


@pytest.mark.usefixtures("variants")
@pytest.mark.parametrize("scheme", ["w80", "w40"])
def test_a_quantised_folder_opens_in_the_core_and_says_what_its_weights_say(folders, scheme):
    prompts = [prompt(60, seed) for seed in range(8)]
    with Engine(folders / scheme, memory="32MiB", threads=1) as engine:
        assert isinstance(executor_of(engine), CompiledExecutor)
        replies = engine.generate(prompts, max_tokens=1, logprobs=5, temperature=0.0)
    model = load_model(folders / scheme, dtype="float32")
    errors = []
    for ids, (reply,) in zip(prompts, replies):
        with torch.inference_mode():
            scores = model(torch.tensor([ids]))[0, -1].log_softmax(-1)
        errors += [abs(given - float(scores[token])) for token, given in reply.logprobs[0].top]
    # The core rounds activations to eight bits; a random model's scores spread over about five.
    assert len(errors) == 40
    assert sum(errors) / len(errors) < 0.3


@pytest.mark.usefixtures("variants")
def test_replies_of_a_quantised_folder_do_not_depend_on_batch_chunk_and_threads(folders):
    def all_spoken(**options):
        with Engine(folders / "w80", memory="32MiB", **options) as engine:
            replies = engine.generate([prompt(length) for length in (3, 40, 70)], n=2, **ASKED)
        return [[reply.token_ids for reply in group] for group in replies]

    assert all_spoken(threads=1, max_batch=1) == all_spoken(threads=2, max_batch=16, prefill_chunk=17)


@pytest.mark.usefixtures("variants")
def test_keys_and_values_in_fewer_bits_hold_more_tokens_and_say_nearly_the_same(folders):
    held, scores = {}, {}
    for kv_dtype in ("float32", "float16", "int8"):
        with Engine(folders / "w80", memory="4MiB", max_batch=4, threads=1, kv_dtype=kv_dtype) as engine:
            held[kv_dtype] = engine._worker.between_steps(lambda scheduler: scheduler.pool.tokens)
            (reply,) = engine.generate([prompt(60)], max_tokens=1, logprobs=1, temperature=0.0)[0]
            scores[kv_dtype] = reply.logprobs[0].logprob
    assert held["float16"] > 1.9 * held["float32"]
    assert held["int8"] > 3 * held["float32"]
    assert scores["float16"] == pytest.approx(scores["float32"], abs=0.02)
    assert scores["int8"] == pytest.approx(scores["float32"], abs=0.2)


def test_torch_is_taken_where_it_is_asked_for_or_a_type_is(folders):
    for options in ({"executor": "torch"}, {"dtype": "bfloat16"}, {"dtype": "float32"}, {"packed": True}):
        with Engine(folders / "w80", memory="32MiB", **options) as engine:
            assert isinstance(executor_of(engine), TorchExecutor)
            assert len(spoken(engine)) == 24
    with Engine(folders / "plain0", memory="32MiB") as engine:
        assert isinstance(executor_of(engine), TorchExecutor)


def test_the_state_of_a_model_has_the_type_of_its_numerics():
    types = []
    for numerics in ("hf", "report"):
        model = small_model(SHAPE, numerics=numerics).bfloat16()
        pool = ServedModel(model).pool(memory=1 << 24, slots=2)
        assert pool.columns.dtype == model.numerics.state_dtype(torch.bfloat16)
        types.append(pool.columns.dtype)
    assert types[0] != types[1]


def test_without_a_core_the_engine_says_so_and_goes_on_in_torch(folders, monkeypatch, caplog):
    def missing(*_args, **_options):
        raise CoreUnavailable("the compiled core is not there")

    monkeypatch.setattr("openzaya.engine.core.products.load", missing)
    with caplog.at_level(logging.WARNING), Engine(folders / "w80", memory="32MiB") as engine:
        assert isinstance(executor_of(engine), TorchExecutor)
        assert len(spoken(engine)) == 24
    assert caplog.messages == ["the compiled core is not there; going on in torch, which takes more memory and time"]
    for options in ({"executor": "compiled"}, {"kv_dtype": "int8"}):
        with pytest.raises(ValueError, match="core is not there"):
            Engine(folders / "w80", **options)
    assert len(caplog.messages) == 1


def test_a_shape_that_the_core_cannot_run_goes_on_in_torch(tmp_path, caplog):
    save_model(small_model(SHAPE.with_(cca_time0=5)), tmp_path / "plain")
    small_tokenizer(tmp_path / "plain")
    quantise_checkpoint(tmp_path / "plain", tmp_path / "w8", scheme_of("w8", None))
    with caplog.at_level(logging.WARNING), Engine(tmp_path / "w8", memory="32MiB") as engine:
        assert isinstance(executor_of(engine), TorchExecutor)
        assert len(spoken(engine)) == 24
    assert "cca_time0 is 5, and the compiled core goes up to 4; going on in torch" in caplog.text
    with pytest.raises(ValueError, match="goes up to 4; or leave executor and kv_dtype at 'auto'"):
        Engine(tmp_path / "w8", executor="compiled")


def test_what_cannot_be_computed_so_is_refused_with_the_remedy(folders):
    with pytest.raises(ValueError, match=r"not quantised \(openzaya quantize does it\)"):
        Engine(folders / "plain0", executor="compiled")
    with pytest.raises(ValueError, match="dtype 'bfloat16'"):
        Engine(folders / "w80", executor="compiled", dtype="bfloat16")
    with pytest.raises(ValueError, match="device is 'cuda'"):
        Engine(folders / "w80", executor="compiled", device="cuda")
    with pytest.raises(ValueError, match="give it a folder"):
        Engine(small_model(SHAPE), executor="compiled")
    with pytest.raises(ValueError, match="kv_dtype 'int8' needs the compiled core"):
        Engine(folders / "plain0", kv_dtype="int8")
    with pytest.raises(ValueError, match="kv_dtype is 'int4'; it must be one of auto, float32, float16, int8"):
        Engine(folders / "w80", kv_dtype="int4")
    with pytest.raises(ValueError, match="is not quantised, so there is nothing packed"):
        Engine(folders / "plain0", packed=True)
    with pytest.raises(ValueError, match="executor is 'fast'; it must be one of auto, compiled, torch"):
        Engine(folders / "plain0", executor="fast")


@pytest.mark.usefixtures("variants")
def test_swapped_quantised_weights_speak_like_a_fresh_engine_with_them(folders):
    with Engine(folders / "w81", memory="32MiB", threads=1) as fresh:
        wanted = spoken(fresh)
    with Engine(folders / "w80", memory="32MiB", threads=1) as engine:
        before = spoken(engine)
        engine.swap_weights(folders / "w81")
        after = spoken(engine)
        engine.swap_weights(folders / "plain0")
        assert isinstance(executor_of(engine), TorchExecutor)
        with pytest.raises(ValueError, match=r"model is torch.bfloat16 on cpu, the engine is torch.float32"):
            engine.swap_weights(load_model(folders / "plain0", dtype="bfloat16"))
        assert len(spoken(engine)) == 24
    assert before != after == wanted


def test_a_reply_goes_on_when_weights_are_swapped_from_the_core_to_torch(folders):
    params, asked = SamplingParams(max_tokens=400, temperature=0.0, ignore_eos=True), prompt(40)
    said, swapped = [], []

    def tokens_of(scheduler):
        return [len(reply.generated) for reply in (*scheduler.running.values(), *scheduler.waiting)]

    async def speak(engine):
        async for piece in engine.stream(asked, params):
            said.extend(piece.token_ids)
            if not swapped:
                engine.swap_weights(folders / "plain0")
                swapped.extend(engine._worker.between_steps(tokens_of))

    with Engine(folders / "w80", memory="32MiB", threads=1) as engine:
        asyncio.run(speak(engine))
        assert isinstance(executor_of(engine), TorchExecutor)
    with Engine(folders / "plain0", memory="32MiB", threads=1) as engine:
        (known,) = swapped
        assert 0 < known < 400
        ((rest,),) = engine.generate([[*asked, *said[:known]]], params=replace(params, max_tokens=400 - known))
        assert [*rest.token_ids] == said[known:]
    assert len(said) == 400
