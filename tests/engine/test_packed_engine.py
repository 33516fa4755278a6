"""The engine over a model whose weights stay packed."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine_models import SMALL, prompt, small_model
from openzaya.engine.engine import Engine
from openzaya.model.checkpoint import load_model, save_model
from openzaya.model.quantised.packed_weight import PackedWeight
from openzaya.model.quantised.quantise import quantise_checkpoint
from openzaya.model.quantised.scheme import SCHEMES

WIDE = SMALL.with_(
    hidden_size=128, num_attention_heads=4, num_key_value_heads=2, head_dim=32, moe_intermediate_size=128
)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_packed_model_says_what_the_dequantised_one_says(tmp_path: Path, scheme, tied):
    save_model(small_model(WIDE.with_(tie_word_embeddings=tied)), tmp_path / "plain")
    quantise_checkpoint(tmp_path / "plain", tmp_path / "quantised", scheme)
    plain, packed = load_model(tmp_path / "quantised"), load_model(tmp_path / "quantised", packed=True)
    assert isinstance(packed.model.layers[0].self_attn.o_proj.weight, PackedWeight)
    prompts = [prompt(length) for length in (3, 40, 17)]
    said = []
    for model in (plain, packed):
        with Engine(model, memory="64MiB", prefill_chunk=16) as engine:
            replies = engine.generate(prompts, max_tokens=20, temperature=0.0)
            said.append([reply.token_ids for (reply,) in replies])
    assert said[0] == said[1]
    assert all(len(ids) == 20 for ids in said[0])
    assert len(set(said[0])) == 3
