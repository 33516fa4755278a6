"""Low-rank adapters on the attention projections and on every expert (Hu et al. 2021), put in from outside the model.

An adapted matrix W gives W x + (alpha / rank) B A x. B starts at zero, so training starts at the checkpoint. The
checkpoint's own weights stand still; what moves are A, B and the balancing biases, which keep the experts busy on the
new data as they did on the old.

T tokens, D in, F out, E experts, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openzaya.model.attention import Attention
from openzaya.model.decoder import Block, ZayaForCausalLM
from openzaya.model.experts import Experts, grouped_linear
from openzaya.train.config import LoraRecipe


class LoraLinear(nn.Linear):
    """A linear layer without bias that has become adapted; its weight keeps its name and stands still."""

    def __init__(self, plain: nn.Linear, recipe: LoraRecipe, generator: torch.Generator) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.weight, self.bias = plain.weight, plain.bias
        self.lora_scale = recipe.alpha / recipe.rank
        self.lora_a, self.lora_b = _pair(self.weight, recipe.rank, generator)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + F.linear(F.linear(x, self.lora_a), self.lora_b) * self.lora_scale


class LoraExperts(Experts):
    """The experts of a layer, each with a pair of adapters for either of its matrices."""

    def __init__(self, plain: Experts, recipe: LoraRecipe, generator: torch.Generator) -> None:
        nn.Module.__init__(self)
        self.gate_up_proj, self.down_proj = plain.gate_up_proj, plain.down_proj
        self.skip_is_identity = plain.skip_is_identity
        self.lora_scale = recipe.alpha / recipe.rank
        self.gate_up_lora_a, self.gate_up_lora_b = _pair(self.gate_up_proj, recipe.rank, generator)
        self.down_lora_a, self.down_lora_b = _pair(self.down_proj, recipe.rank, generator)

    def expand(self, x_TD: Tensor, tokens_E: Tensor) -> Tensor:
        low_TR = grouped_linear(x_TD, self.gate_up_lora_a, tokens_E)
        return super().expand(x_TD, tokens_E) + grouped_linear(low_TR, self.gate_up_lora_b, tokens_E) * self.lora_scale

    def contract(self, x_TF: Tensor, tokens_E: Tensor) -> Tensor:
        low_TR = grouped_linear(x_TF, self.down_lora_a, tokens_E)
        return super().contract(x_TF, tokens_E) + grouped_linear(low_TR, self.down_lora_b, tokens_E) * self.lora_scale


def add_adapters(model: ZayaForCausalLM, recipe: LoraRecipe, seed: int) -> None:
    """Adapt the parts of `model` that the recipe names, and let nothing else be trained."""
    generator = torch.Generator(device=next(model.parameters()).device).manual_seed(seed)
    model.requires_grad_(False)
    for block in model.model.layers:
        assert isinstance(block, Block)
        if "attention" in recipe.parts:
            _adapt_attention(block.self_attn, recipe, generator)
        if "experts" in recipe.parts:
            block.mlp.experts = LoraExperts(block.mlp.experts, recipe, generator)


def _adapt_attention(attention: Attention, recipe: LoraRecipe, generator: torch.Generator) -> None:
    for owner, names in (
        (attention.qkv_proj, ("q_proj", "k_proj", "v_proj_current", "v_proj_delayed")),
        (attention, ("o_proj",)),
    ):
        for name in names:
            setattr(owner, name, LoraLinear(getattr(owner, name), recipe, generator))


def _pair(weight: Tensor, rank: int, generator: torch.Generator) -> tuple[nn.Parameter, nn.Parameter]:
    """A (..., R, D), random, and B (..., F, R), zero, for weights (..., F, D)."""
    *stack, rows, columns = weight.shape
    first = weight.new_empty(*stack, rank, columns).normal_(0.0, 1 / math.sqrt(columns), generator=generator)
    return nn.Parameter(first), nn.Parameter(weight.new_zeros(*stack, rows, rank))


def merged_weights(model: ZayaForCausalLM, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The plain weights of `model`, in float32, out of its parameters by name: adapters are added in.

    A model without adapters gives `tensors` themselves.
    """
    merged = {name: tensor.float() for name, tensor in tensors.items() if "lora_" not in name}
    for place, module in model.named_modules():
        match module:
            case LoraLinear():
                adapted = {"weight": "lora_"}
            case LoraExperts():
                adapted = {"gate_up_proj": "gate_up_lora_", "down_proj": "down_lora_"}
            case _:
                continue
        for weight, pair in adapted.items():
            first, second = (tensors[f"{place}.{pair}{half}"].float() for half in "ab")
            merged[f"{place}.{weight}"] = merged[f"{place}.{weight}"] + second @ first * module.lora_scale
    return merged
