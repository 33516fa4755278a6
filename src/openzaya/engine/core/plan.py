"""A quantised model as the core reads it: pointers and sizes of every layer, checked and written down once.

L layers, D hidden, H query heads, K key-value heads, C head channels, Z = (H + K) * C convolution channels, W router
width, E experts, F expert width, R rotary channels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from openzaya.engine.core import library
from openzaya.engine.core.products import PackedMatrix, address
from openzaya.engine.state import PAGE, StatePool
from openzaya.model.config import ZayaConfig

_EMBEDDING = "model.embed_tokens.weight"
_HEAD = "lm_head.weight"
_LANES = 16
KV_TYPES = {torch.float32: 0, torch.float16: 1, torch.int8: 2}
"""The types that keys and values may be kept in, and what the core calls them."""
_ROTARY_BLOCK = 4096
_GROUPED = "qkv_proj.conv_qk_grouped.weight"
_ROUTER = ("down_proj.weight", "router_mlp.fc1.weight", "router_mlp.fc2.weight", "router_mlp.out_proj.weight")
_MOST_CHANNELS, _MOST_TAPS, _MOST_GROUP, _MOST_ROUTER, _MOST_CLASSES, _MOST_PAGE = 256, 4, 16, 1024, 256, 64


@dataclass(frozen=True, slots=True, eq=False)
class QuantisedWeights:
    """A model with quantised matrices. q_proj, k_proj, v_proj_current and v_proj_delayed are one matrix, in this order,
    called `model.layers.{layer}.self_attn.qkv_proj.weight`; gate and up of the experts alternate by blocks of rows."""

    config: ZayaConfig
    matrices: Mapping[str, PackedMatrix]
    plain: Mapping[str, np.ndarray]
    """Every other tensor by its native name, float32."""


class Plan:
    """What a step is told about the model; it holds on to every array whose address it names."""

    def __init__(self, weights: QuantisedWeights, pool: StatePool) -> None:
        """Raises ValueError for a shape that the core cannot run, and for a tensor that is missing or misshapen."""
        config = weights.config
        if message := refusal(config):
            raise ValueError(f"{message}; use the torch executor")
        tensors = Tensors(weights)
        embedding = tensors.matrix(_EMBEDDING, config.vocab_size, config.hidden_size)
        head = embedding if config.tie_word_embeddings else tensors.matrix(_HEAD, config.vocab_size, config.hidden_size)
        self._layers = (library.Layer * config.num_hidden_layers)()
        for number in range(config.num_hidden_layers):
            self._layers[number] = _layer(tensors, number, pool)
        width = config.hidden_size
        self.stored = library.Model(
            layer_count=config.num_hidden_layers, hidden=width, epsilon=config.rms_norm_eps,
            skip_is_identity=config.skip_semantics == "identity", layers=self._layers, embedding=embedding, head=head,
            embedding_bias=tensors.address("model.input_hidden_states_bias", width),
            embedding_scale=tensors.address("model.input_hidden_states_scale", width),
            first=residual(tensors, "model.layers.0.input_layernorm.weight"),
        )  # fmt: skip
        self.vocabulary = config.vocab_size
        self._kept = tensors, pool
        self._kinds = config.layer_types
        self._rotary = {kind: Rotary(config, kind) for kind in set(config.layer_types)}

    def reach(self, position: int) -> None:
        """Make sure that the rotary tables go up to `position`."""
        grown = [rotary.reach(position) for rotary in self._rotary.values()]
        if any(grown):
            for layer, kind in zip(self._layers, self._kinds):
                layer.attention.cosine = address(self._rotary[kind].cosine)
                layer.attention.sine = address(self._rotary[kind].sine)


def refusal(config: ZayaConfig) -> str | None:
    """Why the core cannot run a model of this shape, in one sentence; None where it can."""
    for name, value, most in (
        ("head_dim", config.head_dim, _MOST_CHANNELS),
        ("cca_time0", config.cca_time0, _MOST_TAPS),
        ("cca_time1", config.cca_time1, _MOST_TAPS),
        ("query heads a key-value head", config.num_attention_heads // config.num_key_value_heads, _MOST_GROUP),
        ("router_hidden_size", config.router_hidden_size, _MOST_ROUTER),
        ("num_experts", config.num_experts, _MOST_CLASSES - 1),
        ("tokens of a page", PAGE, _MOST_PAGE),
    ):
        if value > most:
            return f"{name} is {value}, and the compiled core goes up to {most}"
    return None


@dataclass(frozen=True, slots=True, eq=False)
class Tensors:
    """Tensors by name, of the shapes that are asked for, and alive as long as this is."""

    weights: QuantisedWeights
    _kept: list[np.ndarray] = field(default_factory=list)

    def __contains__(self, name: str) -> bool:
        return name in self.weights.plain

    def plain(self, name: str, *shape: int) -> np.ndarray:
        """The float32 tensor `name`. Raises ValueError where it is missing or not of `shape`."""
        if name not in self.weights.plain:
            raise ValueError(f"the quantised weights have no tensor {name}; quantise the checkpoint anew")
        array = self.weights.plain[name]
        if array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}; the model's configuration says {shape}")
        return np.ascontiguousarray(array, dtype=np.float32)

    def kept(self, array: np.ndarray) -> int:
        """The address of an array that is kept alive."""
        self._kept.append(array)
        return address(array)

    def numbers(self, array: np.ndarray, *, bfloat16: bool) -> int:
        """The address of float32 numbers, or of their upper halves, two sixteens in sixteen words."""
        array = np.ascontiguousarray(array)
        if bfloat16:
            first_second = array.view(np.uint32).reshape(-1, 2, _LANES)
            array = first_second[:, 0] >> 16 | first_second[:, 1] & 0xFFFF0000
        return self.kept(array)

    def address(self, name: str, *shape: int) -> int:
        """The address of the float32 tensor `name`. Raises ValueError as `plain` does."""
        return self.kept(self.plain(name, *shape))

    def matrix(self, name: str, rows: int, columns: int, experts: int = 1) -> library.Matrix:
        """The quantised matrix `name`. Raises ValueError where it is missing or of another shape."""
        matrix = self.weights.matrices.get(name)
        if matrix is None:
            raise ValueError(f"the quantised weights have no matrix {name}; quantise the checkpoint anew")
        if (matrix.experts, matrix.rows, matrix.columns) != (experts, rows, columns):
            raise ValueError(
                f"{name} is {matrix.experts} x {matrix.rows} x {matrix.columns}; the model's configuration says "
                f"{experts} x {rows} x {columns}"
            )
        return matrix.stored()


def is_bfloat16(array: np.ndarray, row: int) -> bool:
    """Whether float32 numbers, `row` of which are read in one go, lose nothing as bfloat16 in the core's layout.

    Those of a bfloat16 checkpoint have nothing in their lower halves.
    """
    return row % (2 * _LANES) == 0 and not (array.view(np.uint32) & 0xFFFF).any()


def _layer(tensors: Tensors, layer: int, pool: StatePool) -> library.Layer:
    config, name = tensors.weights.config, f"model.layers.{layer}."
    hidden, width, experts = config.hidden_size, config.moe_intermediate_size, config.num_experts
    last = layer + 1 == config.num_hidden_layers
    following = "model.norm.weight" if last else f"model.layers.{layer + 1}.input_layernorm.weight"
    gate_up = tensors.matrix(f"{name}mlp.experts.gate_up_proj", 2 * width, hidden, experts)
    if width % (32 if gate_up.bits == 4 else 16):
        raise ValueError(f"moe_intermediate_size is {width}; gate and up in turn need whole blocks of rows")
    return library.Layer(
        attention(tensors, layer, pool),
        router(tensors, layer),
        residual(tensors, f"{name}post_attention_layernorm.weight", f"{name}post_attention_residual_scale."),
        residual(tensors, following, f"{name}post_mlp_residual_scale."),
        tensors.matrix(f"{name}self_attn.qkv_proj.weight", config.query_size + 2 * config.key_value_size, hidden),
        tensors.matrix(f"{name}self_attn.o_proj.weight", hidden, config.query_size),
        gate_up,
        tensors.matrix(f"{name}mlp.experts.down_proj", hidden, width, experts),
    )


def residual(tensors: Tensors, norm: str, scales: str | None = None) -> library.Residual:
    """Where a block's output joins the stream: the name of the norm that follows, and what the names of the four
    vectors of the residual scaling begin with."""
    hidden = tensors.weights.config.hidden_size
    stored = library.Residual(norm=tensors.address(norm, hidden))
    if scales is not None:
        for ours, theirs in (("output", "hidden_states"), ("residual", "residual")):
            for end in ("bias", "scale"):
                setattr(stored, f"{ours}_{end}", tensors.address(f"{scales}{theirs}_{end}", hidden))
    return stored


def attention(tensors: Tensors, layer: int, pool: StatePool) -> library.Attention:
    """Attention of one layer without its projections, its state in `pool`; the rotary tables are still to be set."""
    config, name = tensors.weights.config, f"model.layers.{layer}.self_attn."
    heads, channels, taps0, taps1 = (
        config.num_attention_heads + config.num_key_value_heads, config.head_dim, config.cca_time0, config.cca_time1,
    )  # fmt: skip
    depthwise = tensors.plain(f"{name}qkv_proj.conv_qk_depthwise.weight", heads * channels, 1, taps0)
    grouped = tensors.plain(f"{name}{_GROUPED}", heads * channels, channels, taps1)
    bfloat16 = is_bfloat16(grouped, taps1 * channels * _LANES)
    grouped = grouped.reshape(heads, channels, channels, taps1).transpose(0, 3, 2, 1)  # (heads, tap, in, out)
    bias = tensors.plain(f"{name}qkv_proj.conv_qk_grouped.bias", heads * channels).reshape(heads, channels)
    padding = (0, -channels % _LANES)
    grouped = np.pad(grouped, [(0, 0)] * 3 + [padding]).reshape(heads, taps1 * channels, -1, _LANES)
    kind = config.layer_types[layer]
    return library.Attention(
        config.num_attention_heads, config.num_key_value_heads, channels, taps0, taps1, config.rotary_dim(kind), PAGE,
        KV_TYPES[pool.keys.dtype], bfloat16, config.window(layer) or 0,
        depthwise=tensors.kept(np.ascontiguousarray(depthwise[:, 0].T)),
        depthwise_bias=tensors.address(f"{name}qkv_proj.conv_qk_depthwise.bias", heads * channels),
        # By sixteens of channels, each of which is then read from its start to its end.
        grouped=tensors.numbers(grouped.transpose(0, 2, 1, 3), bfloat16=bfloat16),
        grouped_bias=tensors.kept(np.ascontiguousarray(np.pad(bias, [(0, 0), padding]))),
        temperature=tensors.address(f"{name}qk_norm.temp", config.num_key_value_heads),
        keys=pool.keys[layer].data_ptr(),
        values=pool.values[layer].data_ptr(),
        columns=pool.columns[layer].data_ptr(),
        delayed=pool.delayed[layer].data_ptr(),
    )  # fmt: skip


def router(tensors: Tensors, layer: int) -> library.Router:
    """The MLP router of one layer."""
    config, name = tensors.weights.config, f"model.layers.{layer}.mlp.gate."
    mlp, width, classes = f"{name}router_mlp.", config.router_hidden_size, config.num_experts + 1
    depth_scale = f"{name}router_states_scale"
    shapes = (width, config.hidden_size), (width, width), (width, width), (classes, width)
    matrices = [tensors.plain(f"{name}{end}", *shape) for end, shape in zip(_ROUTER, shapes)]
    bfloat16 = all(is_bfloat16(matrix, matrix.shape[1]) for matrix in matrices)
    return library.Router(
        config.hidden_size, width, classes, bfloat16, config.rms_norm_eps,
        *(tensors.numbers(matrix, bfloat16=bfloat16) for matrix in matrices),
        down_bias=tensors.address(f"{name}down_proj.bias", width),
        depth_scale=tensors.address(depth_scale, width) if depth_scale in tensors else None,
        norm=tensors.address(f"{mlp}norm.weight", width),
        fc1_bias=tensors.address(f"{mlp}fc1.bias", width),
        fc2_bias=tensors.address(f"{mlp}fc2.bias", width),
        balancing=tensors.address(f"{name}balancing_biases", classes),
    )  # fmt: skip


class Rotary:
    """Cosines and sines by position, worked out a block of positions at a time, so that none depends on a batch."""

    def __init__(self, config: ZayaConfig, kind: str) -> None:
        channels = config.rotary_dim(kind)
        exponent = torch.arange(0, channels, 2, dtype=torch.float32) / channels
        self._frequency = 1.0 / (config.rope_parameters[kind].rope_theta ** exponent)
        self.cosine = self.sine = np.empty((0, channels), dtype=np.float32)
        """(positions, R)"""

    def reach(self, position: int) -> bool:
        """Go up to `position` at least; whether the tables had to grow, and so are elsewhere now."""
        if position < len(self.cosine):
            return False
        while len(self.cosine) <= position:
            start = len(self.cosine)
            positions = torch.arange(start, start + _ROTARY_BLOCK, dtype=torch.float32)
            angle = (positions[:, None] * self._frequency).repeat(1, 2)
            self.cosine = np.concatenate([self.cosine, angle.cos().numpy()])
            self.sine = np.concatenate([self.sine, angle.sin().numpy()])
        return True
