"""Folders that we write load in transformers, and the other way round, with the same logits and greedy tokens."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from openzaya.model.cache import DecodeCache
from openzaya.model.checkpoint import convert, load_model, save_model
from openzaya.model.decoder import ZayaForCausalLM

TOLERANCE = 1e-5


def released_skip_bias(model: ZayaForCausalLM) -> ZayaForCausalLM:
    """With the skip class's bias at -1, as released: from_pretrained writes -1 there, whatever the file says."""
    with torch.no_grad():
        for biases in model.buffers():
            biases[-1] = -1.0
    return model


@pytest.fixture
def model(draw_config, draw_model) -> ZayaForCausalLM:
    config = draw_config(
        230, num_hidden_layers=2, layer_types=("hybrid", "hybrid_sliding"), sliding_window=4, tie_word_embeddings=True
    )
    return released_skip_bias(draw_model(config, seed=230))


def opened(transformers: ModuleType, folder: Path, **options: Any) -> Any:
    theirs, report = transformers.ZayaForCausalLM.from_pretrained(
        folder, attn_implementation="eager", experts_implementation="eager", output_loading_info=True, **options
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return theirs.eval()


def tokens(model: ZayaForCausalLM) -> Tensor:
    return torch.randint(2, model.config.vocab_size, (2, 8), generator=torch.Generator().manual_seed(0))


def greedy(model: ZayaForCausalLM, ids: Tensor, count: int) -> Tensor:
    cache = DecodeCache(model.config, ids.shape[0])
    logits = model.decode(ids, cache)
    for _ in range(count):
        chosen = logits.argmax(-1, keepdim=True)
        ids, logits = torch.cat([ids, chosen], dim=1), model.decode(chosen, cache)
    return ids


@torch.no_grad()
@pytest.mark.parametrize("max_shard_bytes", [5_000_000_000, 30_000], ids=["one-file", "shards"])
def test_transformers_loads_our_folder_and_says_the_same(
    model, tmp_path, max_shard_bytes, transformers, relative_error
):
    save_model(model, tmp_path, max_shard_bytes=max_shard_bytes)
    theirs, ids = opened(transformers, tmp_path, dtype="auto"), tokens(model)
    assert theirs.dtype == torch.float32
    assert relative_error(model(ids), theirs(ids).logits) <= TOLERANCE
    generated = theirs.generate(ids, max_new_tokens=10, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert torch.equal(greedy(model, ids, 10), generated)


@torch.no_grad()
def test_transformers_loads_a_converted_legacy_folder(model, tmp_path, transformers, relative_error):
    model = ZayaForCausalLM(model.config.with_(layer_types=("hybrid",) * 2, sliding_window=None))
    with torch.no_grad():
        for parameter in model.state_dict().values():
            parameter.normal_(0.5, 0.5)
    released_skip_bias(model)
    save_model(model, tmp_path / "legacy", "legacy")
    convert(tmp_path / "legacy", tmp_path / "native")
    ids = tokens(model)
    theirs = opened(transformers, tmp_path / "native", dtype="auto")
    assert relative_error(load_model(tmp_path / "legacy")(ids), theirs(ids).logits) <= TOLERANCE


@torch.no_grad()
def test_our_bfloat16_folder_holds_the_same_numbers_for_transformers(model, tmp_path, transformers):
    save_model(model, tmp_path, dtype="bfloat16")
    theirs = opened(transformers, tmp_path, dtype="auto").state_dict()
    ours = load_model(tmp_path).state_dict()
    assert theirs.keys() - ours.keys() == {"lm_head.weight"}
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name].to(tensor.dtype)), name
    assert theirs["model.embed_tokens.weight"].dtype == torch.bfloat16


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_we_load_what_transformers_saves(draw_config, draw_model, tmp_path, tied, transformers, relative_error):
    ours = released_skip_bias(draw_model(draw_config(231, tie_word_embeddings=tied), seed=231))
    save_model(ours, tmp_path / "ours")
    theirs = opened(transformers, tmp_path / "ours", dtype="auto")
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="30KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    loaded = load_model(tmp_path / "theirs")
    assert loaded.config == ours.config
    weights = ours.state_dict()
    assert loaded.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.state_dict().items())
    assert relative_error(loaded(tokens(ours)), theirs(tokens(ours)).logits) <= TOLERANCE
