"""Operations counted from the shape against torch's own count and figures by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from openzaya.model.config import NAMED_SHAPES, ZayaConfig
from openzaya.model.decoder import ZayaForCausalLM
from openzaya.train.config import OptimizerRecipe
from openzaya.train.muon import MuonAdamW, orthogonalise
from openzaya.train.plan.flops import forward_flops, mean_keys, model_flops, training_flops
from openzaya.train.plan.parameters import Matrix, optimizer_flops, parameters

ZAYA = NAMED_SHAPES["zaya1-8b"]


def grouped(x: tuple[int, ...], weight: tuple[int, ...], *_rest: Any, **_named: Any) -> int:
    return 2 * math.prod(x) * weight[-1]


def attention(query: tuple[int, ...], key: tuple[int, ...], *_rest: Any, **_named: Any) -> int:
    return 4 * math.prod(query) * key[-2]


COUNTED = {
    torch.ops.aten._grouped_mm: grouped,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention,
}


def bfloat16_model(config: ZayaConfig) -> ZayaForCausalLM:
    """Made in bfloat16: a model of tensors without data cannot be cast, and torch's shape function wants bfloat16."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        return ZayaForCausalLM(config)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("shape", ["tiny", "zaya1-8b", "zaya1-74b"])
def test_a_forward_has_the_operations_that_torch_counts(shape: str) -> None:
    # Even the layers: one of each kind in the 74B. Torch counts attention to all keys, causal or not.
    config, length = NAMED_SHAPES[shape].with_(num_hidden_layers=1), 1024
    with FakeTensorMode(), FlopCounterMode(display=False, custom_mapping=COUNTED) as counter:
        model = bfloat16_model(config)
        model(torch.zeros(1, length, dtype=torch.long))
    ours = forward_flops(config, length)
    square = ours.attention * length / mean_keys(length)
    assert counter.get_total_flops() == length * (ours.total - ours.attention + square)


def test_a_token_of_zaya1_8b_costs_what_its_active_parameters_say() -> None:
    forward = forward_flops(ZAYA, 4096)
    products = forward.blocks - forward.attention
    # 0.7536 billion active parameters, of which vectors and the depthwise convolution are in no product.
    assert products == pytest.approx(2 * 0.7536e9, rel=2e-3)
    assert forward.head == 2 * 2048 * 262272
    assert forward.attention == 40 * 4 * 1024 * 4097 / 2
    assert model_flops(forward) == pytest.approx(8.75e9, rel=1e-3)
    assert training_flops(forward, checkpointing=True) - model_flops(forward) == forward.blocks


def test_a_windowed_layer_sees_its_window_and_less_at_the_start_of_a_row() -> None:
    for length, window in ((10, None), (10, 3), (10, 10), (10, 99), (7, 1)):
        by_hand = sum(min(place + 1, window or length) for place in range(length)) / length
        assert mean_keys(length, window) == pytest.approx(by_hand)


def test_newton_schulz_has_the_operations_that_torch_counts() -> None:
    for rows, columns in ((48, 16), (16, 48), (32, 32)):
        with FlopCounterMode(display=False) as counter:
            orthogonalise(torch.randn(rows, columns), steps=5)
        assert counter.get_total_flops() == Matrix(rows, columns, 1).newton_schulz_flops(5)


def test_muon_of_zaya1_8b_spread_over_ranks_leaves_at_least_one_matrix_to_a_rank() -> None:
    counts = parameters(ZAYA)
    gate_up, down = 5 * (4 * 2048**2 * 4096 + 2 * 2048**3), 5 * 6 * 2048**3
    alone = optimizer_flops(counts.matrices, steps=5)
    assert alone == pytest.approx(640 * (gate_up + down), rel=0.02)  # attention and routers are the rest
    assert optimizer_flops(counts.matrices, steps=5, ranks=8) == alone / 8
    assert optimizer_flops(counts.matrices, steps=5, ranks=100_000) == gate_up


def test_parameters_are_those_of_a_model_and_muon_has_its_matrices() -> None:
    config = NAMED_SHAPES["tiny"]
    model, counts = ZayaForCausalLM(config), parameters(config)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert counts.total == sum(sizes.values())
    assert counts.experts == sum(size for name, size in sizes.items() if ".experts." in name)
    optimizer = MuonAdamW(model.named_parameters(), OptimizerRecipe())
    state = optimizer.state()
    assert counts.state_bytes == sum(tensor.numel() * tensor.element_size() for tensor in state.values())
