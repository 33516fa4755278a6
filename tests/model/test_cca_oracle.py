"""CCA against the equations, written out once more in float64 as plain loops over tokens, heads and taps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from openzaya.model.attention import Attention
from openzaya.model.config import ZayaConfig
from openzaya.model.numerics import HF
from openzaya.model.placement import place

Vector = Any
LENGTH = 6


def arrays(module: Attention) -> dict[str, Any]:
    return {name: tensor.detach().double().numpy() for name, tensor in module.state_dict().items()}


def oracle_projection(weights: dict[str, Any], config: ZayaConfig, x: Any) -> tuple[list, list, list]:
    """Queries, keys and values of every token as lists of heads, before norm and rotation."""
    heads, key_heads, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    group = heads // key_heads
    t0, t1 = config.cca_time0, config.cca_time1
    q = [weights["qkv_proj.q_proj.weight"] @ token for token in x]
    k = [weights["qkv_proj.k_proj.weight"] @ token for token in x]
    z = [np.concatenate([a, b]) for a, b in zip(q, k)]
    w0, b0 = weights["qkv_proj.conv_qk_depthwise.weight"][:, 0], weights["qkv_proj.conv_qk_depthwise.bias"]
    w1, b1 = weights["qkv_proj.conv_qk_grouped.weight"], weights["qkv_proj.conv_qk_grouped.bias"]

    def column(t: int) -> Vector:
        return z[t] if t >= 0 else np.zeros_like(z[0])

    def first(t: int) -> Vector:
        """Tap i of a kernel of t0 sees the token t0 - 1 - i places back; before the text the bias alone remains."""
        return b0 + sum(w0[:, i] * column(t - (t0 - 1 - i)) for i in range(t0))

    def second(t: int, head: int) -> Vector:
        rows = slice(head * size, (head + 1) * size)
        return b1[rows] + sum(w1[rows, :, i] @ first(t - (t1 - 1 - i))[rows] for i in range(t1))

    queries, keys, values = [], [], []
    for t in range(len(x)):
        q_heads, k_heads = q[t].reshape(heads, size), k[t].reshape(key_heads, size)
        q_means = [(q_heads[j] + k_heads[j // group]) / 2 for j in range(heads)]
        k_means = [sum(q_means[g * group + j] for j in range(group)) / group for g in range(key_heads)]
        queries.append([second(t, j) + q_means[j] for j in range(heads)])
        keys.append([second(t, heads + g) + k_means[g] for g in range(key_heads)])
        now = weights["qkv_proj.v_proj_current.weight"] @ x[t]
        before = weights["qkv_proj.v_proj_delayed.weight"] @ (x[t - 1] if t else np.zeros_like(x[0]))
        values.append(np.concatenate([now, before]).reshape(key_heads, size))
    return queries, keys, values


def oracle_attention(weights: dict[str, Any], config: ZayaConfig, layer: int, x: Any) -> Any:
    heads, key_heads, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    queries, keys, values = oracle_projection(weights, config, x)
    kind = config.layer_types[layer]
    temperature = weights["qk_norm.temp"]

    def unit(vector: Vector) -> Vector:
        return math.sqrt(size) * vector / math.sqrt(sum(component**2 for component in vector))

    def turned(vector: Vector, position: int) -> Vector:
        channels = config.rotary_dim(kind)
        result = vector.copy()
        for i in range(channels // 2):
            angle = position * config.rope_parameters[kind].rope_theta ** (-2 * i / channels)
            a, b = vector[i], vector[i + channels // 2]
            result[i] = a * math.cos(angle) - b * math.sin(angle)
            result[i + channels // 2] = b * math.cos(angle) + a * math.sin(angle)
        return result

    outputs = []
    for t in range(len(x)):
        mixed = []
        for j in range(heads):
            g = j // (heads // key_heads)
            seen = [s for s in range(t + 1) if config.window(layer) is None or t - s < config.window(layer)]
            query = turned(unit(queries[t][j]), t)
            scores = [query @ turned(temperature[g] * unit(keys[s][g]), s) / math.sqrt(size) for s in seen]
            weight = [math.exp(score - max(scores)) for score in scores]
            mixed.append(sum(w * values[s][g] for w, s in zip(weight, seen)) / sum(weight))
        outputs.append(weights["o_proj.weight"] @ np.concatenate(mixed))
    return np.stack(outputs)


@pytest.fixture(params=range(8))
def drawn(request, draw_config) -> tuple[ZayaConfig, Attention, torch.Tensor]:
    config = draw_config(100 + request.param, num_hidden_layers=1, layer_types=("hybrid_sliding",), sliding_window=3)
    if request.param % 2:
        config = config.with_(layer_types=("hybrid",))
    torch.manual_seed(request.param)
    module = Attention(config, 0, HF).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return config, module, torch.randn(2, LENGTH, config.hidden_size, dtype=torch.float64)


@torch.no_grad()
def test_queries_keys_and_values_are_those_of_the_equations(drawn):
    config, module, x = drawn
    placement = place(config, torch.zeros(2, LENGTH, dtype=torch.long), None, None, None)
    ours = module.qkv_proj(x, placement, None)
    for row in range(2):
        truth = oracle_projection(arrays(module), config, x[row].numpy())
        for tensor, expected in zip(ours, truth):
            np.testing.assert_allclose(tensor[row].numpy(), np.array(expected), rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_attention_is_that_of_the_equations(drawn):
    config, module, x = drawn
    placement = place(config, torch.zeros(2, LENGTH, dtype=torch.long), None, None, None)
    ours = module(x, placement, None)
    for row in range(2):
        truth = oracle_attention(arrays(module), config, 0, x[row].numpy())
        # The rotation's angles are float32 in every implementation, which bounds the agreement.
        np.testing.assert_allclose(ours[row].numpy(), truth, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_before_the_text_the_second_convolution_sees_the_bias_of_the_first_not_zero(draw_config):
    config = draw_config(7, num_hidden_layers=1, cca_time0=1, cca_time1=2, num_key_value_heads=2, num_attention_heads=2)
    module = Attention(config, 0, HF).double()
    for parameter in module.parameters():
        parameter.zero_()
    projection = module.qkv_proj
    projection.conv_qk_depthwise.bias.fill_(1.0)
    projection.conv_qk_grouped.weight[:, :, 0] = 1.0  # reads only the token before
    placement = place(config, torch.zeros(1, 1, dtype=torch.long), None, None, None)
    queries, _keys, _values = projection(torch.zeros(1, 1, config.hidden_size, dtype=torch.float64), placement, None)
    assert torch.equal(queries, torch.full_like(queries, config.head_dim))
