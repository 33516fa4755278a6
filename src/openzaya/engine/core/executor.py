"""One more executor behind the engine's seam: steps over quantised weights in the compiled core.

Decoding tokens and prompt chunks are one batch and go through the same products; what a token computes depends on its
own sequence alone, so a reply has the same bits in any batch, at any chunk length, forked or computed anew.

T tokens, D hidden, V vocabulary, R rotary channels, Q sequences.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from openzaya.engine.core.layers import Attention, Batch, Merge, Router, refusal
from openzaya.engine.core.products import Core, Grouping, PackedMatrix
from openzaya.engine.executor import StepBatch, StepResult
from openzaya.engine.state import PAGE, StatePool
from openzaya.model.config import ZayaConfig

_EMBEDDING = "model.embed_tokens.weight"
_HEAD = "lm_head.weight"


@dataclass(frozen=True, slots=True, eq=False)
class QuantisedWeights:
    """A model with quantised matrices. q_proj, k_proj, v_proj_current and v_proj_delayed are one matrix, in this order,
    called `model.layers.{layer}.self_attn.qkv_proj.weight`; gate and up of the experts alternate by blocks of rows."""

    config: ZayaConfig
    matrices: Mapping[str, PackedMatrix]
    plain: Mapping[str, np.ndarray]
    """Every other tensor by its native name, float32."""

    def under(self, prefix: str) -> dict[str, np.ndarray]:
        """The plain tensors whose names begin with `prefix`, by the rest of their names, contiguous float32."""
        return {
            name.removeprefix(prefix): np.ascontiguousarray(array, dtype=np.float32)
            for name, array in self.plain.items()
            if name.startswith(prefix)
        }


class CompiledExecutor:
    """Steps in the compiled core; weights stay where they are, in memory or in a mapped file."""

    def __init__(self, weights: QuantisedWeights, pool: StatePool, core: Core) -> None:
        """Raises ValueError for a pool that is not of float32 on the CPU, and for a shape that the core cannot run."""
        if pool.keys.dtype != torch.float32 or pool.columns.dtype != torch.float32 or pool.device.type != "cpu":
            raise ValueError(
                f"the pool keeps {pool.keys.dtype} and {pool.columns.dtype} on {pool.device}; the compiled core needs "
                "float32 on the CPU"
            )
        config = weights.config
        if message := refusal(config, PAGE):
            raise ValueError(message)
        self.pool, self._core = pool, core
        self._embedding = _Embedding(weights)
        self._layers = [_Layer(weights, layer, pool) for layer in range(config.num_hidden_layers)]
        self._head = weights.matrices[_EMBEDDING if config.tie_word_embeddings else _HEAD]
        self._rotary = {kind: _Rotary(config, kind) for kind in set(config.layer_types)}
        self._state_width = config.router_hidden_size

    def step(self, batch: StepBatch) -> StepResult:
        decoding, chunks = len(batch.decode_slots), batch.chunks
        if not decoding and not chunks:
            return StepResult(None, [])
        slots_Q = np.array([*batch.decode_slots, *(chunk.slot for chunk in chunks)], dtype=np.int64)
        counts_Q = np.array([1] * decoding + [len(chunk.ids) for chunk in chunks], dtype=np.int64)
        ids_T = np.concatenate([batch.decode_ids, *(chunk.ids for chunk in chunks)]).astype(np.int64)
        placed = Batch.of(slots_Q, counts_Q, self.pool.lengths[slots_Q], self.pool.tables, PAGE)
        normed_TD = self._hidden(ids_T, placed)
        self.pool.lengths[slots_Q] += counts_Q
        ends = [decoding + place for place, chunk in enumerate(chunks) if chunk.wants_logits]
        logits = self._logits(normed_TD[placed.firsts_Q[1:][[*range(decoding), *ends]] - 1])
        ending = iter(logits[decoding:])
        chunk_logits = [next(ending) if chunk.wants_logits else None for chunk in chunks]
        return StepResult(logits[:decoding] if decoding else None, chunk_logits)

    def _hidden(self, ids_T: np.ndarray, placed: Batch) -> np.ndarray:
        """Final normed hidden states (T, D)."""
        rotary = {kind: table.at(placed.positions_T) for kind, table in self._rotary.items()}
        residual_TD = self._embedding(ids_T)
        states_TW = np.zeros((len(ids_T), self._state_width), dtype=np.float32)
        normed_TD = self._layers[0].first_norm(self._core, residual_TD)
        for layer in self._layers:
            normed_TD = layer(self._core, placed, rotary[layer.attention.kind], normed_TD, residual_TD, states_TW)
        return normed_TD

    def _logits(self, normed_TD: np.ndarray) -> Tensor:
        quantised = self._core.quantise(np.ascontiguousarray(normed_TD), self._head.group)
        return torch.from_numpy(self._core.product(self._head, quantised))


class _Layer:
    """One layer: attention and experts, and the norm that the next layer (or the head) begins with."""

    def __init__(self, weights: QuantisedWeights, layer: int, pool: StatePool) -> None:
        config, name = weights.config, f"model.layers.{layer}."
        last = layer + 1 == config.num_hidden_layers
        plain = weights.under(name)
        following = weights.under("model.norm." if last else f"model.layers.{layer + 1}.input_layernorm.")["weight"]
        state = {
            "keys": pool.keys[layer].numpy(),
            "values": pool.values[layer].numpy(),
            "columns": pool.columns[layer].numpy(),
            "delayed": pool.delayed[layer].numpy(),
        }
        self.attention = Attention(config, layer, _under(plain, "self_attn."), state, PAGE)
        self.first_norm = Merge(plain["input_layernorm.weight"], config.rms_norm_eps)
        self._router = Router(config, _under(plain, "mlp.gate."))
        self._after_attention = Merge(
            plain["post_attention_layernorm.weight"],
            config.rms_norm_eps,
            _under(plain, "post_attention_residual_scale."),
        )
        self._after_experts = Merge(following, config.rms_norm_eps, _under(plain, "post_mlp_residual_scale."))
        self._qkv, self._o = (weights.matrices[f"{name}self_attn.{part}_proj.weight"] for part in ("qkv", "o"))
        self._gate_up, self._down = (weights.matrices[f"{name}mlp.experts.{part}_proj"] for part in ("gate_up", "down"))
        self._experts, self._skip_is_identity = config.num_experts, config.skip_semantics == "identity"

    def __call__(
        self,
        core: Core,
        placed: Batch,
        rotary: tuple[np.ndarray, np.ndarray],
        normed_TD: np.ndarray,
        residual_TD: np.ndarray,
        states_TW: np.ndarray,
    ) -> np.ndarray:
        """The normed input of what follows (T, D); residual and router states move on in place."""
        projected = core.product(self._qkv, core.quantise(normed_TD, self._qkv.group))
        mixed = self.attention(core, placed, projected, *rotary)
        output_TD = core.product(self._o, core.quantise(mixed, self._o.group))
        normed_TD = self._after_attention(core, residual_TD, output_TD)
        chosen_T, weights_T = self._router(core, normed_TD, states_TW)
        return self._after_experts(core, residual_TD, self._mixture(core, normed_TD, chosen_T), weights_T)

    def _mixture(self, core: Core, x_TD: np.ndarray, chosen_T: np.ndarray) -> np.ndarray:
        """Output of each token's expert; a token that skips gets nothing, or itself."""
        grouping = Grouping.of(chosen_T, self._experts)
        hidden_TF = core.product_swiglu(self._gate_up, core.quantise(x_TD, self._gate_up.group), grouping)
        output_TD = core.product(self._down, core.quantise(hidden_TF, self._down.group), grouping)
        if self._skip_is_identity:
            skipped_T = chosen_T == self._experts
            output_TD[skipped_T] = x_TD[skipped_T]
        return output_TD


class _Embedding:
    """Rows of the embedding, shifted and scaled: where the residual stream begins."""

    def __init__(self, weights: QuantisedWeights) -> None:
        plain = weights.under("model.input_hidden_states_")
        self._matrix, self._bias_D, self._scale_D = weights.matrices[_EMBEDDING], plain["bias"], plain["scale"]

    def __call__(self, ids_T: np.ndarray) -> np.ndarray:
        return (self._matrix.rows_at(ids_T) + self._bias_D) * self._scale_D


class _Rotary:
    """Cosines and sines by position, worked out a block of positions at a time, so that none depends on a batch."""

    _BLOCK = 4096

    def __init__(self, config: ZayaConfig, kind: str) -> None:
        channels = config.rotary_dim(kind)
        exponent = torch.arange(0, channels, 2, dtype=torch.float32) / channels
        self._frequency = 1.0 / (config.rope_parameters[kind].rope_theta ** exponent)
        self._cosine = self._sine = np.empty((0, channels), dtype=np.float32)

    def at(self, positions_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        while len(self._cosine) <= positions_T.max():
            start = len(self._cosine)
            positions = torch.arange(start, start + self._BLOCK, dtype=torch.float32)
            angle = (positions[:, None] * self._frequency).repeat(1, 2)
            self._cosine = np.concatenate([self._cosine, angle.cos().numpy()])
            self._sine = np.concatenate([self._sine, angle.sin().numpy()])
        return self._cosine[positions_T], self._sine[positions_T]


def _under(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
