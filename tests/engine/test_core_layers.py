"""Residual stream, attention and router of the compiled core against the model's own modules in float32."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import core_reference as reference
from engine_models import SHAPES, small_model
from openzaya.engine.core import build, library, plan
from openzaya.engine.core.batch import Batch
from openzaya.engine.core.plan import QuantisedWeights, Rotary, Tensors, refusal
from openzaya.engine.core.products import Core, address
from openzaya.engine.state import PAGE, StatePool
from openzaya.model.placement import place

LENGTH = 75


@pytest.fixture(scope="module")
def cores(variants):
    return [Core(threads=threads, variant=variant) for threads, variant in zip((1, 2, 3, 2, 1), variants)]


def tensors_of(model):
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    plain = {name: tensor.detach().numpy().astype(np.float32) for name, tensor in tensors.items()}
    return Tensors(QuantisedWeights(model.config, {}, plain))


def bits(array):
    return array.view(np.int32)


class OneLayer:
    """Attention of one layer on a pool of its own, fed with the model's float projections of some inputs."""

    def __init__(self, core, model, inputs=(), layer=0, memory=1 << 22, kv=None):
        self.core, self.config, self.pool = core, model.config, StatePool(model.config, memory=memory, slots=6, kv=kv)
        self.tensors, self.rotary = tensors_of(model), Rotary(model.config, model.config.layer_types[layer])
        self.attention = plan.attention(self.tensors, layer, self.pool)
        self.rotary.reach(LENGTH)
        self.attention.cosine, self.attention.sine = address(self.rotary.cosine), address(self.rotary.sine)
        module = model.model.layers[layer].self_attn
        parts = (module.qkv_proj.q_proj, module.qkv_proj.k_proj, module.qkv_proj.v_proj_current)
        rows = torch.cat([part.weight for part in (*parts, module.qkv_proj.v_proj_delayed)])
        with torch.no_grad():
            self.projected = [(x @ rows.T).numpy() for x in inputs]

    def open(self, length=LENGTH):
        slot = self.pool.open()
        assert self.pool.reserve(slot, length)
        return slot

    def run(self, slots, numbers, counts):
        """The next `counts` tokens of some sequences, input number `numbers` each: a list of their outputs."""
        slots, counts = np.array(slots), np.array(counts)
        starts = self.pool.lengths[slots]
        batch = Batch.of(slots, counts, starts, self.pool.tables, PAGE)
        rows = [self.projected[n][start : start + count] for n, start, count in zip(numbers, starts, counts)]
        projected, queries = np.concatenate(rows), np.empty((batch.tokens, self.config.query_size), dtype=np.float32)
        self.core.call("oz_convolve", self.attention, batch.stored(), address(projected), address(queries))
        output = self.attend(batch, queries)
        self.pool.lengths[slots] += counts
        return np.split(output, np.cumsum(counts)[:-1])

    def attend(self, batch, queries):
        size = self.core.size("oz_running", self.attention, batch.tokens, batch.pages)
        running, mixed = np.empty(size, dtype=np.float32), np.empty_like(queries)
        addresses = map(address, (queries, running, mixed))
        self.core.call("oz_attend", self.attention, batch.stored(), *addresses)
        return mixed


@pytest.fixture(scope="module", params=SHAPES)
def model(request):
    return small_model(SHAPES[request.param])


@torch.inference_mode()
def expected_attention(model, x_SD, layer=0):
    placement = place(model.config, torch.zeros(1, len(x_SD), dtype=torch.long), None, None, None)
    return model.model.layers[layer].self_attn(x_SD[None], placement, None)[0].numpy()


@pytest.mark.parametrize("kv", [torch.float32, torch.float16, torch.int8], ids=str)
def test_attention_agrees_with_the_model_and_with_itself_in_any_chunks_batch_and_variant(cores, model, kv):
    generator = torch.Generator().manual_seed(3)
    inputs = [torch.randn(LENGTH, model.config.hidden_size, generator=generator) for _ in range(2)]
    o_proj = model.model.layers[0].self_attn.o_proj.weight.detach().numpy()
    whole_outputs = []
    for core in cores:
        layer = OneLayer(core, model, inputs, kv=kv)
        (whole,) = layer.run([layer.open()], [0], [LENGTH])
        if kv == torch.float32:
            np.testing.assert_allclose(whole @ o_proj.T, expected_attention(model, inputs[0]), rtol=2e-4, atol=2e-5)
        whole_outputs.append(whole)
        # In pieces, beside another sequence in other pieces, whose pages come first, and forked between them.
        second, first = layer.open(), layer.open()
        pieces = [layer.run([first, second], [0, 1], counts)[0] for counts in ([1, 20], [1, 1], [36, 5], [1, 1])]
        twin = layer.pool.fork(first)
        layer.pool.reserve(twin, LENGTH)
        forked = []
        for count in (1, 2, 32, 1):
            own, other = layer.run([twin, first], [0, 0], [count, count])
            forked.append(own)
            pieces.append(other)
        np.testing.assert_array_equal(bits(np.concatenate(pieces)), bits(whole))
        np.testing.assert_array_equal(bits(np.concatenate([*pieces[:4], *forked])), bits(whole))
    for whole in whole_outputs[1:]:
        np.testing.assert_array_equal(bits(whole), bits(whole_outputs[0]))


@settings(max_examples=20)
@given(data=st.data())
def test_smaller_keys_and_values_change_attention_by_no_more_than_their_rounding(cores, data):
    key_heads, group = data.draw(st.integers(1, 3), label="key heads"), data.draw(st.integers(1, 4), label="group")
    config = SHAPES["plain"].with_(
        num_key_value_heads=key_heads, num_attention_heads=key_heads * group,
        head_dim=data.draw(st.sampled_from([4, 8, 20, 32, 40]), label="head_dim"),
    )  # fmt: skip
    seed, core = data.draw(st.integers(0, 1 << 20), label="seed"), data.draw(st.sampled_from(cores), label="core")
    model = small_model(config, seed=seed)
    x_SD = torch.randn(LENGTH, config.hidden_size, generator=torch.Generator().manual_seed(seed))
    exact = OneLayer(core, model, [x_SD])
    (exactly,) = exact.run([exact.open()], [0], [LENGTH])
    key, value = (float(part[0].abs().max()) for part in (exact.pool.keys, exact.pool.values))
    # Queries have length sqrt(C), scores are divided by it; a key has at most sqrt(C) of its largest number.
    for kv, step in ((torch.float16, 2.0**-11), (torch.int8, 0.5 / 127)):
        rounded = OneLayer(core, model, [x_SD], kv=kv)
        (output,) = rounded.run([rounded.open()], [0], [LENGTH])
        score_error = 1.01 * step * key * np.sqrt(config.head_dim)
        bound = (np.expm1(2 * score_error) + step) * value + 1e-5
        assert 0 < np.abs(output - exactly).max() < bound


@pytest.mark.parametrize("name", ["to_half", "int8"])
def test_kept_vectors_are_the_nearest_ones(cores, name):
    """Of values, which go to their pages as they are projected."""
    config = SHAPES["plain"]
    kv = torch.float16 if name == "to_half" else torch.int8
    large, small = [65504, 65519, 1e9, -1e9, np.inf, np.nan], [0, -0.0, 6e-8, 2.9e-8, 3.1e-8, 6.1e-5]
    extremes = [*large, *small, 1 + 2**-11, 1 + 3 * 2**-11]
    random = np.random.default_rng(2)
    numbers = np.concatenate([extremes, random.standard_normal(600) * 10.0 ** random.integers(-9, 6, 600)])
    for core in cores:
        layer = OneLayer(core, small_model(config), kv=kv)
        width = config.query_size + 2 * config.key_value_size
        projected = random.standard_normal((LENGTH, width)).astype(np.float32)
        projected[:, -16:-8] = numbers[: LENGTH * 8].reshape(LENGTH, 8)
        layer.projected = [projected]
        slot = layer.open()
        layer.run([slot], [0], [LENGTH])
        first_head = layer.pool.values[0, layer.pool.tables[slot, :3], 0]
        own_TC = projected[:, -16:-8]
        if kv == torch.float16:
            finite = np.clip(own_TC, -65504, 65504)
            expected = np.where(np.isfinite(own_TC), finite, own_TC).astype(np.float16)
            np.testing.assert_array_equal(first_head.flatten(0, 1)[:LENGTH], expected)
        else:
            spoilt_T = ~np.isfinite(own_TC).all(axis=1)
            # Of a page four places of each channel lie together, and all scales behind the codes.
            page_bytes = first_head.flatten(1).numpy()
            stored_TC = page_bytes[:, : 8 * PAGE].reshape(3, PAGE // 4, 8, 4).swapaxes(2, 3).reshape(-1, 8)[:LENGTH]
            scales_T = np.ascontiguousarray(page_bytes[:, 8 * PAGE :]).view(np.float32).flatten()[:LENGTH]
            codes_TC, expected_T = reference.quantised(own_TC[~spoilt_T])
            np.testing.assert_array_equal(scales_T[~spoilt_T], expected_T)
            np.testing.assert_array_equal(stored_TC[~spoilt_T], codes_TC)
            assert spoilt_T.any()
            assert np.isnan(scales_T[spoilt_T]).all()


@pytest.mark.parametrize("window", [None, 1500])
def test_long_contexts_are_added_up_in_sections(cores, window):
    kind = "hybrid" if window is None else "hybrid_sliding"
    config = SHAPES["plain"].with_(max_position_embeddings=4096, sliding_window=window, layer_types=(kind, kind))
    keys, random = 2500, np.random.default_rng(0)
    layers = [OneLayer(core, small_model(config), memory=1 << 24) for core in cores]
    keys_and_values = random.standard_normal((2, *layers[0].pool.keys[0].shape)).astype(np.float32) * 2
    queries = random.standard_normal((1, config.query_size)).astype(np.float32)
    held = np.arange(-(-keys // PAGE))
    k, v = (part[held].swapaxes(0, 1).reshape(2, -1, 8)[:, :keys].astype(float) for part in keys_and_values)
    k, v = (part[:, keys - window :] if window else part for part in (k, v))
    scores = np.einsum("kgc,ktc->kgt", queries.reshape(2, 2, 8), k) / np.sqrt(8)
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    expected = np.einsum("kgt,ktc->kgc", weights / weights.sum(axis=2, keepdims=True), v).reshape(1, -1)
    for layer in layers:
        slot = layer.open(keys)
        own_keys, own_values = torch.from_numpy(keys_and_values)
        # The core keeps the keys of a page by channels.
        layer.pool.keys[0], layer.pool.values[0] = own_keys.mT.reshape(own_keys.shape), own_values
        batch = Batch.of(np.array([slot]), np.array([1]), np.array([keys - 1]), layer.pool.tables, PAGE)
        np.testing.assert_array_equal(layer.pool.tables[slot, : batch.pages], held)
        np.testing.assert_allclose(layer.attend(batch, queries), expected, rtol=1e-4, atol=1e-5)


def test_attention_of_a_long_context_goes_through_its_tokens_in_passes_and_gives_the_same_bits(cores):
    config = SHAPES["plain"].with_(
        max_position_embeddings=131072, num_attention_heads=16, num_key_value_heads=1, head_dim=256,
        layer_types=("hybrid_sliding", "hybrid_sliding"), sliding_window=40,
    )  # fmt: skip
    layer, random = OneLayer(cores[-1], small_model(config)), np.random.default_rng(1)
    for part in (layer.pool.keys, layer.pool.values):
        part[:] = torch.from_numpy(random.standard_normal(part.shape).astype(np.float32))
    tables = (np.arange(4096, dtype=np.int32) % layer.pool.pages)[None]
    queries = random.standard_normal((20, config.query_size)).astype(np.float32)

    def attended(first, last):
        batch = Batch.of(np.array([0]), np.array([last - first]), np.array([131000 + first]), tables, PAGE)
        return layer.attend(batch, queries[first:last])

    sizes = [layer.core.size("oz_running", layer.attention, tokens, 4096) for tokens in (1, 20)]
    assert sizes[1] < 20 * sizes[0]  # the sums of all tokens are not under way at once
    alone = np.concatenate([attended(place, place + 1) for place in range(20)])
    np.testing.assert_array_equal(bits(attended(0, 20)), bits(alone))
    assert np.abs(alone).max() > 0.1


def test_the_router_agrees_with_the_model_layer_after_layer(cores, model):
    config, generator = model.config, torch.Generator().manual_seed(4)
    x_TD, tensors = torch.randn(37, config.hidden_size, generator=generator) * 3, tensors_of(model)
    for core in cores:
        states_TW, previous = np.zeros((37, config.router_hidden_size), dtype=np.float32), None
        for number, block in enumerate(model.model.layers):
            with torch.inference_mode():
                chosen_T, weight_T, previous = block.mlp.gate(x_TD, previous, None)
            chosen, weights = np.empty(37, dtype=np.int32), np.empty(37, dtype=np.float32)
            arrays = (x_TD.numpy(), states_TW, chosen, weights)
            core.call("oz_route", plan.router(tensors, number), 37, *map(address, arrays))
            np.testing.assert_array_equal(chosen, chosen_T)
            np.testing.assert_allclose(weights, weight_T, rtol=1e-5)
            np.testing.assert_allclose(states_TW, previous, rtol=1e-5, atol=1e-5)


def test_numbers_of_sixteen_bits_stay_in_sixteen_and_give_the_bits_of_float32(cores, model, monkeypatch):
    config = model.config.with_(router_hidden_size=64)  # whole pairs of sixteens, which every shape has but that
    short = small_model(config).bfloat16().float()
    generator, hidden = torch.Generator().manual_seed(6), model.config.hidden_size
    inputs, tensors = [torch.randn(7, hidden, generator=generator) for _ in range(2)], tensors_of(short)

    def results(core):
        layer = OneLayer(core, short, inputs)
        router, slots = plan.router(tensors, 1), [layer.open(), layer.open()]
        outputs = [*layer.run(slots, [0, 1], [5, 1]), *layer.run(slots[1:], [1], [6])]
        states, chosen = np.zeros((7, config.router_hidden_size), np.float32), np.empty(7, np.int32)
        weights = np.empty(7, np.float32)
        core.call("oz_route", router, 7, *map(address, (inputs[0].numpy(), states, chosen, weights)))
        return (layer.attention.bfloat16, router.bfloat16), [*outputs, states, chosen, weights]

    kept, narrow = zip(*(results(core) for core in cores))
    monkeypatch.setattr(plan, "is_bfloat16", lambda array, row: False)
    restored, wide = results(cores[0])
    assert set(kept) == {(1, 1)}
    assert restored == (0, 0)
    for each in narrow:
        for one, other in zip(each, wide):
            np.testing.assert_array_equal(bits(one), bits(other))


def test_a_number_of_more_than_sixteen_bits_keeps_all_of_them():
    array = np.ones(64, dtype=np.float32)
    assert plan.is_bfloat16(array, 32)
    assert not plan.is_bfloat16(array, 16)
    array[3] = np.nextafter(np.float32(1), np.float32(2))
    assert not plan.is_bfloat16(array, 32)


def test_the_residual_stream_agrees_with_the_model(cores):
    model = small_model()
    block, random = model.model.layers[0], np.random.default_rng(5)
    output, residual = (random.standard_normal((9, 32)).astype(np.float32) for _ in range(2))
    weights = random.uniform(0, 1, 9).astype(np.float32)
    with torch.inference_mode():
        weighted = torch.from_numpy(output * weights[:, None])
        merged = block.post_mlp_residual_scale(weighted, torch.from_numpy(residual))
        normed = block.post_attention_layernorm(merged)
    name, epsilon, tensors = "model.layers.0.", model.config.rms_norm_eps, tensors_of(model)
    stored = plan.residual(tensors, f"{name}post_attention_layernorm.weight", f"{name}post_mlp_residual_scale.")
    for core in cores:
        own, ours = residual.copy(), np.empty_like(residual)
        core.call("oz_merge_norm", stored, 9, 32, epsilon, *map(address, (own, output, weights, ours)))
        np.testing.assert_allclose(ours, normed, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(own, merged, rtol=1e-6, atol=1e-6)


def test_shapes_that_the_core_has_no_room_for_are_refused():
    assert refusal(SHAPES["plain"]) is None
    assert "head_dim is 512" in refusal(SHAPES["plain"].with_(head_dim=512))
    assert "cca_time0 is 5" in refusal(SHAPES["plain"].with_(cca_time0=5))
    assert refusal(SHAPES["plain"].with_(num_experts=255)) is None
    assert "num_experts is 256, and the compiled core goes up to 255" in refusal(SHAPES["plain"].with_(num_experts=256))


def test_the_limits_of_a_shape_are_the_sizes_of_the_arrays_in_c():
    found = re.findall(r"kMost(\w+) = (\d+)", (build.SOURCES / "layer.h").read_text(encoding="utf-8"))
    limits = {name: int(size) for name, size in found}
    assert len(limits) == 6
    assert f"#define OZ_BLOCK {library.BLOCK}\n" in (build.SOURCES / "abi.h").read_text(encoding="utf-8")
    assert limits == {name: getattr(plan, f"_MOST_{name.upper()}") for name in limits}
