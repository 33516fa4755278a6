"""Folders of models as they lie on the hub, and who follows one on its way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from openzaya.model.hub.journey import Progress
from openzaya.model.hub.plan import Plan
from openzaya.model.names import Layout


def write_checkpoint(folder: Path, layout: Layout = "native", shard_bytes: int = 600_000, seed: int = 1) -> Path:
    """A ZAYA of two megabytes with a tokenizer, in shards of which none is only a header."""
    from openzaya.chat import train_tokenizer
    from openzaya.model.checkpoint import save_model
    from openzaya.model.config import NAMED_SHAPES
    from openzaya.model.decoder import ZayaForCausalLM
    from openzaya.model.initialise import initialise

    tokenizer = train_tokenizer(["Compute 17 + 25 - 9. The answer is 33."] * 3, 320, folder)
    config = NAMED_SHAPES["tiny"].with_(
        vocab_size=tokenizer.vocab_size, hidden_size=128, num_hidden_layers=2, head_dim=16, num_experts=4,
        moe_intermediate_size=128, router_hidden_size=16, eos_token_id=min(tokenizer.eos_ids),
        bos_token_id=tokenizer.bos_id, pad_token_id=tokenizer.pad_id, max_position_embeddings=1024,
    )  # fmt: skip
    save_model(initialise(ZayaForCausalLM(config), seed), folder, layout, max_shard_bytes=shard_bytes)
    (folder / "README.md").write_text("A model card.\n", encoding="utf-8")
    return folder


class Follower:
    """A journey that remembers."""

    def __init__(
        self,
        at_progress: Callable[[Progress], None] | None = None,
        at_begin: Callable[[Plan], None] = lambda _plan: None,
    ) -> None:
        self.plans: list[Plan] = []
        self.steps: list[Progress] = []
        self.told: list[str] = []
        self._at_progress, self._at_begin = at_progress, at_begin

    def begin(self, plan: Plan) -> None:
        self.plans.append(plan)
        self._at_begin(plan)

    def progress(self, progress: Progress) -> None:
        self.steps.append(progress)
        if self._at_progress is not None:
            self._at_progress(progress)

    def tell(self, sentence: str) -> None:
        self.told.append(sentence)
