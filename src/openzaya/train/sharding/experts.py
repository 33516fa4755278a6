"""Expert parallelism: each rank of a group holds some experts whole, and tokens travel to them and back.

T tokens, D hidden, E experts of the layer, L experts of this rank, N tokens that came to this rank.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from openzaya.model.experts import Experts, count
from openzaya.train.sharding.collectives import exchange
from openzaya.train.sharding.meshes import Meshes


def split_experts(experts: Experts, meshes: Meshes) -> None:
    """Keep this rank's experts alone in `experts`, and have its forward send tokens to where their expert is.

    Raises ValueError where the experts cannot be split evenly.
    """
    total, parts = experts.gate_up_proj.shape[0], meshes.degrees.experts
    if parts == 1:
        return
    if total % parts:
        raise ValueError(f"{total} experts cannot be split over {parts} ranks; give a degree that divides them")
    own = slice(meshes.expert_place * (total // parts), (meshes.expert_place + 1) * (total // parts))
    for name, stack in list(experts.named_parameters(recurse=False)):
        setattr(experts, name, nn.Parameter(stack.detach()[own].clone(), requires_grad=stack.requires_grad))
    experts.forward = _Travelling(experts, total, meshes.expert_group())  # type: ignore[method-assign]


class _Travelling:
    """Stands in for the forward of `Experts`."""

    def __init__(self, experts: Experts, total: int, group: dist.ProcessGroup) -> None:
        self.experts, self.total, self.group = experts, total, group

    def __call__(self, x_TD: Tensor, chosen_T: Tensor, weight_T: Tensor) -> Tensor:
        skipped_T = chosen_T == self.total
        counts = count(chosen_T, self.total + 1)[: self.total]
        # Skipped tokens stay: they are the last in this order.
        order_T = torch.argsort(chosen_T, stable=True)
        sent_RL = counts.view(self.group.size(), -1)
        came_RL = torch.empty_like(sent_RL)
        dist.all_to_all_single(came_RL, sent_RL, group=self.group)
        send, receive = sent_RL.sum(dim=1).tolist(), came_RL.sum(dim=1).tolist()
        travelling = order_T[: sum(send)]
        came_ND = self._compute(exchange(x_TD.index_select(0, travelling), send, receive, self.group), came_RL)
        back_TD = exchange(came_ND, receive, send, self.group)
        output_TD = back_TD.new_zeros(x_TD.shape[0], back_TD.shape[1]).index_copy(0, travelling, back_TD)
        output_TD = output_TD * weight_T.masked_fill(skipped_T, 0)[:, None]
        if self.experts.skip_is_identity:
            output_TD = output_TD + x_TD * (weight_T * skipped_T)[:, None]
        return output_TD

    def _compute(self, x_ND: Tensor, came_RL: Tensor) -> Tensor:
        """This rank's experts on tokens sorted by where they came from, and there by expert."""
        ranks, own = came_RL.shape
        expert_N = torch.arange(own, device=x_ND.device).repeat(ranks).repeat_interleave(came_RL.flatten())
        order_N, tokens_L = torch.argsort(expert_N, stable=True), came_RL.sum(dim=0)
        gate, up = self.experts.expand(x_ND.index_select(0, order_N), tokens_L).chunk(2, dim=-1)
        sorted_ND = self.experts.contract(F.silu(gate) * up, tokens_L)
        return torch.empty_like(sorted_ND).index_copy(0, order_N, sorted_ND)
