"""The table of tensors at full size, on paper and on the meta device, and the sizes that follow from it."""

from __future__ import annotations

import pytest
import torch

from openzaya.model.cache import DecodeCache
from openzaya.model.config import NAMED_SHAPES
from openzaya.model.decoder import ZayaForCausalLM
from openzaya.model.info import model_info, sequence_bytes
from openzaya.model.names import LAYOUTS, expected_tensors, layout_of


@pytest.mark.parametrize(
    ("shape", "layout", "tensors"),
    [
        ("zaya1-8b", "native", 1_283),
        ("zaya1-8b", "legacy", 2_483),
        ("zaya1-74b", "native", 1_923),
        ("zaya1-74b", "legacy", 4_683),
    ],
)
def test_a_full_size_checkpoint_has_the_published_number_of_tensors(shape, layout, tensors):
    assert len(expected_tensors(NAMED_SHAPES[shape], layout)) == tensors


@pytest.mark.parametrize("layout", LAYOUTS)
def test_zaya1_8b_has_exactly_the_published_number_of_elements(layout):
    table = expected_tensors(NAMED_SHAPES["zaya1-8b"], layout).values()
    assert sum(tensor.elements for tensor in table) == 8_840_489_464
    assert sum(tensor.elements for tensor in table if tensor.float32) == 680
    # Two bytes each make the total_size of the released legacy index.
    assert 2 * sum(tensor.elements for tensor in table) == 17_680_978_928


@pytest.mark.parametrize("shape", ["zaya1-8b", "zaya1-74b", "tiny"])
def test_a_model_on_the_meta_device_has_the_tensors_of_the_table(shape):
    with torch.device("meta"):
        model = ZayaForCausalLM(NAMED_SHAPES[shape])
    table = expected_tensors(NAMED_SHAPES[shape])
    state = model.state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {
        name: tensor.shape for name, tensor in table.items()
    }
    assert {name for name, _buffer in model.named_buffers()} == {name for name in table if table[name].float32}


@pytest.mark.parametrize("seed", range(8))
def test_random_models_have_the_tensors_of_the_table(seed, draw_config, draw_model):
    config = draw_config(seed)
    state = draw_model(config).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {
        name: tensor.shape for name, tensor in expected_tensors(config).items()
    }


def test_legacy_names_follow_the_published_mapping():
    by_native = {
        (tensor.native, tensor.expert): name
        for name, tensor in expected_tensors(NAMED_SHAPES["zaya1-8b"], "legacy").items()
    }
    mapping = {
        "model.input_hidden_states_scale": "model.layers.0.res_scale.hidden_states_scale",
        "model.input_hidden_states_bias": "model.layers.0.res_scale.hidden_states_bias",
        "model.norm.weight": "model.final_norm.weight",
        "model.layers.0.post_attention_residual_scale.residual_bias": "model.layers.1.res_scale.residual_bias",
        "model.layers.0.post_mlp_residual_scale.residual_bias": "model.layers.2.res_scale.residual_bias",
        "model.layers.38.post_mlp_residual_scale.residual_scale": "model.layers.78.res_scale.residual_scale",
        "model.layers.39.post_mlp_residual_scale.residual_scale": "model.res_scale.residual_scale",
        "model.layers.3.input_layernorm.weight": "model.layers.6.input_norm.weight",
        "model.layers.3.post_attention_layernorm.weight": "model.layers.7.input_norm.weight",
        "model.layers.3.self_attn.qk_norm.temp": "model.layers.6.self_attn.qkv.temp",
        "model.layers.3.self_attn.qkv_proj.v_proj_delayed.weight": "model.layers.6.self_attn.qkv.val_proj2.weight",
        "model.layers.3.mlp.gate.router_mlp.out_proj.weight": "model.layers.7.zaya_block.router.router_mlp.4.weight",
    }
    assert {native: by_native[native, None] for native in mapping} == mapping
    assert (
        by_native["model.layers.3.mlp.experts.down_proj", 15]
        == "model.layers.7.zaya_block.experts.local_experts.15.linear_fc2.weight"
    )
    assert ("model.layers.0.mlp.gate.router_states_scale", None) not in by_native


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_is_recognised_even_when_most_tensors_are_gone(layout, draw_config):
    names = list(expected_tensors(draw_config(0), layout))
    assert layout_of(names) == layout
    assert layout_of(names[5:9]) == layout
    assert layout_of(["bert.embeddings.weight"]) is None


def test_an_unknown_layout_is_refused(draw_config):
    with pytest.raises(ValueError, match="layout is 'megatron'; the layouts are 'native' and 'legacy'"):
        expected_tensors(draw_config(0), "megatron")


# ---- sizes ----


def test_the_published_figures_of_zaya1_8b_come_out():
    info = model_info(NAMED_SHAPES["zaya1-8b"])
    assert info.total == 8_840_489_464
    assert info.embedding == 262_272 * 2048
    assert round(info.without_embedding / 1e9, 3) == 8.303
    assert round(info.active / 1e9, 3) == 0.754
    assert sum(info.parts.values()) == info.total
    assert info.key_value_bytes_per_token == 40_960
    assert info.state_bytes_per_sequence == 2 * (102_400 + 5_120)
    assert info.weight_bytes["bfloat16"] == 2 * (info.total - 680) + 4 * 680
    assert info.weight_bytes["float32"] == 4 * info.total


def test_the_published_figures_of_zaya1_74b_come_out():
    info = model_info(NAMED_SHAPES["zaya1-74b"])
    assert round(info.total / 1e9, 2) == 74.79
    assert round(info.active / 1e9, 2) == 4.26
    assert info.key_value_bytes_per_token == 61_440


def test_sliding_layers_stop_growing_at_their_window():
    config = NAMED_SHAPES["zaya1-74b"]
    info = model_info(config)
    state = info.state_bytes_per_sequence
    assert sequence_bytes(config, 100) == 100 * 61_440 + state
    assert sequence_bytes(config, 100_000) == 30 * (100_000 + 4_097) * 1_024 + state


@pytest.mark.parametrize("seed", range(4))
def test_sizes_agree_with_the_tensors_that_a_model_and_a_cache_hold(seed, draw_config, draw_model):
    config = draw_config(seed, layer_types=("hybrid",) * 2, num_hidden_layers=2)
    info = model_info(config, dtype="float32")
    model, cache = draw_model(config), DecodeCache(config, 1, capacity=7)
    assert info.weight_bytes["float32"] == sum(tensor.nbytes for tensor in model.state_dict().values())
    assert info.state_bytes_per_sequence == cache.columns.nbytes + cache.delayed.nbytes
    assert 7 * info.key_value_bytes_per_token == cache.keys.nbytes + cache.values.nbytes
    assert sequence_bytes(config, 7, "float32") == info.state_bytes_per_sequence + 7 * info.key_value_bytes_per_token


def test_an_unknown_dtype_has_no_size():
    with pytest.raises(ValueError, match="dtype is 'float16'"):
        model_info(NAMED_SHAPES["tiny"], dtype="float16")
