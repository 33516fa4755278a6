"""`openzaya convert`: rewrite a checkpoint in another layout, dtype or sharding."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openzaya.cli.byte_progress import follow_bytes
from openzaya.cli.exits import InputError, say
from openzaya.cli.figures import byte_size

if TYPE_CHECKING:
    from openzaya.model.names import Layout


def convert(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="The checkpoint: a folder of either layout, a hub id, or tiny.")
    ],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The folder to write.")],
    layout: Annotated[str, typer.Option(metavar="native|legacy", help="Names and stacking of the tensors.")] = "native",
    dtype: Annotated[
        str | None,
        typer.Option(metavar="bfloat16|float32", help="What weights are stored in; kept as it is if not given."),
    ] = None,
    max_shard_size: Annotated[str, typer.Option(metavar="SIZE", help="Largest file, such as 500MB or 4GiB.")] = "5GB",
) -> None:
    """Rewrite a checkpoint in another layout, dtype or sharding.

    Tokenizer and template are copied along. DST appears whole or not at all, and one tensor at a time is in memory.
    """
    from openzaya.engine.sizes import parse_bytes
    from openzaya.model.checkpoint import convert as convert_checkpoint
    from openzaya.model.checkpoint import find_model

    layouts: dict[str, Layout] = {"native": "native", "legacy": "legacy"}
    if layout not in layouts:
        raise InputError(f"--layout is {layout!r}; it is native or legacy")
    try:
        shard_bytes = parse_bytes(max_shard_size)
    except ValueError:
        raise InputError(f"--max-shard-size is {max_shard_size!r}; give a size such as 500MB or 4GiB") from None
    with follow_bytes(f"writing {destination}") as progress:
        convert_checkpoint(find_model(source), destination, layouts[layout], dtype, shard_bytes, progress)
    files = list(destination.glob("*.safetensors"))
    size = byte_size(sum(file.stat().st_size for file in files))
    say(f"{destination}: {layout} layout, {size} of weights in {len(files)} file{'s' if len(files) > 1 else ''}")
