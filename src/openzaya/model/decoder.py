"""The ZAYA decoder: blocks of attention and experts on a float32 residual stream, with tied embeddings.

B batch, S sequence, D hidden, V vocabulary, R router width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openzaya.model.attention import Attention
from openzaya.model.cache import Cache, DecodeCache
from openzaya.model.config import ZayaConfig
from openzaya.model.experts import Experts
from openzaya.model.numerics import HF, Numerics
from openzaya.model.placement import Context, Placement, place
from openzaya.model.residual import ResidualScaling, RMSNorm
from openzaya.model.router import Router, Routing


class MoE(nn.Module):
    """A router and its experts. The router's state travels on to the next layer (not in time)."""

    def __init__(self, config: ZayaConfig, layer: int, numerics: Numerics) -> None:
        super().__init__()
        self.gate = Router(config, layer, numerics)
        self.experts = Experts(config)

    def forward(self, x_BSD: Tensor, previous_TR: Tensor | None, routing: Routing | None) -> tuple[Tensor, Tensor]:
        x_TD = x_BSD.flatten(0, 1)
        chosen_T, weight_T, state_TR = self.gate(x_TD, previous_TR, routing)
        return self.experts(x_TD, chosen_T, weight_T).view_as(x_BSD), state_TR


class Block(nn.Module):
    """One layer: attention and experts, each merged into the residual stream by learned scales."""

    def __init__(self, config: ZayaConfig, layer: int, numerics: Numerics) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, numerics)
        self.self_attn = Attention(config, layer, numerics)
        self.post_attention_residual_scale = ResidualScaling(config.hidden_size)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, numerics)
        self.mlp = MoE(config, layer, numerics)
        self.post_mlp_residual_scale = ResidualScaling(config.hidden_size)

    def forward(
        self,
        residual_BSD: Tensor,
        previous_TR: Tensor | None,
        placement: Placement,
        cache: Cache | None,
        routing: Routing | None,
    ) -> tuple[Tensor, Tensor]:
        dtype = self.input_layernorm.weight.dtype
        mixed_BSD = self.self_attn(self.input_layernorm(residual_BSD.to(dtype)), placement, cache)
        residual_BSD = self.post_attention_residual_scale(mixed_BSD, residual_BSD)
        routed_BSD, state_TR = self.mlp(self.post_attention_layernorm(residual_BSD.to(dtype)), previous_TR, routing)
        return self.post_mlp_residual_scale(routed_BSD, residual_BSD), state_TR


class Trunk(nn.Module):
    """Embedding, blocks and final norm."""

    def __init__(self, config: ZayaConfig, numerics: Numerics) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.input_hidden_states_scale = nn.Parameter(torch.empty(config.hidden_size))
        self.input_hidden_states_bias = nn.Parameter(torch.empty(config.hidden_size))
        self.layers = nn.ModuleList(Block(config, layer, numerics) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, numerics)


class ZayaForCausalLM(nn.Module):
    """A ZAYA model, written as if for one device. Weights are empty until initialised or loaded.

    `numerics` is the profile of float32 operations, see `openzaya.model.numerics`.
    """

    def __init__(self, config: ZayaConfig, numerics: Numerics = HF) -> None:
        super().__init__()
        self.config, self.numerics = config, numerics
        self.model = Trunk(config, numerics)
        # With tied embeddings the head is the embedding itself, and no file carries it.
        self.lm_head = None if config.tie_word_embeddings else nn.Linear(config.hidden_size, config.vocab_size, False)

    def hidden(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache: Cache | None = None,
        routing: Routing | None = None,
        context: Context | None = None,
    ) -> Tensor:
        """Final normed hidden states, (B, S) -> (B, S, D); with a `context`, of its part of the rows alone."""
        placement = place(self.config, input_ids, attention_mask, document_ids, cache, context)
        if context is not None:
            input_ids = input_ids[:, context.part(input_ids.shape[1])]
        trunk = self.model
        embedded_BSD = trunk.embed_tokens(input_ids)
        residual_BSD = ((embedded_BSD + trunk.input_hidden_states_bias) * trunk.input_hidden_states_scale).float()
        state_TR: Tensor | None = None
        for block in trunk.layers:
            residual_BSD, state_TR = block(residual_BSD, state_TR, placement, cache, routing)
        return trunk.norm(residual_BSD.to(trunk.norm.weight.dtype))

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token from final hidden states, (..., D) -> (..., V), float32."""
        head = self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight
        return F.linear(self.numerics.up(hidden), self.numerics.up(head)).float()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache: Cache | None = None,
        routing: Routing | None = None,
    ) -> Tensor:
        """Logits of every place, (B, S) -> (B, S, V), float32.

        `attention_mask` is 0 at padding (left or right), `document_ids` marks documents packed into a row; attention,
        convolutions and the delayed value begin anew at each. With a `cache` the input continues what it holds.
        Raises ValueError where these exclude each other.
        """
        return self.logits(self.hidden(input_ids, attention_mask, document_ids, cache, routing))

    @torch.inference_mode()
    def decode(self, input_ids: Tensor, cache: DecodeCache) -> Tensor:
        """Logits after the last of `input_ids` (B, S), continuing `cache` and moving it on: (B, V)."""
        hidden_BSD = self.hidden(input_ids, cache=cache)
        cache.advance(input_ids.shape[1])
        return self.logits(hidden_BSD[:, -1])
