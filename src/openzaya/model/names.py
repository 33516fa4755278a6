"""The name and shape of every tensor of a ZAYA, in the native and in the legacy layout, as one table.

Native counts blocks and stacks the experts of a block into two tensors. Legacy counts each block as two half-layers
(attention, then experts), keeps every expert apart, and applies a half-layer's residual scaling at its input: what the
native layout calls the scaling after a half is the scaling before the next half there, or the model's own after the
last one. The column `half` of a row says which half-layer, counted from the block's first, owns the legacy name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from openzaya.model.config import ZayaConfig

Layout = Literal["native", "legacy"]
LAYOUTS: tuple[Layout, ...] = ("native", "legacy")


@dataclass(frozen=True, slots=True)
class Row:
    """One tensor of every block (or of the model), named below its prefix."""

    native: str
    legacy: str
    """With `{expert}` where legacy has one tensor an expert and native stacks them along a first axis."""
    shape: str
    """Names of sizes, see `_sizes`."""
    half: int = 0
    in_first_block: bool = True
    float32: bool = False
    """A buffer that is float32 whatever the model's dtype."""


NORMS = (
    Row("input_layernorm.weight", "input_norm.weight", "hidden", half=0),
    Row("post_attention_layernorm.weight", "input_norm.weight", "hidden", half=1),
)
ATTENTION = (
    Row("self_attn.qkv_proj.q_proj.weight", "self_attn.qkv.linear_q.weight", "query hidden"),
    Row("self_attn.qkv_proj.k_proj.weight", "self_attn.qkv.linear_k.weight", "key_value hidden"),
    Row("self_attn.qkv_proj.v_proj_current.weight", "self_attn.qkv.val_proj1.weight", "half_value hidden"),
    Row("self_attn.qkv_proj.v_proj_delayed.weight", "self_attn.qkv.val_proj2.weight", "half_value hidden"),
    Row("self_attn.qkv_proj.conv_qk_depthwise.weight", "self_attn.qkv.conv_qk.0.weight", "channels one taps0"),
    Row("self_attn.qkv_proj.conv_qk_depthwise.bias", "self_attn.qkv.conv_qk.0.bias", "channels"),
    Row("self_attn.qkv_proj.conv_qk_grouped.weight", "self_attn.qkv.conv_qk.1.weight", "channels head taps1"),
    Row("self_attn.qkv_proj.conv_qk_grouped.bias", "self_attn.qkv.conv_qk.1.bias", "channels"),
    Row("self_attn.qk_norm.temp", "self_attn.qkv.temp", "key_value_heads"),
    Row("self_attn.o_proj.weight", "self_attn.o_proj.weight", "hidden query"),
)
ROUTER = (
    Row("mlp.gate.down_proj.weight", "zaya_block.router.down_proj.weight", "router hidden", half=1),
    Row("mlp.gate.down_proj.bias", "zaya_block.router.down_proj.bias", "router", half=1),
    Row(
        "mlp.gate.router_states_scale", "zaya_block.router.router_states_scale", "router", half=1, in_first_block=False
    ),
    Row("mlp.gate.router_mlp.norm.weight", "zaya_block.router.rmsnorm_eda.weight", "router", half=1),
    Row("mlp.gate.router_mlp.fc1.weight", "zaya_block.router.router_mlp.0.weight", "router router", half=1),
    Row("mlp.gate.router_mlp.fc1.bias", "zaya_block.router.router_mlp.0.bias", "router", half=1),
    Row("mlp.gate.router_mlp.fc2.weight", "zaya_block.router.router_mlp.2.weight", "router router", half=1),
    Row("mlp.gate.router_mlp.fc2.bias", "zaya_block.router.router_mlp.2.bias", "router", half=1),
    Row("mlp.gate.router_mlp.out_proj.weight", "zaya_block.router.router_mlp.4.weight", "classes router", half=1),
    Row("mlp.gate.balancing_biases", "zaya_block.router.balancing_biases", "classes", half=1, float32=True),
)
_LEGACY_EXPERT = "zaya_block.experts.local_experts.{expert}."
EXPERTS = (
    Row("mlp.experts.gate_up_proj", _LEGACY_EXPERT + "linear_fc1.weight", "experts gate_up hidden", half=1),
    Row("mlp.experts.down_proj", _LEGACY_EXPERT + "linear_fc2.weight", "experts hidden expert_width", half=1),
)
RESIDUAL = tuple(
    Row(f"{native}.{vector}", f"res_scale.{vector}", "hidden", half=half)
    for native, half in (("post_attention_residual_scale", 1), ("post_mlp_residual_scale", 2))
    for vector in ("hidden_states_scale", "hidden_states_bias", "residual_scale", "residual_bias")
)
EMBEDDING = (Row("model.embed_tokens.weight", "model.embed_tokens.weight", "vocabulary hidden"),)
HEAD = (Row("lm_head.weight", "lm_head.weight", "vocabulary hidden"),)
"""Only where the embeddings are not tied."""
ENDS = (
    Row("model.input_hidden_states_scale", "model.layers.0.res_scale.hidden_states_scale", "hidden"),
    Row("model.input_hidden_states_bias", "model.layers.0.res_scale.hidden_states_bias", "hidden"),
    Row("model.norm.weight", "model.final_norm.weight", "hidden"),
)

BLOCK_PARTS: Mapping[str, tuple[Row, ...]] = {
    "attention": ATTENTION,
    "router": ROUTER,
    "experts": EXPERTS,
    "residual scaling": RESIDUAL,
    "norms": NORMS,
}
MODEL_PARTS: Mapping[str, tuple[Row, ...]] = {"embedding": EMBEDDING, "head": HEAD, "input scaling and norm": ENDS}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as a file holds it: all of a tensor of the model, or one expert's slice of it."""

    name: str
    native: str
    expert: int | None
    shape: tuple[int, ...]
    part: str
    float32: bool

    @property
    def elements(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count


def expected_tensors(config: ZayaConfig, layout: Layout = "native") -> dict[str, StoredTensor]:
    """Every tensor that a checkpoint of `config` holds, by its name in `layout`; nothing is allocated.

    Raises ValueError for an unknown layout.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}; the layouts are 'native' and 'legacy'")
    return {tensor.name: tensor for tensor in _tensors(config, layout)}


def _tensors(config: ZayaConfig, layout: Layout) -> Iterator[StoredTensor]:
    sizes = _sizes(config)
    legacy = layout == "legacy"
    for part, rows in MODEL_PARTS.items():
        if part == "head" and config.tie_word_embeddings:
            continue
        for row in rows:
            yield _stored(row, part, sizes, row.native, row.legacy if legacy else row.native)
    for layer in range(config.num_hidden_layers):
        for part, rows in BLOCK_PARTS.items():
            for row in rows:
                if layer == 0 and not row.in_first_block:
                    continue
                native = f"model.layers.{layer}.{row.native}"
                if not legacy:
                    yield _stored(row, part, sizes, native, native)
                    continue
                half = 2 * layer + row.half
                after_last = half == 2 * config.num_hidden_layers
                name = f"model.{row.legacy}" if after_last else f"model.layers.{half}.{row.legacy}"
                if part != "experts":
                    yield _stored(row, part, sizes, native, name)
                    continue
                for expert in range(config.num_experts):
                    yield _stored(row, part, sizes, native, name.format(expert=expert), expert)


def _stored(
    row: Row, part: str, sizes: Mapping[str, int], native: str, name: str, expert: int | None = None
) -> StoredTensor:
    shape = tuple(sizes[size] for size in row.shape.split())
    return StoredTensor(name, native, expert, shape if expert is None else shape[1:], part, row.float32)


def _sizes(config: ZayaConfig) -> dict[str, int]:
    return {
        "one": 1,
        "vocabulary": config.vocab_size,
        "hidden": config.hidden_size,
        "query": config.query_size,
        "key_value": config.key_value_size,
        "half_value": config.key_value_size // 2,
        "channels": config.convolution_channels,
        "head": config.head_dim,
        "key_value_heads": config.num_key_value_heads,
        "taps0": config.cca_time0,
        "taps1": config.cca_time1,
        "router": config.router_hidden_size,
        "classes": config.num_experts + 1,
        "experts": config.num_experts,
        "expert_width": config.moe_intermediate_size,
        "gate_up": 2 * config.moe_intermediate_size,
    }


def layout_of(names: Iterable[str]) -> Layout | None:
    """The layout that tensors of these names are in, or None where they are of neither.

    Recognised by any tensor that only one layout has, so that a damaged file still gets the right complaint.
    """
    first_block = ZayaConfig(num_hidden_layers=1)
    by_layout = {layout: set(expected_tensors(first_block, layout)) for layout in LAYOUTS}
    present = set(names)
    hits = {layout: len(present & (by_layout[layout] - by_layout[other])) for layout, other in _OTHER.items()}
    best = max(LAYOUTS, key=lambda layout: hits[layout])
    return best if hits[best] else None


_OTHER: Mapping[Layout, Layout] = {"native": "legacy", "legacy": "native"}
