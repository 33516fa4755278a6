"""What `--config` may name: torchtitan looks for it here."""

from __future__ import annotations

from torchtitan.components.metrics import MetricsProcessor
from torchtitan.config import ParallelismConfig, TrainingConfig
from torchtitan.protocols.model_spec import ModelSpec

from openzaya.train.titan.checkpoints import NativeLayout, PhaseCheckpoints
from openzaya.train.titan.model import TitanZaya, parallelise
from openzaya.train.titan.optimizer import register_balancing
from openzaya.train.titan.recipe import NOT_GIVEN
from openzaya.train.titan.trainer import ZayaTrainer


def zaya() -> ZayaTrainer.Config:
    """A phase of the recipe that `--recipe` names; what the recipe says is filled in once it has been read."""
    return ZayaTrainer.Config(
        model_spec=ModelSpec(
            name="zaya",
            flavor="of the recipe",
            model=TitanZaya.Config(),
            parallelize_fn=parallelise,
            pipelining_fn=None,
            post_optimizer_build_fn=register_balancing,
            state_dict_adapter=NativeLayout,
        ),
        training=TrainingConfig(
            steps=NOT_GIVEN,
            seq_len=NOT_GIVEN,
            local_batch_size=NOT_GIVEN,
            global_batch_size=NOT_GIVEN,
            max_norm=NOT_GIVEN,
            # The size of what travels between experts and what is learned is known at each step alone.
            disable_cuda_graphs=True,
        ),
        parallelism=ParallelismConfig(
            expert_parallel_degree=NOT_GIVEN,
            context_parallel_degree=NOT_GIVEN,
            # Parts of a row are contiguous: convolutions and delayed values look back over one border, not two.
            context_parallel_load_balancer=None,
            spmd_backend="partial_dtensor",
        ),
        activation_checkpoint=None,
        checkpoint=PhaseCheckpoints.Config(enable=True, last_save_model_only=False),
        metrics=MetricsProcessor.Config(enable_tensorboard=True),
    )
