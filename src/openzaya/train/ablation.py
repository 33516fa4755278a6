"""Parts of ZAYA1 left out or exchanged from outside, for experiments; the model knows nothing of it.

A part that does nothing at some value of its parameters is held there: nothing else changes, the first step's weights
included. Where there is no such value, the module is exchanged.

T tokens, B batch, S sequence, D hidden, E experts, K key-value heads, G query heads a key-value head, C head channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from openzaya.model.attention import CCAProjection
from openzaya.model.cache import Cache
from openzaya.model.decoder import Block, Trunk, ZayaForCausalLM
from openzaya.model.placement import Placement
from openzaya.model.residual import ResidualScaling
from openzaya.model.router import Router
from openzaya.train.ablation_recipe import AblationRecipe


def exchange_parts(model: ZayaForCausalLM, ablation: AblationRecipe) -> None:
    """Put other modules in the place of those that cannot be held; initialise `model` afterwards."""
    for module in model.modules():
        if ablation.router == "linear" and isinstance(module, Router):
            _make_linear(module, model.config.hidden_size, model.config.num_experts)
    if ablation.qk_mean and ablation.value_shift:
        return
    for block in model.model.layers:
        assert isinstance(block, Block)
        whole = block.self_attn.qkv_proj
        part = PartialProjection(model.config, whole.layer, whole.numerics)
        part.qk_mean, part.value_shift = ablation.qk_mean, ablation.value_shift
        block.self_attn.qkv_proj = part


@dataclass(frozen=True, slots=True)
class Held:
    """A parameter that does not learn."""

    name: str
    parameter: Tensor
    value: Tensor | None
    """What does nothing; None where that is what it starts with."""


def held_parts(model: ZayaForCausalLM, ablation: AblationRecipe) -> Iterator[Held]:
    """Parameters of `model`, which may be on the meta device, that stay where the parts left out do nothing."""
    for place, module in model.named_modules():
        match module:
            case Router() if not ablation.depth_averaging and module.router_states_scale is not None:
                scale = module.router_states_scale
                yield Held(f"{place}.router_states_scale", scale, torch.zeros(scale.shape))
            case ResidualScaling() if not ablation.residual_scaling:
                for name, parameter in module.named_parameters():
                    yield Held(f"{place}.{name}", parameter, None)
            case Trunk() if not ablation.residual_scaling:
                for name in ("input_hidden_states_scale", "input_hidden_states_bias"):
                    yield Held(f"{place}.{name}", getattr(module, name), None)
            case CCAProjection():
                if ablation.convolutions < 2:
                    yield from _passing_on(f"{place}.conv_qk_grouped", module.conv_qk_grouped)
                if ablation.convolutions < 1:
                    yield from _passing_on(f"{place}.conv_qk_depthwise", module.conv_qk_depthwise)


def _passing_on(place: str, convolution: nn.Conv1d) -> Iterator[Held]:
    """A causal convolution that gives back the token that it is at."""
    outputs, inputs, taps = convolution.weight.shape
    weight = torch.zeros(outputs, inputs, taps)
    weight[:, :, -1] = torch.eye(inputs).repeat(outputs // inputs, 1)
    yield Held(f"{place}.weight", convolution.weight, weight)
    assert convolution.bias is not None
    yield Held(f"{place}.bias", convolution.bias, torch.zeros(outputs))


# ---- modules in place of others ----


class LinearScores(nn.Module):
    """Scores of the E + 1 classes as one matrix times the normed stream: the usual router of a mixture of experts."""

    def __init__(self, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        self.out_proj = nn.Linear(hidden_size, num_experts + 1, bias=False)

    def forward(self, x_TD: Tensor) -> Tensor:
        scores_TE: Tensor = self.out_proj(x_TD)
        return scores_TE


def _make_linear(router: Router, hidden_size: int, num_experts: int) -> None:
    """Linear scores in place of projection, depth averaging and MLP.

    Choosing by probability plus bias, weighing by probability and the skip class stay.
    """
    router.down_proj = nn.Identity()  # type: ignore[assignment]
    router.router_states_scale = None
    router.router_mlp = LinearScores(hidden_size, num_experts)  # type: ignore[assignment]


class PartialProjection(CCAProjection):
    """CCA's projection without the mean of queries and keys, or without the value shift; the same parameters."""

    qk_mean = value_shift = True
    is_whole = False

    def forward(self, x_BSD: Tensor, placement: Placement, cache: Cache | None) -> tuple[Tensor, Tensor, Tensor]:
        config, up = self.config, self.numerics.up
        columns_BSZ, current_BSV, delayed_BSV = self._project(x_BSD)
        columns_BPSZ, previous_BSV = self._after_history(columns_BSZ, delayed_BSV, placement, cache)
        sizes = [config.query_size, config.key_value_size]
        q_BSHC, k_BSKC = (
            part.unflatten(-1, (-1, config.head_dim))
            for part in self.convolve(columns_BPSZ, placement.resets_BS).split(sizes, dim=-1)
        )
        if self.qk_mean:
            q_BSZ, k_BSZ = columns_BSZ.split(sizes, dim=-1)
            q_BSKGC = q_BSZ.unflatten(-1, (config.num_key_value_heads, -1, config.head_dim))
            mean_BSKGC = (up(q_BSKGC) + up(k_BSZ.unflatten(-1, (-1, 1, config.head_dim)))) * 0.5
            q_BSHC, k_BSKC = q_BSHC + mean_BSKGC.flatten(2, 3), k_BSKC + mean_BSKGC.mean(dim=3)
        if not self.value_shift:
            previous_BSV = delayed_BSV
        elif placement.resets_BS is not None:
            previous_BSV = previous_BSV * (placement.resets_BS > 0)[..., None]
        v_BSKC = torch.cat([current_BSV, previous_BSV], dim=-1).unflatten(-1, (-1, config.head_dim))
        return q_BSHC, k_BSKC, v_BSKC
