"""The shape of a ZAYA model, read from either spelling of `config.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

LayerType = Literal["hybrid", "hybrid_sliding"]
SkipSemantics = Literal["zero", "identity"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeParameters:
    """Rotary embedding of one layer type."""

    rope_theta: float
    partial_rotary_factor: float = 0.5


def _default_rope() -> dict[str, RopeParameters]:
    return {"hybrid": RopeParameters(rope_theta=5e6), "hybrid_sliding": RopeParameters(rope_theta=1e4)}


@dataclass(frozen=True, kw_only=True)
class ZayaConfig:
    """Every number that fixes a ZAYA model; the defaults are ZAYA1-8B as released.

    Raises ValueError where the numbers contradict each other, naming them.
    """

    vocab_size: int = 262272
    hidden_size: int = 2048
    num_hidden_layers: int = 40
    """Blocks of attention and experts together; legacy files count the two halves apart."""
    num_attention_heads: int = 8
    num_key_value_heads: int = 2
    head_dim: int = 128
    cca_time0: int = 2
    """Kernel of the depthwise convolution over time."""
    cca_time1: int = 2
    """Kernel of the head-wise convolution over time."""
    layer_types: tuple[LayerType, ...] = ()
    sliding_window: int | None = None
    """Keys that a sliding layer sees, the token itself counted (so 4097 for the 74B's 4096 previous tokens)."""
    rope_parameters: Mapping[str, RopeParameters] = field(default_factory=_default_rope)
    max_position_embeddings: int = 131072
    num_experts: int = 16
    moe_intermediate_size: int = 2048
    router_hidden_size: int = 256
    skip_semantics: SkipSemantics = "zero"
    """What a token gets whose router chooses the skip class: nothing (transformers) or its own normed input times
    the probability (Zyphra's first code). Unreachable in released weights: their skip bias is -1."""
    rms_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 2
    eos_token_id: int | tuple[int, ...] | None = 106
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        if not self.layer_types:
            object.__setattr__(self, "layer_types", ("hybrid",) * self.num_hidden_layers)
        self._validate()

    def _validate(self) -> None:
        for name in (
            "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
            "cca_time0", "cca_time1", "num_experts", "moe_intermediate_size", "router_hidden_size",
        ):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, int):
                raise ValueError(f"{name} is {value!r}; it must be a whole number")
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"layer_types names {len(self.layer_types)} layers but num_hidden_layers is {self.num_hidden_layers}"
            )
        if unknown := set(self.layer_types) - {"hybrid", "hybrid_sliding"}:
            raise ValueError(f"unknown layer types {sorted(unknown)}; 'hybrid' and 'hybrid_sliding' are known")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads is {self.num_attention_heads}, not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.num_key_value_heads * self.head_dim % 2:
            raise ValueError(
                f"num_key_value_heads x head_dim is {self.num_key_value_heads * self.head_dim}; the value shift needs "
                "an even number, half for the current token and half for the one before"
            )
        if "hybrid_sliding" in self.layer_types and not self.sliding_window:
            raise ValueError("layer_types has 'hybrid_sliding' layers but sliding_window is not set")
        for kind in set(self.layer_types):
            if kind not in self.rope_parameters:
                raise ValueError(f"rope_parameters has no entry for the layer type {kind!r}")
            if self.rotary_dim(kind) % 2 or not 0 < self.rotary_dim(kind) <= self.head_dim:
                raise ValueError(
                    f"partial_rotary_factor {self.rope_parameters[kind].partial_rotary_factor} of head_dim "
                    f"{self.head_dim} turns {self.rotary_dim(kind)} channels; it must be an even number of them"
                )
        if self.skip_semantics not in ("zero", "identity"):
            raise ValueError(f"skip_semantics is {self.skip_semantics!r}; it must be 'zero' or 'identity'")

    # ---- sizes that follow ----

    @property
    def query_size(self) -> int:
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        return self.num_key_value_heads * self.head_dim

    @property
    def convolution_channels(self) -> int:
        return self.query_size + self.key_value_size

    @property
    def convolution_history(self) -> int:
        """Earlier columns that the two convolutions look back on, together."""
        return self.cca_time0 + self.cca_time1 - 2

    def rotary_dim(self, layer_type: str) -> int:
        return int(self.head_dim * self.rope_parameters[layer_type].partial_rotary_factor)

    def window(self, layer: int) -> int | None:
        return self.sliding_window if self.layer_types[layer] == "hybrid_sliding" else None

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        if self.eos_token_id is None:
            return ()
        return self.eos_token_id if isinstance(self.eos_token_id, tuple) else (self.eos_token_id,)

    def with_(self, **changes: Any) -> ZayaConfig:
        """A copy with some fields changed; a new layer count resets `layer_types` unless they are given."""
        if "num_hidden_layers" in changes and "layer_types" not in changes:
            changes["layer_types"] = ()
        return replace(self, **changes)

    # ---- config.json ----

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ZayaConfig:
        """Read `config.json` of the native or of the legacy layout.

        Raises ValueError where the file describes something that no ZAYA of this family has.
        """
        model_type = fields.get("model_type", "zaya")
        if model_type != "zaya":
            raise ValueError(f"config.json describes a {model_type!r} model; openzaya reads 'zaya' models")
        return cls(**(_legacy_fields(fields) if is_legacy(fields) else _native_fields(fields)))

    @classmethod
    def from_folder(cls, folder: str | Path) -> ZayaConfig:
        return cls.from_dict(read_fields(folder))

    def to_dict(self) -> dict[str, Any]:
        """The native `config.json`, as transformers reads it."""
        fields = asdict(self)
        fields["layer_types"] = list(self.layer_types)
        fields["eos_token_id"] = list(self.eos_token_id) if isinstance(self.eos_token_id, tuple) else self.eos_token_id
        fields["rope_parameters"] = {
            kind: {"rope_type": "default", **asdict(rope)} for kind, rope in self.rope_parameters.items()
        }
        if self.skip_semantics == "zero":
            del fields["skip_semantics"]
        return {
            "architectures": ["ZayaForCausalLM"],
            "model_type": "zaya",
            **fields,
            "hidden_act": "silu",
            "num_experts_per_tok": 1,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "lm_head_bias": False,
        }

    def to_legacy_dict(self) -> dict[str, Any]:
        """The legacy `config.json`, with one entry for each half-layer."""
        sliding = "hybrid_sliding" in self.layer_types
        if len({self.rope_parameters[kind].partial_rotary_factor for kind in set(self.layer_types)}) > 1:
            raise ValueError("the legacy layout has one partial_rotary_factor for all layers; this model has several")
        fields: dict[str, Any] = {
            "architectures": ["ZayaForCausalLM"],
            "model_type": "zaya",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": 2 * self.num_hidden_layers,
            "zaya_layers": ["a", self.num_experts] * self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "num_query_groups": self.num_key_value_heads,
            "kv_channels": self.head_dim,
            "cca": True,
            "cca_time0": self.cca_time0,
            "cca_time1": self.cca_time1,
            "ffn_hidden_size": 2 * self.moe_intermediate_size,
            "num_experts": self.num_experts,
            "moe_router_topk": 1,
            "zaya_mlp_expansion": self.router_hidden_size,
            "zaya_use_mod": True,
            "zaya_use_eda": True,
            "zaya_high_prec": True,
            "activation_func": "swiglu",
            "norm_epsilon": self.rms_norm_eps,
            "rope_theta": self.rope_parameters["hybrid"].rope_theta,
            "partial_rotary_factor": self.rope_parameters["hybrid"].partial_rotary_factor,
            "max_position_embeddings": self.max_position_embeddings,
            "initializer_range": self.initializer_range,
            "scale_residual_merge": True,
            "residual_in_fp32": True,
            "clamp_temp": False,
            "tie_word_embeddings": self.tie_word_embeddings,
            "pad_token_id": self.pad_token_id,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.to_dict()["eos_token_id"],
            "torch_dtype": self.dtype,
        }
        if sliding:
            assert self.sliding_window is not None
            fields["swa_layers"] = [
                self.sliding_window - 1 if kind == "hybrid_sliding" else 0
                for kind in self.layer_types
                for _half in range(2)
            ]
            fields["swa_rotary_base"] = self.rope_parameters["hybrid_sliding"].rope_theta
        if self.skip_semantics != "zero":
            fields["skip_semantics"] = self.skip_semantics
        return fields


def read_fields(folder: str | Path) -> dict[str, Any]:
    """The fields of a model folder's config.json; raises ValueError where it is missing or not an object."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ValueError(f"{path} is missing; a model folder needs config.json beside its weights")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error})") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{path} holds a {type(fields).__name__}, not an object of fields")
    return fields


def is_legacy(fields: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is of the layout that counts attention and experts as separate layers."""
    return "zaya_layers" in fields or "zaya_mlp_expansion" in fields or "kv_channels" in fields


_SHARED_FIELDS = (
    "vocab_size", "hidden_size", "cca_time0", "cca_time1", "max_position_embeddings", "initializer_range",
    "tie_word_embeddings", "pad_token_id", "bos_token_id", "skip_semantics",
)  # fmt: skip


def _shared(fields: Mapping[str, Any]) -> dict[str, Any]:
    for name, meaning in (("attention_bias", "biases in its attention projections"), ("lm_head_bias", "a head bias")):
        if fields.get(name):
            raise ValueError(f"config.json sets {name}; no released ZAYA has {meaning} and openzaya has none")
    if fields.get("num_experts_per_tok", fields.get("moe_router_topk", 1)) != 1:
        raise ValueError("config.json asks for more than one expert a token; ZAYA's router chooses exactly one")
    if fields.get("clamp_temp"):
        raise ValueError("config.json sets clamp_temp; no released ZAYA uses the exponential temperature")
    read = {name: fields[name] for name in _SHARED_FIELDS if name in fields}
    if "eos_token_id" in fields:
        eos = fields["eos_token_id"]
        read["eos_token_id"] = tuple(eos) if isinstance(eos, list) else eos
    dtype = fields.get("dtype") or fields.get("torch_dtype")
    return read if dtype is None else {**read, "dtype": str(dtype).removeprefix("torch.")}


def _native_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    read = _shared(fields)
    for name in (
        "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "sliding_window",
        "num_experts", "moe_intermediate_size", "router_hidden_size", "rms_norm_eps",
    ):  # fmt: skip
        if name in fields:
            read[name] = fields[name]
    if fields.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act is {fields['hidden_act']!r}; ZAYA's experts use silu")
    if fields.get("layer_types"):
        read["layer_types"] = tuple(fields["layer_types"])
    if rope := fields.get("rope_parameters"):
        # The released file has a stray `rope_type` beside the two nested entries; only the nested ones count.
        nested = {kind: value for kind, value in rope.items() if isinstance(value, Mapping)}
        if "rope_theta" in rope:
            raise ValueError("rope_parameters has one rope_theta for all; it must be given for each layer type, nested")
        for kind, value in nested.items():
            if value.get("rope_type", "default") != "default":
                raise ValueError(f"rope_type {value['rope_type']!r} of {kind} is not supported; only 'default' is")
        read["rope_parameters"] = _default_rope() | {
            kind: RopeParameters(
                rope_theta=float(value["rope_theta"]),
                partial_rotary_factor=float(value.get("partial_rotary_factor", 1.0)),
            )
            for kind, value in nested.items()
        }
    return read


def _single(value: Any, name: str) -> Any:
    """Legacy files spell some fields once a half-layer, with zeros where the field does not apply."""
    if not isinstance(value, list):
        return value
    distinct = {entry for entry in value if entry}
    if len(distinct) != 1:
        raise ValueError(f"{name} differs between layers ({sorted(distinct)}); a ZAYA has one value for all")
    return distinct.pop()


def _legacy_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    read = _shared(fields)
    halves = fields.get("zaya_layers")
    # `num_hidden_layers` is stale in some released files (120 in ZAYA1-base, which has 80 half-layers).
    count = len(halves) if halves else int(fields["num_hidden_layers"])
    if count % 2:
        raise ValueError(f"the legacy layout needs an even number of half-layers, not {count}")
    read["num_hidden_layers"] = count // 2
    if "num_experts" in fields:
        read["num_experts"] = fields["num_experts"]
    elif halves:
        read["num_experts"] = _single([half for half in halves if isinstance(half, int)], "zaya_layers")
    heads = fields.get("cca_num_q_heads", fields.get("num_attention_heads"))
    if heads is not None:
        read["num_attention_heads"] = _single(heads, "cca_num_q_heads")
    groups = fields.get("num_query_groups_list", fields.get("num_query_groups", fields.get("num_key_value_heads")))
    if groups is not None:
        read["num_key_value_heads"] = _single(groups, "num_query_groups_list")
    for native, legacy in (
        ("head_dim", "kv_channels"),
        ("router_hidden_size", "zaya_mlp_expansion"),
        ("rms_norm_eps", "norm_epsilon"),
    ):
        if legacy in fields:
            read[native] = _single(fields[legacy], legacy)
    expansion = fields.get("ffn_hidden_size_list", fields.get("ffn_hidden_size"))
    if expansion is not None:
        read["moe_intermediate_size"] = _single(expansion, "ffn_hidden_size") // 2
    partial = float(fields.get("partial_rotary_factor", 0.5))
    read["rope_parameters"] = {
        "hybrid": RopeParameters(rope_theta=float(fields.get("rope_theta", 5e6)), partial_rotary_factor=partial),
        "hybrid_sliding": RopeParameters(
            rope_theta=float(fields.get("swa_rotary_base", 1e4)), partial_rotary_factor=partial
        ),
    }
    if swa := fields.get("swa_layers"):
        windows = swa[::2]
        read["layer_types"] = tuple("hybrid_sliding" if window else "hybrid" for window in windows)
        if any(windows):
            read["sliding_window"] = max(windows) + 1
    return read


NAMED_SHAPES: Mapping[str, ZayaConfig] = {
    "tiny": ZayaConfig(
        vocab_size=512, hidden_size=128, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        head_dim=32, num_experts=8, moe_intermediate_size=256, router_hidden_size=32, max_position_embeddings=4096,
        rope_parameters={"hybrid": RopeParameters(rope_theta=1e4), "hybrid_sliding": RopeParameters(rope_theta=1e4)},
        eos_token_id=106, dtype="float32",
    ),
    "zaya1-8b": ZayaConfig(),
    "zaya1-74b": ZayaConfig(
        hidden_size=4096, num_hidden_layers=60, num_attention_heads=16, num_experts=24, moe_intermediate_size=4096,
        layer_types=("hybrid_sliding", "hybrid") * 30, sliding_window=4097,
    ),
}  # fmt: skip
"""Shapes by name: `tiny` is the bundled model's, the other two are Zyphra's releases (facts: their config.json)."""
