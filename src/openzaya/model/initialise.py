"""All initialisation for training from scratch, in one place.

| tensor | value |
|---|---|
| linear layers, experts | normal, 1/sqrt(fan in); attention's output divided by sqrt(2 * layers) as well |
| experts' output | 0: a block starts as attention alone |
| embedding | normal, `initializer_range`; the learned scale after it starts at the inverse of that |
| depthwise convolution | 1 on the current token, 0 on earlier ones: queries and keys start as plain projections |
| head-wise convolution | normal, 1/sqrt(fan in) |
| router's output | normal, 0.1/sqrt(fan in) |
| key temperature | 1 |
| residual scales 1, their biases 0; norms 1; router state scale 1 | identity |
| scale of the experts' output | 0.5 |
| balancing biases | 0 for experts, -1 for the skip class |

The scale of the experts' output decides what becomes of the router. An expert's output is weighed by its probability;
where the network wants less of it, the router is the quickest to give way and moves probability to the skip class that
does nothing. From a scale of 1, or of E + 1, chosen experts end at a few hundredths; probabilities that small differ
less than one step of a balancing bias, and all tokens run to one expert. From 0.5 the network wants more, and the
router's probabilities rise (recipes/tiny/LOG.md).

Zyphra's own initialisation is not published. transformers sets the key temperature to 0, which makes every key zero:
harmless before loading weights, but from scratch no gradient reaches the keys' direction through a zero factor at first
and attention starts blind, so ours is 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from openzaya.model.attention import CCAProjection, QKNorm
from openzaya.model.decoder import Trunk, ZayaForCausalLM
from openzaya.model.experts import Experts
from openzaya.model.residual import ResidualScaling, RMSNorm
from openzaya.model.router import Router

_EXPERTS_SCALE = 0.5


@torch.no_grad()
def initialise(model: ZayaForCausalLM, seed: int = 0) -> ZayaForCausalLM:
    """Fill every tensor of `model` for training from random weights; the same seed gives the same weights."""
    tensors = model.state_dict()
    for name, value in initial_weights(model, seed):
        tensors[name].copy_(value)
    return model


def initial_weights(model: ZayaForCausalLM, seed: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that `initialise` puts into `model`, by name, each made when it is due.

    Of `model` only shapes and types are used, so that it may be on the meta device; the tensors are made on the
    processor then, otherwise where it is.
    """
    place = next(model.parameters()).device
    device = torch.device("cpu") if place.type == "meta" else place
    generator = torch.Generator(device=device).manual_seed(seed)

    def normal(like: Tensor, std: float) -> Tensor:
        return torch.empty(like.shape, dtype=like.dtype, device=device).normal_(0.0, std, generator=generator)

    def constant(like: Tensor, value: float) -> Tensor:
        return torch.full(like.shape, value, dtype=like.dtype, device=device)

    # Convolutions draw their numbers after everything else.
    for parts in (_linear_parts, _convolutions):
        for place_of, module in model.named_modules():
            for name, value in parts(model, place_of, module, normal, constant):
                yield f"{place_of}.{name}", value


_Normal = Callable[[Tensor, float], Tensor]
_Constant = Callable[[Tensor, float], Tensor]


def _linear_parts(
    model: ZayaForCausalLM, place: str, module: nn.Module, normal: _Normal, constant: _Constant
) -> Iterator[tuple[str, Tensor]]:
    match module:
        case nn.Linear():
            weight = normal(module.weight, 1 / math.sqrt(module.in_features))
            if place.endswith(".router_mlp.out_proj"):
                # All classes start about equally likely, so that the balancing biases decide from the first step.
                weight.mul_(0.1)
            elif place.endswith(".self_attn.o_proj"):
                # Attention starts small, so that the residual stream's size does not grow with depth.
                weight.div_(math.sqrt(2 * model.config.num_hidden_layers))
            yield "weight", weight
            if module.bias is not None:
                yield "bias", constant(module.bias, 0.0)
        case RMSNorm():
            yield "weight", constant(module.weight, 1.0)
        case QKNorm():
            yield "temp", constant(module.temp, 1.0)
        case ResidualScaling():
            experts = place.endswith(".post_mlp_residual_scale")
            yield "hidden_states_scale", constant(module.hidden_states_scale, _EXPERTS_SCALE if experts else 1.0)
            yield "residual_scale", constant(module.residual_scale, 1.0)
            yield "hidden_states_bias", constant(module.hidden_states_bias, 0.0)
            yield "residual_bias", constant(module.residual_bias, 0.0)
        case Experts():
            yield "gate_up_proj", normal(module.gate_up_proj, 1 / math.sqrt(module.gate_up_proj.shape[-1]))
            yield "down_proj", constant(module.down_proj, 0.0)
        case Trunk():
            spread = model.config.initializer_range
            yield "embed_tokens.weight", normal(module.embed_tokens.weight, spread)
            # The released code scales the embedding by a learned vector; it starts at the residual's unit size.
            yield "input_hidden_states_scale", constant(module.input_hidden_states_scale, 1.0 / spread)
            yield "input_hidden_states_bias", constant(module.input_hidden_states_bias, 0.0)
        case Router():
            if module.router_states_scale is not None:
                yield "router_states_scale", constant(module.router_states_scale, 1.0)
            biases = constant(module.balancing_biases, 0.0)
            biases[-1] = -1.0
            yield "balancing_biases", biases


def _convolutions(
    _model: ZayaForCausalLM, _place: str, module: nn.Module, normal: _Normal, constant: _Constant
) -> Iterator[tuple[str, Tensor]]:
    if not isinstance(module, CCAProjection):
        return
    depthwise, grouped = module.conv_qk_depthwise, module.conv_qk_grouped
    assert depthwise.bias is not None
    assert grouped.bias is not None
    current = constant(depthwise.weight, 0.0)
    current[:, :, -1] = 1.0
    yield "conv_qk_depthwise.weight", current
    yield "conv_qk_depthwise.bias", constant(depthwise.bias, 0.0)
    fan_in = grouped.weight.shape[1] * grouped.weight.shape[2]
    yield "conv_qk_grouped.weight", normal(grouped.weight, 1 / math.sqrt(fan_in))
    yield "conv_qk_grouped.bias", constant(grouped.bias, 0.0)
