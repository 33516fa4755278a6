"""Where each token of a forward stands: its position, what it may attend to, and where documents begin.

B batch, S new tokens, T keys (earlier ones included), R rotary channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from openzaya.model.cache import Cache
from openzaya.model.config import ZayaConfig


class Context(Protocol):
    """What lies outside of one part of the rows, where several forwards share rows between them.

    `openzaya.train.sharding.context` has the one that asks other ranks.
    """

    def part(self, length: int) -> slice:
        """The places of a row of `length` that this forward computes; raises ValueError where they are too few."""
        ...

    def before(self, columns_BSZ: Tensor, delayed_BSV: Tensor, resets_BS: Tensor | None) -> tuple[Tensor, Tensor]:
        """Columns (B, P, Z) and delayed value (B, V) before the part: zero before a row or a document begins."""
        ...

    def keys_and_values(self, keys_BKSC: Tensor, values_BKSC: Tensor) -> tuple[Tensor, Tensor]:
        """Those of every place up to the end of the part, (B, K, T, C)."""
        ...


@dataclass(frozen=True, slots=True)
class Placement:
    """Computed once a forward and read by every layer."""

    rotary: Mapping[str, tuple[Tensor, Tensor]]
    """Cosine and sine of each layer type, (B, S, R)."""
    masks: Mapping[int | None, Tensor | None]
    """By sliding window: (B, 1, S, T), True where a token may look; None is plain causal attention."""
    tokens_BS: Tensor | None
    """False at padding, whose hidden states are zeroed before the projections; None where there is none."""
    resets_BS: Tensor | None
    """Position within the document, where a row packs several; None where nothing resets inside a row."""
    context: Context | None = None
    """None where the forward computes whole rows."""


def place(
    config: ZayaConfig,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    document_ids: Tensor | None,
    cache: Cache | None,
    context: Context | None = None,
) -> Placement:
    """Work out the placement of `input_ids` (B, S), or with a `context` of its part of them.

    `attention_mask` (B, S) is 0 at padding. `document_ids` (B, S) gives tokens of one document the same integer; a
    document begins wherever that integer changes. Raises ValueError where the arguments exclude each other or do not
    fit.
    """
    for name, given in (("attention_mask", attention_mask), ("document_ids", document_ids)):
        if given is not None and given.shape != input_ids.shape:
            raise ValueError(f"{name} has shape {tuple(given.shape)} but input_ids has {tuple(input_ids.shape)}")
    if cache is not None and (attention_mask is not None or document_ids is not None):
        raise ValueError("attention_mask and document_ids describe a whole input; a cache keeps its own placement")
    if cache is not None and context is not None:
        raise ValueError("a cache continues whole rows; leave out the context")
    part = slice(0, input_ids.shape[1]) if context is None else context.part(input_ids.shape[1])
    windows = {config.window(layer) for layer in range(config.num_hidden_layers)}
    tokens_BS = resets_BS = None
    if cache is not None:
        positions_BS = cache.positions(input_ids.shape[1])
        tokens_BS = cache.tokens(input_ids.shape[1])
        masks = {window: cache.mask(input_ids.shape[1], window) for window in windows}
    else:
        if document_ids is not None:
            positions_BS = resets_BS = positions_in_documents(document_ids)
        elif attention_mask is not None:
            positions_BS = (attention_mask.long().cumsum(-1) - 1).clamp_min(0)
        else:
            positions_BS = torch.arange(input_ids.shape[1], device=input_ids.device).expand(input_ids.shape)
        if attention_mask is not None and not bool(attention_mask.all()):
            tokens_BS = attention_mask.bool()
        masks = {window: _mask(input_ids, tokens_BS, document_ids, window, part) for window in windows}
    return Placement(
        rotary={kind: _rotary(config, kind, positions_BS[:, part]) for kind in set(config.layer_types)},
        masks=masks,
        tokens_BS=None if tokens_BS is None else tokens_BS[:, part],
        resets_BS=None if resets_BS is None else resets_BS[:, part],
        context=context,
    )


def positions_in_documents(document_ids: Tensor) -> Tensor:
    """Position of each token within its document, (B, S)."""
    index_BS = torch.arange(document_ids.shape[1], device=document_ids.device).expand(document_ids.shape)
    return index_BS - torch.where(_starts(document_ids), index_BS, 0).cummax(dim=1).values


def _starts(document_ids: Tensor) -> Tensor:
    starts_BS = torch.ones_like(document_ids, dtype=torch.bool)
    starts_BS[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    return starts_BS


def _mask(
    input_ids: Tensor, tokens_BS: Tensor | None, document_ids: Tensor | None, window: int | None, part: slice
) -> Tensor | None:
    """What the places of `part` may look at, of all places up to its end."""
    if tokens_BS is None and document_ids is None and part.start == 0 and (window is None or window >= part.stop):
        return None
    index = torch.arange(part.stop, device=input_ids.device)
    distance_ST = index[part, None] - index[None, :]
    mask_BST = (distance_ST >= 0)[None].expand(input_ids.shape[0], *distance_ST.shape)
    if window is not None:
        mask_BST = mask_BST & (distance_ST < window)
    if document_ids is not None:
        number_BT = _starts(document_ids)[:, : part.stop].cumsum(dim=1)  # an id may come back for another document
        mask_BST = mask_BST & (number_BT[:, part, None] == number_BT[:, None, :])
    if tokens_BS is not None:
        # A padded query sees itself, so that its softmax is defined; nothing reads its output.
        mask_BST = (mask_BST & tokens_BS[:, None, : part.stop]) | (distance_ST == 0)
    return mask_BST[:, None]


def _rotary(config: ZayaConfig, layer_type: str, positions_BS: Tensor) -> tuple[Tensor, Tensor]:
    channels = config.rotary_dim(layer_type)
    exponent = torch.arange(0, channels, 2, dtype=torch.float32, device=positions_BS.device) / channels
    frequency = 1.0 / (config.rope_parameters[layer_type].rope_theta ** exponent)
    angle_BSR = (positions_BS[..., None].float() * frequency).repeat(1, 1, 2)
    return angle_BSR.cos(), angle_BSR.sin()
