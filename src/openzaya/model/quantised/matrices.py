"""Which tensors of a ZAYA are kept quantised, under which names, and every tensor that a container holds.

Quantised are the experts, the attention projections and the embedding with the head: 99.5 % of the 8B. Router,
convolutions, norms, scales and temperatures stay as they are: they are small, and a router that is off by little sends
a token to another expert altogether.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from openzaya.model.config import ZayaConfig
from openzaya.model.names import StoredTensor, expected_tensors
from openzaya.model.quantised.scheme import Scheme

_QKV = ("q_proj.weight", "k_proj.weight", "v_proj_current.weight", "v_proj_delayed.weight")


@dataclass(frozen=True, slots=True)
class Matrix:
    """One matrix of the container (or one an expert), and the native tensors whose rows it stacks."""

    name: str
    parts: tuple[StoredTensor, ...]
    experts: int | None
    rows: int
    columns: int
    interleaved: bool
    """Whether gate and up rows alternate by blocks."""

    @property
    def codes_name(self) -> str:
        return f"{self.name}.codes"

    @property
    def scales_name(self) -> str:
        return f"{self.name}.scales"

    def codes_shape(self, scheme: Scheme) -> tuple[int, ...]:
        return (*self._stack, *scheme.codes_shape(self.rows, self.columns))

    def scales_shape(self, scheme: Scheme) -> tuple[int, ...]:
        return (*self._stack, *scheme.scales_shape(self.rows, self.columns))

    @property
    def _stack(self) -> tuple[int, ...]:
        return () if self.experts is None else (self.experts,)

    def first_row(self, native: str) -> int:
        """Where the rows of one of the parts begin."""
        names = [part.native for part in self.parts]
        return sum(part.shape[0] for part in self.parts[: names.index(native)])


def matrices(config: ZayaConfig) -> list[Matrix]:
    """The quantised matrices of a ZAYA, in the order in which a forward reads them."""
    tensors = expected_tensors(config)
    return [_matrix(name, tuple(tensors[part] for part in parts)) for name, parts in _names(config)]


def plain_tensors(config: ZayaConfig) -> list[StoredTensor]:
    """The tensors that stay as they are."""
    quantised = {part.native for matrix in matrices(config) for part in matrix.parts}
    return [tensor for tensor in expected_tensors(config).values() if tensor.native not in quantised]


def check_shapes(config: ZayaConfig, scheme: Scheme) -> None:
    """Raises ValueError, naming the first matrix, where `scheme` cannot hold a ZAYA of these sizes."""
    for matrix in matrices(config):
        refusal = scheme.refusal(matrix.name, matrix.rows, matrix.columns, interleaved=matrix.interleaved)
        if refusal:
            raise ValueError(refusal)


def container_bytes(config: ZayaConfig, scheme: Scheme, plain_item: int) -> int:
    """Bytes of a container's tensors, where those that are not quantised have `plain_item` bytes a number."""
    scale_item = 2 if scheme.scale_type == "F16" else 4
    total = 0
    for matrix in matrices(config):
        total += prod(matrix.codes_shape(scheme)) + prod(matrix.scales_shape(scheme)) * scale_item
    return total + sum(tensor.elements * (4 if tensor.float32 else plain_item) for tensor in plain_tensors(config))


def _names(config: ZayaConfig) -> Iterator[tuple[str, tuple[str, ...]]]:
    yield "model.embed_tokens.weight", ("model.embed_tokens.weight",)
    for layer in range(config.num_hidden_layers):
        attention, experts = f"model.layers.{layer}.self_attn.", f"model.layers.{layer}.mlp.experts."
        # One product in place of four: the rows of a step are read once, and threads meet once.
        yield f"{attention}qkv_proj.weight", tuple(f"{attention}qkv_proj.{part}" for part in _QKV)
        for alone in (f"{attention}o_proj.weight", f"{experts}gate_up_proj", f"{experts}down_proj"):
            yield alone, (alone,)
    if not config.tie_word_embeddings:
        yield "lm_head.weight", ("lm_head.weight",)


def _matrix(name: str, parts: tuple[StoredTensor, ...]) -> Matrix:
    *stack, _rows, columns = parts[0].shape
    rows = sum(part.shape[-2] for part in parts)
    return Matrix(name, parts, stack[0] if stack else None, rows, columns, name.endswith("gate_up_proj"))
