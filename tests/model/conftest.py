"""Random ZAYA models for the tests of this room: every number drawn from a seed, none at its default."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

from openzaya.model.config import RopeParameters, ZayaConfig
from openzaya.model.decoder import ZayaForCausalLM
from openzaya.model.numerics import HF, Numerics

DrawConfig = Callable[..., ZayaConfig]
DrawModel = Callable[..., ZayaForCausalLM]


def _rope(source: random.Random, head_dim: int) -> RopeParameters:
    factors = [factor for factor in (0.25, 0.5, 1.0) if int(head_dim * factor) % 2 == 0 and int(head_dim * factor) > 0]
    return RopeParameters(rope_theta=10 ** source.uniform(2, 6), partial_rotary_factor=source.choice(factors))


def _draw_config(seed: int, **fixed: Any) -> ZayaConfig:
    source = random.Random(seed)
    key_heads, layers, head_dim = source.choice([1, 2, 3, 4]), source.randint(1, 4), source.choice([4, 8, 12, 16])
    sliding = source.random() < 0.5
    kinds = ("hybrid", "hybrid_sliding") if sliding else ("hybrid",)
    drawn: dict[str, Any] = {
        "vocab_size": source.randint(40, 120),
        "hidden_size": source.choice([20, 24, 32, 40]),
        "num_hidden_layers": layers,
        "num_key_value_heads": key_heads,
        "num_attention_heads": key_heads * source.choice([1, 2, 3]),
        "head_dim": head_dim,
        "num_experts": source.randint(2, 7),
        "moe_intermediate_size": source.choice([10, 16, 24]),
        "router_hidden_size": source.choice([6, 8, 12]),
        "cca_time0": source.randint(1, 4),
        "cca_time1": source.randint(1, 4),
        "layer_types": tuple(source.choice(kinds) for _ in range(layers)),
        "sliding_window": source.randint(2, 6) if sliding else None,
        "rope_parameters": {kind: _rope(source, head_dim) for kind in ("hybrid", "hybrid_sliding")},
        "rms_norm_eps": 10 ** source.uniform(-6, -4),
        "tie_word_embeddings": source.random() < 0.75,
        "max_position_embeddings": 64,
        "eos_token_id": 1,
        "dtype": "float32",
    }
    if "num_hidden_layers" in fixed and "layer_types" not in fixed:
        fixed["layer_types"] = ()
    return ZayaConfig(**{**drawn, **fixed})


def _draw_model(config: ZayaConfig, seed: int = 0, numerics: Numerics = HF) -> ZayaForCausalLM:
    """Random weights: norms, scales and temperatures spread around 1, routers decided enough to use many classes."""
    generator = torch.Generator().manual_seed(seed)
    model = ZayaForCausalLM(config, numerics)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            around_one = "scale" in name.rsplit(".", 1)[-1] or "norm" in name
            spread = 1.0 if "router_mlp" in name else 0.3
            parameter.normal_(generator=generator).mul_(spread).add_(1.0 if around_one else 0.0)
        for buffer in model.buffers():
            buffer.normal_(generator=generator).mul_(0.1)
    return model.eval()


@pytest.fixture(scope="session")
def draw_config() -> DrawConfig:
    """`draw_config(seed, **fixed)`: a small configuration, all of it random but for the `fixed` fields."""
    return _draw_config


@pytest.fixture(scope="session")
def draw_model() -> DrawModel:
    """`draw_model(config, seed, numerics)`: a float32 model of random weights."""
    return _draw_model


@pytest.fixture(scope="session")
def relative_error() -> Callable[[torch.Tensor, torch.Tensor], float]:
    """`relative_error(ours, truth)`: norm of the difference over the norm of the truth, in float64."""

    def error(ours: torch.Tensor, truth: torch.Tensor) -> float:
        assert ours.shape == truth.shape
        return float((ours.double() - truth.double()).norm() / truth.double().norm())

    return error


@pytest.fixture(scope="session")
def transformers() -> ModuleType:
    """The oracle; imported once, and only by tests that ask for it, because that takes seconds."""
    import transformers as library

    library.logging.set_verbosity_error()
    return library
