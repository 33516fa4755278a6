"""Parts of ZAYA1 exchanged from outside for what they are claimed to be better than.

T tokens, D hidden, E experts.
"""

from __future__ import annotations

from torch import Tensor, nn

from openzaya.model.decoder import ZayaForCausalLM
from openzaya.model.router import Router


class LinearScores(nn.Module):
    """Scores of the E + 1 classes as one matrix times the normed stream: the usual router of a mixture of experts."""

    def __init__(self, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        self.out_proj = nn.Linear(hidden_size, num_experts + 1, bias=False)

    def forward(self, x_TD: Tensor) -> Tensor:
        scores_TE: Tensor = self.out_proj(x_TD)
        return scores_TE


def with_linear_routers(model: ZayaForCausalLM) -> None:
    """Give every layer of a fresh `model` linear scores in place of projection, depth averaging and MLP.

    Choosing by probability plus bias, weighing by probability and the skip class stay. Initialise the model afterwards.
    """
    for module in model.modules():
        if isinstance(module, Router):
            module.down_proj = nn.Identity()  # type: ignore[assignment]
            module.router_states_scale = None
            scores = LinearScores(model.config.hidden_size, model.config.num_experts)
            module.router_mlp = scores  # type: ignore[assignment]
