"""Initialisation for training from scratch: repeatable, sized as documented, and no tensor cut off from the loss."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from openzaya.model.config import NAMED_SHAPES
from openzaya.model.decoder import ZayaForCausalLM
from openzaya.model.initialise import initialise

SHAPE = NAMED_SHAPES["tiny"]


@pytest.fixture(scope="module")
def model() -> ZayaForCausalLM:
    return initialise(ZayaForCausalLM(SHAPE), seed=1)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(model):
    same, other = initialise(ZayaForCausalLM(SHAPE), seed=1), initialise(ZayaForCausalLM(SHAPE), seed=2)
    weights = model.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in same.state_dict().items())
    assert not torch.equal(other.state_dict()["model.embed_tokens.weight"], weights["model.embed_tokens.weight"])


def test_every_tensor_is_filled_whatever_was_in_it_before(model):
    poisoned = ZayaForCausalLM(SHAPE)
    with torch.no_grad():
        for tensor in poisoned.state_dict().values():
            tensor.fill_(float("nan"))
    initialise(poisoned, seed=1)
    weights = model.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in poisoned.state_dict().items())


def test_key_temperatures_are_one_and_the_skip_class_is_out_of_reach(model):
    for block in model.model.layers:
        assert torch.equal(block.self_attn.qk_norm.temp, torch.ones(SHAPE.num_key_value_heads))
        assert block.mlp.gate.balancing_biases.tolist() == [0.0] * SHAPE.num_experts + [-1.0]


def test_queries_and_keys_start_as_plain_projections(model):
    weight = model.model.layers[0].self_attn.qkv_proj.conv_qk_depthwise.weight
    assert torch.equal(weight[:, 0, -1], torch.ones(SHAPE.convolution_channels))
    assert torch.equal(weight[:, 0, :-1], torch.zeros(SHAPE.convolution_channels, SHAPE.cca_time0 - 1))


def test_a_fresh_model_predicts_close_to_evenly_and_its_residual_keeps_its_size(model):
    ids = torch.randint(0, SHAPE.vocab_size, (4, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(ids)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert abs(float(loss) - math.log(SHAPE.vocab_size)) < 0.5


def test_experts_start_silent_under_a_scale_that_leaves_the_router_no_reason_to_mute_them(model):
    for block in model.model.layers:
        assert not block.mlp.experts.down_proj.any()
        scale = block.post_mlp_residual_scale.hidden_states_scale
        assert torch.equal(scale, torch.full((SHAPE.hidden_size,), 0.5))


def test_a_gradient_reaches_every_parameter_once_the_experts_speak(model):
    model = copy.deepcopy(model)
    with torch.no_grad():
        for block in model.model.layers:
            block.mlp.experts.down_proj.normal_(generator=torch.Generator().manual_seed(0))
    ids = torch.randint(0, SHAPE.vocab_size, (16, 48), generator=torch.Generator().manual_seed(0))
    logits = model(ids)
    F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []
