"""Routing, its record and replay, balancing biases, the skip class, and the grouped expert product."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from openzaya.model.config import ZayaConfig
from openzaya.model.decoder import MoE, ZayaForCausalLM
from openzaya.model.experts import Experts, grouped_linear
from openzaya.model.numerics import HF
from openzaya.model.router import Router, Routing


@pytest.fixture
def model(draw_config, draw_model) -> ZayaForCausalLM:
    return draw_model(draw_config(60, num_hidden_layers=3, num_experts=5), seed=60)


def tokens(model: ZayaForCausalLM, batch: int = 2, length: int = 9) -> Tensor:
    return torch.randint(2, model.config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(0))


# ---- record and replay ----


def test_a_recorded_routing_replays_to_the_same_logits(model):
    ids, recorded = tokens(model), Routing()
    with torch.no_grad():
        logits = model(ids, routing=recorded)
        replayed = Routing(forced=recorded.chosen)
        assert torch.equal(model(ids, routing=replayed), logits)
        assert torch.equal(model(ids), logits)
    assert len(recorded.chosen) == model.config.num_hidden_layers
    assert [layer.shape for layer in recorded.chosen] == [(18,)] * 3
    assert all(torch.equal(a, b) for a, b in zip(recorded.chosen, replayed.chosen))


def test_a_forced_routing_is_used_in_place_of_the_routers_own_choice(model):
    ids, recorded = tokens(model), Routing()
    with torch.no_grad():
        logits = model(ids, routing=recorded)
        other = [(layer + 1) % (model.config.num_experts + 1) for layer in recorded.chosen]
        forced = Routing(forced=other)
        assert not torch.allclose(model(ids, routing=forced), logits)
    assert all(torch.equal(a, b) for a, b in zip(forced.chosen, other))


def test_gradients_reach_the_router_under_a_forced_routing(model):
    ids, recorded = tokens(model), Routing()
    with torch.no_grad():
        model(ids, routing=recorded)
    model(ids, routing=Routing(forced=recorded.chosen)).square().sum().backward()
    gate = model.model.layers[0].mlp.gate
    assert gate.router_mlp.out_proj.weight.grad.abs().sum() > 0


# ---- balancing biases ----


def test_a_balancing_bias_changes_which_class_is_chosen_but_not_what_it_weighs(model):
    gate: Router = model.model.layers[0].mlp.gate
    x = torch.randn(50, model.config.hidden_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        probability = gate.router_mlp(gate.down_proj(x)).softmax(-1)
        gate.balancing_biases.zero_()
        plain, _weight, _state = gate(x, None, None)
        gate.balancing_biases[3] = 0.3
        biased, weight, _state = gate(x, None, None)
    assert torch.equal(plain, probability.argmax(-1))
    assert (biased == 3).sum() > (plain == 3).sum()
    assert torch.equal(weight, probability[torch.arange(50), biased])
    moved = biased != plain
    assert bool((biased[moved] == 3).all())


def test_balancing_biases_stay_float32_when_the_model_is_cast(model):
    gate = model.model.layers[0].mlp.gate
    before = gate.balancing_biases.clone()
    model.to(torch.bfloat16)
    assert gate.down_proj.weight.dtype == torch.bfloat16
    assert gate.balancing_biases.dtype == torch.float32
    assert torch.equal(gate.balancing_biases, before)
    assert "model.layers.0.mlp.gate.balancing_biases" in model.state_dict()


def test_depth_averaging_adds_the_last_layers_scaled_state(model):
    gate: Router = model.model.layers[1].mlp.gate
    x, previous = torch.randn(4, model.config.hidden_size), torch.randn(4, model.config.router_hidden_size)
    with torch.no_grad():
        _chosen, _weight, state = gate(x, previous, None)
        assert torch.allclose(state, gate.down_proj(x) + previous * gate.router_states_scale)
    assert model.model.layers[0].mlp.gate.router_states_scale is None


# ---- the skip class ----


def skipping(config: ZayaConfig, semantics: str) -> tuple[MoE, Tensor]:
    """Experts behind a router whose biases send every token to the skip class."""
    torch.manual_seed(3)
    moe = MoE(config.with_(skip_semantics=semantics), 0, HF)
    with torch.no_grad():
        for parameter in moe.parameters():
            parameter.normal_(std=0.5)
        moe.gate.balancing_biases.zero_()
        moe.gate.balancing_biases[-1] = 10.0
    return moe, torch.randn(2, 5, config.hidden_size)


def skip_probability(moe: MoE, x: Tensor) -> np.ndarray:
    """Probability of the last class in float64, from the equations."""
    weights = {name: tensor.detach().double().numpy() for name, tensor in moe.gate.state_dict().items()}
    gelu = np.vectorize(lambda value: 0.5 * value * (1 + torch.erf(torch.tensor(value / 2**0.5)).item()))
    state = x.flatten(0, 1).double().numpy() @ weights["down_proj.weight"].T + weights["down_proj.bias"]
    rms = np.sqrt((state**2).mean(-1, keepdims=True) + moe.gate.router_mlp.norm.eps)
    hidden = state / rms * weights["router_mlp.norm.weight"]
    for layer in ("fc1", "fc2"):
        hidden = gelu(hidden @ weights[f"router_mlp.{layer}.weight"].T + weights[f"router_mlp.{layer}.bias"])
    scores = np.exp(hidden @ weights["router_mlp.out_proj.weight"].T)
    return scores[:, -1] / scores.sum(-1)


@torch.no_grad()
def test_a_skipped_token_gets_nothing_under_zero_semantics(draw_config):
    moe, x = skipping(draw_config(61), "zero")
    output, _state = moe(x, None, None)
    assert torch.equal(output, torch.zeros_like(x))


@torch.no_grad()
def test_a_skipped_token_gets_its_input_times_the_probability_under_identity_semantics(draw_config):
    moe, x = skipping(draw_config(61), "identity")
    output, _state = moe(x, None, None)
    truth = skip_probability(moe, x)[:, None] * x.flatten(0, 1).double().numpy()
    np.testing.assert_allclose(output.flatten(0, 1).numpy(), truth, rtol=2e-5, atol=1e-6)
    assert np.abs(truth).max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("semantics", ["zero", "identity"])
def test_tokens_with_an_expert_are_the_same_under_both_semantics(draw_config, semantics):
    config = draw_config(62, num_experts=3)
    experts = Experts(config.with_(skip_semantics=semantics))
    torch.manual_seed(0)
    for parameter in experts.parameters():
        parameter.normal_(std=0.3)
    x, weight = torch.randn(12, config.hidden_size), torch.rand(12)
    chosen = torch.tensor([3, 0, 2, 2, 3, 0, 2, 0, 0, 3, 2, 2])  # the second expert has no tokens
    output = experts(x, chosen, weight)
    for token in range(12):
        if chosen[token] == 3:
            expected = weight[token] * x[token] if semantics == "identity" else torch.zeros_like(x[token])
        else:
            gate, up = (experts.gate_up_proj[chosen[token]] @ x[token]).chunk(2)
            expected = weight[token] * (experts.down_proj[chosen[token]] @ (F.silu(gate) * up))
        torch.testing.assert_close(output[token], expected, rtol=1e-5, atol=1e-5)


# ---- the grouped product ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("inputs", "outputs"), [(16, 32), (16, 8), (10, 6), (7, 16)], ids=str)
@pytest.mark.parametrize("counts", [[3, 4, 5], [0, 12, 0], [12, 0, 0], [0, 0, 1], [0, 0, 0]], ids=str)
def test_the_grouped_product_is_each_rows_own_product(counts, inputs, outputs, dtype):
    generator = torch.Generator().manual_seed(inputs * outputs)
    x = torch.randn(sum(counts), inputs, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(len(counts), outputs, inputs, generator=generator).to(dtype).requires_grad_()
    result = grouped_linear(x, weight, torch.tensor(counts))
    groups = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    rows = [F.linear(row, weight[group]) for row, group in zip(x, groups)]
    expected = torch.stack(rows) if rows else x.new_zeros(0, outputs)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance)
    assert result.dtype == dtype
    if rows:
        ours = torch.autograd.grad(result.float().square().sum(), (x, weight))
        truth = torch.autograd.grad(expected.float().square().sum(), (x, weight))
        for gradient, wanted in zip(ours, truth):
            torch.testing.assert_close(gradient, wanted, rtol=10 * tolerance, atol=20 * tolerance)


def test_under_autocast_the_experts_run_in_bfloat16():
    x, weight = torch.randn(6, 16), torch.randn(2, 8, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = grouped_linear(x, weight, torch.tensor([2, 4]))
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result[:2].float(), x[:2] @ weight[0].T, rtol=5e-2, atol=5e-2)
