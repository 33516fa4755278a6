"""Every way to feed a sequence gives the same logits: at once, in chunks, token by token, packed, padded, resumed."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from openzaya.model.cache import DecodeCache
from openzaya.model.decoder import ZayaForCausalLM

LENGTH = 6
TOLERANCE = 1e-5

# The first has no history at all, the last one longer than most chunks; the last two have sliding layers.
SHAPES = [
    {"cca_time0": 1, "cca_time1": 1},
    {"cca_time0": 2, "cca_time1": 2},
    {"cca_time0": 1, "cca_time1": 3, "layer_types": ("hybrid_sliding", "hybrid"), "sliding_window": 3},
    {"cca_time0": 4, "cca_time1": 4, "layer_types": ("hybrid_sliding",) * 2, "sliding_window": 2},
]


@pytest.fixture(params=range(len(SHAPES)), ids=["no-history", "released", "sliding", "long-history"])
def model(request, draw_config, draw_model) -> ZayaForCausalLM:
    config = draw_config(40 + request.param, num_hidden_layers=2, **SHAPES[request.param])
    return draw_model(config, seed=request.param)


def tokens(model: ZayaForCausalLM, batch: int = 2, length: int = LENGTH, seed: int = 0) -> Tensor:
    return torch.randint(2, model.config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


def full(model: ZayaForCausalLM, ids: Tensor, **placement: Tensor) -> Tensor:
    with torch.no_grad():
        return model(ids, **placement)


def fed(model: ZayaForCausalLM, ids: Tensor, chunks: list[int], padding: Tensor | None = None) -> Tensor:
    """Logits of all places, `ids` fed through a cache in chunks of the given sizes."""
    cache = DecodeCache(model.config, ids.shape[0], padding=padding, capacity=2)
    parts, start = [], 0
    for size in chunks:
        with torch.no_grad():
            parts.append(model(ids[:, start : start + size], cache=cache))
        cache.advance(size)
        start += size
    return torch.cat(parts, dim=1)


def every_split(length: int) -> list[list[int]]:
    """All ways to cut `length` tokens into chunks."""
    splits = []
    for cuts in itertools.product([False, True], repeat=length - 1):
        places = [0, *(place for place, cut in enumerate(cuts, start=1) if cut), length]
        splits.append([end - start for start, end in itertools.pairwise(places)])
    return splits


def test_every_split_into_chunks_gives_the_logits_of_one_forward(model, relative_error):
    ids = tokens(model)
    expected = full(model, ids)
    splits = every_split(LENGTH)
    assert [1] * LENGTH in splits
    assert [LENGTH] in splits
    worst = max(relative_error(fed(model, ids, chunks), expected) for chunks in splits)
    assert worst <= TOLERANCE


def test_left_padding_changes_nothing_at_the_real_tokens(model, relative_error):
    ids, padding = tokens(model, batch=3, length=9), torch.tensor([0, 1, 4])
    mask = (torch.arange(9)[None] >= padding[:, None]).long()
    padded = full(model, ids, attention_mask=mask)
    for row, pad in enumerate(padding.tolist()):
        alone = full(model, ids[row : row + 1, pad:])
        assert relative_error(padded[row : row + 1, pad:], alone) <= TOLERANCE


@pytest.mark.parametrize("chunks", [[9], [5, 4], [2, 1, 3, 1, 1, 1], [1] * 9], ids=str)
def test_a_left_padded_cache_agrees_with_each_sequence_alone(model, chunks, relative_error):
    ids, padding = tokens(model, batch=3, length=9), torch.tensor([0, 2, 5])
    padded = fed(model, ids, chunks, padding)
    for row, pad in enumerate(padding.tolist()):
        alone = full(model, ids[row : row + 1, pad:])
        assert relative_error(padded[row : row + 1, pad:], alone) <= TOLERANCE


def test_right_padding_changes_nothing_at_the_real_tokens(model, relative_error):
    ids = tokens(model)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    padded = full(model, ids, attention_mask=mask)
    assert relative_error(padded[1:, :4], full(model, ids[1:, :4])) <= TOLERANCE


@pytest.mark.parametrize("lengths", [[3, 3], [1, 1, 4], [1] * 6, [5, 1]], ids=str)
def test_packed_documents_are_computed_as_if_each_were_alone(model, lengths, relative_error):
    ids = tokens(model)
    # Ids need not rise, and the same id may come back after another document.
    marks = torch.cat([torch.full((length,), index % 2 * 7) for index, length in enumerate(lengths)]).expand(2, LENGTH)
    packed = full(model, ids, document_ids=marks)
    start = 0
    for length in lengths:
        alone = full(model, ids[:, start : start + length])
        assert relative_error(packed[:, start : start + length], alone) <= TOLERANCE
        start += length


def test_rows_of_a_batch_may_be_packed_differently(model, relative_error):
    ids = tokens(model)
    marks = torch.tensor([[0, 0, 0, 1, 1, 1], [3, 3, 3, 3, 3, 4]])
    packed = full(model, ids, document_ids=marks)
    assert relative_error(packed[:1, 3:], full(model, ids[:1, 3:])) <= TOLERANCE
    assert relative_error(packed[1:, 5:], full(model, ids[1:, 5:])) <= TOLERANCE
    assert relative_error(packed[1:, :5], full(model, ids[1:, :5])) <= TOLERANCE


# ---- the cache's own operations ----


def test_a_rolled_back_cache_continues_as_if_the_rejected_tokens_had_never_come(model, relative_error):
    ids, rejected = tokens(model), tokens(model, length=4, seed=1)
    cache = DecodeCache(model.config, 2, capacity=2)
    model.decode(ids[:, :3], cache)
    place = cache.snapshot()
    first = model.decode(rejected, cache)
    cache.rollback(place)
    again = model.decode(rejected, cache)
    cache.rollback(place)
    resumed = model.decode(ids[:, 3:], cache)
    assert torch.equal(first, again)
    assert relative_error(resumed, full(model, ids)[:, -1]) <= TOLERANCE
    assert cache.length == LENGTH


def test_rolling_back_to_a_longer_place_is_refused(model):
    cache = DecodeCache(model.config, 1)
    model.decode(tokens(model, batch=1), cache)
    later = cache.snapshot()
    with pytest.raises(ValueError, match=f"length {LENGTH} but the cache holds 0"):
        DecodeCache(model.config, 1).rollback(later)


def test_forked_rollouts_diverge_without_touching_each_other_or_their_prompt(model, relative_error):
    prompt, tails = tokens(model, batch=2, length=4), tokens(model, batch=6, length=3, seed=2)
    cache = DecodeCache(model.config, 2, padding=torch.tensor([0, 1]), capacity=2)
    model.decode(prompt, cache)
    forked = cache.fork(3)
    assert forked.batch == 6
    for step in range(3):
        logits = model.decode(tails[:, step : step + 1], forked)
    for row in range(6):
        pad = row // 3
        whole = torch.cat([prompt[row // 3, pad:], tails[row]])[None]
        assert relative_error(logits[row : row + 1], full(model, whole)[:, -1]) <= TOLERANCE
    after = model.decode(tails[:2, :1], cache)
    whole = torch.cat([prompt[0], tails[0, :1]])[None]
    assert relative_error(after[:1], full(model, whole)[:, -1]) <= TOLERANCE


def test_selected_rows_carry_all_of_their_state_along(model, relative_error):
    ids, padding = tokens(model, batch=3, length=6), torch.tensor([2, 0, 1])
    cache = DecodeCache(model.config, 3, padding=padding, capacity=2)
    model.decode(ids[:, :5], cache)
    order = torch.tensor([2, 0, 0])
    logits = model.decode(ids[order, 5:], cache.select(order))
    for place, row in enumerate(order.tolist()):
        alone = full(model, ids[row : row + 1, int(padding[row]) :])[:, -1]
        assert relative_error(logits[place : place + 1], alone) <= TOLERANCE


@pytest.mark.parametrize("name", ["attention_mask", "document_ids"])
def test_a_cache_refuses_a_second_description_of_the_placement(model, name):
    ids = tokens(model)
    with pytest.raises(ValueError, match="a cache keeps its own placement"):
        model(ids, cache=DecodeCache(model.config, 2), **{name: torch.ones_like(ids)})


@pytest.mark.parametrize("name", ["attention_mask", "document_ids"])
def test_a_mask_of_another_shape_than_the_tokens_is_refused(model, name):
    with pytest.raises(ValueError, match=rf"{name} has shape \(2, 5\) but input_ids has \(2, 6\)"):
        model(tokens(model), **{name: torch.ones(2, 5, dtype=torch.long)})
