"""Small models and batches for the trainer's tests."""

from __future__ import annotations

import numpy as np

from openzaya.data.packing import Batch
from openzaya.model.config import ZayaConfig
from openzaya.train.config import TrainConfig

SHAPE = ZayaConfig(
    vocab_size=60, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    num_experts=4, moe_intermediate_size=16, router_hidden_size=8, eos_token_id=1, dtype="float32",
)  # fmt: skip


def recipe(phase: dict[str, object] | None = None, **fields: object) -> TrainConfig:
    """A recipe of one phase that nothing but a `Learner` reads."""
    phases = [{"name": "one", "tokens": 1000, **(phase or {})}]
    given = {"phases": phases, "mixture": {"sorting": {}}, "dtype": "float32", **fields}
    return TrainConfig(**given)  # type: ignore[arg-type]


def random_batch(seed: int, rows: int = 3, length: int = 20, vocabulary: int = 60) -> Batch:
    """Rows of two documents and some padding, most of their tokens learned."""
    random = np.random.default_rng(seed)
    ids = random.integers(2, vocabulary, (rows, length))
    real = np.ones((rows, length), dtype=np.bool_)
    real[0, -3:] = False
    documents = np.where(np.arange(length) < random.integers(4, length - 4, (rows, 1)), 0, 1)
    learned = (random.random((rows, length)) < 0.7) & real
    return Batch(ids, np.roll(ids, -1, axis=1), learned, real, np.where(real, documents, -1))
