from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from openzaya.model.config import ZayaConfig
from openzaya.model.decoder import ZayaForCausalLM
from openzaya.model.initialise import initialise
from openzaya.train.balancing import Balancer, load_entropies
from openzaya.train.config import OptimizerRecipe, PhaseRecipe
from openzaya.train.muon import MuonAdamW, is_matrix, orthogonalise
from openzaya.train.schedule import rate_scale, total_steps

SHAPE = ZayaConfig(
    vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    num_experts=4, moe_intermediate_size=16, router_hidden_size=8, eos_token_id=1, dtype="float32",
)  # fmt: skip


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (5, 24, 24)])
def test_orthogonalising_pulls_every_singular_value_near_one_and_keeps_the_singular_vectors(
    shape: tuple[int, ...],
) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    result = orthogonalise(matrix)
    left, values, right = np.linalg.svd(matrix.numpy(), full_matrices=False)
    rotated = np.swapaxes(left, -1, -2) @ result.numpy() @ np.swapaxes(right, -1, -2)
    diagonal = np.diagonal(rotated, axis1=-2, axis2=-1)
    # The smallest singular values of a square random matrix are not reached within five steps.
    clear = values > 0.1 * values.max()
    assert ((diagonal > 0.5) & (diagonal < 1.3))[clear].all()
    off = rotated - np.eye(diagonal.shape[-1]) * diagonal[..., None, :]
    assert np.abs(off).max() < 0.08  # bfloat16


def test_an_adamw_step_equals_torchs_own_over_several_steps() -> None:
    recipe = OptimizerRecipe(adamw_rate=0.01, weight_decay=0.1)
    torch.manual_seed(1)
    ours, theirs = nn.Parameter(torch.randn(7, 3)), nn.Parameter(torch.zeros(7, 3))
    theirs.data.copy_(ours.data)
    optimizer = MuonAdamW([("model.embed_tokens.weight", ours)], recipe)
    oracle = torch.optim.AdamW([theirs], lr=0.01, betas=recipe.betas, eps=1e-8, weight_decay=0.1)
    for _ in range(5):
        gradient = torch.randn(7, 3)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        optimizer.step(1.0)
        oracle.step()
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_a_muon_update_is_as_large_as_an_adamw_update() -> None:
    recipe = OptimizerRecipe(muon_rate=1.0, weight_decay=0.0)
    for shape in ((64, 64), (32, 128), (3, 96, 48)):
        parameter = nn.Parameter(torch.zeros(shape))
        optimizer = MuonAdamW([("layer.weight", parameter)], recipe)
        parameter.grad = torch.randn(shape)
        optimizer.step(1.0)
        root_mean_square = parameter.pow(2).mean().sqrt().item()
        assert 0.13 < root_mean_square < 0.27  # 0.2, as AdamW's updates have in practice


def test_matrices_go_to_muon_and_embeddings_convolutions_and_vectors_to_adamw() -> None:
    matrices = {name for name, parameter in ZayaForCausalLM(SHAPE).named_parameters() if is_matrix(name, parameter)}
    layer = {name.removeprefix("model.layers.1.") for name in matrices if name.startswith("model.layers.1.")}
    assert layer == {
        "self_attn.qkv_proj.q_proj.weight", "self_attn.qkv_proj.k_proj.weight", "self_attn.o_proj.weight",
        "self_attn.qkv_proj.v_proj_current.weight", "self_attn.qkv_proj.v_proj_delayed.weight",
        "mlp.gate.down_proj.weight", "mlp.gate.router_mlp.fc1.weight", "mlp.gate.router_mlp.fc2.weight",
        "mlp.gate.router_mlp.out_proj.weight", "mlp.experts.gate_up_proj", "mlp.experts.down_proj",
    }  # fmt: skip
    assert not any("embed" in name or "conv" in name for name in matrices)


def test_a_router_moves_by_its_share_of_the_rates_and_nothing_else_does() -> None:
    def moved(share: float) -> dict[str, float]:
        model = initialise(ZayaForCausalLM(SHAPE), 0)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer = MuonAdamW(model.named_parameters(), OptimizerRecipe(weight_decay=0.0, router_share=share))
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step(1.0)
        return {name: float((p.detach() - before[name]).norm()) for name, p in model.named_parameters()}

    whole, fifth = moved(1.0), moved(0.2)
    routers = {name for name in whole if ".mlp.gate." in name}
    assert len(routers) > 8
    for name, distance in whole.items():
        assert fifth[name] == pytest.approx(distance * (0.2 if name in routers else 1.0), rel=1e-4), name


def test_clipping_bounds_the_joint_norm_and_leaves_small_gradients_alone() -> None:
    parameters = [("a.weight", nn.Parameter(torch.zeros(3, 3))), ("b", nn.Parameter(torch.zeros(4)))]
    optimizer = MuonAdamW(parameters, OptimizerRecipe(clip=1.0))
    for factor in (10.0, 0.01):
        for _name, parameter in parameters:
            parameter.grad = torch.full_like(parameter, factor)
        norm = optimizer.clip()
        assert norm == pytest.approx(factor * math.sqrt(13))
        after = math.sqrt(sum(parameter.grad.pow(2).sum().item() for _name, parameter in parameters))
        assert after == pytest.approx(min(1.0, norm), rel=1e-5)


def balanced(counts: list[list[int]], rate: float = 0.01) -> tuple[Balancer, ZayaForCausalLM]:
    model = initialise(ZayaForCausalLM(SHAPE))
    balancer = Balancer(model, rate)
    balancer.count([torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row)) for row in counts])
    return balancer, model


def test_busy_experts_lose_bias_idle_ones_gain_and_the_skip_class_never_moves() -> None:
    balancer, model = balanced([[70, 10, 10, 10, 0], [25, 25, 25, 25, 7]])
    balancer.step(1.0)
    first, second = (block.mlp.gate.balancing_biases for block in model.model.layers)
    assert first[0] == pytest.approx(-0.01, rel=1e-4)  # the first AdamW step is the rate itself
    assert torch.allclose(first[1:4], torch.tensor([0.01]), rtol=1e-3)
    assert second[:4].abs().max() == 0
    assert first[4] == second[4] == -1


def test_shares_range_over_the_experts_and_leave_the_skip_class_out() -> None:
    balancer, _model = balanced([[10, 20, 30, 40, 900], [1, 1, 1, 1, 0]])
    assert torch.allclose(balancer.shares()[0], torch.tensor([0.1, 0.2, 0.3, 0.4]))


def test_the_balancing_gradient_follows_adamw_over_several_steps() -> None:
    balancer, model = balanced([[1, 1, 1, 1, 0]] * 2, rate=0.01)
    balancer.counts.zero_()
    oracle = nn.Parameter(torch.zeros(4))
    adamw = torch.optim.AdamW([oracle], lr=0.01, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        chosen = torch.randint(0, 4, (50,), generator=generator)
        balancer.count([chosen, chosen])
        oracle.grad = torch.bincount(chosen, minlength=4) / 50 - 0.25
        adamw.step()
        balancer.step(1.0)
    assert torch.allclose(model.model.layers[1].mlp.gate.balancing_biases[:4], oracle, atol=1e-6)


def test_load_entropy_is_one_when_balanced_and_zero_when_collapsed() -> None:
    assert load_entropies(torch.full((2, 8), 1 / 8)) == [pytest.approx(1.0)] * 2
    assert load_entropies(torch.eye(8)[:1]) == [pytest.approx(0.0, abs=1e-6)]


def test_rates_rise_stay_and_fall() -> None:
    phase = PhaseRecipe(name="x", tokens=1000, batch_tokens=10, warmup=0.1, decay=0.5, floor=0.1, peak=0.8)
    scales = [rate_scale(phase, step) for step in range(total_steps(phase))]
    assert scales[0] == pytest.approx(0.08)
    assert scales[9:50] == [pytest.approx(0.8)] * 41
    assert all(later < earlier for earlier, later in itertools.pairwise(scales[51:]))
    assert scales[-1] == pytest.approx(0.8 * (0.1 + 0.9 / 50))


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (3, 8, 8), (2, 4, 5, 9)])
@pytest.mark.parametrize("steps", [1, 5])
def test_a_batched_iteration_is_float64s_of_each_matrix_alone(shape: tuple[int, ...], steps: int) -> None:
    stack = torch.randn(shape, generator=torch.Generator().manual_seed(steps))
    exact = orthogonalise(stack, steps, torch.float32)
    rounded = orthogonalise(stack, steps)
    for place in np.ndindex(shape[:-2]):
        x = stack[place].double().numpy()
        x = x / np.linalg.norm(x)
        for _ in range(steps):
            gram = x @ x.T
            x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
        assert np.allclose(exact[place].numpy(), x, atol=1e-4)
        assert np.linalg.norm(rounded[place].numpy() - x) < 0.1 * np.linalg.norm(x)


def test_adamw_on_matrices_decays_them_as_torchs_own_does() -> None:
    recipe = OptimizerRecipe(matrices="adamw", adamw_rate=0.01, weight_decay=0.1)
    ours, theirs = nn.Parameter(torch.randn(3, 4, 5)), nn.Parameter(torch.zeros(3, 4, 5))
    theirs.data.copy_(ours.data)
    optimizer = MuonAdamW([("layers.0.mlp.experts.gate_up_proj", ours)], recipe)
    oracle = torch.optim.AdamW([theirs], lr=0.01, betas=recipe.betas, eps=1e-8, weight_decay=0.1)
    for _ in range(4):
        gradient = torch.randn(3, 4, 5)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        optimizer.step(1.0)
        oracle.step()
    assert torch.allclose(ours, theirs, atol=1e-6)
