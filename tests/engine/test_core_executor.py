"""The compiled executor: near the model with the same quantised weights, and the same bits however it is asked."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import core_reference as reference
from engine_models import SMALL, generation, prompt, run, small_model
from openzaya.engine.core.executor import CompiledExecutor, QuantisedWeights
from openzaya.engine.core.products import Core, CoreUnavailable, supported_variants
from openzaya.engine.executor import PromptChunk, StepBatch, TorchExecutor
from openzaya.engine.params import SamplingParams
from openzaya.engine.sampling import sample
from openzaya.engine.scheduler import Scheduler, slots_for
from openzaya.engine.state import StatePool

SHAPE = SMALL.with_(
    hidden_size=64, num_hidden_layers=3, head_dim=16, moe_intermediate_size=64, tie_word_embeddings=True,
    layer_types=("hybrid_sliding", "hybrid", "hybrid"), sliding_window=37,
)  # fmt: skip
QKV = ("q_proj.weight", "k_proj.weight", "v_proj_current.weight", "v_proj_delayed.weight")


@pytest.fixture(scope="module", autouse=True)
def _needs_the_core():
    try:
        supported_variants()
    except CoreUnavailable as error:
        pytest.skip(str(error))


def rounded(weight_NK, bits):
    """Integers, scales, and the float weights that they stand for."""
    grouped = weight_NK.reshape(len(weight_NK), -1, 32 if bits == 4 else weight_NK.shape[1])
    scales = np.abs(grouped).max(axis=2, keepdims=True) / (7 if bits == 4 else 127)
    scales = scales.astype(np.float16 if bits == 4 else np.float32)
    q = np.clip(np.rint(grouped / scales.astype(np.float32)), -7 if bits == 4 else -127, 7 if bits == 4 else 127)
    restored = (q * scales.astype(np.float32)).reshape(weight_NK.shape).astype(np.float32)
    return q.reshape(weight_NK.shape).astype(np.int32), scales[..., 0], restored


def quantised(model, bits):
    """The model's weights packed; the model itself is left with what they stand for."""
    tensors = dict(model.named_parameters())
    matrices = {}

    def pack(name, *parts, interleave=False):
        weights = [tensors[part].detach().numpy() for part in parts]
        stacked = np.concatenate(weights)[None] if weights[0].ndim == 2 else weights[0]
        rows = [rounded(matrix, bits) for matrix in stacked]
        q, scales, restored = (np.stack(values) for values in zip(*rows))
        ends = np.cumsum([len(weight) for weight in weights])[:-1]
        pieces = np.split(restored[0], ends) if weights[0].ndim == 2 else [restored]
        for part, piece in zip(parts, pieces):
            tensors[part].data.copy_(torch.from_numpy(piece))
        if interleave:
            block, half = (32 if bits == 4 else 16), q.shape[1] // 2
            q, scales = (
                np.stack([reference.interleaved(one[:half], one[half:], block) for one in values])
                for values in (q, scales)
            )
        packed = reference.packed(q, scales, bits)
        single = weights[0].ndim == 2
        matrices[name] = type(packed)(packed.codes[0], packed.scales[0], packed.rows) if single else packed

    pack("model.embed_tokens.weight", "model.embed_tokens.weight")
    for layer in range(model.config.num_hidden_layers):
        attention, experts = f"model.layers.{layer}.self_attn.", f"model.layers.{layer}.mlp.experts."
        pack(f"{attention}qkv_proj.weight", *(f"{attention}qkv_proj.{part}" for part in QKV))
        pack(f"{attention}o_proj.weight", f"{attention}o_proj.weight")
        pack(f"{experts}gate_up_proj", f"{experts}gate_up_proj", interleave=True)
        pack(f"{experts}down_proj", f"{experts}down_proj")
    plain = {name: tensor.detach().numpy() for name, tensor in [*tensors.items(), *model.named_buffers()]}
    return QuantisedWeights(model.config, matrices, plain)


@pytest.fixture(scope="module", params=[(4, "zero"), (8, "identity")], ids=["w4", "w8"])
def case(request):
    bits, skip = request.param
    model = small_model(SHAPE.with_(skip_semantics=skip))
    for block in model.model.layers:
        block.mlp.gate.balancing_biases[-1] = 0.1  # so that some tokens skip
    return model, quantised(model, bits)


KEPT = pytest.mark.parametrize("kv", [torch.float32, torch.float16, torch.int8], ids=str)


def pool_of(config, slots=8, kv=None):
    return StatePool(config, memory=1 << 23, slots=slots, kv=kv)


def opened(executor, length):
    slot = executor.pool.open()
    assert executor.pool.reserve(slot, length)
    return slot


def prefill(executor, slot, ids):
    (logits,) = executor.step(StepBatch(chunks=[PromptChunk(slot, ids, True)])).chunk_logits
    return logits


def test_logits_are_those_of_the_model_with_the_same_weights_but_for_rounded_activations(case):
    model, weights = case
    ids = prompt(100)
    with Core(threads=2) as core:
        compiled = CompiledExecutor(weights, pool_of(model.config), core)
        plain = TorchExecutor(model, pool_of(model.config))
        ours, theirs = (prefill(executor, opened(executor, 100), ids) for executor in (compiled, plain))
    spread = theirs.std()
    assert (ours - theirs).abs().max() < 0.25 * spread
    assert (ours - theirs).pow(2).mean().sqrt() < 0.06 * spread


def test_products_are_within_the_bound_of_rounding(case):
    model, weights = case
    matrix = weights.matrices["model.layers.1.self_attn.o_proj.weight"]
    weight_NK = model.model.layers[1].self_attn.o_proj.weight.detach().numpy()
    x_TK = np.random.default_rng(0).standard_normal((20, weight_NK.shape[1])).astype(np.float32)
    with Core(threads=1) as core:
        quantised_x = core.quantise(x_TK, matrix.group)
        error_TN = np.abs(core.product(matrix, quantised_x) - x_TK @ weight_NK.T)
    bound_TN = 0.5 * quantised_x.scales_T[:, None] * np.abs(weight_NK).sum(axis=1)
    assert (error_TN <= bound_TN + 1e-5).all()
    assert error_TN.max() > 0.01 * bound_TN.max()


@KEPT
def test_a_sequence_has_the_same_bits_whole_in_chunks_token_by_token_forked_and_among_others(case, kv):
    model, weights = case
    ids = prompt(90)
    with Core(threads=1, variant="portable") as one, Core(threads=3) as three:
        alone = CompiledExecutor(weights, pool_of(model.config, kv=kv), one)
        whole = prefill(alone, opened(alone, 90), ids)
        busy = CompiledExecutor(weights, pool_of(model.config, kv=kv), three)
        slot, other = opened(busy, 90), opened(busy, 90)
        for first, last in ((0, 1), (1, 34), (34, 64), (64, 70)):
            chunks = [PromptChunk(other, prompt(7, first), False), PromptChunk(slot, ids[first:last], False)]
            busy.step(StepBatch(chunks=chunks))
        twin = busy.pool.fork(slot)
        assert busy.pool.reserve(twin, 90)
        for place in range(70, 90):
            slots = np.array([twin, other, slot])
            tokens = np.array([ids[place], 5, ids[place]])
            chunks = [PromptChunk(opened(busy, 9), prompt(9), True)] if place == 80 else []
            result = busy.step(StepBatch(slots, tokens, chunks))
        np.testing.assert_array_equal(result.decode_logits[0].numpy(), whole.numpy())
        np.testing.assert_array_equal(result.decode_logits[2].numpy(), whole.numpy())


def test_smaller_keys_and_values_leave_more_room_and_nearly_the_same_logits(case):
    model, weights = case
    ids, pages, logits = prompt(100), [], []
    with Core(threads=2) as core:
        for kv in (None, torch.float16, torch.int8):
            pool = pool_of(model.config, kv=kv)
            pages.append(pool.page_bytes)
            executor = CompiledExecutor(weights, pool, core)
            logits.append(prefill(executor, opened(executor, 100), ids))
    assert pages == [pages[0], pages[0] // 2, pages[0] * 20 // 64]  # 16 channels of 4, 2 and 1 bytes, and a scale
    spread = logits[0].std()
    for other, share in zip(logits[1:], (0.05, 0.2)):
        assert 0 < (other - logits[0]).pow(2).mean().sqrt() < share * spread


def test_the_executor_draws_the_tokens_of_sampling_from_the_scores_of_a_step(case):
    model, weights = case
    seeds, places, params = np.arange(8, dtype=np.uint64), np.arange(8), [SamplingParams(top_p=0.9)] * 8
    with Core(threads=2) as core:
        executor = CompiledExecutor(weights, pool_of(model.config), core)
        slots = np.array([opened(executor, 40) for _ in range(8)])
        logits = executor.step(StepBatch(slots, np.arange(8) + 5)).decode_logits
        drawn = executor.sample(logits, params, seeds, places)
    np.testing.assert_array_equal(drawn, sample(logits, params, seeds, places))


def test_the_scheduler_speaks_the_same_tokens_whatever_the_batch_the_chunks_and_the_memory(case):
    model, weights = case
    wanted = [(prompt(length), seed) for seed, length in enumerate((3, 40, 70, 33, 64))]
    params = SamplingParams(logprobs=2, temperature=0.9, top_p=0.95)

    def spoken(core, max_batch, prefill_chunk, pages):
        pool = StatePool(model.config, memory=1 << 40, slots=slots_for(max_batch))
        memory = pages * pool.page_bytes + slots_for(max_batch) * pool.slot_bytes
        pool = StatePool(model.config, memory=memory, slots=slots_for(max_batch))
        scheduler = Scheduler(CompiledExecutor(weights, pool, core), max_batch=max_batch, prefill_chunk=prefill_chunk)
        generations = [generation(ids, seed, 24, params=params) for ids, seed in wanted]
        for each in generations:
            scheduler.submit(each)
        run(scheduler)
        return [(each.generated, each.logprobs) for each in generations]

    with Core(threads=2) as core, Core(threads=1, variant=supported_variants()[0]) as plain:
        alone = spoken(core, 1, 512, 40)
        assert spoken(core, 16, 512, 40) == alone
        assert spoken(core, 3, 17, 8) == alone  # so little memory that some are put off and computed anew
        assert spoken(plain, 16, 50, 40) == alone


def test_what_the_core_cannot_run_is_refused(case):
    model, weights = case
    with Core(threads=1) as core:
        pool = StatePool(model.config, memory=1 << 23, slots=2, dtype=torch.bfloat16)
        with pytest.raises(ValueError, match=r"keeps torch.bfloat16 .* needs float32"):
            CompiledExecutor(weights, pool, core)


def without(mapping, name):
    return {key: value for key, value in mapping.items() if key != name}


def test_weights_that_are_not_what_their_configuration_says_are_refused(case):
    _, weights = case
    config, matrices, plain = weights.config, weights.matrices, weights.plain
    norm, head = "model.norm.weight", "model.embed_tokens.weight"
    wider, narrower = config.with_(num_experts=5), config.with_(moe_intermediate_size=32)
    with Core(threads=1) as core:
        for wrong, message in (
            (QuantisedWeights(config, matrices, without(plain, norm)), f"no tensor {norm}"),
            (QuantisedWeights(config, matrices, {**plain, norm: plain[norm][1:]}), rf"{norm} has shape \(63,\)"),
            (QuantisedWeights(config, without(matrices, head), plain), f"no matrix {head}"),
            (QuantisedWeights(wider, matrices, plain), "gate_up_proj is 4 x 128 x 64; .* 5 x 128 x 64"),
            (QuantisedWeights(narrower, matrices, plain), "gate_up_proj is 4 x 128 x 64; .* 4 x 64 x 64"),
        ):
            with pytest.raises(ValueError, match=message):
                CompiledExecutor(wrong, pool_of(config), core)


def test_a_step_that_would_read_or_write_elsewhere_is_refused_and_changes_nothing(case):
    model, weights = case
    with Core(threads=1) as core:
        executor = CompiledExecutor(weights, pool_of(model.config), core)
        slot = opened(executor, 32)
        for ids, message in (
            ([5, 300], "tokens are 5 to 300; the vocabulary has 0 to 299"),
            ([-1], "tokens are -1 to -1"),
            ([], "a chunk of 0"),
            ([1] * 33, "no pages for its next tokens"),
        ):
            with pytest.raises(ValueError, match=message):
                executor.step(StepBatch(chunks=[PromptChunk(slot, ids, True)]))
        assert executor.pool.lengths[slot] == 0


def test_a_step_is_one_call_of_the_core(case, monkeypatch):
    model, weights = case
    with Core(threads=1) as core:
        executor = CompiledExecutor(weights, pool_of(model.config), core)
        slot, calls, call = opened(executor, 40), [], core.call
        monkeypatch.setattr(core, "call", lambda name, *arguments: (calls.append(name), call(name, *arguments)))
        prefill(executor, slot, prompt(30))
        executor.step(StepBatch(np.array([slot]), np.array([3])))
    assert calls == ["oz_run_step"] * 2
