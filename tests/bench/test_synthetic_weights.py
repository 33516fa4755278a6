"""Checkpoints of random weights: valid in every byte, streamed, and with routers that spread tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench_shapes import SMALL
from openzaya.bench.full_size import measure_full_size
from openzaya.bench.models import model_for
from openzaya.bench.synthetic import random_checkpoint, random_container, random_model, spread_tokens
from openzaya.model.checkpoint import load_model
from openzaya.model.config import NAMED_SHAPES
from openzaya.model.decoder import ZayaForCausalLM
from openzaya.model.initialise import initialise
from openzaya.model.quantised.container import Container
from openzaya.model.quantised.packing import unpack
from openzaya.model.quantised.quantise import quantise_checkpoint
from openzaya.model.quantised.scheme import SCHEMES, W4_GROUP_32, W4_GROUP_128, W8
from openzaya.model.router import Routing


@torch.inference_mode()
def largest_shares(model: ZayaForCausalLM) -> list[float]:
    """Of each layer, the part of many different tokens that its most popular class gets."""
    routing = Routing()
    model.hidden(torch.arange(800)[:, None], routing=routing)
    return [float(torch.bincount(chosen.flatten()).max()) / chosen.numel() for chosen in routing.chosen]


@pytest.mark.parametrize("scheme", [W4_GROUP_32, W8], ids=str)
def test_a_random_container_is_whole_and_its_weights_have_the_size_of_fresh_ones(tmp_path, scheme):
    told = []
    random_container(tmp_path / "q", SMALL, scheme, progress=lambda *step: told.append(step))
    container = Container(tmp_path / "q")
    container.verify()
    assert told[-1][0] == told[-1][1]
    model = load_model(tmp_path / "q", dtype="float32")
    for weight in (model.model.embed_tokens.weight, model.model.layers[2].mlp.experts.gate_up_proj):
        assert float(weight.detach().std()) == pytest.approx(1 / 8, rel=0.05)
    codes, _ = unpack(container.matrix("model.layers.0.self_attn.o_proj.weight"))
    assert int(codes.min()) == -int(codes.max())
    # 1,000 rows leave part of the last block empty.
    scales = container.tensor("model.embed_tokens.weight.scales")[-1]
    assert bool((scales[..., :8] > 0).all())
    assert not scales[..., 8:].any()


def test_the_same_seed_gives_the_same_container_and_another_gives_another(tmp_path):
    files = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        random_container(tmp_path / name, SMALL, W8, seed=seed)
        files.append((tmp_path / name / "model.safetensors").read_bytes())
    assert files[0] == files[1] != files[2]


def test_a_shape_that_the_scheme_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="groups of 128"):
        random_container(tmp_path / "q", SMALL, W4_GROUP_128)
    assert list(tmp_path.iterdir()) == []


def test_routers_spread_tokens_about_evenly_where_plain_random_ones_do_not():
    config = SMALL.with_(num_experts=16, router_hidden_size=64, num_hidden_layers=6, dtype="float32")
    plain = initialise(ZayaForCausalLM(config), 0).eval()
    before = largest_shares(plain)
    after = largest_shares(spread_tokens(plain))
    assert max(after) < 0.25
    assert np.mean(after) < np.mean(before)


@pytest.mark.parametrize("scheme", [W4_GROUP_32, W8], ids=str)
def test_tokens_of_a_deep_random_container_stay_unlike_and_spread(tmp_path, scheme):
    config = SMALL.with_(
        hidden_size=256, num_hidden_layers=12, moe_intermediate_size=256, num_experts=16, router_hidden_size=64
    )
    random_container(tmp_path / "q", config, scheme)
    shares = largest_shares(load_model(tmp_path / "q", dtype="float32"))
    assert max(shares) < 0.25


def test_a_random_checkpoint_in_shards_loads_and_is_quantised(tmp_path):
    random_checkpoint(tmp_path / "plain", SMALL, max_shard_bytes=100_000)
    assert len(list((tmp_path / "plain").glob("*.safetensors"))) > 2
    model = load_model(tmp_path / "plain")
    assert model.model.embed_tokens.weight.dtype == torch.bfloat16
    assert float(model.model.layers[1].mlp.experts.down_proj.detach().float().std()) == pytest.approx(1 / 8, rel=0.05)
    quantise_checkpoint(tmp_path / "plain", tmp_path / "q", SCHEMES[0])
    Container(tmp_path / "q").verify()


def test_random_weights_in_memory_have_the_type_of_their_shape():
    assert random_model(SMALL).model.layers[0].self_attn.o_proj.weight.dtype == torch.bfloat16


def test_a_random_folder_is_kept_and_used_again_and_everything_else_goes_away(tmp_path, monkeypatch):
    monkeypatch.setitem(NAMED_SHAPES, "zaya1-8b", SMALL)
    with model_for("zaya1-8b", W8, keep=tmp_path) as folder:
        made = (folder / "model.safetensors").stat().st_mtime_ns
    with model_for("zaya1-8b", W8, keep=tmp_path) as again:
        assert again == folder
        assert (again / "model.safetensors").stat().st_mtime_ns == made
    with model_for("zaya1-8b", W4_GROUP_32, keep=tmp_path) as other:
        assert other != folder
    with model_for("zaya1-8b", W8) as passing:
        assert passing.is_dir()
    assert not passing.exists()
    with model_for("zaya1-8b", None) as model:
        assert isinstance(model, ZayaForCausalLM)


@pytest.mark.slow
def test_a_model_goes_from_shards_to_tokens_within_the_memory_of_a_program(tmp_path):
    config = SMALL.with_(vocab_size=40_000, hidden_size=512, num_hidden_layers=4, max_position_embeddings=1024)
    found = measure_full_size(config, W4_GROUP_32, tmp_path / "all", tokens=8, max_shard_bytes=1_000_000)
    assert found["source"]["shards"] > 2
    assert found["quantised_bytes"] < found["source"]["bytes"] / 3
    assert 0 < found["generating"]["tokens"] <= 8
    # torch alone takes some hundreds of megabytes.
    assert found["quantising"]["peak_bytes"] < 1_500_000_000
    assert list(tmp_path.iterdir()) == []
