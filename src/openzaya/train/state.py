"""The state of a run on disk: written whole or not at all, no pickle, taken up after a kill."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands. The next thing it does is `step` of `phase`."""

    recipe_hash: str
    phase: str
    step: int
    optimizer_steps: int
    balancing_steps: int
    refreshes: int
    seconds: float
    """Working time so far, over all relaunches."""


def recipe_hash(text: str) -> str:
    """Identity of a recipe, kept with its state so that a changed recipe is not continued by mistake."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_state(path: Path, tensors: Mapping[str, Tensor], progress: Progress) -> None:
    """Replace the state at `path`; a kill at any moment leaves the old one or the new one."""
    partial = path.with_suffix(".partial")
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, partial, metadata={"progress": json.dumps(asdict(progress))})
    with partial.open("rb") as written:
        os.fsync(written.fileno())
    partial.replace(path)


def read_state(path: Path) -> tuple[dict[str, Tensor], Progress]:
    """Read a state; raises ValueError where the file is not one."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, Progress(**json.loads(metadata["progress"]))
    except Exception as error:
        raise ValueError(f"{path} is not a training state ({error}); remove it to start the phase anew") from None
