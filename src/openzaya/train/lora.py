"""Low-rank adapters on the attention projections and on every expert (Hu et al. 2021), put in from outside the model.

An adapted matrix W gives W x + (alpha / rank) B A x. B starts at zero, so training starts at the checkpoint. The
checkpoint's own weights stand still; what moves are A, B and the balancing biases, which keep the experts busy on the
new data as they did on the old.

T tokens, D in, F out, E experts, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openzaya.model.attention import Attention
from openzaya.model.decoder import Block, ZayaForCausalLM
from openzaya.model.experts import Experts, grouped_linear
from openzaya.train.config import LoraRecipe


class LoraLinear(nn.Linear):
    """A linear layer without bias that has become adapted; its weight keeps its name and stands still."""

    def __init__(self, plain: nn.Linear, recipe: LoraRecipe) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.weight, self.bias = plain.weight, plain.bias
        self.lora_scale = recipe.alpha / recipe.rank
        self.lora_a, self.lora_b = _pair(self.weight, recipe.rank)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + F.linear(F.linear(x, self.lora_a), self.lora_b) * self.lora_scale


class LoraExperts(Experts):
    """The experts of a layer, each with a pair of adapters for either of its matrices."""

    def __init__(self, plain: Experts, recipe: LoraRecipe) -> None:
        nn.Module.__init__(self)
        self.gate_up_proj, self.down_proj = plain.gate_up_proj, plain.down_proj
        self.skip_is_identity = plain.skip_is_identity
        self.lora_scale = recipe.alpha / recipe.rank
        self.gate_up_lora_a, self.gate_up_lora_b = _pair(self.gate_up_proj, recipe.rank)
        self.down_lora_a, self.down_lora_b = _pair(self.down_proj, recipe.rank)

    def expand(self, x_TD: Tensor, tokens_E: Tensor) -> Tensor:
        low_TR = grouped_linear(x_TD, self.gate_up_lora_a, tokens_E)
        return super().expand(x_TD, tokens_E) + grouped_linear(low_TR, self.gate_up_lora_b, tokens_E) * self.lora_scale

    def contract(self, x_TF: Tensor, tokens_E: Tensor) -> Tensor:
        low_TR = grouped_linear(x_TF, self.down_lora_a, tokens_E)
        return super().contract(x_TF, tokens_E) + grouped_linear(low_TR, self.down_lora_b, tokens_E) * self.lora_scale


def add_adapters(model: ZayaForCausalLM, recipe: LoraRecipe) -> None:
    """Adapt the parts of `model` that the recipe names, and let nothing else be trained.

    Nothing is in the adapters yet; `adapter_weights` has what belongs there.
    """
    model.requires_grad_(False)
    for block in model.model.layers:
        assert isinstance(block, Block)
        if "attention" in recipe.parts:
            _adapt_attention(block.self_attn, recipe)
        if "experts" in recipe.parts:
            block.mlp.experts = LoraExperts(block.mlp.experts, recipe)


def _adapt_attention(attention: Attention, recipe: LoraRecipe) -> None:
    for owner, names in (
        (attention.qkv_proj, ("q_proj", "k_proj", "v_proj_current", "v_proj_delayed")),
        (attention, ("o_proj",)),
    ):
        for name in names:
            setattr(owner, name, LoraLinear(getattr(owner, name), recipe))


def _pair(weight: Tensor, rank: int) -> tuple[nn.Parameter, nn.Parameter]:
    """A (..., R, D) and B (..., F, R) for weights (..., F, D)."""
    *stack, rows, columns = weight.shape
    return nn.Parameter(weight.new_empty(*stack, rank, columns)), nn.Parameter(weight.new_empty(*stack, rows, rank))


def adapter_weights(model: ZayaForCausalLM, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Every adapter of `model` before training by name, each made when it is due: A random, B zero.

    Of `model` only shapes and types are used, so that it may be on the meta device.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, adapter in model.named_parameters():
        if name.endswith("lora_a"):
            first = torch.empty(adapter.shape, dtype=adapter.dtype)
            yield name, first.normal_(0.0, 1 / math.sqrt(adapter.shape[-1]), generator=generator)
        elif name.endswith("lora_b"):
            yield name, torch.zeros(adapter.shape, dtype=adapter.dtype)


def merged_weights(model: ZayaForCausalLM, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The plain weights of `model` by name, in float32, out of its parameters by name: adapters are added in.

    Each is taken out of `tensors` when it is due. A model without adapters gives those themselves.
    """
    adapted: dict[str, tuple[str, float]] = {}
    for place, module in model.named_modules():
        match module:
            case LoraLinear():
                adapted[f"{place}.weight"] = f"{place}.lora_", module.lora_scale
            case LoraExperts():
                adapted[f"{place}.gate_up_proj"] = f"{place}.gate_up_lora_", module.lora_scale
                adapted[f"{place}.down_proj"] = f"{place}.down_lora_", module.lora_scale
    for name in tensors:
        if "lora_" in name:
            continue
        weight = tensors[name].float()
        if name in adapted:
            pair, scale = adapted[name]
            weight = weight + tensors[f"{pair}b"].float() @ tensors[f"{pair}a"].float() * scale
        yield name, weight
