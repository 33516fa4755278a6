"""Our forward against transformers' ZayaForCausalLM in float32, on configurations whose every number is random."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from openzaya.model.cache import DecodeCache
from openzaya.model.config import ZayaConfig
from openzaya.model.decoder import ZayaForCausalLM
from openzaya.model.router import Routing

SEEDS = [*range(24), 93]  # the last one has kernels (1, 1), and so no history
TOLERANCE = 1e-5
BATCH, LENGTH = 3, 13


def twin(transformers: ModuleType, ours: ZayaForCausalLM) -> Any:
    """transformers' model of the same shape and weights, with its plain attention and its loop over experts.

    Its grouped product refuses expert widths that are not multiples of 16 bytes, which ours takes too.
    """
    config = transformers.ZayaConfig.from_dict(ours.config.to_dict())
    theirs = transformers.ZayaForCausalLM._from_config(
        config, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    weights = ours.state_dict()
    if ours.lm_head is None:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    theirs.load_state_dict(weights)
    return theirs


@contextmanager
def recorded_classes(theirs: Any) -> Iterator[list[Tensor]]:
    """The class of each token in each layer of a transformers forward, worked out again from its router's logits."""
    chosen: list[Tensor] = []

    def record(gate: Any, inputs: Any, output: Any) -> None:
        chosen.append((output[0].softmax(-1).float() + gate.balancing_biases).argmax(-1))

    hooks = [layer.mlp.gate.register_forward_hook(record) for layer in theirs.model.layers]
    try:
        yield chosen
    finally:
        for hook in hooks:
            hook.remove()


def tokens_of(config: ZayaConfig, seed: int) -> Tensor:
    return torch.randint(2, config.vocab_size, (BATCH, LENGTH), generator=torch.Generator().manual_seed(seed))


def left_padding(batch: int, length: int) -> Tensor:
    mask = torch.ones(batch, length, dtype=torch.long)
    for row in range(batch):
        mask[row, : 2 * row] = 0
    return mask


def agreement(ours: list[Tensor], theirs: list[Tensor], real: Tensor) -> float:
    return float(torch.stack(ours)[:, real.flatten()].eq(torch.stack(theirs)[:, real.flatten()]).float().mean())


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "left-padded"])
@pytest.mark.parametrize("seed", SEEDS)
def test_logits_and_routing_of_a_random_model_are_those_of_transformers(
    seed, padded, draw_config, draw_model, relative_error, transformers, record_property
):
    ours = draw_model(draw_config(seed), seed)
    theirs = twin(transformers, ours)
    ids = tokens_of(ours.config, seed)
    mask = left_padding(BATCH, LENGTH) if padded else torch.ones_like(ids)
    real = mask.bool()
    with torch.no_grad(), recorded_classes(theirs) as classes:
        expected = theirs(ids, attention_mask=mask if padded else None).logits
        own = Routing()
        ours(ids, attention_mask=mask if padded else None, routing=own)
        # Logits are compared under one routing, since a near-tie that falls the other way would swamp everything else.
        logits = ours(ids, attention_mask=mask if padded else None, routing=Routing(forced=classes))
    record_property("routing_agreement", agreed := agreement(own.chosen, classes, real))
    assert agreed >= 0.99
    assert relative_error(logits[real], expected[real]) <= TOLERANCE


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "left-padded"])
@pytest.mark.parametrize("seed", SEEDS)
def test_decoding_token_by_token_follows_the_cached_decode_of_transformers(
    seed, padded, draw_config, draw_model, relative_error, transformers
):
    ours = draw_model(draw_config(seed), seed)
    theirs = twin(transformers, ours)
    ids = tokens_of(ours.config, seed)
    mask = left_padding(BATCH, LENGTH) if padded else torch.ones_like(ids)
    start = 5  # every row has begun by then
    cache = DecodeCache(ours.config, BATCH, padding=(mask == 0).sum(1) if padded else None, capacity=4)
    decoded = [ours.decode(ids[:, :start], cache)]
    decoded += [ours.decode(ids[:, place : place + 1], cache) for place in range(start, LENGTH)]
    ours_all = torch.stack(decoded, dim=1)
    with torch.no_grad():
        full = theirs(ids, attention_mask=mask if padded else None).logits[:, start - 1 :]
        assert relative_error(ours_all, full) <= TOLERANCE
        past = transformers.DynamicCache(config=theirs.config)
        cached = [_step(theirs, ids[:, :start], mask[:, :start], padded, past)]
        for place in range(start, LENGTH):
            cached.append(_step(theirs, ids[:, place : place + 1], mask[:, : place + 1], padded, past))
    assert relative_error(ours_all, torch.stack(cached, dim=1)) <= TOLERANCE


def _step(theirs: Any, ids: Tensor, mask: Tensor, padded: bool, past: Any) -> Tensor:
    return theirs(ids, attention_mask=mask if padded else None, past_key_values=past, use_cache=True).logits[:, -1]


def test_the_seeds_cover_every_kernel_size_and_kind_of_layer(draw_config):
    configs = [draw_config(seed) for seed in SEEDS]
    assert {config.cca_time0 for config in configs} == {config.cca_time1 for config in configs} == {1, 2, 3, 4}
    assert {kind for config in configs for kind in config.layer_types} == {"hybrid", "hybrid_sliding"}
    assert {config.num_attention_heads // config.num_key_value_heads for config in configs} == {1, 2, 3}
    assert {config.num_key_value_heads for config in configs} == {1, 2, 3, 4}
    assert {config.tie_word_embeddings for config in configs} == {True, False}
    assert {0, 6} <= {config.convolution_history for config in configs}


def test_the_seeds_route_to_many_experts_and_to_the_skip_class(draw_config, draw_model):
    used, skipping = 0, 0
    for seed in SEEDS:
        ours, routing = draw_model(draw_config(seed), seed), Routing()
        with torch.no_grad():
            ours(tokens_of(ours.config, seed), routing=routing)
        classes = torch.stack(routing.chosen)
        used += int(classes.unique().numel() > 1)
        skipping += int((classes == ours.config.num_experts).any())
    assert used >= len(SEEDS) - 2
    assert skipping >= len(SEEDS) // 3


def test_greedy_tokens_are_those_of_transformers_generate(draw_config, draw_model, transformers):
    ours = draw_model(draw_config(3, cca_time0=2, cca_time1=2), 3)
    theirs = twin(transformers, ours)
    ids = tokens_of(ours.config, 3)
    expected = theirs.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)
    cache = DecodeCache(ours.config, BATCH)
    logits, grown = ours.decode(ids, cache), ids
    for _ in range(8):
        chosen = logits.argmax(-1, keepdim=True)
        grown, logits = torch.cat([grown, chosen], dim=1), ours.decode(chosen, cache)
    assert torch.equal(grown, expected)


def test_transformers_leaks_state_between_packed_documents_and_we_do_not(
    draw_config, draw_model, relative_error, transformers
):
    ours = draw_model(draw_config(5, cca_time0=2, cca_time1=2, layer_types=("hybrid",) * 2, num_hidden_layers=2), 5)
    theirs = twin(transformers, ours)
    ids = tokens_of(ours.config, 5)[:1]
    first, second = ids[:, :6], ids[:, 6:]
    positions = torch.cat([torch.arange(6), torch.arange(LENGTH - 6)])[None]
    documents = torch.tensor([[0] * 6 + [1] * (LENGTH - 6)])
    with torch.no_grad():
        alone = theirs(second).logits
        leaked = theirs(ids, position_ids=positions).logits[:, 6:]
        packed = ours(ids, document_ids=documents)
        assert relative_error(packed[:, 6:], alone) <= TOLERANCE
        assert relative_error(packed[:, :6], theirs(first).logits) <= TOLERANCE
    # The attention mask of transformers does keep the documents apart; the convolutions and the delayed value do not.
    assert relative_error(leaked, alone) > 1e-2


def test_a_configuration_survives_the_way_through_transformers(draw_config, transformers):
    for seed in SEEDS:
        config = draw_config(seed, dtype="bfloat16")
        theirs = transformers.ZayaConfig.from_dict(config.to_dict())
        assert ZayaConfig.from_dict(theirs.to_dict()) == config
