"""Compressed convolutional attention with grouped queries (CCGQA; arXiv:2510.04476 and report, appendix C).

Queries and keys are projected down, mixed over time by two short causal convolutions, tied together by their mean,
normalised to a fixed length, and only then attend; half of the values come from the token before.

B batch, S sequence, D hidden, H query heads, K key-value heads, G = H / K query heads a key-value head, C head
channels, Z = (H + K) * C convolution channels, P earlier columns, T keys (earlier ones included), V = K * C / 2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openzaya.model import kernels
from openzaya.model.cache import Cache
from openzaya.model.config import ZayaConfig
from openzaya.model.numerics import Numerics
from openzaya.model.piecewise import PiecewiseAttention
from openzaya.model.placement import Placement


class CCAProjection(nn.Module):
    """Queries, keys and values of compressed convolutional attention, before norm and rotation."""

    is_whole = True
    """Whether `fused` computes the same; not in a class that leaves something out."""

    def __init__(self, config: ZayaConfig, layer: int, numerics: Numerics) -> None:
        super().__init__()
        self.config, self.layer, self.numerics = config, layer, numerics
        hidden, channels = config.hidden_size, config.convolution_channels
        heads = config.num_attention_heads + config.num_key_value_heads
        self.q_proj = nn.Linear(hidden, config.query_size, bias=False)
        self.k_proj = nn.Linear(hidden, config.key_value_size, bias=False)
        self.v_proj_current = nn.Linear(hidden, config.key_value_size // 2, bias=False)
        self.v_proj_delayed = nn.Linear(hidden, config.key_value_size // 2, bias=False)
        # All four as one matrix, where `load_model(packed=True)` puts one in their place.
        self.weight: Tensor | None = None
        # Kept as Conv1d for their checkpoint names and shapes; `convolve` computes both on (B, S, Z) directly.
        self.conv_qk_depthwise = nn.Conv1d(channels, channels, config.cca_time0, groups=channels)
        self.conv_qk_grouped = nn.Conv1d(channels, channels, config.cca_time1, groups=heads)

    def forward(self, x_BSD: Tensor, placement: Placement, cache: Cache | None) -> tuple[Tensor, Tensor, Tensor]:
        config = self.config
        columns_BSZ, current_BSV, delayed_BSV = self._project(x_BSD)
        q_BSZ, k_BSZ = columns_BSZ.split([config.query_size, config.key_value_size], dim=-1)
        q_BSKGC = q_BSZ.unflatten(-1, (config.num_key_value_heads, -1, config.head_dim))
        k_BSKC = k_BSZ.unflatten(-1, (config.num_key_value_heads, config.head_dim))
        columns_BPSZ, previous_BSV = self._after_history(columns_BSZ, delayed_BSV, placement, cache)

        mean_q_BSKGC = (self.numerics.up(q_BSKGC) + self.numerics.up(k_BSKC)[:, :, :, None]) * 0.5
        mean_k_BSKC = mean_q_BSKGC.mean(dim=3)
        mixed_BSZ = self.convolve(columns_BPSZ, placement.resets_BS)
        q_BSHC = mixed_BSZ[..., : config.query_size].unflatten(-1, (-1, config.head_dim)) + mean_q_BSKGC.flatten(2, 3)
        k_BSKC = mixed_BSZ[..., config.query_size :].unflatten(-1, (-1, config.head_dim)) + mean_k_BSKC

        if placement.resets_BS is not None:
            previous_BSV = previous_BSV * (placement.resets_BS > 0)[..., None]
        v_BSKC = torch.cat([current_BSV, previous_BSV], dim=-1).unflatten(-1, (-1, config.head_dim))
        return q_BSHC, k_BSKC, v_BSKC

    def fused(
        self,
        x_BSD: Tensor,
        placement: Placement,
        cache: Cache | None,
        rotary: tuple[Tensor, Tensor],
        temperature_K: Tensor,
        epsilon: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values after norm and rotation, by the kernels for GPUs."""
        from openzaya.model.cca_gradients import kernel_queries_keys_values

        q_BSQ, k_BSK, current_BSV, delayed_BSV = self._parts(x_BSD)
        before = None
        if placement.context is not None:
            past = x_BSD.shape[1] - self.config.convolution_history
            last_BPZ = torch.cat([q_BSQ[:, past:], k_BSK[:, past:]], dim=-1)
            before = placement.context.before(last_BPZ, delayed_BSV, placement.resets_BS)
        elif cache is not None:
            before = cache.state(self.layer)
        convolutions = self.conv_qk_depthwise, self.conv_qk_grouped
        mixed = kernel_queries_keys_values(
            (q_BSQ, k_BSK, current_BSV, delayed_BSV), before, placement.resets_BS, rotary, convolutions,
            temperature_K, epsilon,
        )  # fmt: skip
        if cache is not None:
            cache.update_state(self.layer, torch.cat([q_BSQ, k_BSK], dim=-1), delayed_BSV)
        return mixed

    def _project(self, x_BSD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys side by side (B, S, Z), and both halves of the values (B, S, V)."""
        if self.weight is None:
            q_BSQ, k_BSK, current_BSV, delayed_BSV = self._parts(x_BSD)
            return torch.cat([q_BSQ, k_BSK], dim=-1), current_BSV, delayed_BSV
        half = self.config.key_value_size // 2
        columns_BSZ, current_BSV, delayed_BSV = F.linear(x_BSD, self.weight).split(
            [self.config.convolution_channels, half, half], dim=-1
        )
        return columns_BSZ, current_BSV, delayed_BSV

    def _parts(self, x_BSD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries (B, S, Q), keys (B, S, K * C), and both halves of the values (B, S, V)."""
        if self.weight is None:
            return self.q_proj(x_BSD), self.k_proj(x_BSD), self.v_proj_current(x_BSD), self.v_proj_delayed(x_BSD)
        key_size, half = self.config.key_value_size, self.config.key_value_size // 2
        q_BSQ, k_BSK, current_BSV, delayed_BSV = F.linear(x_BSD, self.weight).split(
            [self.config.query_size, key_size, half, half], dim=-1
        )
        return q_BSQ, k_BSK, current_BSV, delayed_BSV

    def _after_history(
        self, columns_BSZ: Tensor, delayed_BSV: Tensor, placement: Placement, cache: Cache | None
    ) -> tuple[Tensor, Tensor]:
        """Columns with the P earlier ones in front, and delayed values shifted by one; moves the cache's state on.

        Before the start of a sequence both are zero.
        """
        if placement.context is not None:
            columns_BPZ, before_BV = placement.context.before(columns_BSZ, delayed_BSV, placement.resets_BS)
            columns_BPSZ = torch.cat([columns_BPZ, columns_BSZ], dim=1)
            return columns_BPSZ, torch.cat([before_BV[:, None], delayed_BSV[:, :-1]], dim=1)
        if cache is None:
            return F.pad(columns_BSZ, (0, 0, self.config.convolution_history, 0)), F.pad(
                delayed_BSV[:, :-1], (0, 0, 1, 0)
            )
        columns_BPZ, before_BV = cache.state(self.layer)
        columns_BPSZ = torch.cat([columns_BPZ.to(columns_BSZ.dtype), columns_BSZ], dim=1)
        previous_BSV = torch.cat([before_BV.to(delayed_BSV.dtype)[:, None], delayed_BSV[:, :-1]], dim=1)
        cache.update_state(self.layer, columns_BSZ, delayed_BSV)
        return columns_BPSZ, previous_BSV

    def convolve(self, columns_BPSZ: Tensor, resets_BS: Tensor | None) -> Tensor:
        """Depthwise, then head-wise causal convolution of `columns` (B, P + S, Z), for its last S places.

        The zeros before a sequence stand in front of the first convolution only: the second one then sees that
        convolution's bias there, not zeros. `resets_BS` makes every document of a packed row begin so.
        """
        first, second = self.conv_qk_depthwise, self.conv_qk_grouped
        assert first.bias is not None
        assert second.bias is not None
        taps0, taps1 = self.config.cca_time0, self.config.cca_time1
        past, head_dim = self.config.convolution_history, self.config.head_dim
        length = columns_BPSZ.shape[1] - past
        spread = length + taps1 - 1  # places of the first convolution's output that the second one reads
        mixed: Tensor = first.bias
        for tap in range(taps0):
            # Contiguous, since torch multiplies by a strided vector channel by channel.
            term = columns_BPSZ[:, tap : tap + spread] * first.weight[:, 0, tap].contiguous()
            if resets_BS is not None and (back := taps0 - 1 - tap):
                term = torch.cat([term[:, : taps1 - 1], term[:, taps1 - 1 :] * (resets_BS >= back)[..., None]], dim=1)
            mixed = mixed + term
        windows = []
        for tap in range(taps1):
            window_BSZ = mixed[:, tap : tap + length]
            if resets_BS is not None and (back := taps1 - 1 - tap):
                window_BSZ = torch.where((resets_BS >= back)[..., None], window_BSZ, first.bias.to(window_BSZ.dtype))
            windows.append(window_BSZ.unflatten(-1, (-1, head_dim)))
        heads = self.config.num_attention_heads + self.config.num_key_value_heads
        stacked = torch.cat(windows, dim=-1).flatten(0, 1).transpose(0, 1)  # (heads, B * S, taps * C)
        weight = second.weight.unflatten(0, (heads, head_dim)).permute(0, 3, 2, 1).flatten(1, 2)
        bias = second.bias.view(heads, 1, head_dim)
        output = torch.bmm(stacked, weight.to(stacked.dtype)) + bias
        return output.transpose(0, 1).reshape(columns_BPSZ.shape[0], length, heads * head_dim)


class QKNorm(nn.Module):
    """Scales queries and keys to length sqrt(C), and keys further by one learned temperature a head.

    The temperature is linear (report, appendix C), where the CCA paper has its exponential.
    """

    def __init__(self, config: ZayaConfig, numerics: Numerics) -> None:
        super().__init__()
        self.temp = nn.Parameter(torch.empty(config.num_key_value_heads))
        self.length = config.head_dim**0.5
        self.numerics = numerics

    def forward(self, q_BSHC: Tensor, k_BSKC: Tensor) -> tuple[Tensor, Tensor]:
        q_BSHC, k_BSKC = self._normed(self.numerics.up(q_BSHC)), self._normed(self.numerics.up(k_BSKC))
        return q_BSHC, k_BSKC * self.temp[:, None]

    def epsilon(self, dtype: torch.dtype) -> float:
        """Shorter vectors of `dtype` are scaled as if they had this length."""
        return torch.finfo(torch.float32 if self.numerics.lift else dtype).eps

    def _normed(self, x: Tensor) -> Tensor:
        return x * (self.length / x.norm(dim=-1, keepdim=True).clamp_min(self.epsilon(x.dtype)))


class Attention(nn.Module):
    """CCA projection, norm, partial rotation, causal attention, output projection."""

    def __init__(self, config: ZayaConfig, layer: int, numerics: Numerics) -> None:
        super().__init__()
        self.layer = layer
        self.layer_type = config.layer_types[layer]
        self.window = config.window(layer)
        self.qkv_proj = CCAProjection(config, layer, numerics)
        self.qk_norm = QKNorm(config, numerics)
        self.o_proj = nn.Linear(config.query_size, config.hidden_size, bias=False)

    def forward(self, x_BSD: Tensor, placement: Placement, cache: Cache | None) -> Tensor:
        if placement.tokens_BS is not None:
            x_BSD = x_BSD * placement.tokens_BS[..., None]
        q_BSHC, k_BSKC, v_BSKC = self._queries_keys_values(x_BSD, placement, cache)
        q_BHSC, k_BKSC, v_BKSC = q_BSHC.transpose(1, 2), k_BSKC.transpose(1, 2), v_BSKC.transpose(1, 2)
        if cache is not None:
            k_BKSC, v_BKSC = cache.update(self.layer, k_BKSC, v_BKSC)
        if placement.context is not None:
            k_BKSC, v_BKSC = placement.context.keys_and_values(k_BKSC, v_BKSC)
        mixed_BHSC = attend(q_BHSC, k_BKSC, v_BKSC, placement.masks[self.window])
        return self.o_proj(mixed_BHSC.transpose(1, 2).flatten(2))

    def _queries_keys_values(
        self, x_BSD: Tensor, placement: Placement, cache: Cache | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        rotary, norm = placement.rotary[self.layer_type], self.qk_norm
        if self.qkv_proj.is_whole and kernels.has_kernels(x_BSD):
            epsilon = norm.epsilon(x_BSD.dtype)
            return self.qkv_proj.fused(x_BSD, placement, cache, rotary, norm.temp, epsilon)
        q_BSHC, k_BSKC, v_BSKC = self.qkv_proj(x_BSD, placement, cache)
        q_BSHC, k_BSKC = norm(q_BSHC, k_BSKC)
        return rotate(q_BSHC, *rotary).to(v_BSKC.dtype), rotate(k_BSKC, *rotary).to(v_BSKC.dtype), v_BSKC


def rotate(x_BSHC: Tensor, cosine_BSR: Tensor, sine_BSR: Tensor) -> Tensor:
    """Rotary embedding of the first R channels of each head, in halves."""
    channels = cosine_BSR.shape[-1]
    turned, kept = x_BSHC[..., :channels], x_BSHC[..., channels:]
    first, second = turned.chunk(2, dim=-1)
    cosine, sine = cosine_BSR[:, :, None].to(x_BSHC.dtype), sine_BSR[:, :, None].to(x_BSHC.dtype)
    turned = turned * cosine + torch.cat([-second, first], dim=-1) * sine
    return torch.cat([turned, kept], dim=-1)


def attend(q_BHSC: Tensor, k_BKTC: Tensor, v_BKTC: Tensor, mask_B1ST: Tensor | None) -> Tensor:
    """Causal grouped-query attention with scale C ** -0.5; `mask` None means that query i sees keys up to i."""
    batch, heads, length, channels = q_BHSC.shape
    key_heads = k_BKTC.shape[1]
    if length == 1 and mask_B1ST is not None:
        # One query: fold its heads into the sequence, so that no key is copied for the heads of its group.
        folded = q_BHSC.reshape(batch, key_heads, heads // key_heads, channels)
        return F.scaled_dot_product_attention(folded, k_BKTC, v_BKTC, attn_mask=mask_B1ST).view_as(q_BHSC)
    # The backward of torch 2.13's fused attention takes longer on a CPU under a mask, and in bfloat16 for short rows.
    slow = mask_B1ST is not None or (q_BHSC.dtype == torch.bfloat16 and k_BKTC.shape[2] <= 512)
    if q_BHSC.device.type == "cpu" and q_BHSC.requires_grad and slow:
        if mask_B1ST is None:
            mask_B1ST = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
        mixed_BHSC: Tensor = PiecewiseAttention.apply(q_BHSC, k_BKTC, v_BKTC, mask_B1ST)
        return mixed_BHSC
    return F.scaled_dot_product_attention(
        q_BHSC, k_BKTC, v_BKTC, attn_mask=mask_B1ST, is_causal=mask_B1ST is None, enable_gqa=heads != key_heads
    )
