"""Where each token of a forward stands: its position, what it may attend to, and where documents begin.

B batch, S new tokens, T keys (earlier ones included), R rotary channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from openzaya.model.cache import Cache
from openzaya.model.config import ZayaConfig


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


def place(
    config: ZayaConfig,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    document_ids: Tensor | None,
    cache: Cache | None,
) -> Placement:
    """Work out the placement of `input_ids` (B, S).

    `attention_mask` (B, S) is 0 at padding. `document_ids` (B, S) gives tokens of one document the same integer; a
    document begins wherever that integer changes. Raises ValueError where the arguments exclude each other or do not
    fit.
    """
    for name, given in (("attention_mask", attention_mask), ("document_ids", document_ids)):
        if given is not None and given.shape != input_ids.shape:
            raise ValueError(f"{name} has shape {tuple(given.shape)} but input_ids has {tuple(input_ids.shape)}")
    if cache is not None and (attention_mask is not None or document_ids is not None):
        raise ValueError("attention_mask and document_ids describe a whole input; a cache keeps its own placement")
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
        masks = {window: _mask(input_ids, tokens_BS, document_ids, window) for window in windows}
    return Placement(
        rotary={kind: _rotary(config, kind, positions_BS) for kind in set(config.layer_types)},
        masks=masks,
        tokens_BS=tokens_BS,
        resets_BS=resets_BS,
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
    input_ids: Tensor, tokens_BS: Tensor | None, document_ids: Tensor | None, window: int | None
) -> Tensor | None:
    length = input_ids.shape[1]
    if tokens_BS is None and document_ids is None and (window is None or window >= length):
        return None
    index = torch.arange(length, device=input_ids.device)
    distance_SS = index[:, None] - index[None, :]
    mask_BSS = (distance_SS >= 0)[None].expand(input_ids.shape[0], length, length)
    if window is not None:
        mask_BSS = mask_BSS & (distance_SS < window)
    if document_ids is not None:
        number_BS = _starts(document_ids).cumsum(dim=1)  # an id may come back further on, for another document
        mask_BSS = mask_BSS & (number_BS[:, :, None] == number_BS[:, None, :])
    if tokens_BS is not None:
        # A padded query sees itself, so that its softmax is defined; nothing reads its output.
        mask_BSS = (mask_BSS & tokens_BS[:, None, :]) | (distance_SS == 0)
    return mask_BSS[:, None]


def _rotary(config: ZayaConfig, layer_type: str, positions_BS: Tensor) -> tuple[Tensor, Tensor]:
    channels = config.rotary_dim(layer_type)
    exponent = torch.arange(0, channels, 2, dtype=torch.float32, device=positions_BS.device) / channels
    frequency = 1.0 / (config.rope_parameters[layer_type].rope_theta ** exponent)
    angle_BSR = (positions_BS[..., None].float() * frequency).repeat(1, 1, 2)
    return angle_BSR.cos(), angle_BSR.sin()
