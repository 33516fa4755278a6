"""A tiny model with random weights in a folder, as the verbs take one, and the program in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from openzaya.cli.main import app


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a ZAYA of 58,000 parameters with a tokenizer; its replies are noise."""
    from openzaya.chat import train_tokenizer
    from openzaya.model.checkpoint import save_model
    from openzaya.model.config import NAMED_SHAPES
    from openzaya.model.decoder import ZayaForCausalLM
    from openzaya.model.initialise import initialise

    folder = tmp_path_factory.mktemp("models") / "random"
    tokenizer = train_tokenizer(["Compute 17 + 25 - 9. The answer is 33."] * 3, 320, folder)
    config = NAMED_SHAPES["tiny"].with_(
        vocab_size=tokenizer.vocab_size, hidden_size=32, num_hidden_layers=2, head_dim=16, num_experts=4,
        moe_intermediate_size=32, router_hidden_size=16, eos_token_id=min(tokenizer.eos_ids),
        bos_token_id=tokenizer.bos_id, pad_token_id=tokenizer.pad_id, max_position_embeddings=1024,
    )  # fmt: skip
    save_model(initialise(ZayaForCausalLM(config), 1), folder)
    return folder


@pytest.fixture
def openzaya_program() -> Callable[..., Result]:
    """Runs the program with some arguments in this process: `.exit_code`, `.stdout`, `.stderr`."""

    def run(*arguments: object, stdin: str | None = None) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)

    return run


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries follow at once."""
    monkeypatch.setattr("openzaya.backends.retries.RetryPolicy.delay", lambda *_arguments: 0.0)
