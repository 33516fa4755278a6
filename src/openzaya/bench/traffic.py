"""What a decoding step cannot do without reading, in bytes. Arithmetic only.

Each token reads the attention of every layer, its router and convolutions, one expert a layer, the head, and its own
keys and values. All but the last are read once for all rows of a step; of the experts those are read that at least one
row goes to.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import prod

from openzaya.model.config import ZayaConfig
from openzaya.model.quantised.matrices import Matrix, matrices, plain_tensors
from openzaya.model.quantised.scheme import Scheme

_BFLOAT16_IN_CORE = (
    "conv_qk_grouped.weight", "gate.down_proj.weight", "router_mlp.fc1.weight", "router_mlp.fc2.weight",
    "router_mlp.out_proj.weight",
)  # fmt: skip
"""What the core keeps as bfloat16 where the checkpoint has it so; everything else that is small is float32."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Bytes of a model's weights by who needs them."""

    attention: int
    """Projections of all layers."""
    expert: int
    """One expert of one layer."""
    head: int
    small: int
    """Everything that is not quantised: routers, convolutions, norms, scales."""
    embedding: int
    """Where it is not the head as well; a step reads a row a token of it, which is not counted."""

    def total(self, config: ZayaConfig) -> int:
        """All weights in memory."""
        experts = self.expert * config.num_experts * config.num_hidden_layers
        return self.attention + experts + self.head + self.small + self.embedding


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that one step must read."""

    attention: float
    experts: float
    head: float
    small: float
    keys_and_values: float

    @property
    def total(self) -> float:
        return sum(asdict(self).values())


def weights_of(config: ZayaConfig, scheme: Scheme | None, item: int, small: int | None = None) -> Weights:
    """Bytes of the weights in `scheme`, or as plain numbers of `item` bytes where it is None.

    What no scheme quantises takes `small` bytes in all (None: `item` a number). Raises ValueError where the scheme
    cannot hold the shape.
    """

    def size(matrix: Matrix) -> int:
        if scheme is None:
            return (matrix.experts or 1) * matrix.rows * matrix.columns * item
        scale_item = 2 if scheme.scale_type == "F16" else 4
        return prod(matrix.codes_shape(scheme)) + prod(matrix.scales_shape(scheme)) * scale_item

    def of(*ends: str) -> int:
        return sum(size(matrix) for matrix in matrices(config) if matrix.name.endswith(ends))

    embedding, head = of("embed_tokens.weight"), of("lm_head.weight")
    if small is None:
        small = sum(tensor.elements * (4 if tensor.float32 else item) for tensor in plain_tensors(config))
    return Weights(
        attention=of("qkv_proj.weight", "o_proj.weight"),
        expert=of("gate_up_proj", "mlp.experts.down_proj") // (config.num_experts * config.num_hidden_layers),
        head=head or embedding,
        small=small,
        embedding=embedding if head else 0,
    )


def small_in_core(config: ZayaConfig) -> int:
    """Bytes in which the core keeps what is not quantised."""
    halves = _BFLOAT16_IN_CORE if config.dtype == "bfloat16" else ()
    return sum(
        tensor.elements * (2 if tensor.native.endswith(halves) and not tensor.float32 else 4)
        for tensor in plain_tensors(config)
    )


def expected_experts(config: ZayaConfig, rows: int) -> float:
    """Experts that a step of `rows` reads in all layers, were every one as likely for every row."""
    experts = config.num_experts
    return config.num_hidden_layers * experts * (1 - (1 - 1 / experts) ** rows)


def step_traffic(
    config: ZayaConfig, weights: Weights, *, rows: int, context: int, experts: float, vector_bytes: int
) -> Traffic:
    """Bytes of a step of `rows`, each after `context` tokens of its own, that reads `experts` experts in all layers.

    `vector_bytes` are those of one head's key, or of its value, for one token.
    """
    windows = (config.window(layer) for layer in range(config.num_hidden_layers))
    seen = sum(context if window is None else min(context, window) for window in windows)
    return Traffic(
        attention=weights.attention,
        experts=experts * weights.expert,
        head=weights.head,
        small=weights.small,
        keys_and_values=2 * rows * seen * config.num_key_value_heads * vector_bytes,
    )
