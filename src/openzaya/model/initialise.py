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

import torch
from torch import nn

from openzaya.model.attention import CCAProjection, QKNorm
from openzaya.model.decoder import Block, Trunk, ZayaForCausalLM
from openzaya.model.experts import Experts
from openzaya.model.residual import ResidualScaling, RMSNorm
from openzaya.model.router import Router

_EXPERTS_SCALE = 0.5


@torch.no_grad()
def initialise(model: ZayaForCausalLM, seed: int = 0) -> ZayaForCausalLM:
    """Fill every tensor of `model` for training from random weights; the same seed gives the same weights."""
    generator = torch.Generator(device=next(model.parameters()).device).manual_seed(seed)

    def normal(tensor: torch.Tensor, std: float) -> None:
        tensor.normal_(0.0, std, generator=generator)

    for module in model.modules():
        match module:
            case nn.Linear():
                normal(module.weight, 1 / math.sqrt(module.in_features))
                if module.bias is not None:
                    module.bias.zero_()
            case RMSNorm():
                module.weight.fill_(1.0)
            case QKNorm():
                module.temp.fill_(1.0)
            case ResidualScaling():
                module.hidden_states_scale.fill_(1.0)
                module.residual_scale.fill_(1.0)
                module.hidden_states_bias.zero_()
                module.residual_bias.zero_()
            case Experts():
                normal(module.gate_up_proj, 1 / math.sqrt(module.gate_up_proj.shape[-1]))
                module.down_proj.zero_()
            case Trunk():
                normal(module.embed_tokens.weight, model.config.initializer_range)
                # The released code scales the embedding by a learned vector; it starts at the residual's unit size.
                module.input_hidden_states_scale.fill_(1.0 / model.config.initializer_range)
                module.input_hidden_states_bias.zero_()
    for module in model.modules():
        match module:
            case CCAProjection():
                assert module.conv_qk_depthwise.bias is not None
                assert module.conv_qk_grouped.bias is not None
                module.conv_qk_depthwise.weight.zero_()
                module.conv_qk_depthwise.weight[:, :, -1] = 1.0
                module.conv_qk_depthwise.bias.zero_()
                fan_in = module.conv_qk_grouped.weight.shape[1] * module.conv_qk_grouped.weight.shape[2]
                normal(module.conv_qk_grouped.weight, 1 / math.sqrt(fan_in))
                module.conv_qk_grouped.bias.zero_()
            case Router():
                if module.router_states_scale is not None:
                    module.router_states_scale.fill_(1.0)
                # All classes start about equally likely, so that the balancing biases decide from the first step.
                module.router_mlp.out_proj.weight.mul_(0.1)
                module.balancing_biases.zero_()
                module.balancing_biases[-1] = -1.0
    depth = math.sqrt(2 * model.config.num_hidden_layers)
    for block in model.model.layers:
        assert isinstance(block, Block)
        # Attention starts small, so that the residual stream's size does not grow with depth.
        block.self_attn.o_proj.weight.div_(depth)
        block.post_mlp_residual_scale.hidden_states_scale.fill_(_EXPERTS_SCALE)
    return model
