"""Training speed beside peers: our step, transformers' own ZAYA of the same weights, a dense Llama of its active size.

All three read the same tokens, in rows of one document, each row in full, and every case is measured in every round.
transformers runs in whichever of its attention and experts backends is fastest on these tokens; it and the Llama get
torch's fused AdamW, and in bfloat16, unlike ours, no float32 masters. None of the three is compiled. Figures are of
forward and backward; what an optimizer takes stands beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

from openzaya.bench.figures import Figure, OnProgress, in_rounds, ratio, seconds_of
from openzaya.data.mixture import FamilyShare
from openzaya.data.packing import Batch
from openzaya.engine.torch_threads import torch_threads
from openzaya.model.config import NAMED_SHAPES, ZayaConfig
from openzaya.model.info import model_info
from openzaya.train.config import PhaseRecipe, TrainConfig
from openzaya.train.learner import Learner
from openzaya.train.peak import matmul_peak
from openzaya.train.plan.flops import forward_flops, model_flops

SHAPES = {
    "small": ZayaConfig(
        vocab_size=4096, hidden_size=256, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2,
        head_dim=64, num_experts=8, moe_intermediate_size=512, router_hidden_size=64, max_position_embeddings=4096,
        eos_token_id=1, dtype="float32",
    ),
    **NAMED_SHAPES,
}  # fmt: skip
"""`small` trains on two cores at some thousand tokens a second."""
_WARM_UP = 2
"""Steps before the first measurement."""
_SLOWEST_TRIED = 3.0
"""A backend of transformers that takes longer for one row than so many times the fastest is not tried on all."""
_TRIAL_ROUNDS = 3
"""Visits to each backend; the choice is by the median, as the comparison is: its best step says little."""

Backends = tuple[str, str]
"""Of the experts and of attention, by transformers' names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is measured."""

    shape: str = "small"
    rows: int = 4
    row: int = 256
    dtype: str = "float32"
    repeats: int = 5
    peers: bool = True
    checkpointing: bool = False
    """Of our activations; peers keep theirs."""
    device: str = "cpu"
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ValueError(f"the shape {self.shape!r} is unknown; there are {', '.join(SHAPES)}")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype is {self.dtype!r}; it must be float32 or bfloat16")
        for name in ("rows", "row", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")

    @property
    def tokens(self) -> int:
        return self.rows * self.row


@dataclass(slots=True)
class Case:
    """Something that trains: one forward and backward, and the optimizer behind it."""

    gradients: Callable[[], float]
    """Returns the loss."""
    update: Callable[[], object]
    facts: dict[str, Any]


def measure_training(settings: Settings, progress: OnProgress | None = None) -> dict[str, Any]:
    """Figures of every case, as plain values; raises ValueError for a device that is not there."""
    with torch_threads(settings.threads):
        cases = dict(_cases(settings))
        losses = {}
        for name, case in cases.items():
            losses[name], *_later = [_step(case) for _ in range(_WARM_UP)]
        device, dtype = torch.device(settings.device), getattr(torch, settings.dtype)
        runs: list[tuple[str, Callable[[], float]]] = [("matmul peak", lambda: matmul_peak(device, dtype))]
        for name, case in cases.items():
            runs.append((name, _timed(case.gradients, settings.device)))
            runs.append((f"{name}, optimizer", _timed(case.update, settings.device)))
        found = in_rounds(runs, settings.repeats, progress)
        operations = model_flops(forward_flops(SHAPES[settings.shape], settings.row)) * settings.tokens
        return {
            "matmul_peak": Figure.of(found["matmul peak"]).as_json(),
            "cases": {name: _figures(name, case, losses[name], found, settings) for name, case in cases.items()},
            "utilisation": Figure.of(
                [operations / (took * peak) for took, peak in zip(found["openzaya"], found["matmul peak"])]
            ).as_json(),
            "threads": torch.get_num_threads(),
        }


def _figures(name: str, case: Case, loss: float, found: dict[str, list[float]], settings: Settings) -> dict[str, Any]:
    behind = found[f"{name}, optimizer"]
    whole = [one + other for one, other in zip(found[name], behind)]
    ours = [one + other for one, other in zip(found["openzaya"], found["openzaya, optimizer"])]
    return {
        **case.facts,
        "first_loss": loss,
        "tokens_a_second": Figure.of([settings.tokens / took for took in found[name]]).as_json(),
        "optimizer_seconds": Figure.of(behind).as_json(),
        "tokens_a_second_with_optimizer": Figure.of([settings.tokens / took for took in whole]).as_json(),
        "openzaya_times_faster": ratio(found[name], found["openzaya"]).as_json(),
        "openzaya_times_faster_with_optimizer": ratio(whole, ours).as_json(),
    }


def _timed(run: Callable[[], object], device: str) -> Callable[[], float]:
    def waited() -> None:
        run()
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    return lambda: seconds_of(waited)


def _step(case: Case) -> float:
    loss = case.gradients()
    case.update()
    return loss


def _cases(settings: Settings) -> Iterator[tuple[str, Case]]:
    ids = np.random.default_rng(0).integers(2, SHAPES[settings.shape].vocab_size, (settings.rows, settings.row))
    learner = _learner(settings)
    if not settings.peers:
        yield "openzaya", _ours(learner, ids)
        return
    # Before our first step, whose weights they get.
    theirs = _transformers_zaya(learner, settings)
    yield "openzaya", _ours(learner, ids)
    place = torch.from_numpy(ids).to(settings.device)
    yield "transformers ZAYA", _fastest(theirs, place)
    yield "transformers Llama", _peer(_llama(settings), place, {})


# ---- ours ----


def _learner(settings: Settings) -> Learner:
    phase = PhaseRecipe(name="bench", tokens=settings.tokens, activation_checkpointing=settings.checkpointing)
    recipe = TrainConfig(
        mixture={"sorting": FamilyShare()},
        phases=[phase],
        dtype="bfloat16" if settings.dtype == "bfloat16" else "float32",
        device=settings.device,
    )
    return Learner.create(recipe, SHAPES[settings.shape])


def _ours(learner: Learner, ids: np.ndarray) -> Case:
    learned = np.ones(ids.shape, dtype=np.bool_)
    learned[:, -1] = False
    batch = Batch(ids, np.roll(ids, -1, axis=1), learned, np.ones_like(learned), None)
    facts = {"optimizer": "Muon, AdamW and balancing", "parameters": _size(learner.model)}
    return Case(lambda: learner.gradients([batch]), lambda: learner.update(0.0, 0.1), facts)


# ---- peers ----


def _transformers_zaya(learner: Learner, settings: Settings) -> Any:
    """transformers' model with our weights."""
    import transformers

    transformers.logging.set_verbosity_error()
    config = transformers.ZayaConfig.from_dict(SHAPES[settings.shape].to_dict())
    model = transformers.ZayaForCausalLM._from_config(config)
    weights = learner.model.state_dict()
    if learner.model.lm_head is None:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights)
    return model.to(settings.device, getattr(torch, settings.dtype)).train()


def _fastest(model: Any, ids: torch.Tensor) -> Case:
    """transformers' ZAYA in the fastest of its backends for the experts and for attention that work here."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    kinds = ["eager", *(kind for kind in ALL_EXPERTS_FUNCTIONS if kind != "eager")]
    of_a_row: dict[Backends, float] = {}
    for backends in product(kinds, ("sdpa", "eager")):
        try:
            of_a_row[backends] = _seconds_in(model, backends, ids[:1])
        except Exception:
            continue  # a backend of other hardware, or of a package that is not here
    # One of them takes a minute for all rows. Which of the others is fastest depends on how many tokens an expert gets.
    limit = _SLOWEST_TRIED * min(of_a_row.values())
    tried = [backends for backends, one in of_a_row.items() if one <= limit]
    rounds = [[_seconds_in(model, backends, ids) for backends in tried] for _round in range(_TRIAL_ROUNDS)]
    took = dict(zip(tried, map(median, zip(*rounds))))
    best = min(took, key=lambda backends: took[backends])
    model.set_experts_implementation(best[0])
    model.set_attn_implementation(best[1])
    seconds = {f"{experts}, {attention}": round(one, 4) for (experts, attention), one in took.items()}
    return _peer(model, ids, {"experts": best[0], "attention": best[1], "seconds_by_backend": seconds})


def _seconds_in(model: Any, backends: Backends, ids: torch.Tensor) -> float:
    """A step after one that warms up."""
    model.set_experts_implementation(backends[0])
    model.set_attn_implementation(backends[1])
    _backward(model, ids)
    return seconds_of(lambda: _backward(model, ids))


def _llama(settings: Settings) -> Any:
    """A dense model as deep and wide, its feed-forward so wide that as many parameters are active in it."""
    import transformers

    shape = SHAPES[settings.shape]
    attention = 2 * shape.hidden_size * (shape.query_size + shape.key_value_size)
    left = model_info(shape).active / shape.num_hidden_layers - attention
    config = transformers.LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=max(16, round(left / (3 * shape.hidden_size) / 16) * 16),
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.max_position_embeddings,
        tie_word_embeddings=shape.tie_word_embeddings,
    )
    model = transformers.LlamaForCausalLM._from_config(config)
    return model.to(settings.device, getattr(torch, settings.dtype)).train()


def _peer(model: Any, ids: torch.Tensor, facts: dict[str, Any]) -> Case:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def update() -> None:
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return Case(
        lambda: _backward(model, ids), update, {"optimizer": "AdamW, fused", "parameters": _size(model), **facts}
    )


def _backward(model: Any, ids: torch.Tensor) -> float:
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return float(loss.detach())


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
