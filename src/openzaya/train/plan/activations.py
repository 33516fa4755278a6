"""What a backward needs kept of the forward, counted by running the model's own forward on tensors without data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from openzaya.model.config import ZayaConfig
from openzaya.model.decoder import ZayaForCausalLM
from openzaya.model.info import ITEM_BYTES
from openzaya.model.numerics import numerics_profile

_LENGTH = 1024
"""Tokens of the row that is counted. What is kept grows in proportion, and from 513 on a CPU uses fused attention."""


@dataclass(frozen=True, slots=True)
class KeptBytes:
    """Bytes a token, by whether blocks keep everything or, with checkpointing, only what goes into them."""

    block: float
    """Of one block."""
    block_input: float
    """The residual stream and the router's state before it."""
    ends: float
    """Before the blocks and after them, logits not counted."""

    def forward(self, layers: int, *, checkpointing: bool) -> float:
        """Of a whole forward; with checkpointing one block at a time is there in full."""
        if checkpointing:
            return layers * self.block_input + self.block + self.ends
        return layers * self.block + self.ends


def kept_bytes(config: ZayaConfig, dtype: str = "bfloat16", numerics: str = "hf") -> KeptBytes:
    """Count what one token of a packed row without documents keeps; weights and gradients are not among it.

    A float32 run is counted as one in bfloat16 whose bfloat16 tensors are twice as large: with the casts that it does
    not need, that is a few percent too much.
    """
    item = ITEM_BYTES[dtype]
    one = _saved(config.with_(num_hidden_layers=1, layer_types=("hybrid",)), item, numerics)
    two = _saved(config.with_(num_hidden_layers=2, layer_types=("hybrid",) * 2), item, numerics)
    block = (two - one) / _LENGTH
    return KeptBytes(
        block=block,
        block_input=config.hidden_size * 4 + config.router_hidden_size * item,
        ends=one / _LENGTH - block,
    )


def _saved(config: ZayaConfig, item: int, numerics: str) -> int:
    """Bytes of distinct storages that autograd saves in a forward, the model's own tensors left out."""
    sizes: dict[torch.UntypedStorage, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        sizes[storage] = storage.nbytes() * (item if tensor.dtype is torch.bfloat16 else 2) // 2
        return tensor

    # torch's shape function of the grouped product knows bfloat16 only.
    with _default_dtype(torch.bfloat16), FakeTensorMode():
        model = ZayaForCausalLM(config, numerics_profile(numerics))
        own = {tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers())}
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            # The graph is what holds the storages: while it lives, none is counted twice under a reused address.
            hidden = model.hidden(torch.zeros(1, _LENGTH, dtype=torch.long))
        kept = sum(size for storage, size in sizes.items() if storage not in own)
    del hidden
    return kept


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
