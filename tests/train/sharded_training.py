"""What ranks do in the tests of sharding: train a small random model on packed rows, and say what came of it."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import openzaya.train.muon as muon
from openzaya.data.packing import Batch
from openzaya.model.config import ZayaConfig
from openzaya.model.decoder import ZayaForCausalLM
from openzaya.model.router import Router
from openzaya.train.balancing import AuxiliaryLoss, Balancer
from openzaya.train.beginning import empty_model
from openzaya.train.config import BalancingRecipe, OptimizerRecipe, PhaseRecipe, TrainConfig
from openzaya.train.learner import Learner
from openzaya.train.sharding.batches import evened
from openzaya.train.sharding.learner import ShardedLearner
from openzaya.train.sharding.meshes import Degrees, Meshes
from openzaya.train.sharding.parts import whole_of

Result = dict[str, Any]


@contextmanager
def float32_iterations() -> Iterator[None]:
    """In bfloat16 Muon's iteration would tell sums in another order apart."""
    usual, muon.iteration_dtype = muon.iteration_dtype, lambda _device: torch.float32  # type: ignore[assignment]
    try:
        yield
    finally:
        muon.iteration_dtype = usual


def draw_shape(seed: int, **fixed: Any) -> ZayaConfig:
    """A small random shape whose experts can be split over two and four ranks."""
    source = random.Random(seed)
    key_heads, head_dim, layers = source.choice([1, 2]), source.choice([4, 8]), source.randint(2, 3)
    kinds = [source.choice(["hybrid", "hybrid_sliding"]) for _ in range(layers)]
    drawn: dict[str, Any] = {
        "vocab_size": source.randint(40, 60),
        "hidden_size": source.choice([20, 24, 32]),
        "num_hidden_layers": layers,
        "num_key_value_heads": key_heads,
        "num_attention_heads": key_heads * source.choice([1, 2]),
        "head_dim": head_dim,
        "num_experts": source.choice([4, 8]),
        "moe_intermediate_size": source.choice([10, 16]),
        "router_hidden_size": source.choice([6, 8]),
        "cca_time0": source.choice([2, 2, 3]),
        "cca_time1": source.choice([2, 2, 3]),
        "layer_types": tuple(kinds),
        "sliding_window": source.randint(3, 9) if "hybrid_sliding" in kinds else None,
        "tie_word_embeddings": source.random() < 0.6,
        "max_position_embeddings": 64,
        "eos_token_id": 1,
        "dtype": "float32",
        "skip_semantics": source.choice(["zero", "identity"]),
    }
    return ZayaConfig(**{**drawn, **fixed})


def draw_model(shape: ZayaConfig, seed: int, config: TrainConfig | None = None) -> ZayaForCausalLM:
    generator = torch.Generator().manual_seed(seed)
    model = empty_model(config or config_of(), shape, torch.device("cpu"))
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            spread = torch.randn(tensor.shape, generator=generator)
            plain = name.endswith(("norm.weight", "layernorm.weight", "scale", "temp"))
            tensor.copy_(1 + 0.1 * spread if plain else 0.3 * spread)
        for block in model.model.layers:
            block.mlp.gate.router_mlp.out_proj.weight.mul_(4)
            block.mlp.gate.balancing_biases.mul_(0.1)
    return model


def draw_batch(shape: ZayaConfig, seed: int, rows: int = 2, length: int = 24, packed: bool = True) -> Batch:
    """Rows of documents of any length, so that some cross every border, and padding at the end."""
    source, generator = random.Random(seed), np.random.default_rng(seed)
    documents = np.full((rows, length), -1, dtype=np.int64)
    for row in range(rows):
        place, document = 0, 0
        while place < length - 2:
            end = min(length - 2, place + (source.randint(1, 9) if packed else length))
            documents[row, place:end] = document % 3  # an id comes back
            place, document = end, document + 1
    ids = generator.integers(2, shape.vocab_size, (rows, length))
    real = documents >= 0
    learned = (generator.random((rows, length)) < 0.7) & real
    return Batch(ids, np.roll(ids, -1, axis=1), learned, real, documents if packed else None)


def draw_batches(shape: ZayaConfig, step: int) -> list[Batch]:
    """Three microbatches of a step, one of them of single documents: an odd number for two readers."""
    return [
        draw_batch(shape, 10 * step),
        draw_batch(shape, 10 * step + 1, rows=1, length=21),
        draw_batch(shape, 10 * step + 2, packed=False, length=20),
    ]


def config_of(**changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "dtype": "float32",
        "mixture": {"sorting": {}},
        "optimizer": OptimizerRecipe(muon_rate=0.02, adamw_rate=0.02, balancing_rate=0.01, clip=0.5),
        "balancing": BalancingRecipe(),
        "phases": (PhaseRecipe(name="x", tokens=100, batch_tokens=10, activation_checkpointing=True),),
    }
    return TrainConfig.model_validate(values | changes)


def sharded_learner(shape: ZayaConfig, degrees: Degrees, config: TrainConfig | None = None) -> ShardedLearner:
    config, meshes = config or config_of(), Meshes.create(degrees)
    model, weights = empty_model(config, shape, torch.device("meta")), draw_model(shape, 1, config).state_dict()
    return ShardedLearner.around(
        model, ((name, (tensor,)) for name, tensor in weights.items()), config, config.phases[0], meshes
    )


@float32_iterations()
def train_sharded(shape: ZayaConfig, degrees: Degrees, steps: int = 3, **changes: Any) -> Result | None:
    learner = sharded_learner(shape, degrees, config_of(**changes))
    reader, readers = learner.meshes.reader, learner.meshes.readers
    gradients = gradients_of(learner, draw_batches(shape, 0)[reader::readers])
    figures = [learner.step(draw_batches(shape, step)[reader::readers], 1.0) for step in range(steps)]
    held_out = learner.loss_of(draw_batches(shape, 99)[reader::readers])
    result = result_of(learner, gradients, figures, held_out)
    return result if learner.meshes.rank == 0 else None


@float32_iterations()
def train_alone(shape: ZayaConfig, steps: int = 3, **changes: Any) -> Result:
    """The oracle: the learner of one process, without any of this room's code."""
    config = config_of(**changes)
    model = draw_model(shape, 1, config)
    optimizer = muon.MuonAdamW(model.named_parameters(), config.optimizer)
    weight = config.balancing.auxiliary_weight
    auxiliary = AuxiliaryLoss(model, weight) if config.balancing.method == "auxiliary" else None
    balancer = Balancer(model, config.optimizer.balancing_rate, config.balancing)
    learner = Learner(model.train(), optimizer, balancer, auxiliary, config.ablation)
    margins = margins_of(model)
    learner.gradients(draw_batches(shape, 0))
    gradients = {name: p.grad.clone().numpy() for name, p in model.named_parameters() if p.grad is not None}
    optimizer.forget()
    learner.balancer.forget()
    figures = [learner.step(draw_batches(shape, step), 1.0) for step in range(steps)]
    result = result_of(learner, gradients, figures, learner.loss_of(draw_batches(shape, 99)))
    return result | {"margin": min(margins)}


def margins_of(model: ZayaForCausalLM) -> list[float]:
    """Grows with each call of a router by how far the chosen class was ahead of the next one, at its nearest."""
    margins: list[float] = []

    def add(router: Router, scores_TE: Tensor) -> None:
        best_T2 = (scores_TE.detach().float().softmax(dim=-1) + router.balancing_biases).topk(2).values
        margins.append(float((best_T2[:, 0] - best_T2[:, 1]).min()))

    for block in model.model.layers:
        router = block.mlp.gate
        router.router_mlp.register_forward_hook(lambda _module, _inputs, scores, router=router: add(router, scores))
    return margins


def train_alone_clearly(
    seed: int, steps: int = 3, fixed: dict[str, Any] | None = None, **changes: Any
) -> tuple[ZayaConfig, Result]:
    """A shape that `seed` draws, with the oracle's result, in whose training no token is nearly between two classes.

    Sums in another order would give such a token to another expert, and its loss would differ by far more than a sum.
    """
    for drawn in range(seed, seed + 2000, 100):
        shape = draw_shape(drawn, **(fixed or {}))
        result = train_alone(shape, steps, **changes)
        if result["margin"] > 1e-4:
            return shape, result
    raise AssertionError(f"all of twenty shapes from seed {seed} on have tokens between two classes")


def gradients_of(learner: ShardedLearner, batches: list[Batch]) -> dict[str, np.ndarray]:
    batches = evened(batches, learner.meshes, learner.model.config.convolution_history, learner.device)
    learned, real = learner._totals(batches)
    for batch in batches:
        learner._accumulate(batch, learned, real)
    optimizer = learner.optimizer
    clipped = max(1.0, optimizer.clip() / optimizer.recipe.clip)
    held = {name: slot.parameter.grad for name, slot in optimizer.slots.items() if slot.parameter.grad is not None}
    unclipped = {name: (whole(optimizer._placed(name, gradient)) * clipped).numpy() for name, gradient in held.items()}
    optimizer.forget()
    learner.balancer.forget()
    return unclipped


def whole(tensor: Tensor) -> Tensor:
    return (whole_of(tensor) if isinstance(tensor, DTensor) else tensor).detach().clone()


def result_of(learner: Learner, gradients: dict[str, np.ndarray], figures: list[Any], held_out: float) -> Result:
    model = learner.master_model()
    return {
        "losses": [figure.loss for figure in figures],
        "norms": [figure.gradient_norm for figure in figures],
        "entropies": [list(figure.load_entropies) for figure in figures],
        "held_out": held_out,
        "gradients": gradients,
        "weights": {} if model is None else {name: tensor.numpy() for name, tensor in model.state_dict().items()},
    }


# ---- the beginning ----


def first_tensors(config: TrainConfig, shape: ZayaConfig, degrees: Degrees) -> dict[str, np.ndarray]:
    """What the ranks hold together before their first step."""
    learner = ShardedLearner.spread(config, shape, None, Meshes.create(degrees))
    weights = {name: whole(tensor).float().numpy() for name, tensor in learner.optimizer.weights().items()}
    return weights | {name: buffer.numpy() for name, buffer in learner.model.named_buffers()}


def bytes_of_beginning(config: TrainConfig, shape: ZayaConfig, degrees: Degrees) -> tuple[int, int]:
    """Bytes of the tensors that a rank has at most while it begins, and of those that it keeps."""
    with LiveBytes() as live:
        learner = ShardedLearner.spread(config, shape, None, Meshes.create(degrees))
        gc.collect()
        kept = live.now()
    assert learner.optimizer.slots
    return live.most, kept


class LiveBytes(TorchDispatchMode):
    """Counts the memory of all tensors made while it is active that are still there."""

    def __init__(self) -> None:
        super().__init__()
        self.most, self._sizes = 0, dict[StorageWeakRef, int]()

    def now(self) -> int:
        self._sizes = {storage: size for storage, size in self._sizes.items() if not storage.expired()}
        return sum(self._sizes.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                local = tensor._local_tensor if isinstance(tensor, DTensor) else tensor
                if not local.is_meta:
                    self._sizes[StorageWeakRef(local.untyped_storage())] = local.untyped_storage().nbytes()
        self.most = max(self.most, self.now())
        return made
