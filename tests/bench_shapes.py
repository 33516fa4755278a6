"""Small shapes of random weights for the tests of benchmarks."""

from __future__ import annotations

from openzaya.model.config import NAMED_SHAPES

SMALL = NAMED_SHAPES["tiny"].with_(
    vocab_size=1000, hidden_size=64, num_hidden_layers=3, head_dim=16, num_experts=4, moe_intermediate_size=64,
    router_hidden_size=16, max_position_embeddings=256, dtype="bfloat16",
)  # fmt: skip
