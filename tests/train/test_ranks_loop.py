from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_pool import rank_pool
from sharded_training import float32_iterations
from test_recovery import RECIPE

from openzaya.model.checkpoint import load_model
from openzaya.train.config import read_train_config
from openzaya.train.learner import Learner, StepFigures
from openzaya.train.loop import Run
from openzaya.train.world import World

FURTHER = '[[phases]]\nname = "further"\nstart = "plain"\ntokens = 1500\nbatch_tokens = 500\nrow = 120\n'


# Tails of the model's own rollouts, made once, from the weights that ranks and one process begin with.
ROLLOUTS = """
[phases.aggregation]
share = 0.5
tails = 2
tau = 8
beta = 16
refreshes = 1
problems = 3
rollouts = 2
second_round = 0.5
"""


def whole_run(folder: str, broken: frozenset[int] = frozenset()) -> list[str]:
    """On every rank: all phases of a recipe, as `openzaya train` does it under torchrun.

    The second rank has no finite loss in the `broken` ones of the steps that are asked for.
    """
    from openzaya.train.sharding.learner import ShardedLearner
    from openzaya.train.sharding.world import Ranks

    world = Ranks("cpu")
    with float32_iterations(), breaking(ShardedLearner, broken if not world.leads else frozenset()):
        return run_in(Path(folder), "run", world)


def run_in(folder: Path, name: str, world: World) -> list[str]:
    told: list[str] = []
    path = folder / "given.toml"
    Run(read_train_config(path), path.read_text(), folder / name, lambda r: told.append(str(r)), world).run()
    return told


@contextmanager
def breaking(kind: type[Learner], broken: frozenset[int]) -> Iterator[None]:
    step, accumulate, asked = kind.step, kind._accumulate, [-1]

    def counted(self: Learner, *given: Any) -> StepFigures:
        asked[0] += 1
        return step(self, *given)

    def perhaps_broken(self: Learner, *given: Any) -> float:
        loss = accumulate(self, *given)
        return math.nan if asked[0] in broken else loss

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(kind, "step", counted)
        patched.setattr(kind, "_accumulate", perhaps_broken)
        yield


def assert_equal_weights(folder: Path, phase: str) -> None:
    one, two = (load_model(folder / run / phase).state_dict() for run in ("alone", "run"))
    for name, tensor in one.items():
        error = float((two[name] - tensor).norm() / tensor.norm().clamp_min(1e-3))
        assert error <= 1e-5, f"{phase} {name}: {error:.2e}"


@pytest.mark.slow
def test_a_run_on_two_ranks_ends_where_one_process_does_and_one_of_them_speaks(tmp_path: Path) -> None:
    text = (RECIPE + FURTHER).replace("save_seconds = 1000", "save_seconds = 0.01")
    # One row of held-out problems: the second rank has none.
    text = text.replace("tokens = 300", "every_steps = 2\ntokens = 100")
    (tmp_path / "given.toml").write_text(text)
    with rank_pool(2) as ranks:
        spoke, silent = ranks(whole_run, str(tmp_path))
        again, _silent = ranks(whole_run, str(tmp_path))
    assert spoke[-1].startswith("further: finished after")
    assert not silent
    assert again == ["plain: finished before", "further: finished before"]
    Run(read_train_config(tmp_path / "given.toml"), text, tmp_path / "alone").run()
    for phase in ("plain", "further"):
        one, two = (load_model(tmp_path / run / phase).state_dict() for run in ("alone", "run"))
        for name, tensor in one.items():
            torch.testing.assert_close(two[name], tensor, rtol=0.05, atol=0.02, msg=f"{phase}: {name}")


@pytest.mark.slow
def test_rollouts_and_a_return_to_an_earlier_state_are_those_of_one_process(tmp_path: Path) -> None:
    text = (RECIPE + ROLLOUTS).replace("tokens = 6000", "tokens = 3500").replace("row = 120", "row = 200")
    (tmp_path / "given.toml").write_text(text.replace("save_steps = 2", "save_steps = 1"))
    with rank_pool(2) as ranks:
        spoke, silent = ranks(whole_run, str(tmp_path), frozenset({2, 3}))
    with float32_iterations(), breaking(Learner, frozenset({2, 3})):
        alone = run_in(tmp_path, "alone", World())
    assert not silent
    back = "plain: back to the weights of step 2, going on behind step 4"
    assert back in spoke
    assert back in alone
    pools = [(tmp_path / run / "plain.pool-1.jsonl").read_text() for run in ("run", "alone")]
    assert pools[0] == pools[1]
    assert pools[0]
    assert_equal_weights(tmp_path, "plain")


def test_one_process_says_that_it_takes_whole_what_a_recipe_divides(tmp_path: Path) -> None:
    text = RECIPE.replace("tokens = 6000", "tokens = 500") + "[phases.sharding]\nexpert = 2\ncontext = 3\n"
    (tmp_path / "given.toml").write_text(text)
    told = run_in(tmp_path, "alone", World())
    assert told[1].startswith("plain: the recipe divides experts over 2 and rows over 3 ranks; this one process takes")
    assert "torchrun --nproc-per-node 6" in told[1]
