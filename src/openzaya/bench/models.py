"""The model that a benchmark asks for: one that is there, or one of random weights that is made for it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from openzaya.bench.synthetic import random_container, random_model
from openzaya.model.checkpoint import find_model
from openzaya.model.config import NAMED_SHAPES
from openzaya.model.decoder import ZayaForCausalLM
from openzaya.model.quantised.container import Container
from openzaya.model.quantised.quantise import quantise_checkpoint
from openzaya.model.quantised.scheme import Scheme

SHAPES = tuple(name for name in NAMED_SHAPES if name != "tiny")
"""Shapes that are made of random weights; `tiny` is the bundled model itself."""
OnBytes = Callable[[int, int], None]


@contextmanager
def model_for(
    name: str,
    scheme: Scheme | None,
    *,
    keep: Path | None = None,
    device: str = "cpu",
    progress: OnBytes | None = None,
) -> Iterator[Path | ZayaForCausalLM]:
    """The folder of a model, or a model in memory, as long as the block lasts.

    `name` is a folder, a hub id or `tiny`, quantised in `scheme` first where one is given; or one of `SHAPES`, which
    gets random weights: a quantised folder in `scheme`, or without one a model in bfloat16 in the memory of `device`.
    A random folder is kept in `keep` and used again; everything else that is written goes away with the block.
    `progress` gets bytes done and in all of what is written. Raises ValueError for a model that cannot be had.
    """
    with ExitStack() as stack:
        if name in SHAPES and scheme is None:
            yield random_model(NAMED_SHAPES[name], device)
            return
        if name not in SHAPES and scheme is None:
            yield find_model(name)
            return
        assert scheme is not None
        known = f"{name}-random-{scheme.name}" + (f"-group{scheme.group}" if scheme.group else "")
        if keep is None or name not in SHAPES:
            room = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="openzaya-bench-")))
        else:
            room = keep
        folder = room / (known if name in SHAPES else "quantised")
        if name not in SHAPES:
            quantise_checkpoint(find_model(name), folder, scheme, progress and (lambda p: progress(p.done, p.total)))
        elif not folder.is_dir():
            random_container(folder, NAMED_SHAPES[name], scheme, progress=progress)
        elif Container(folder).scheme != scheme:
            raise ValueError(f"{folder} holds another scheme than its name says; remove it, and it is made anew")
        yield folder
