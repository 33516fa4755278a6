from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rank_pool import rank_pool
from test_recovery import RECIPE

from openzaya.model.checkpoint import load_model
from openzaya.train.config import read_train_config
from openzaya.train.loop import Run

FURTHER = '[[phases]]\nname = "further"\nstart = "plain"\ntokens = 1500\nbatch_tokens = 500\nrow = 120\n'


def whole_run(folder: str) -> list[str]:
    """On every rank: a run of two phases, as `openzaya train` does it under torchrun."""
    from openzaya.train.sharding.world import Ranks

    told: list[str] = []
    path = Path(folder) / "given.toml"
    world = Ranks("cpu")
    run = Run(read_train_config(path), path.read_text(), Path(folder) / "run", lambda r: told.append(str(r)), world)
    run.run()
    return told


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
