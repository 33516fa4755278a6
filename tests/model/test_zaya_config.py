"""Reading config.json in every spelling that was released, stray and stale fields included."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from openzaya.model.config import NAMED_SHAPES, RopeParameters, ZayaConfig

NATIVE_8B: dict[str, Any] = {
    "model_type": "zaya",
    "architectures": ["ZayaForCausalLM"],
    "vocab_size": 262272,
    "hidden_size": 2048,
    "num_hidden_layers": 40,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.02,
    "tie_word_embeddings": True,
    "moe_intermediate_size": 2048,
    "num_experts": 16,
    "num_experts_per_tok": 1,
    "router_hidden_size": 256,
    "cca_time0": 2,
    "cca_time1": 2,
    "attention_bias": False,
    "lm_head_bias": False,
    "attention_dropout": 0.0,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 106,
    "layer_types": ["hybrid"] * 40,
    "sliding_window": None,
    "dtype": "bfloat16",
    "rope_parameters": {
        "hybrid": {"rope_type": "default", "rope_theta": 5e6, "partial_rotary_factor": 0.5},
        "hybrid_sliding": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        "rope_type": "default",  # stray, as on the hub
    },
}
LEGACY_BASE: dict[str, Any] = {
    "model_type": "zaya",
    "vocab_size": 262272,
    "hidden_size": 2048,
    "num_hidden_layers": 120,  # stale: zaya_layers has 80
    "zaya_layers": ["a", 16] * 40,
    "num_attention_heads": 8,
    "cca": True,
    "cca_num_q_heads": [8, 0] * 40,
    "num_query_groups_list": [2, 0] * 40,
    "ffn_hidden_size_list": [0, 4096] * 40,
    "zaya_mlp_expansion": [0, 256] * 40,
    "kv_channels": 128,
    "norm_epsilon": 1e-5,
    "moe_router_topk": 1,
    "activation_func": "swiglu",
    "partial_rotary_factor": 0.5,
    "rope_theta": 1e6,
    "rope_scaling": False,
    "max_position_embeddings": 32768,
    "cca_time0": 2,
    "cca_time1": 2,
    "zaya_use_mod": True,
    "zaya_use_eda": True,
    "zaya_high_prec": True,
    "scale_residual_merge": True,
    "residual_in_fp32": True,
    "clamp_temp": False,
    "mamba_cache_dtype": "float32",
    "eos_token_id": 1,
    "torch_dtype": "bfloat16",
}


def test_the_released_native_file_is_read_with_its_stray_rope_type():
    assert ZayaConfig.from_dict(NATIVE_8B) == NAMED_SHAPES["zaya1-8b"]


def test_the_legacy_base_file_is_read_past_its_stale_layer_count_and_rope_scaling():
    config = ZayaConfig.from_dict(LEGACY_BASE)
    assert config == NAMED_SHAPES["zaya1-8b"].with_(
        max_position_embeddings=32768,
        eos_token_id=1,
        rope_parameters={"hybrid": RopeParameters(rope_theta=1e6), "hybrid_sliding": RopeParameters(rope_theta=1e4)},
    )
    assert config.num_hidden_layers == 40


def test_scalar_spellings_of_the_legacy_lists_mean_the_same():
    scalar = {
        key: value for key, value in LEGACY_BASE.items() if not key.endswith("_list") and key != "cca_num_q_heads"
    }
    scalar |= {"ffn_hidden_size": 4096, "zaya_mlp_expansion": 256, "num_query_groups": 2}
    assert ZayaConfig.from_dict(scalar) == ZayaConfig.from_dict(LEGACY_BASE)


def test_a_legacy_list_that_differs_between_layers_is_refused():
    with pytest.raises(ValueError, match=r"cca_num_q_heads differs between layers \(\[4, 8\]\)"):
        ZayaConfig.from_dict(LEGACY_BASE | {"cca_num_q_heads": [8, 0, 4, 0] * 20})


def test_fields_that_are_absent_take_the_released_value():
    config = ZayaConfig.from_dict({"model_type": "zaya"})
    assert config == ZayaConfig()
    assert config.eos_token_id == 106


@pytest.mark.parametrize("seed", range(12))
def test_both_spellings_are_read_back_as_they_were_written(seed, draw_config):
    config = draw_config(seed, dtype="bfloat16", skip_semantics="identity" if seed % 2 else "zero")
    assert ZayaConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    factor = config.rope_parameters["hybrid"].partial_rotary_factor
    even = {kind: RopeParameters(rope_theta=3e4, partial_rotary_factor=factor) for kind in config.rope_parameters}
    if set(config.layer_types) == {"hybrid"}:  # legacy has no place for the rotation of a layer type that is not used
        even["hybrid_sliding"] = RopeParameters(rope_theta=1e4, partial_rotary_factor=factor)
        config = config.with_(sliding_window=None)
    config = config.with_(rope_parameters=even)
    assert ZayaConfig.from_dict(json.loads(json.dumps(config.to_legacy_dict()))) == config


def test_the_sliding_shape_counts_the_token_itself_in_its_window():
    big = NAMED_SHAPES["zaya1-74b"]
    assert big.sliding_window == 4097
    legacy = big.to_legacy_dict()
    assert set(legacy["swa_layers"]) == {4096, 0}
    assert ZayaConfig.from_dict(legacy) == big


def test_several_end_tokens_survive_the_round_trip():
    config = ZayaConfig(eos_token_id=(1, 106))
    assert config.to_dict()["eos_token_id"] == [1, 106]
    assert ZayaConfig.from_dict(config.to_dict()).eos_token_ids == (1, 106)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "zaya1_vl"}, "describes a 'zaya1_vl' model"),
        ({"num_experts_per_tok": 2}, "more than one expert a token"),
        ({"attention_bias": True}, "sets attention_bias"),
        ({"lm_head_bias": True}, "sets lm_head_bias"),
        ({"clamp_temp": True}, "sets clamp_temp"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"layer_types": ["hybrid"] * 39}, "names 39 layers but num_hidden_layers is 40"),
        ({"layer_types": ["full_attention"] * 40}, r"unknown layer types \['full_attention'\]"),
        ({"layer_types": ["hybrid_sliding"] * 40}, "sliding_window is not set"),
        ({"num_attention_heads": 9}, "num_attention_heads is 9, not a multiple of num_key_value_heads 2"),
        ({"num_experts": 0}, "num_experts is 0; it must be at least 1"),
        ({"head_dim": 127}, "turns 63 channels; it must be an even number"),
        ({"num_key_value_heads": 1, "head_dim": 125}, "num_key_value_heads x head_dim is 125"),
        ({"skip_semantics": "copy"}, "skip_semantics is 'copy'"),
        ({"rope_parameters": {"hybrid": {"rope_type": "yarn", "rope_theta": 1e4}}}, "rope_type 'yarn' of hybrid"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "one rope_theta for all"),
    ],
    ids=str,
)
def test_a_file_that_describes_no_zaya_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        ZayaConfig.from_dict(NATIVE_8B | changes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"config\.json is missing"),
        ("{", r"config\.json is not valid JSON"),
        ("[1]", r"config\.json holds a list"),
        (b"\xff\xfe{", r"config\.json is not valid JSON"),
    ],
)
def test_an_unreadable_file_is_named(tmp_path: Path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        ZayaConfig.from_folder(tmp_path)
