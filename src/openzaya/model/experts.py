"""SwiGLU experts, one a token, as grouped matrix products over tokens sorted by expert.

T tokens, D hidden, F expert width, E experts.
"""

from __future__ import annotations

import importlib.util

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openzaya.model.config import ZayaConfig
from openzaya.model.quantised.packed_weight import PackedWeight

_FEW_TOKENS = 256


class Experts(nn.Module):
    """All experts of a layer in two stacked tensors, rows of `gate_up_proj` being gate first, then up."""

    def __init__(self, config: ZayaConfig) -> None:
        super().__init__()
        experts, width, hidden = config.num_experts, config.moe_intermediate_size, config.hidden_size
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * width, hidden))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, width))
        self.skip_is_identity = config.skip_semantics == "identity"

    def forward(self, x_TD: Tensor, chosen_T: Tensor, weight_T: Tensor) -> Tensor:
        """Output of each token's expert times its weight; class E (skip) gives 0, or the weighted input itself."""
        experts = self.gate_up_proj.shape[0]
        skipped_T = chosen_T == experts
        # Skipped tokens ride along with the last expert at weight 0, so that no shape depends on the routing.
        order_T = torch.argsort(chosen_T, stable=True)
        tokens_E = count(chosen_T.clamp_max(experts - 1), experts)
        gate, up = self.expand(x_TD.index_select(0, order_T), tokens_E).chunk(2, dim=-1)
        sorted_TD = self.contract(F.silu(gate) * up, tokens_E)
        output_TD = torch.empty_like(sorted_TD).index_copy(0, order_T, sorted_TD)
        output_TD = output_TD * weight_T.masked_fill(skipped_T, 0)[:, None]
        if self.skip_is_identity:
            output_TD = output_TD + x_TD * (weight_T * skipped_T)[:, None]
        return output_TD

    def expand(self, x_TD: Tensor, tokens_E: Tensor) -> Tensor:
        """Gate and up side by side, (T, 2 F), of tokens sorted by expert."""
        return grouped_linear(x_TD, self.gate_up_proj, tokens_E)

    def contract(self, x_TF: Tensor, tokens_E: Tensor) -> Tensor:
        """Back to the width of the stream, (T, D)."""
        return grouped_linear(x_TF, self.down_proj, tokens_E)


def count(chosen_T: Tensor, classes: int) -> Tensor:
    """How many tokens chose each class; unlike `torch.bincount` it does not wait for a GPU."""
    ones_T = torch.ones_like(chosen_T, dtype=torch.long)
    return torch.zeros(classes, dtype=torch.long, device=chosen_T.device).index_add_(0, chosen_T, ones_T)


def grouped_linear(x_TD: Tensor, weight_EFD: Tensor | PackedWeight, tokens_E: Tensor) -> Tensor:
    """`x` times the transposed weight of its group, for `x` sorted by group with `tokens_E` rows in each."""
    if isinstance(weight_EFD, PackedWeight):
        return weight_EFD.grouped_product(x_TD, tokens_E.cumsum(0).to(torch.int32))
    if _few_on_a_gpu(x_TD, weight_EFD):
        from openzaya.model.grouped_kernel import kernel_grouped_product

        return kernel_grouped_product(x_TD, weight_EFD, tokens_E.cumsum(0).to(torch.int32))
    if torch.is_autocast_enabled(x_TD.device.type):
        dtype = torch.get_autocast_dtype(x_TD.device.type)
        x_TD, weight_EFD = x_TD.to(dtype), weight_EFD.to(dtype)
    if _has_grouped_product(x_TD, weight_EFD):
        ends_E = tokens_E.cumsum(0).to(torch.int32)
        return F.grouped_mm(x_TD, weight_EFD.transpose(1, 2), offs=ends_E)
    rows = x_TD.split(tokens_E.tolist())
    return torch.cat([F.linear(row, weight) for row, weight in zip(rows, weight_EFD.unbind())])


def _few_on_a_gpu(x: Tensor, weight: Tensor) -> bool:
    """Tokens of a decoding step, for which torch's products wait for the counts on most GPUs and dtypes."""
    if x.device.type != "cuda" or not 0 < x.shape[0] <= _FEW_TOKENS or x.dtype != weight.dtype:
        return False
    learns = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    return not learns and not torch.is_autocast_enabled("cuda") and importlib.util.find_spec("triton") is not None


def _has_grouped_product(x: Tensor, weight: Tensor) -> bool:
    """torch's grouped product wants 16-byte rows, at least one row, and on a GPU bfloat16."""
    dtypes = (torch.bfloat16, torch.float32) if x.device.type == "cpu" else (torch.bfloat16,)
    aligned = all(size * x.element_size() % 16 == 0 for size in weight.shape[1:])
    return hasattr(F, "grouped_mm") and x.dtype in dtypes and aligned and x.shape[0] > 0
