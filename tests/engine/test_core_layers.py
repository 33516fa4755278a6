"""Residual stream, attention and router of the compiled core against the model's own modules in float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine_models import SHAPES, small_model
from openzaya.engine.core.layers import Attention, Batch, Merge, Router, refusal
from openzaya.engine.core.products import Core, CoreUnavailable, supported_variants
from openzaya.engine.state import PAGE, StatePool
from openzaya.model.placement import place

LENGTH = 75


@pytest.fixture(scope="module")
def cores():
    try:
        supported = supported_variants()
    except CoreUnavailable as error:
        pytest.skip(str(error))
    return [Core(threads=threads, variant=variant) for threads, variant in zip((1, 2, 3, 2), supported)]


def arrays(module):
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: tensor.detach().numpy().astype(np.float32) for name, tensor in tensors.items()}


def bits(array):
    return array.view(np.int32)


def state_of(pool, layer):
    return {name: getattr(pool, name)[layer].numpy() for name in ("keys", "values", "columns", "delayed")}


class OneLayer:
    """Attention of one layer on a pool of its own, fed with the model's float projections of some inputs."""

    def __init__(self, core, model, inputs, layer=0):
        config = model.config
        self.core, self.pool = core, StatePool(config, memory=1 << 22, slots=6)
        module = model.model.layers[layer].self_attn
        self.attention = Attention(config, layer, arrays(module), state_of(self.pool, layer), PAGE)
        parts = (module.qkv_proj.q_proj, module.qkv_proj.k_proj, module.qkv_proj.v_proj_current)
        rows = torch.cat([part.weight for part in (*parts, module.qkv_proj.v_proj_delayed)])
        with torch.no_grad():
            self.projected = [(x @ rows.T).numpy() for x in inputs]
        placed = place(config, torch.zeros(1, LENGTH, dtype=torch.long), None, None, None)
        self.rotary = [table[0].numpy() for table in placed.rotary[config.layer_types[layer]]]

    def open(self):
        slot = self.pool.open()
        assert self.pool.reserve(slot, LENGTH)
        return slot

    def run(self, slots, numbers, counts):
        """The next `counts` tokens of some sequences, input number `numbers` each: a list of their outputs."""
        slots, counts = np.array(slots), np.array(counts)
        starts = self.pool.lengths[slots]
        batch = Batch.of(slots, counts, starts, self.pool.tables, PAGE)
        rows = [self.projected[n][start : start + count] for n, start, count in zip(numbers, starts, counts)]
        tables = (np.ascontiguousarray(table[batch.positions_T]) for table in self.rotary)
        output = self.attention(self.core, batch, np.ascontiguousarray(np.concatenate(rows)), *tables)
        self.pool.lengths[slots] += counts
        return np.split(output, np.cumsum(counts)[:-1])


@pytest.fixture(scope="module", params=SHAPES)
def model(request):
    return small_model(SHAPES[request.param])


@torch.inference_mode()
def expected_attention(model, x_SD, layer=0):
    placement = place(model.config, torch.zeros(1, len(x_SD), dtype=torch.long), None, None, None)
    return model.model.layers[layer].self_attn(x_SD[None], placement, None)[0].numpy()


def test_attention_agrees_with_the_model_and_with_itself_in_any_chunks_batch_and_variant(cores, model):
    generator = torch.Generator().manual_seed(3)
    inputs = [torch.randn(LENGTH, model.config.hidden_size, generator=generator) for _ in range(2)]
    o_proj = model.model.layers[0].self_attn.o_proj.weight.detach().numpy()
    whole_outputs = []
    for core in cores:
        layer = OneLayer(core, model, inputs)
        (whole,) = layer.run([layer.open()], [0], [LENGTH])
        np.testing.assert_allclose(whole @ o_proj.T, expected_attention(model, inputs[0]), rtol=2e-4, atol=2e-5)
        whole_outputs.append(whole)
        # In pieces, beside another sequence in pieces of other lengths, and forked between them.
        first, second = layer.open(), layer.open()
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


@pytest.mark.parametrize("window", [None, 1500])
def test_long_contexts_are_added_up_in_sections(cores, window):
    kind = "hybrid" if window is None else "hybrid_sliding"
    config = SHAPES["plain"].with_(max_position_embeddings=4096, sliding_window=window, layer_types=(kind, kind))
    keys, random = 2500, np.random.default_rng(0)
    pool = StatePool(config, memory=1 << 24, slots=2)
    slot = pool.open()
    assert pool.reserve(slot, keys)
    state = state_of(pool, 0)
    for name in ("keys", "values"):
        state[name][:] = random.standard_normal(state[name].shape) * 2
    attention = Attention(config, 0, arrays(small_model(config).model.layers[0].self_attn), state, PAGE)
    batch = Batch.of(np.array([slot]), np.array([1]), np.array([keys - 1]), pool.tables, PAGE)
    queries = random.standard_normal((1, config.query_size)).astype(np.float32)
    held = pool.tables[slot, : batch.pages]
    k, v = (state[name][held].swapaxes(0, 1).reshape(2, -1, 8)[:, :keys].astype(float) for name in ("keys", "values"))
    k, v = (part[:, keys - window :] if window else part for part in (k, v))
    scores = np.einsum("kgc,ktc->kgt", queries.reshape(2, 2, 8), k) / np.sqrt(8)
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    expected = np.einsum("kgt,ktc->kgc", weights / weights.sum(axis=2, keepdims=True), v).reshape(1, -1)
    for core in cores:
        np.testing.assert_allclose(attention.attend(core, batch, queries), expected, rtol=1e-4, atol=1e-5)


def test_the_router_agrees_with_the_model_layer_after_layer(cores, model):
    config, generator = model.config, torch.Generator().manual_seed(4)
    x_TD = torch.randn(37, config.hidden_size, generator=generator) * 3
    for core in cores:
        states_TW, previous = np.zeros((37, config.router_hidden_size), dtype=np.float32), None
        for block in model.model.layers:
            with torch.inference_mode():
                chosen_T, weight_T, previous = block.mlp.gate(x_TD, previous, None)
            chosen, weights = Router(config, arrays(block.mlp.gate))(core, x_TD.numpy(), states_TW)
            np.testing.assert_array_equal(chosen, chosen_T)
            np.testing.assert_allclose(weights, weight_T, rtol=1e-5)
            np.testing.assert_allclose(states_TW, previous, rtol=1e-5, atol=1e-5)


def test_the_residual_stream_agrees_with_the_model(cores):
    model = small_model()
    block, random = model.model.layers[0], np.random.default_rng(5)
    output, residual = (random.standard_normal((9, 32)).astype(np.float32) for _ in range(2))
    weights = random.uniform(0, 1, 9).astype(np.float32)
    with torch.inference_mode():
        weighted = torch.from_numpy(output * weights[:, None])
        merged = block.post_mlp_residual_scale(weighted, torch.from_numpy(residual))
        normed = block.post_attention_layernorm(merged)
    merge = Merge(
        arrays(block.post_attention_layernorm)["weight"],
        model.config.rms_norm_eps,
        arrays(block.post_mlp_residual_scale),
    )
    for core in cores:
        own = residual.copy()
        np.testing.assert_allclose(merge(core, own, output, weights), normed, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(own, merged, rtol=1e-6, atol=1e-6)


def test_shapes_that_the_core_has_no_room_for_are_refused():
    assert refusal(SHAPES["plain"], PAGE) is None
    assert "head_dim is 512" in refusal(SHAPES["plain"].with_(head_dim=512), PAGE)
    assert "cca_time0 is 5" in refusal(SHAPES["plain"].with_(cca_time0=5), PAGE)
