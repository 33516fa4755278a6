from __future__ import annotations

import random
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from openzaya.model.decoder import ZayaForCausalLM
from openzaya.model.initialise import initialise
from openzaya.model.router import Router
from openzaya.train.balancing import Balancer, auxiliary_loss, load_entropies
from openzaya.train.config import BalancingRecipe
from openzaya.train.learner import Learner
from train_shapes import SHAPE, random_batch, recipe


def made(method: str, rate: float = 0.01, **fields: object) -> tuple[Balancer, ZayaForCausalLM]:
    model = initialise(ZayaForCausalLM(SHAPE))
    return Balancer(model, rate, BalancingRecipe(method=method, **fields)), model  # type: ignore[arg-type]


def routed(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 5, (50,), generator=generator) for _layer in range(3)]


def errors(seed: int) -> torch.Tensor:
    counts = torch.stack([torch.bincount(chosen, minlength=5)[:4] for chosen in routed(seed)]).double()
    return counts / counts.sum(dim=1, keepdim=True) - 0.25


def biases(balancer: Balancer) -> torch.Tensor:
    return torch.stack([bias[:-1] for bias in balancer.biases]).double()


def test_a_sign_update_moves_every_bias_by_the_rate_against_its_error() -> None:
    balancer, _model = made("sign")
    expected = torch.zeros(3, 4, dtype=torch.float64)
    for seed in range(5):
        balancer.count(routed(seed))
        balancer.step(0.5)
        expected -= 0.005 * errors(seed).sign()
    torch.testing.assert_close(biases(balancer), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("seed", range(4))
def test_the_controller_is_the_textbooks_sum_of_error_integral_and_derivative(seed: int) -> None:
    draw = random.Random(seed)
    gains = (draw.uniform(0, 0.1), draw.uniform(0, 0.05), draw.uniform(0, 0.1))
    balancer, _model = made("pid", gains=gains)
    start = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))
    for bias, first in zip(balancer.biases, start, strict=True):
        bias[:-1] = first
    integral = before = torch.zeros(3, 4, dtype=torch.float64)
    for step in range(6):
        balancer.count(routed(seed * 10 + step))
        balancer.step(1.0)
        error = 4 * errors(seed * 10 + step)
        integral = integral + error
        position = -(gains[0] * error + gains[1] * integral + gains[2] * (error - before))
        before = error
        torch.testing.assert_close(biases(balancer), start.double() + position, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["auxiliary", "none"])
def test_without_a_controller_biases_stand_still_and_loads_are_still_told(method: str) -> None:
    balancer, _model = made(method)
    balancer.count(routed(1))
    entropies = balancer.step(1.0)
    assert entropies == pytest.approx(load_entropies((errors(1) + 0.25).float()))
    assert not biases(balancer).any()


@pytest.mark.parametrize("method", ["adamw", "sign", "pid", "auxiliary", "none"])
def test_the_skip_class_keeps_its_bias_under_every_method(method: str) -> None:
    balancer, model = made(method)
    for seed in range(3):
        balancer.count(routed(seed))
        balancer.step(1.0)
    for module in model.modules():
        if isinstance(module, Router):
            assert module.balancing_biases[-1] == -1


@pytest.mark.parametrize("method", ["adamw", "sign", "pid"])
def test_a_skewed_router_comes_into_balance(method: str) -> None:
    rates = {"adamw": 0.02, "sign": 0.01, "pid": 0.0}
    balancer, model = made(method, rates[method])
    generator = torch.Generator().manual_seed(0)
    lean = torch.tensor([1.5, 0.5, 0.0, -0.5, 0.0])
    entropies = []
    for _step in range(150):
        probability = (torch.randn(400, 5, generator=generator) + lean).softmax(dim=-1)
        balancer.count([(probability + bias).argmax(dim=-1) for bias in balancer.biases])
        entropies.append(balancer.step(1.0)[0])
    assert entropies[0] < 0.8
    assert min(entropies[-20:]) > 0.98
    assert model.model.layers[0].mlp.gate.balancing_biases[0] < -0.05


def test_what_a_step_that_is_not_taken_counted_is_forgotten() -> None:
    balancer, _model = made("adamw")
    balancer.count(routed(0))
    balancer.forget()
    balancer.count(routed(1))
    torch.testing.assert_close(balancer.shares().double(), errors(1) + 0.25)


def test_a_resumed_controller_goes_on_to_the_bit() -> None:
    for method in ("adamw", "pid"):
        whole, _model = made(method)
        for seed in range(4):
            whole.count(routed(seed))
            whole.step(1.0)
            if seed == 1:
                kept = {name: tensor.clone() for name, tensor in whole.state().items()}
        resumed, _model = made(method)
        resumed.load_state(kept, 2)
        for seed in (2, 3):
            resumed.count(routed(seed))
            resumed.step(1.0)
        assert torch.equal(biases(resumed), biases(whole))


# ---- the auxiliary loss ----


def test_the_auxiliary_loss_is_one_when_balanced_and_e_when_collapsed() -> None:
    even = torch.full((6, 4), 0.25)
    assert float(auxiliary_loss(even, torch.full((4,), 0.25))) == pytest.approx(1.0)
    one = F.one_hot(torch.zeros(6, dtype=torch.long), 4).float()
    assert float(auxiliary_loss(one, one[0])) == pytest.approx(4.0)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_the_loss_with_the_auxiliary_loss_of_every_layer_added(checkpointing: bool) -> None:
    phase = {"activation_checkpointing": checkpointing}
    ours = Learner.create(recipe(phase, balancing={"method": "auxiliary", "auxiliary_weight": 0.3}), SHAPE)
    plain = Learner.create(recipe(), SHAPE)
    batches = [random_batch(1), random_batch(2, rows=2)]
    learned, real = sum(batch.learned_tokens for batch in batches), sum(int(batch.real.sum()) for batch in batches)
    for batch in batches:
        ours._accumulate(batch, learned, real)
        scores: list[torch.Tensor] = []
        routers = [module for module in plain.model.modules() if isinstance(module, Router)]
        record = partial(lambda found, _module, _inputs, output: found.append(output), scores)
        hooks = [router.router_mlp.register_forward_hook(record) for router in routers]
        loss = plain._loss(batch, 1 / learned, None)
        for hook in hooks:
            hook.remove()
        kept = torch.from_numpy(batch.real).flatten()
        for layer in scores:
            probability = layer.softmax(dim=-1)[kept]
            bias = torch.tensor([0.0, 0.0, 0.0, 0.0, -1.0])
            counts = torch.bincount((probability.detach() + bias).argmax(dim=-1), minlength=5)[:4]
            loss = loss + 0.3 * auxiliary_loss(probability, counts / counts.sum()) * int(kept.sum()) / real
        loss.backward()
    expected = dict(plain.model.named_parameters())
    for name, parameter in ours.model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-4, atol=1e-7, msg=name)


# ---- the linear router ----


def test_a_linear_router_is_a_matrix_of_the_normed_stream_and_learns() -> None:
    learner = Learner.create(recipe(ablation={"router": "linear"}), SHAPE)
    gates = {name for name, _p in learner.model.named_parameters() if ".mlp.gate." in name}
    assert gates == {f"model.layers.{layer}.mlp.gate.router_mlp.out_proj.weight" for layer in range(3)}
    gate = learner.model.model.layers[1].mlp.gate
    x = torch.randn(30, 32)
    chosen, weight, _state = gate(x, x, None)
    probability = (x @ gate.router_mlp.out_proj.weight.T).softmax(dim=-1)
    assert torch.equal(chosen, (probability + gate.balancing_biases).argmax(dim=-1))
    torch.testing.assert_close(weight, probability.gather(1, chosen[:, None])[:, 0])
    first = learner.step([random_batch(0)], 1.0).loss
    for _step in range(10):
        last = learner.step([random_batch(0)], 1.0).loss
    assert last < 0.8 * first
    with torch.no_grad():
        ids = torch.randint(2, 60, (1, 7))
        torch.testing.assert_close(learner.master_model()(ids), learner.model(ids))
