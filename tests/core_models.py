"""Models whose weights are rounded and packed for the compiled core, from the rules of the layout alone."""

from __future__ import annotations

import numpy as np
import torch

import core_reference as reference
from engine_models import SMALL, small_model
from openzaya.engine.core.plan import QuantisedWeights

SHAPE = SMALL.with_(
    hidden_size=64, num_hidden_layers=3, head_dim=16, moe_intermediate_size=64, tie_word_embeddings=True,
    layer_types=("hybrid_sliding", "hybrid", "hybrid"), sliding_window=37,
)  # fmt: skip
QKV = ("q_proj.weight", "k_proj.weight", "v_proj_current.weight", "v_proj_delayed.weight")


def decided_model(config, skip_bias=0.0, effect=10):
    """A small model whose tokens go to many classes of its routers, the skip class among them, and to some `effect`."""
    model = small_model(config)
    with torch.no_grad():
        for block in model.model.layers:
            block.mlp.gate.balancing_biases.zero_()
            block.mlp.gate.balancing_biases[-1] = skip_bias
            block.mlp.gate.router_mlp.out_proj.weight.mul_(8)
            block.post_mlp_residual_scale.hidden_states_scale.mul_(effect)
    return model


def rounded(weight_NK, bits):
    """Integers, scales, and the float weights that they stand for."""
    grouped = weight_NK.reshape(len(weight_NK), -1, 32 if bits == 4 else weight_NK.shape[1])
    scales = np.abs(grouped).max(axis=2, keepdims=True) / (7 if bits == 4 else 127)
    scales = scales.astype(np.float16 if bits == 4 else np.float32)
    q = np.clip(np.rint(grouped / scales.astype(np.float32)), -7 if bits == 4 else -127, 7 if bits == 4 else 127)
    restored = (q * scales.astype(np.float32)).reshape(weight_NK.shape).astype(np.float32)
    return q.reshape(weight_NK.shape).astype(np.int32), scales[..., 0], restored


def quantised(model, bits):
    """The model's weights packed; the model itself is left with what they stand for."""
    tensors = dict(model.named_parameters())
    matrices = {}

    def pack(name, *parts, interleave=False):
        weights = [tensors[part].detach().numpy() for part in parts]
        stacked = np.concatenate(weights)[None] if weights[0].ndim == 2 else weights[0]
        rows = [rounded(matrix, bits) for matrix in stacked]
        q, scales, restored = (np.stack(values) for values in zip(*rows))
        ends = np.cumsum([len(weight) for weight in weights])[:-1]
        pieces = np.split(restored[0], ends) if weights[0].ndim == 2 else [restored]
        for part, piece in zip(parts, pieces):
            tensors[part].data.copy_(torch.from_numpy(piece))
        if interleave:
            block, half = (32 if bits == 4 else 16), q.shape[1] // 2
            q, scales = (
                np.stack([reference.interleaved(one[:half], one[half:], block) for one in values])
                for values in (q, scales)
            )
        packed = reference.packed(q, scales, bits)
        single = weights[0].ndim == 2
        matrices[name] = type(packed)(packed.codes[0], packed.scales[0], packed.rows) if single else packed

    pack("model.embed_tokens.weight", "model.embed_tokens.weight")
    if not model.config.tie_word_embeddings:
        pack("lm_head.weight", "lm_head.weight")
    for layer in range(model.config.num_hidden_layers):
        attention, experts = f"model.layers.{layer}.self_attn.", f"model.layers.{layer}.mlp.experts."
        pack(f"{attention}qkv_proj.weight", *(f"{attention}qkv_proj.{part}" for part in QKV))
        pack(f"{attention}o_proj.weight", f"{attention}o_proj.weight")
        pack(f"{experts}gate_up_proj", f"{experts}gate_up_proj", interleave=True)
        pack(f"{experts}down_proj", f"{experts}down_proj")
    plain = {name: tensor.detach().numpy() for name, tensor in [*tensors.items(), *model.named_buffers()]}
    return QuantisedWeights(model.config, matrices, plain)
