"""Floating-point operations of training, counted from the shape; a multiply and an add are two.

Matrix products only: what norms, rotations, activations and the depthwise convolution add is below 1 % of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from openzaya.model.config import ZayaConfig


@dataclass(frozen=True, slots=True)
class TokenFlops:
    """One token's forward pass, by part."""

    projections: float
    """Of attention: queries, keys, values, output."""
    convolutions: float
    """The head-wise one."""
    attention: float
    """Scores and mixing; grows with the keys that the token sees."""
    router: float
    experts: float
    """One a layer."""
    head: float

    @property
    def blocks(self) -> float:
        """All but the head: what activation checkpointing computes twice."""
        return self.projections + self.convolutions + self.attention + self.router + self.experts

    @property
    def total(self) -> float:
        return self.blocks + self.head


def mean_keys(length: int, window: int | None = None) -> float:
    """Keys that a token of a causal row of `length` sees on average, the token itself counted."""
    full = length if window is None else min(length, window)
    return full * (length - (full - 1) / 2) / length


def forward_flops(config: ZayaConfig, length: int) -> TokenFlops:
    """One token's forward in a row of `length` tokens that is one document; packed documents need less attention."""
    layers, hidden = config.num_hidden_layers, config.hidden_size
    heads = config.num_attention_heads + config.num_key_value_heads
    keys = sum(mean_keys(length, config.window(layer)) for layer in range(layers))
    width, classes = config.router_hidden_size, config.num_experts + 1
    return TokenFlops(
        projections=2.0 * layers * hidden * (2 * config.query_size + 2 * config.key_value_size),
        convolutions=2.0 * layers * heads * config.cca_time1 * config.head_dim**2,
        attention=4.0 * config.query_size * keys,
        router=2.0 * layers * (hidden * width + 2 * width**2 + width * classes),
        experts=2.0 * layers * 3 * hidden * config.moe_intermediate_size,
        head=2.0 * hidden * config.vocab_size,
    )


def training_flops(forward: TokenFlops, *, checkpointing: bool) -> float:
    """One token's forward and backward as they are computed.

    A backward is twice a forward. Checkpointing computes the blocks' forward once more; that is work, but no progress:
    `model_flops` leaves it out.
    """
    return model_flops(forward) + (forward.blocks if checkpointing else 0.0)


def model_flops(forward: TokenFlops) -> float:
    """One token's forward and backward without anything done twice: what utilisation is a share of."""
    return 3 * forward.total
