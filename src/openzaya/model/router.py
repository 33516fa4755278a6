"""The MLP router: depth averaging, a skip class, and balancing biases that only choose (report, equations 1-5).

T tokens, D hidden, R router width, E experts. There are E + 1 classes; the last one skips the experts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openzaya.model.config import ZayaConfig
from openzaya.model.numerics import Numerics
from openzaya.model.residual import RMSNorm


@dataclass(slots=True)
class Routing:
    """The class that every token chose, layer by layer; pass it to a forward to record or to replay a routing.

    With `forced` given, layer l uses `forced[l]` (integers, one a token) in place of its own choice, and `chosen`
    still records what was used. Probabilities stay the router's own, so gradients flow as without replay.
    """

    forced: list[Tensor] | None = None
    chosen: list[Tensor] = field(default_factory=list)


class RouterMLP(nn.Module):
    """Three linear layers with exact (erf) GELU; an approximate GELU would change the routing."""

    def __init__(self, config: ZayaConfig, numerics: Numerics) -> None:
        super().__init__()
        width = config.router_hidden_size
        self.norm = RMSNorm(width, config.rms_norm_eps, numerics)
        self.fc1 = nn.Linear(width, width)
        self.fc2 = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, config.num_experts + 1, bias=False)

    def forward(self, state_TR: Tensor) -> Tensor:
        hidden_TR = F.gelu(self.fc1(self.norm(state_TR)))
        return self.out_proj(F.gelu(self.fc2(hidden_TR)))


class Router(nn.Module):
    """Chooses one class a token, by probability plus balancing bias, and weighs it by the probability alone."""

    balancing_biases: Tensor

    def __init__(self, config: ZayaConfig, layer: int, numerics: Numerics) -> None:
        super().__init__()
        self.numerics = numerics
        self.down_proj = nn.Linear(config.hidden_size, config.router_hidden_size)
        # The first layer has no earlier router state to average with.
        self.router_states_scale = nn.Parameter(torch.empty(config.router_hidden_size)) if layer > 0 else None
        self.router_mlp = RouterMLP(config, numerics)
        # float32 whatever the model's dtype: updates of the balancing are far below bfloat16's resolution.
        self.register_buffer("balancing_biases", torch.empty(config.num_experts + 1, dtype=torch.float32))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Router:
        """Moves and casts like any module (`model.to(...)`), but for the biases, which only move."""
        kept = self.balancing_biases
        super()._apply(fn, recurse)
        if self.balancing_biases.dtype != torch.float32:
            self.balancing_biases = kept.to(self.balancing_biases.device)
        return self

    def forward(
        self, x_TD: Tensor, previous_TR: Tensor | None, routing: Routing | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the class of each token (T), its weight (T), and the router state for the next layer (T, R)."""
        state_TR = self.down_proj(x_TD)
        if self.router_states_scale is not None:
            assert previous_TR is not None
            state_TR = state_TR + previous_TR * self.router_states_scale
        probability_TE = torch.softmax(self.numerics.up(self.router_mlp(state_TR)), dim=-1)
        if routing is not None and routing.forced is not None:
            chosen_T = routing.forced[len(routing.chosen)]
        else:
            chosen_T = (probability_TE.detach().float() + self.balancing_biases).argmax(dim=-1)
        if routing is not None:
            routing.chosen.append(chosen_T)
        return chosen_T, probability_TE.gather(-1, chosen_T[:, None]).squeeze(-1), state_TR
