"""Small random models for the tests of the engine, what they say without an engine, and ways to draw from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from openzaya.chat.tokenizer import Tokenizer
from openzaya.chat.train_tokenizer import train_tokenizer
from openzaya.engine.executor import TorchExecutor
from openzaya.engine.params import SamplingParams
from openzaya.engine.sampling import sample
from openzaya.engine.scheduler import Generation, Scheduler, slots_for
from openzaya.engine.state import StatePool
from openzaya.model.config import RopeParameters, ZayaConfig
from openzaya.model.decoder import ZayaForCausalLM
from openzaya.model.initialise import initialise
from openzaya.model.numerics import numerics_profile

SMALL = ZayaConfig(
    vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    num_experts=4, moe_intermediate_size=16, router_hidden_size=8, max_position_embeddings=512, eos_token_id=None,
    rope_parameters={"hybrid": RopeParameters(rope_theta=1e4), "hybrid_sliding": RopeParameters(rope_theta=1e3)},
    dtype="float32", tie_word_embeddings=False,
)  # fmt: skip
SHAPES = {
    "plain": SMALL,
    "tied embeddings": SMALL.with_(tie_word_embeddings=True),
    "sliding": SMALL.with_(layer_types=("hybrid_sliding", "hybrid"), sliding_window=37),
    "kernels of three and one": SMALL.with_(cca_time0=3, cca_time1=1),
    "no convolution history": SMALL.with_(cca_time0=1, cca_time1=1),
    "wide heads": SMALL.with_(head_dim=72, num_attention_heads=2, num_key_value_heads=1),
    "one key head": SMALL.with_(num_key_value_heads=1, num_attention_heads=3, num_hidden_layers=3),
}

SAMPLING = (
    SamplingParams(),
    SamplingParams(temperature=0),
    SamplingParams(temperature=0.6),
    SamplingParams(temperature=1.7),
    SamplingParams(top_k=7),
    SamplingParams(top_p=0.8),
    SamplingParams(min_p=0.05),
    SamplingParams(temperature=1.5, top_p=0.95),
    SamplingParams(temperature=0.7, top_k=20, top_p=0.9, min_p=0.01),
)
"""Every way to draw a token, and some together."""


def small_model(config: ZayaConfig = SMALL, *, seed: int = 0, numerics: str = "hf") -> ZayaForCausalLM:
    """A model whose every tensor matters (initial ones and zeros are shaken) and that says many different things.

    A random model with tied embeddings mostly repeats its last token.
    """
    model = initialise(ZayaForCausalLM(config, numerics_profile(numerics)), seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        # Sharper scores, so that a sampled token says something about them.
        model.model.norm.weight.mul_(2)
    return model


def small_tokenizer(folder: Path) -> Tokenizer:
    return train_tokenizer(["the sum of 12 and 30 is 42", "so the answer is 42 \u2713"] * 3, 300, folder)


def scheduler_for(model: ZayaForCausalLM, *, pages: int = 64, max_batch: int = 16, **options: Any) -> Scheduler:
    """A scheduler whose pool has exactly `pages` pages."""
    pool = StatePool(model.config, memory=1 << 40, slots=slots_for(max_batch), numerics=model.numerics)
    memory = pages * pool.page_bytes + slots_for(max_batch) * pool.slot_bytes
    pool = StatePool(model.config, memory=memory, slots=slots_for(max_batch), numerics=model.numerics)
    assert pool.pages == pages
    return Scheduler(TorchExecutor(model, pool), max_batch=max_batch, **options)


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(np.random.default_rng([length, seed]).integers(0, SMALL.vocab_size, length).tolist())


def generation(ids: Sequence[int], seed: int = 0, limit: int = 20, **fields: Any) -> Generation:
    params = fields.pop("params", SamplingParams())
    return Generation(tuple(ids), params, seed, limit, **fields)


@torch.inference_mode()
def spoken_alone(model: ZayaForCausalLM, wanted: Generation) -> list[int]:
    """The tokens of a generation computed from scratch at every step: no cache, no batch, no scheduler."""
    ids = list(wanted.prompt)
    while len(ids) - len(wanted.prompt) < wanted.limit:
        logits = model(torch.tensor([ids]))[:, -1]
        place = np.array([len(ids) - len(wanted.prompt)])
        token = int(sample(logits, [wanted.params], np.array([wanted.seed], dtype=np.uint64), place)[0])
        ids.append(token)
        if token in wanted.stop_ids:
            break
    return ids[len(wanted.prompt) :]


def run(scheduler: Scheduler) -> None:
    """Step until nothing waits or runs."""
    for _ in range(10_000):
        if not scheduler.busy:
            return
        scheduler.step()
    raise AssertionError("the scheduler makes no progress")


def pages_held(scheduler: Scheduler) -> int:
    """Pages in use once kept prompts are forgotten."""
    scheduler.drop_prefixes()
    return scheduler.pool.pages - scheduler.pool.free_pages
