"""Context parallelism for compressed convolutional attention: neighbouring ranks hold neighbouring parts of each row.

A part needs from the rank before it the last P columns of queries and keys, which the causal convolutions look back on
(two, with ZAYA1's two kernels of two), and the last delayed value; one message brings both. Keys and values of all
parts are gathered after convolution, norm and rotation, as in ZAYA1's training (report, section III). Parts are
contiguous: zigzag parts would even out the work of attention, and need a message at each of their borders.

B batch, S places of the part, Z convolution channels, V delayed value channels, K key-value heads, C head channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from openzaya.train.sharding.collectives import exchange, gathered
from openzaya.train.sharding.meshes import Meshes


@dataclass(frozen=True, slots=True)
class RowPart:
    """This rank's part of every row; the `Context` of its forwards."""

    history: int
    """Columns that the convolutions look back on."""
    place: int
    parts: int
    group: dist.ProcessGroup

    @classmethod
    def of(cls, meshes: Meshes, history: int) -> RowPart | None:
        """None where rows are not split."""
        parts = meshes.degrees.context
        return None if parts == 1 else cls(history, meshes.context_place, parts, meshes.context_group())

    def part(self, length: int) -> slice:
        size, left = divmod(length, self.parts)
        if left or size < max(1, self.history):
            raise ValueError(
                f"rows of {length} tokens cannot be split over {self.parts} ranks; make them a multiple of "
                f"{self.parts} with at least {max(1, self.history)} tokens a rank"
            )
        return slice(self.place * size, (self.place + 1) * size)

    def before(self, columns_BSZ: Tensor, delayed_BSV: Tensor, resets_BS: Tensor | None) -> tuple[Tensor, Tensor]:
        batch, length, channels = columns_BSZ.shape
        last = columns_BSZ[:, length - self.history :].flatten(1)
        sent = torch.cat([last, delayed_BSV[:, -1]], dim=1)
        send = [batch if place == self.place + 1 else 0 for place in range(self.parts)]
        receive = [batch if place == self.place - 1 else 0 for place in range(self.parts)]
        # The last part sends nothing and the first one gets nothing, but their backwards wait for each other.
        own = sent if self.place + 1 < self.parts else sent[:0]
        came = exchange(own, send, receive, self.group)
        came = torch.cat([came, came.new_zeros(batch - came.shape[0], came.shape[1])])
        columns_BPZ = came[:, : last.shape[1]].unflatten(1, (self.history, channels))
        if resets_BS is not None:
            # Of what came, only the document that goes on into this part is seen.
            back = torch.arange(self.history, 0, -1, device=came.device)
            columns_BPZ = torch.where((resets_BS[:, :1] >= back)[..., None], columns_BPZ, 0)
        return columns_BPZ, came[:, last.shape[1] :]

    def keys_and_values(self, keys_BKSC: Tensor, values_BKSC: Tensor) -> tuple[Tensor, Tensor]:
        both = gathered(torch.cat([keys_BKSC, values_BKSC], dim=-1), 2, self.group)
        seen = both[:, :, : (self.place + 1) * keys_BKSC.shape[2]]
        keys_BKTC, values_BKTC = seen.chunk(2, dim=-1)
        return keys_BKTC, values_BKTC
