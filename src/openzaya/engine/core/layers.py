"""A layer of the model beside its products, in the compiled core: residual stream, attention, router, all in float32.

Every function works on the tokens of several sequences, one after the other. What a token gets depends on its own
sequence alone and is added up in an order that its position fixes, so that no bit depends on how tokens are batched,
chunked or shared.

T tokens, Q sequences, D hidden, H query heads, K key-value heads, C head channels, Z = (H + K) * C convolution
channels, V = K * C / 2, P earlier columns, R rotary channels, U slots, L layers, N pages, W router width, E experts.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from openzaya.engine.core import library
from openzaya.engine.core.products import Core
from openzaya.model.config import ZayaConfig

SECTION = 32
"""Pages whose attention is added up together (OZ_SECTION)."""
_LANES = 16
_MOST_CHANNELS, _MOST_TAPS, _MOST_GROUP, _MOST_ROUTER, _MOST_CLASSES, _MOST_PAGE = 256, 4, 16, 1024, 256, 64


def refusal(config: ZayaConfig, page_tokens: int) -> str | None:
    """Why the core cannot run a model of this shape, in one sentence; None where it can."""
    for name, value, most in (
        ("head_dim", config.head_dim, _MOST_CHANNELS),
        ("cca_time0", config.cca_time0, _MOST_TAPS),
        ("cca_time1", config.cca_time1, _MOST_TAPS),
        ("query heads a key-value head", config.num_attention_heads // config.num_key_value_heads, _MOST_GROUP),
        ("router_hidden_size", config.router_hidden_size, _MOST_ROUTER),
        ("num_experts", config.num_experts, _MOST_CLASSES - 1),
        ("tokens of a page", page_tokens, _MOST_PAGE),
    ):
        if value > most:
            return f"{name} is {value}, and the compiled core goes up to {most}; use the torch executor"
    return None


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Where the tokens of a step stand."""

    sequence_of_T: np.ndarray
    firsts_Q: np.ndarray
    """First token of each sequence, and the number of all tokens after them."""
    slots_Q: np.ndarray
    positions_T: np.ndarray
    tables: np.ndarray
    """Pages of each slot (U, pages a slot)."""
    order_T: np.ndarray
    """The tokens, those that share pages being neighbours."""
    pages: int
    """Pages up to the furthest token."""

    @classmethod
    def of(
        cls, slots_Q: np.ndarray, counts_Q: np.ndarray, starts_Q: np.ndarray, tables: np.ndarray, page: int
    ) -> Batch:
        """`counts_Q` new tokens follow the `starts_Q` first ones of each slot; `page` is the tokens of a page."""
        sequence_of_T = np.repeat(np.arange(len(slots_Q), dtype=np.int32), counts_Q)
        firsts_Q = np.zeros(len(slots_Q) + 1, dtype=np.int32)
        np.cumsum(counts_Q, out=firsts_Q[1:])
        positions_T = np.arange(firsts_Q[-1]) - firsts_Q[sequence_of_T] + starts_Q[sequence_of_T]
        pages = int(positions_T.max()) // page + 1
        # By their first pages, which is where sequences of one prompt are alike; a sequence's own tokens stay together.
        held_Q = tables[slots_Q, : min(pages, 8)]
        rank_Q = np.empty(len(slots_Q), dtype=np.int64)
        rank_Q[np.lexsort(held_Q.T[::-1])] = np.arange(len(slots_Q))
        order_T = np.argsort(rank_Q[sequence_of_T], kind="stable").astype(np.int32)
        return cls(
            sequence_of_T, firsts_Q, slots_Q.astype(np.int32), positions_T.astype(np.int64), tables, order_T, pages
        )

    @property
    def tokens(self) -> int:
        return len(self.positions_T)

    def stored(self) -> library.Batch:
        return library.Batch(
            self.tokens, len(self.slots_Q), self.tables.shape[1], address(self.sequence_of_T), address(self.firsts_Q),
            address(self.slots_Q), address(self.positions_T), address(self.tables),
        )  # fmt: skip


class Attention:
    """Compressed convolutional attention of one layer, without its projections."""

    def __init__(
        self,
        config: ZayaConfig,
        layer: int,
        plain: Mapping[str, np.ndarray],
        state: Mapping[str, np.ndarray],
        page: int,
    ) -> None:
        """`plain` are the layer's float32 tensors by their names under `self_attn.`; `state` holds `keys` and `values`
        (N, K, page, C), `columns` (U, P, Z) and `delayed` (U, V) of the layer, float32."""
        heads, channels = config.num_attention_heads + config.num_key_value_heads, config.head_dim
        padding = -channels % _LANES
        self.config, self.window = config, config.window(layer) or 0
        self.kind = config.layer_types[layer]
        grouped = plain["qkv_proj.conv_qk_grouped.weight"].reshape(heads, channels, channels, config.cca_time1)
        bias = plain["qkv_proj.conv_qk_grouped.bias"].reshape(heads, channels)
        self._kept = {
            "depthwise": np.ascontiguousarray(plain["qkv_proj.conv_qk_depthwise.weight"][:, 0].T),
            "depthwise_bias": plain["qkv_proj.conv_qk_depthwise.bias"],
            # (heads, tap, in, out): the core reads outputs side by side.
            "grouped": np.ascontiguousarray(np.pad(grouped.transpose(0, 3, 2, 1), [(0, 0)] * 3 + [(0, padding)])),
            "grouped_bias": np.ascontiguousarray(np.pad(bias, [(0, 0), (0, padding)])),
            "temperature": plain["qk_norm.temp"],
            **state,
        }
        self._stored = library.Attention(
            config.num_attention_heads, config.num_key_value_heads, channels, config.cca_time0, config.cca_time1,
            config.rotary_dim(self.kind), page, **addresses(self._kept),
        )  # fmt: skip

    def __call__(
        self, core: Core, batch: Batch, projected: np.ndarray, cosine_TR: np.ndarray, sine_TR: np.ndarray
    ) -> np.ndarray:
        """Attention's output (T, H * C) from `projected` (T, Z + 2 V): queries, keys, values, delayed values.

        Stores keys, values and what the next tokens need.
        """
        queries = np.empty((batch.tokens, self.config.query_size), dtype=np.float32)
        step = library.CCA(
            address(projected), projected.shape[1], address(cosine_TR), address(sine_TR), address(queries)
        )
        core.call("oz_convolve", self._stored, batch.stored(), step)
        return self.attend(core, batch, queries)

    def attend(self, core: Core, batch: Batch, queries: np.ndarray) -> np.ndarray:
        """Softmax attention (T, H * C) of ready queries (T, H * C) to the keys and values stored up to each token."""
        heads, sections = self.config.num_attention_heads, -(-batch.pages // SECTION)
        running = np.empty(batch.tokens * sections * heads * (self.config.head_dim + 2), dtype=np.float32)
        mixed = np.empty_like(queries)
        core.call(
            "oz_attend", self._stored, batch.stored(), address(queries), self.window, address(batch.order_T),
            address(running), address(mixed),
        )  # fmt: skip
        return mixed


class Router:
    """The MLP router of one layer."""

    def __init__(self, config: ZayaConfig, plain: Mapping[str, np.ndarray]) -> None:
        """`plain` are the layer's float32 tensors by their names under `mlp.gate.`."""
        mlp = "router_mlp."
        self._kept = {
            "down": plain["down_proj.weight"],
            "down_bias": plain["down_proj.bias"],
            "norm": plain[mlp + "norm.weight"],
            "fc1": plain[mlp + "fc1.weight"],
            "fc1_bias": plain[mlp + "fc1.bias"],
            "fc2": plain[mlp + "fc2.weight"],
            "fc2_bias": plain[mlp + "fc2.bias"],
            "out": plain[mlp + "out_proj.weight"],
            "balancing": plain["balancing_biases"],
        }
        if "router_states_scale" in plain:
            self._kept["depth_scale"] = plain["router_states_scale"]
        self._stored = library.Router(
            config.hidden_size, config.router_hidden_size, config.num_experts + 1, config.rms_norm_eps,
            **addresses(self._kept),
        )  # fmt: skip

    def __call__(self, core: Core, x_TD: np.ndarray, states_TW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The class of each token, int32 (T), and its probability (T); `states_TW` become those of this layer."""
        chosen_T, weights_T = np.empty(len(x_TD), dtype=np.int32), np.empty(len(x_TD), dtype=np.float32)
        routing = library.Routing(len(x_TD), address(x_TD), address(states_TW), address(chosen_T), address(weights_T))
        core.call("oz_route", self._stored, routing)
        return chosen_T, weights_T


class Merge:
    """Merges a block's output into the residual stream and norms the sum for the next block."""

    def __init__(self, norm_D: np.ndarray, epsilon: float, scales: Mapping[str, np.ndarray] | None = None) -> None:
        """`scales` are the four vectors of the residual scaling, by their names in a checkpoint."""
        self._norm_D, self._epsilon = norm_D, epsilon
        self._scales = {} if scales is None else {
            f"{ours}_{end}": scales[f"{theirs}_{end}"]
            for ours, theirs in (("output", "hidden_states"), ("residual", "residual"))
            for end in ("scale", "bias")
        }  # fmt: skip

    def __call__(
        self,
        core: Core,
        residual_TD: np.ndarray,
        output_TD: np.ndarray | None = None,
        weights_T: np.ndarray | None = None,
    ) -> np.ndarray:
        """The normed residual (T, D) after `output_TD`, each token times its weight, is merged into `residual_TD`."""
        normed_TD = np.empty_like(residual_TD)
        given = {"output": output_TD, "output_weights": weights_T, **self._scales}
        merge = library.Merge(
            *residual_TD.shape, residual=address(residual_TD), norm=address(self._norm_D), normed=address(normed_TD),
            epsilon=self._epsilon, **addresses({name: array for name, array in given.items() if array is not None}),
        )  # fmt: skip
        core.call("oz_merge_norm", merge)
        return normed_TD


def address(array: np.ndarray) -> int:
    """Where a contiguous array begins."""
    assert array.flags.c_contiguous
    return array.ctypes.data


def addresses(arrays: Mapping[str, np.ndarray]) -> dict[str, int | ctypes.c_void_p]:
    return {name: address(array) for name, array in arrays.items()}
