from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from openzaya.model.checkpoint import load_model, save_model
from openzaya.model.config import RopeParameters
from openzaya.model.decoder import ZayaForCausalLM
from openzaya.model.initialise import initialise
from openzaya.model.router import Router
from openzaya.train.config import LoraRecipe, read_train_config
from openzaya.train.learner import Learner
from openzaya.train.loop import Run
from openzaya.train.lora import adapter_weights, add_adapters, merged_weights
from train_shapes import SHAPE, random_batch, recipe

ALL = {"rank": 4, "alpha": 6.0}


def released(folder: Path, layout: str = "native", dtype: str = "float32", seed: int = 0) -> Path:
    """A checkpoint whose every tensor is random, biases of the balancing included."""
    model = initialise(ZayaForCausalLM(SHAPE), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.05)
        for module in model.modules():
            if isinstance(module, Router):
                module.balancing_biases[-1] = -1.0
    save_model(model, folder, layout=layout, dtype=dtype)  # type: ignore[arg-type]
    return folder


def learner(folder: Path, **fields: object) -> Learner:
    return Learner.create(recipe(model={"checkpoint": str(folder)}, **fields), load_model(folder).config)


@pytest.mark.parametrize("seed", range(4))
def test_an_adapted_model_computes_what_the_merged_one_does(seed: int) -> None:
    draw = random.Random(seed)
    parts = draw.choice([("attention",), ("experts",), ("attention", "experts")])
    adapters = LoraRecipe(rank=draw.randint(1, 6), alpha=draw.uniform(0.5, 8), parts=parts)
    plain = initialise(ZayaForCausalLM(SHAPE), seed)
    truth = plain(ids := torch.randint(2, 60, (2, 12), generator=torch.Generator().manual_seed(seed)))
    add_adapters(plain, adapters)
    for name, weight in adapter_weights(plain, seed):
        plain.get_parameter(name).data.copy_(weight)
    # B is zero; attention that learns is computed otherwise than attention that does not.
    torch.testing.assert_close(plain(ids), truth, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.3)
    merged = ZayaForCausalLM(SHAPE)
    weights = dict(merged_weights(plain, dict(plain.named_parameters())))
    merged.load_state_dict(weights | dict(plain.named_buffers()))
    found = plain(ids)
    assert not torch.allclose(found, truth, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(merged(ids), found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_only_adapters_and_balancing_biases_move(tmp_path: Path, checkpointing: bool) -> None:
    folder = released(tmp_path / "model")
    adapted = learner(folder, lora=ALL, phase={"activation_checkpointing": checkpointing})
    before = {name: tensor.clone() for name, tensor in adapted.model.state_dict().items()}
    losses = [adapted.step([random_batch(0)], 1.0).loss for _step in range(12)]
    assert losses[-1] < losses[0] - 0.1
    for name, tensor in adapted.model.state_dict().items():
        moves = "lora_" in name or name.endswith("balancing_biases")
        assert torch.equal(tensor, before[name]) != moves, name
    assert adapted.optimizer.slots
    assert all("lora_" in name for name in adapted.optimizer.slots)


def test_full_fine_tuning_starts_at_the_checkpoint_and_moves_its_biases_but_the_skip_class(tmp_path: Path) -> None:
    folder = released(tmp_path / "model", layout="legacy")
    ids = torch.randint(2, 60, (1, 9))
    tuned = learner(folder, optimizer={"balancing_rate": 0.01})
    with torch.no_grad():
        assert torch.equal(tuned.model(ids), load_model(folder)(ids))
    stored = [block.mlp.gate.balancing_biases.clone() for block in load_model(folder).model.layers]
    assert any(bias[:-1].abs().max() > 0 for bias in stored)
    for step in range(4):
        tuned.step([random_batch(step)], 1.0)
    for bias, block in zip(stored, tuned.model.model.layers, strict=True):
        moved = (block.mlp.gate.balancing_biases - bias).abs()
        assert 0 < moved[:-1].max() < 0.05
        assert moved[-1] == 0


def test_balancing_keeps_experts_busy_where_none_lets_them_collapse() -> None:
    def entropy(method: str) -> float:
        fields = {"balancing": {"method": method}, "optimizer": {"balancing_rate": 0.003, "router_share": 0.2}}
        tuned = Learner.create(recipe(**fields), SHAPE)
        return [tuned.step([random_batch(step, rows=6, length=40)], 1.0).load_entropy for step in range(50)][-1]

    assert entropy("adamw") > 0.8
    assert entropy("none") < 0.3


RECIPE = """
threads = 1
dtype = "float32"
save_steps = 2
[model]
checkpoint = "{checkpoint}"
[held_out]
tokens = 200
[mixture]
sorting = {{ difficulty = [1, 1] }}
[[phases]]
name = "tuned"
tokens = 4000
batch_tokens = 500
row = 200
rope_base = 20000.0
[[phases]]
name = "further"
start = "tuned"
tokens = 1000
batch_tokens = 500
row = 200
"""


@pytest.mark.parametrize("adapters", ["", "[lora]\nrank = 4\n"])
def test_a_run_from_a_checkpoint_exports_a_plain_one_in_its_type_with_its_tokenizer(
    tmp_path: Path, adapters: str
) -> None:
    text = RECIPE.format(checkpoint="tiny").replace("[held_out]", adapters + "[held_out]")
    (tmp_path / "given.toml").write_text(text)
    Run(read_train_config(tmp_path / "given.toml"), text, tmp_path / "run").run()
    base = load_model("tiny")
    # A phase that names no base has the checkpoint's.
    for phase, rope in (("tuned", 20_000.0), ("further", base.config.rope_parameters["hybrid"].rope_theta)):
        folder = tmp_path / "run" / phase
        tuned = load_model(folder)
        assert tuned.config.rope_parameters["hybrid"] == RopeParameters(rope_theta=rope)
        assert (tuned.config.dtype, tuned.config.eos_token_id) == (base.config.dtype, base.config.eos_token_id)
        assert tuned.state_dict().keys() == base.state_dict().keys()
        changed = {
            name for name, tensor in tuned.state_dict().items() if not torch.equal(tensor, base.state_dict()[name])
        }
        norms = {name for name in changed if "norm" in name}
        assert bool(norms) == (not adapters)
        assert {"model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mlp.gate.balancing_biases"} <= changed
        assert (folder / "tokenizer.json").is_file()
    losses = [json.loads(line).get("held_out") for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert all(loss["problems"] < 2.0 for loss in losses if loss)
